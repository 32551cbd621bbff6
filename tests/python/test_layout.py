"""The dependency rules of the design, as tests over the sources, and the cost of the import.

Each rule is a function from sources to violations, so that a planted violation can show that the
rule would find one.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from waiting import PATIENCE_S

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "python" / "pertoken"

# Which layer of csrc/ may include which, itself aside.
MAY_INCLUDE = {
    "core": set(),
    "cuda": {"core"},
    "export": {"core"},
    "bindings": {"core", "cuda", "export"},
}
FOREIGN_HEADER = re.compile(r"^(torch|ATen|c10|cuda|cupti|nvml)|^(Python\.h|pybind11/)")
PYTHON_HEADER = re.compile(r"^(Python\.h|pybind11/)")

INTRINSICS = re.compile(
    r"#\s*include\s*<(\w*intrin|cpuid|arm_\w+)\.h>|\b(__rdtscp?|_mm\d*_\w+|__builtin_ia32_\w+)\b"
    r"|\b__?asm(__)?\b|\basm\s*(volatile\s*)?\("
)
OWN_HEADER = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.MULTILINE)
CONCURRENT = re.compile(
    r"\bstd::(atomic|j?thread|async|\w*mutex|\w*lock\b|call_once|condition_variable|latch|barrier)"
    r"|\b(pthread_\w+|__atomic_\w+|__sync_\w+|thread_local|volatile|fork\(\))"
)
ARCHITECTURE = re.compile(r"__x86_64__|__aarch64__|__AVX|__SSE|__ARM_NEON|__CUDA_ARCH__")

RESULT_SIDE = {
    "_native", "analysis", "clock_alignment", "errors", "experiment", "export", "histogram",
    "histogram_exchange", "manifest", "merging", "number_argument", "older_formats", "processes",
    "quantity", "result", "schema", "storage", "strings", "summary", "summary_activations",
    "summary_block", "summary_confidence", "summary_cost", "summary_html", "summary_layout",
    "summary_processes", "summary_text", "table", "tensor_memory", "totals", "totals_json",
    "version", "whole_file",
}  # fmt: skip
# An experiment compares anything: it knows nothing of profiles.
EXPERIMENT_MAY_IMPORT = {
    "errors", "experiment", "number_argument", "quantity", "summary_block", "summary_text",
}  # fmt: skip
OPTIONAL = {"torch", "transformers", "pandas", "pyarrow", "safetensors", "pynvml", "accelerate"}
TERMINAL = {"rich", "click"}
SHADOWING = {"profile", "request", "step", "span", "load", "observe"}
VAGUE = {"utils", "util", "helpers", "helper", "common", "misc"}

LIMIT_LINES = 450
LIMIT_IMPORT_SECONDS = 0.020


def _sources(*suffixes: str) -> list[Path]:
    folders = ("csrc", "python", "tests", "benchmarks", "cmake")
    return sorted(
        path
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.suffix in suffixes and "__pycache__" not in path.parts
    )


def include_violations(layer: str, text: str) -> list[str]:
    """Includes in `text`, a file of `csrc/<layer>/`, that its layer may not have."""
    wrong = []
    for quote, header in re.findall(r'^\s*#\s*include\s*([<"])([^">]+)[">]', text, re.MULTILINE):
        folder = header.split("/")[0] if "/" in header else layer
        own = folder in {layer, *MAY_INCLUDE[layer]}
        foreign = FOREIGN_HEADER.match(header) is not None
        python = layer == "bindings" and PYTHON_HEADER.match(header) is not None
        if (quote == '"' and not own) or (quote == "<" and foreign and not python):
            wrong.append(header)
    return wrong


def unguarded_intrinsics(text: str) -> list[str]:
    """Lines of C++ that only one architecture has, outside an #if that names an architecture."""
    conditions: list[str] = []
    wrong = []
    code = re.sub(r"/\*.*?\*/", lambda m: "\n" * m.group().count("\n"), text, flags=re.DOTALL)
    for line in re.sub(r"//.*", "", code).splitlines():
        directive = re.match(r"\s*#\s*(if|ifdef|ifndef|elif|else|endif)\b(.*)", line)
        if directive and directive[1].startswith("if"):
            conditions.append(directive[2] if directive[1] != "ifndef" else "")
        elif directive and directive[1] == "elif":
            conditions[-1] = directive[2]
        elif directive and directive[1] == "else":
            conditions[-1] = ""
        elif directive and directive[1] == "endif":
            conditions.pop()
        elif INTRINSICS.search(line) and not any(map(ARCHITECTURE.search, conditions)):
            wrong.append(line.strip())
    return wrong


