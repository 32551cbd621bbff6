"""Runs the benchmarks, each in a process of its own, and writes their results to one file.

``python benchmarks/run.py`` runs all and writes ``benchmarks/results/<date>-<cpu>.json``, of which
``report.py`` makes the performance page. Part of them, or a smoke run with tiny sizes, goes where
``--output`` says, so that a committed file always is one whole run. ``--renew FILE`` measures some
of a whole run again on the same machine, after a change that concerns no other; the file and the
page say which, and when. ``--gpu`` runs those that need a GPU, into ``benchmarks/results/gpu/``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from bar import Bar
from bars import BARS, verdicts
from gpu_bars import GPU_BARS
from machine import cpu_model, describe_machine, stolen_ticks
from script import quiet_environment, rounded

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
SCHEMA = 1

# The shortest first: what is broken shows early.
BENCHMARKS = {
    "store_memory": "memory a span in the native store",
    "call_cost": "cost of a wrapped call",
    "native_micro": "operations of the native core",
    "micro": "microbenchmarks of the public operations",
    "stop_latency": "latency of stop() after a million spans",
    "instruction_counts": "instructions a call, by valgrind",
    "tensor_stats": "histograms of tensors, beside torch's and numpy's",
    "activations": "observing activations, beside hooks with torch",
    "logit_pass": "the pass over logits, beside torch's softmax",
    "export_speed": "Chrome export, beside torch.profiler's",
    "peers": "other tools on the same work",
    "compiled_layers": "layers inside a compiled model",
    "totals_snapshot": "totals of a model that runs",
    "decode_overhead": "overhead in a decode",
    "long_run": "fifty million spans, ten million steps",
    "sampler_budget": "budgets that are kept",
}
# With --gpu, into a file of their own.
GPU_BENCHMARKS = {
    "gpu_stats": "histograms of tensors on a GPU",
    "gpu_logits": "reading logits on a GPU, alone and in a decode",
    "gpu_activations": "observing activations in a decode on a GPU, beside hooks with torch",
    "gpu_overhead": "overhead in a decode on a GPU",
}


def main() -> int:
    """Runs what the command line names; 1 when a benchmark failed."""
    arguments = _arguments()
    known = GPU_BENCHMARKS if arguments.gpu else BENCHMARKS
    folder = RESULTS / "gpu" if arguments.gpu else RESULTS
    output = arguments.renew or arguments.output or folder / file_name(datetime.now(timezone.utc))
    before = whole_run(output) if arguments.renew else None
    load_before, stolen_before, start = os.getloadavg()[0], stolen_ticks(), time.monotonic()
    results: dict[str, Any] = {}
    failed = []
    names = arguments.benchmarks or list(known)
    for number, name in enumerate(names, 1):
        print(f"[{number}/{len(names)}] {name}: {known[name]}", flush=True)
        begun = time.monotonic()
        measured = run_benchmark(name, smoke=arguments.smoke)
        if measured is None:
            failed.append(name)
        else:
            results[name] = measured
        print(f"      {time.monotonic() - begun:.0f} s", flush=True)
    if failed:
        print(f"failed, nothing written: {', '.join(failed)}", file=sys.stderr)
        return 1
    stolen, ticks = (
        after - before for after, before in zip(stolen_ticks(), stolen_before, strict=True)
    )
    finished = datetime.now(timezone.utc).isoformat(timespec="seconds")
    if before is not None:
        document = renewed(before, results, finished)
    else:
        document = {
            "schema": SCHEMA,
            "finished": finished,
            "duration_s": round(time.monotonic() - start),
            "smoke": arguments.smoke,
            "load_before": load_before,
            "stolen_share": stolen / max(ticks, 1),
            "machine": describe_machine(),
            "benchmarks": results,
        }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(rounded(document), indent=1) + "\n")
    print_bars(document, GPU_BARS if arguments.gpu else BARS)
    print(f"Written: {output}")
    return 0


def run_benchmark(name: str, *, smoke: bool) -> dict[str, Any] | None:
    """What one benchmark measured; None when it failed, after its own message on stderr."""
    with tempfile.TemporaryDirectory(prefix="pertoken-bench-") as folder:
        output = Path(folder, "result.json")
        command = [sys.executable, str(HERE / f"{name}.py"), f"--output={output}"]
        if smoke:
            command.append("--smoke")
        # torch's profiler writes to stderr at every start and stop.
        done = subprocess.run(command, env=quiet_environment(), stderr=subprocess.PIPE, text=True)
        if done.returncode:
            print(done.stderr, file=sys.stderr)
            return None
        result: dict[str, Any] = json.loads(output.read_text())
        return result


def whole_run(file: Path) -> dict[str, Any]:
    """The results in a file, if they are of this machine as it is now.

    Raises:
        SystemExit: they are not, or are of a smoke run.
    """
    document: dict[str, Any] = json.loads(file.read_text())
    was, now = (
        {name: value for name, value in machine.items() if name != "clock_ticks_per_second"}
        for machine in (document["machine"], rounded(describe_machine()))
    )
    differs = sorted(name for name in was.keys() | now.keys() if was.get(name) != now.get(name))
    if differs or document["smoke"]:
        why = f"other {', '.join(differs)}" if differs else "a smoke run"
        sys.exit(f"{file} cannot be renewed here: {why}. Run all benchmarks instead.")
    return document


def renewed(before: dict[str, Any], results: dict[str, Any], finished: str) -> dict[str, Any]:
    """A whole run in which some benchmarks were measured again, and when."""
    return {
        **before,
        "renewed": {**before.get("renewed", {}), **dict.fromkeys(results, finished)},
        "benchmarks": {**before["benchmarks"], **results},
    }


def file_name(now: datetime) -> str:
    """The name of a file of results: the date and the processor."""
    cpu = re.sub(r"[^a-z0-9]+", "-", cpu_model().lower()).strip("-")
    return f"{now:%Y-%m-%d}-{cpu}.json"


def print_bars(document: dict[str, Any], bars: Sequence[Bar]) -> None:
    """Prints how each bar was met."""
    from rich.console import Console
    from rich.table import Table

    table = Table("bar", "limit", "measured", "")
    for verdict in verdicts(document, bars):
        bar = verdict.bar
        table.add_row(
            bar.what,
            f"{'>=' if bar.at_least else '<='} {bar.text(bar.limit)}",
            bar.text(verdict.measured["median"]),
            verdict.outcome if verdict.outcome == "pass" else f"[bold red]{verdict.outcome}",
        )
    Console().print(table)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Runs the benchmarks.")
    parser.add_argument("benchmarks", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--gpu", action="store_true", help=", ".join(GPU_BENCHMARKS) + " instead")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that all works")
    parser.add_argument("--output", type=Path, help="the file to write, instead of one in results/")
    parser.add_argument("--renew", type=Path, metavar="FILE", help="measure NAMEs again into FILE")
    arguments = parser.parse_args()
    known = GPU_BENCHMARKS if arguments.gpu else BENCHMARKS
    unknown = set(arguments.benchmarks) - set(known)
    if unknown:
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    if arguments.renew:
        if not arguments.benchmarks or arguments.smoke or arguments.output:
            parser.error("--renew takes the names of benchmarks, and neither --smoke nor --output")
    elif (arguments.benchmarks or arguments.smoke) and arguments.output is None:
        parser.error("results/ holds whole runs only: give --output for a part or a smoke run")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
