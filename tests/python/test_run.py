"""`pertoken run` and PERTOKEN_PROFILE, with real scripts in real processes.

Where the package is not installed, as in a source tree, a `sitecustomize` reads the tree's `.pth`
file for processes that have no `pertoken run` in front, as the interpreter does where it is.
"""

from __future__ import annotations

import os
import re
import signal
import site
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

import pertoken
from waiting import PATIENCE_S

AUTOSTART = Path(pertoken.__file__).resolve().parents[1] / "pertoken_autostart.pth"
IS_INSTALLED = AUTOSTART.parent in [Path(folder).resolve() for folder in site.getsitepackages()]
SITECUSTOMIZE = (
    "import site\n"
    if IS_INSTALLED
    else f"import site; site.addsitedir({str(AUTOSTART.parent)!r})\n"
)
RUN = (sys.executable, "-m", "pertoken", "run")
NO_MODEL = "pertoken: no model was called in this process, so there is no profile of it\n"

# A model of plain PyTorch: quick to import, and without generate().
TINY = """
import os, sys, torch
from torch import nn
torch.set_num_threads(1)
class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        self.head = nn.Linear(4, 2)
    def forward(self, x):
        return self.head(self.body(x))
def run(times):
    model = Tiny().eval()
    for _ in range(times):
        model(torch.zeros(1, 4))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to run in, with a `sitecustomize` beside it that reads the `.pth` file."""
    place = tmp_path / "site"
    place.mkdir()
    (place / "sitecustomize.py").write_text(SITECUSTOMIZE)
    tree = "" if IS_INSTALLED else str(AUTOSTART.parent)
    paths = [str(place), tree, os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    monkeypatch.delenv("PERTOKEN_PROFILE", raising=False)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return work


def write(name: str, body: str, head: str = "") -> None:
    Path(name).write_text(head + textwrap.dedent(body))


def execute(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def profiles(folder: Path) -> dict[str, Any]:
    return {path.name: pertoken.load(path) for path in sorted(folder.rglob("*.pertoken"))}


def step_counts(folder: Path) -> list[int]:
    return sorted(len(profile.steps) for profile in profiles(folder).values())


SHOW = """
import sys, __main__
main = sys.modules["__main__"]
print(__name__, __file__, sys.argv, __package__, __spec__ is None, main.__dict__ is globals())
print([entry for entry in sys.path if "site" not in entry and "python" not in entry])
"""


def test_a_script_sees_what_python_shows_it(folder: Path) -> None:
    write("show.py", SHOW)
    (folder / "package").mkdir()
    write("package/__init__.py", "")
    write("package/__main__.py", SHOW)
    for arguments in (["show.py", "a", "--summary", "-m"], ["-m", "package", "-o", "x"]):
        plain = execute(sys.executable, *arguments)
        profiled = execute(*RUN, *arguments)
        assert plain.returncode == 0
        assert (profiled.returncode, profiled.stdout) == (0, plain.stdout)
        assert profiled.stderr == NO_MODEL
    assert list(folder.rglob("*.pertoken")) == []


@pytest.mark.parametrize(
    "ending", ["sys.exit(7)", "sys.exit('a message')", "1 / 0", "raise KeyboardInterrupt", "exit()"]
)
def test_exit_codes_and_tracebacks_are_those_of_python(folder: Path, ending: str) -> None:
    write("ends.py", f"import sys\ndef inner():\n    {ending}\ninner()\n")
    plain = execute(sys.executable, "ends.py")
    profiled = execute(*RUN, "ends.py")
    told = (profiled.returncode, profiled.stderr.removesuffix(NO_MODEL))
    assert told == (plain.returncode, plain.stderr)


@pytest.mark.parametrize("ending", ["raise KeyboardInterrupt", "sys.exit(7)"])
def test_writing_a_profile_leaves_the_exit_code_alone(folder: Path, ending: str) -> None:
    write("ends.py", f"run(1); {ending}", TINY)
    plain = execute(sys.executable, "ends.py")
    profiled = execute(*RUN, "ends.py")
    assert step_counts(folder) == [1]
    assert profiled.returncode == plain.returncode == (7 if "7" in ending else -signal.SIGINT)


def test_a_script_that_is_not_there_is_pythons_error(folder: Path) -> None:
    done = execute(*RUN, "absent.py")
    assert done.returncode == 2
    assert "can't open file" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--memory-limit", "much", "x.py"],
        ["--log-interval", "-1", "x.py"],
        ["--log-interval", "nan", "x.py"],
        ["-o", "", "x.py"],
        ["--modules", "", "x.py"],
        ["--spool=", "x.py"],
    ],
)
def test_wrong_usage_exits_with_2(folder: Path, arguments: list[str]) -> None:
    done = execute(*RUN, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Usage: ")


GENERATE = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import models, torch
def main():
    model, ids = models.llama(), models.prompt()
    model.generate(ids, max_new_tokens=4)
    with torch.no_grad():
        torch.nn.Linear(2, 2)(torch.zeros(2))
        models.bert()(ids)
    model.generate(ids, max_new_tokens=3)
    raise ValueError("of the script")
"""


@pytest.mark.slow
def test_each_model_of_a_script_has_a_file_a_trace_and_a_summary_also_when_it_fails(
    folder: Path,
) -> None:
    write("serve.py", "main()\n", GENERATE)
    done = execute(*RUN, "--chrome", "--modules", "all", "-o", "out", "serve.py")
    assert done.returncode == 1
    assert "ValueError: of the script" in done.stderr
    names = sorted(path.name for path in (folder / "out").iterdir())
    (pid,) = {re.split(r"[-.]", name)[2] for name in names}
    stems = [f"pertoken-serve-{pid}", f"pertoken-serve-{pid}-model2"]
    assert names == sorted(stem + suffix for stem in stems for suffix in (".pertoken", ".json"))
    llama, bert = (profiles(folder)[f"{stem}.pertoken"] for stem in stems)
    assert (llama.meta["model"]["class"], bert.meta["model"]["class"]) == (
        "LlamaForCausalLM",
        "BertModel",
    )
    assert llama.meta["modules"] == "all" and llama.meta["pid"] == int(pid)
    assert llama.requests["tokens_out"].tolist() == [4, 3]
    assert llama.steps["kind"].tolist() == ["prefill", *["decode"] * 3, "prefill", *["decode"] * 2]
    assert len(bert.steps) == 1
    assert f"wrote {folder}/out/{stems[0]}.pertoken (LlamaForCausalLM, 2 requests" in done.stderr
    assert done.stderr.count("Latency") == 2


def test_no_summary_is_printed_where_none_is_wanted(folder: Path) -> None:
    write("serve.py", "run(2); run(1)", TINY)
    done = execute(*RUN, "--no-summary", "-o", "run.pertoken", "serve.py")
    assert done.returncode == 0
    assert "Latency" not in done.stderr
    assert list(profiles(folder)) == ["run-model2.pertoken", "run.pertoken"]


WORKERS = """
def work(times):
    run(times)
    if times == 3:
        os.chdir("/")

if __name__ == "__main__":
    import multiprocessing, subprocess
    method = sys.argv[1]
    run(1)
    if method == "subprocess":
        code = TINY + "run(2); os.chdir('/')"
        subprocess.run([sys.executable, "-c", code], check=True)
    elif method == "os.fork":
        if os.fork() == 0:
            run(2)
            sys.exit(0)
        assert os.wait()[1] == 0
    else:
        context = multiprocessing.get_context(method)
        processes = [context.Process(target=work, args=(times,)) for times in (2, 3)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
            assert process.exitcode == 0
    run(1)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "steps"),
    [
        ("spawn", [1, 1, 2, 3]),
        ("forkserver", [1, 1, 2, 3]),
        ("fork", [1, 1, 2, 3]),
        ("os.fork", [1, 1, 2]),
        ("subprocess", [1, 1, 2]),
    ],
)
def test_worker_processes_write_files_of_their_own(
    folder: Path, method: str, steps: list[int]
) -> None:
    write("train.py", WORKERS, f"{TINY}\nTINY = {TINY!r}\n")
    done = execute(
        sys.executable, "train.py", method, PERTOKEN_PROFILE="output=out/run.pertoken,summary=1"
    )
    assert (done.returncode, done.stdout) == (0, "")
    assert step_counts(folder) == steps
    assert {path.parent for path in folder.rglob("*.pertoken")} == {folder / "out"}
    pids = {profile.meta["pid"] for profile in profiles(folder).values()}
    assert len(pids) == len(steps) - 1  # the script itself ran two models
    assert (folder / "out" / "run.pertoken").exists()
    assert done.stderr.count("Latency") == 2  # of the script itself