def imported_modules(text: str, package: str, *, at_import: bool) -> Iterator[str]:
    """Dotted names that a module of `package` imports; those of type checking left out.

    With `at_import`, only what is imported when the module itself is.
    """

    def walk(nodes: list[ast.AST]) -> Iterator[ast.stmt]:
        for node in nodes:
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                yield from walk(list(node.orelse))
            elif isinstance(node, ast.Import | ast.ImportFrom):
                yield node
            elif not (at_import and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
                yield from walk(list(ast.iter_child_nodes(node)))

    for node in walk(list(ast.parse(text).body)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) + 1 - node.level]
            prefix = ".".join([*base, node.module or ""] if node.level else [node.module or ""])
            prefix = prefix.rstrip(".")
            yield prefix
            yield from (f"{prefix}.{alias.name}" for alias in node.names)


def concurrent_parts(sources: Mapping[str, str], test: str) -> list[str]:
    """Which of `sources` that `test` is built from by its includes know of threads.

    `sources` are texts by the name that an include gives. A header brings the source of its name.
    """
    seen: set[str] = set()
    waiting = [test]
    while waiting:
        name = waiting.pop()
        if name in seen or name not in sources:
            continue
        seen.add(name)
        waiting += OWN_HEADER.findall(sources[name])
        waiting.append(str(Path(name).with_suffix(".cpp")))
    return sorted(name for name in seen if CONCURRENT.search(sources[name]))


def import_violations(path: str, text: str) -> list[str]:
    """Imports of the module at `path`, below python/pertoken/, that the design does not allow."""
    parts = Path(path).with_suffix("").parts
    package = ".".join(("pertoken", *parts[:-1]))
    area = parts[0]
    wrong = []
    for name in imported_modules(text, package, at_import=False):
        top, own = (*name.split("."), "")[:2]
        if area in RESULT_SIDE and top in {"torch", "transformers"}:
            wrong.append(name)
        if top != "pertoken" or not own:
            continue
        if area in RESULT_SIDE and own not in RESULT_SIDE:
            wrong.append(name)
        if area == "analysis" and own == "export":
            wrong.append(name)
        if area == "experiment" and own not in EXPERIMENT_MAY_IMPORT:
            wrong.append(name)
        if own == "cli" and area not in ("cli", "__main__"):
            wrong.append(name)
    for name in imported_modules(text, package, at_import=True):
        top = name.split(".")[0]
        if (top in OPTIONAL and area != "demo") or (top in TERMINAL and area != "cli"):
            wrong.append(f"{name} (when imported)")
    return wrong


@pytest.mark.parametrize("layer", MAY_INCLUDE)
def test_native_layers_include_only_what_is_below_them(layer: str) -> None:
    found = {
        str(path.relative_to(ROOT)): wrong
        for path in _sources(".h", ".cpp", ".cu")
        if path.is_relative_to(ROOT / "csrc" / layer)
        and (wrong := include_violations(layer, path.read_text()))
    }
    assert not found


def test_every_native_source_belongs_to_a_layer() -> None:
    csrc = ROOT / "csrc"
    layers = {path.relative_to(csrc).parts[0] for path in csrc.rglob("*") if path.is_file()}
    assert {"core", "bindings", "export"} <= layers <= set(MAY_INCLUDE)