@pytest.mark.skipif(IS_INSTALLED, reason="pertoken is installed here: it starts by its .pth file")
def test_workers_inherit_where_the_package_is_not_installed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = folder.parent / "theirs"
    theirs.mkdir()
    (theirs / "sitecustomize.py").write_text("import builtins; builtins.theirs = __file__\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(theirs), str(AUTOSTART.parent)]))
    code = TINY + "run(2)\nassert theirs.startswith(sys.argv[1])\n"
    write("parent.py", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r},"
          " sys.argv[1]], check=True); print(theirs, *sys.path[1:3])\n")  # fmt: skip
    done = execute(*RUN, "parent.py", str(theirs))
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [
        str(theirs / "sitecustomize.py"),
        str(theirs),
        str(AUTOSTART.parent),
    ]
    assert step_counts(folder) == [2]


BAD = {
    "modules=": "modules is empty",
    "memory_limit=12": "at least 1M",
    "log_interval=soon": "a number of seconds",
    "chrome=maybe": "neither 1 nor 0",
    "nonsense=1": "'nonsense=1' is not an option",
    "output=x,y": "'y' is not an option",
    "output=": "the output is empty",
    "\udcff=1": "is not an option",
    "a\nb=1": "is not an option",
}


@pytest.mark.parametrize("value", BAD)
def test_a_bad_value_is_one_line_and_the_program_runs(folder: Path, value: str) -> None:
    done = execute(sys.executable, "-c", "print('runs')", PERTOKEN_PROFILE=value)
    assert (done.returncode, done.stdout) == (0, "runs\n")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("pertoken: PERTOKEN_PROFILE is not usable")
    assert BAD[value] in done.stderr