@pytest.mark.parametrize(
    ("layer", "line", "allowed"),
    [
        ("core", '#include "core/clock.h"', True),
        ("core", "#include <atomic>", True),
        ("core", '#include "bindings/module.h"', False),
        ("core", '#include "export/chrome_trace.h"', False),
        ("core", "#include <Python.h>", False),
        ("core", "#  include <pybind11/pybind11.h>", False),
        ("core", "#include <torch/extension.h>", False),
        ("core", "#include <cuda.h>", False),
        ("export", '#include "core/record.h"', True),
        ("export", '#include "cuda/driver_api.h"', False),
        ("export", "#include <Python.h>", False),
        ("bindings", '#include "export/chrome_trace.h"', True),
        ("bindings", "#include <Python.h>", True),
        ("bindings", "#include <cuda_runtime.h>", False),
        ("bindings", "#include <ATen/ATen.h>", False),
    ],
)
def test_the_include_rule_finds_what_is_planted(layer: str, line: str, allowed: bool) -> None:
    assert (include_violations(layer, f"// A file.\n{line}\n") == []) is allowed


def test_intrinsics_stand_behind_a_check_of_the_architecture() -> None:
    found = {
        str(path.relative_to(ROOT)): wrong
        for path in _sources(".h", ".cpp")
        if (wrong := unguarded_intrinsics(path.read_text()))
    }
    assert not found


@pytest.mark.parametrize(
    ("text", "guarded"),
    [
        ("#include <immintrin.h>", False),
        ("#include <cpuid.h>", False),
        ("auto t = __rdtsc();", False),
        ('asm volatile("mrs");', False),
        ("#if defined(__x86_64__)\n#include <immintrin.h>\n#endif", True),
        ("#ifdef __x86_64__\n#ifdef X\nx = __rdtsc();\n#endif\n#endif", True),
        ("#if defined(__x86_64__)\n#else\nx = __rdtsc();\n#endif", False),
        ("#ifndef __x86_64__\nx = __rdtsc();\n#endif", False),
        ('#if defined(__CUDA_ARCH__)\nasm("cvt");\n#endif', True),
        ('#if defined(__CUDACC__)\nasm("cvt");\n#endif', False),
        ("#if X\n#elif defined(__aarch64__)\n#include <arm_neon.h>\n#endif", True),
        ("// __rdtsc() in a comment\n/* _mm_add_ps(a, b)\n*/", True),
    ],
)
def test_the_intrinsics_rule_finds_what_is_planted(text: str, guarded: bool) -> None:
    assert (unguarded_intrinsics(text) == []) is guarded


def test_what_thread_sanitizer_leaves_out_knows_of_no_threads() -> None:
    """Each test that CMakeLists.txt leaves out of that build, with all that it includes."""
    sources = {
        str(path.relative_to(folder)): path.read_text()
        for folder in (ROOT / "csrc", ROOT / "tests" / "cpp")
        for path in _sources(".h", ".cpp")
        if path.is_relative_to(folder)
    }
    cmake = (ROOT / "CMakeLists.txt").read_text()
    listed = re.search(r"set\(tests_without_threads\s+([^)]+)\)", cmake)
    assert listed is not None
    for test in listed[1].split():
        assert f"{test}.cpp" in sources
        assert concurrent_parts(sources, f"{test}.cpp") == []
    assert "core/recorder.h" in concurrent_parts(sources, "test_recorder.cpp")


@pytest.mark.parametrize(
    ("part", "text"),
    [
        ("test_a.cpp", "std::thread worker;"),
        ("core/a.h", "std::atomic<int> count;"),
        ("core/a.cpp", "thread_local int depth;"),
        ("core/b.cpp", "const std::scoped_lock lock(mutex);"),
    ],
)
def test_the_threads_rule_finds_what_is_planted(part: str, text: str) -> None:
    sources = dict.fromkeys(("core/a.cpp", "core/b.h", "core/b.cpp"), "")
    sources |= {"test_a.cpp": '#include "core/a.h"', "core/a.h": '#include "core/b.h"'}
    assert concurrent_parts(sources, "test_a.cpp") == []
    sources[part] += f"\n{text}"
    assert concurrent_parts(sources, "test_a.cpp") == [part]