def test_a_folder_that_cannot_be_written_is_one_line_and_no_failure(folder: Path) -> None:
    Path("file").write_text("in the way")
    done = execute(sys.executable, "-c", TINY + "run(1)", PERTOKEN_PROFILE="file/out")
    assert done.returncode == 0
    assert done.stderr.startswith("pertoken: a profile is lost: cannot write '")
    assert "a part of it is not a folder" in done.stderr and done.stderr.count("\n") == 1


def test_an_interpreter_in_the_place_of_the_script_is_wrong_usage(folder: Path) -> None:
    """As `nsys profile python script.py` and `py-spy record -- python script.py` want it."""
    write("script.py", "print('runs')")
    for interpreter in ("python", "python3.11", sys.executable):
        done = execute(*RUN, interpreter, "script.py")
        assert (done.returncode, done.stdout) == (2, "")
        assert "give the script, not the interpreter: pertoken run script.py" in done.stderr
    write("python", "print('a script')")
    assert execute(*RUN, "python").stdout == "a script\n"


def test_a_trace_that_cannot_be_written_is_told_and_the_profile_is_there(folder: Path) -> None:
    (folder / "run.json").mkdir()
    done = execute(
        sys.executable, "-c", TINY + "run(1)", PERTOKEN_PROFILE="output=run.pertoken,chrome=1"
    )
    assert done.returncode == 0
    assert "pertoken: no trace of run.pertoken: " in done.stderr and "lost" not in done.stderr
    assert step_counts(folder) == [1]


def test_a_script_that_is_killed_is_recovered_from_its_spool(folder: Path) -> None:
    ends = "model = run(3)\nos.kill(os.getpid(), 9)\n"
    done = execute(sys.executable, "-c", TINY + ends, PERTOKEN_PROFILE="output=out,spool=spool")
    assert done.returncode == -signal.SIGKILL and list(folder.rglob("*.pertoken")) == []
    profile = pertoken.recover("spool")
    assert len(profile.steps) == 3 and profile.meta["model"]["class"] == "Tiny"


def test_a_pattern_that_matches_nothing_leaves_the_model_unrecorded_and_says_so(
    folder: Path,
) -> None:
    done = execute(
        sys.executable, "-c", TINY + "run(2)", PERTOKEN_PROFILE="output=out,modules=absent.*"
    )
    assert done.returncode == 0
    assert "1 model could not be recorded: Tiny (modules='absent.*'" in done.stderr
    assert list(folder.rglob("*.pertoken")) == []


def modules_at_start(folder: Path, **environment: str) -> set[str]:
    done = execute(sys.executable, "-c", "import sys; print(*sys.modules)", **environment)
    assert (done.returncode, done.stderr) == (0, "")
    return set(done.stdout.split())


def test_without_the_variable_an_interpreter_imports_nothing_more(folder: Path) -> None:
    assert {name for name in modules_at_start(folder) if name.startswith("pertoken")} == set()
    (folder.parent / "site" / "sitecustomize.py").write_text("import site\n")
    plain = modules_at_start(folder)
    write("../site/sitecustomize.py", SITECUSTOMIZE)
    assert modules_at_start(folder) == plain
    assert modules_at_start(folder, PERTOKEN_PROFILE="") == plain
    assert modules_at_start(folder, PERTOKEN_PROFILE="x", PERTOKEN="0") == plain


def test_a_program_without_torch_only_waits_for_it(folder: Path) -> None:
    added = modules_at_start(folder, PERTOKEN_PROFILE="out")
    assert "pertoken.autostart" in added
    assert not {"torch", "numpy", "pertoken._native", "pertoken.recording"} & added
    assert list(folder.iterdir()) == []


OFF = """
import contextvars, threading, pertoken
from pertoken import _native
model, x = Tiny().eval(), torch.zeros(1, 4)
variables = len(contextvars.copy_context())
before = {name: dict(module.__dict__) for name, module in model.named_modules()}
assert nn.Module.__dict__["_compiled_call_impl"] is None
from pertoken.engines import Engine, Row, manual
engine = Engine(model=model)
with pertoken.profile(model, modules="all", log_interval_s=0.001) as recording:
    engine.request_arrived("a")
    manual.request_arrived("a")
    with engine.step([Row("a", "decode")]) as step:
        step.committed({"a": 1})
    with pertoken.step(rows=[Row("b", "decode", 1, 1, 1)]):
        model(x)
    assert engine.open_requests == manual.open_requests == []
    assert engine.faults == manual.faults == {}
    engine.request_finished("a")
    with pertoken.request(id=1), pertoken.step("decode", rows=1), pertoken.span("s"):
        model(x)
        assert len(contextvars.copy_context()) == variables
    assert {name: dict(module.__dict__) for name, module in model.named_modules()} == before
    names = [open(f"/proc/self/task/{t}/comm").read() for t in os.listdir("/proc/self/task")]
    assert not [name for name in names if name.startswith("pertoken")], names
    assert not [t for t in threading.enumerate() if t.name.startswith("pertoken")]
    assert recording.recorder.store_bytes == len(recording.result().tracks) == 0
assert "PERTOKEN=0" in recording.status()
assert len(recording.result().spans) == len(recording.result().requests) == 0
print("checked")
"""


def test_pertoken_0_leaves_no_wrapper_no_thread_and_no_buffer(folder: Path) -> None:
    write("off.py", OFF, TINY)
    done = execute(*RUN, "off.py", PERTOKEN="0", PERTOKEN_PROFILE="out")
    assert (done.returncode, done.stdout, done.stderr) == (0, "checked\n", "")
    assert sorted(path.name for path in folder.iterdir()) == ["off.py"]


def test_sigterm_without_a_handler_leaves_no_part_of_a_file(folder: Path) -> None:
    write("waits.py", "run(1); print('ready', flush=True); import time; time.sleep(600)", TINY)
    process = subprocess.Popen(
        [*RUN, "waits.py"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.terminate()  # it reaches the script: there is no process between
    assert process.wait(PATIENCE_S) == -signal.SIGTERM
    process.stdout.close()
    assert sorted(path.name for path in folder.iterdir()) == ["waits.py"]


UNTIL_LOGGED = """
import logging, threading
logged = threading.Event()
class Handler(logging.Handler):
    def emit(self, record):
        logged.set()
logging.getLogger("pertoken").addHandler(Handler())
model = Tiny().eval()
while not logged.is_set():
    model(torch.zeros(1, 4))
"""


def test_status_is_logged_at_the_interval_that_is_asked_for(folder: Path) -> None:
    write("long.py", UNTIL_LOGGED, TINY)
    done = execute(*RUN, "--log-interval", "0.05", "--no-summary", "long.py")
    assert done.returncode == 0
    assert re.search(r"^pertoken: recording Tiny \(layers\) for ", done.stderr, re.MULTILINE)