def test_python_modules_import_only_what_is_below_them() -> None:
    found = {
        str(path.relative_to(PACKAGE)): wrong
        for path in _sources(".py")
        if path.is_relative_to(PACKAGE)
        and (wrong := import_violations(str(path.relative_to(PACKAGE)), path.read_text()))
    }
    assert not found


@pytest.mark.parametrize(
    ("path", "line", "allowed"),
    [
        ("analysis/summary.py", "from pertoken.result import Profile", True),
        ("analysis/summary.py", "def f():\n    import torch", False),
        ("analysis/summary.py", "from pertoken import recording", False),
        ("analysis/summary.py", "from ..recording import Recording", False),
        ("analysis/summary.py", "from pertoken.export import chrome_trace", False),
        ("analysis/summary.py", "import rich", False),
        ("analysis/summary.py", "def f():\n    import rich", True),
        ("export/chrome_trace.py", "import pertoken.instrument", False),
        ("export/chrome_trace.py", "from pertoken import _native", True),
        ("export/chrome_trace.py", "from pertoken.cli import main", False),
        ("experiment/plan.py", "from pertoken.errors import ExperimentError", True),
        ("experiment/result.py", "from pertoken.result import Profile", False),
        ("experiment/comparison.py", "def f():\n    from pertoken import recording", False),
        ("result.py", "def f():\n    from pertoken.analysis import summary", True),
        ("result.py", "def f():\n    from pertoken.generation import x", False),
        ("table.py", "import pandas", False),
        ("table.py", "if TYPE_CHECKING:\n    import pandas", True),
        ("table.py", "try:\n    import pandas\nexcept ImportError:\n    pass", False),
        ("table.py", "def f():\n    import pandas", True),
        ("recording.py", "import torch", False),
        ("recording.py", "class A:\n    import torch", False),
        ("recording.py", "def f():\n    import torch", True),
        ("recording.py", "def f():\n    from pertoken import cli", False),
        ("cli/doctor.py", "import click", True),
        ("cli/demo.py", "import torch", False),
        ("__main__.py", "from pertoken.cli import main", True),
    ],
)
def test_the_import_rule_finds_what_is_planted(path: str, line: str, allowed: bool) -> None:
    assert (import_violations(path, f"{line}\n") == []) is allowed


def test_files_are_of_one_noun_and_of_readable_length() -> None:
    # But for the stub, which declares one module whole.
    long = {
        str(path.relative_to(ROOT)): lines
        for path in _sources(".py", ".h", ".cpp", ".cu")
        if (lines := len(path.read_text().splitlines())) > LIMIT_LINES
    }
    vague = [str(path) for path in _sources(".py", ".h", ".cpp", ".cu") if path.stem in VAGUE]
    shadowing = [str(path) for path in PACKAGE.glob("*.py") if path.stem in SHADOWING]
    assert (long, vague, shadowing) == ({}, [], [])


def _python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], check=True, text=True, capture_output=True, timeout=PATIENCE_S
    ).stdout


def test_the_import_brings_no_optional_library() -> None:
    modules = set(_python("import sys, pertoken; print(*sys.modules)").split())
    assert "pertoken" in modules
    assert not (OPTIONAL | TERMINAL) & modules
    assert not {name for name in modules if name.startswith("pertoken.export")}


def test_the_import_costs_little_over_that_of_numpy() -> None:
    """At most 20 ms after numpy, in the fastest of several processes: the others waited."""
    code = (
        "import time, numpy; start = time.perf_counter(); import pertoken;"
        "print(time.perf_counter() - start)"
    )
    assert min(float(_python(code)) for _ in range(9)) <= LIMIT_IMPORT_SECONDS
