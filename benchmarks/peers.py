"""pertoken beside other tools on the same work: a greedy decode of the tiny Llama by `generate()`.

First each tool records a run of its own, in a process that is forked for it: how much the process
grows, how long `stop` and the writing take, how large the files are and how long they take to open.
These processes take turns. Then all tools are compared, interleaved, by what they add to a step.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import tempfile
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import torch

from export_speed import peak_growth_bytes, status_bytes
from paired import Variant, compare, median_interval
from peer_tool import FileFormat, PeerTool, recording_with
from peer_tools import TOOLS, Nothing
from script import Advance, run_script
from tiny_llama import WARM_UP_STEPS, decode_by_generate, prompt_ids, tiny_llama
from trace_opening import missing_tool, open_trace

# How much of the progress the runs are, before the comparison of steps.
RUNS_SHARE = 0.7


def measure(smoke: bool, advance: Advance) -> dict[str, Any]:
    """Measures the runs of all tools, then what they add to a step."""
    repeats, blocks, rounds, steps = (1, 2, 3, 4) if smoke else (3, 12, 20, 48)
    tools: tuple[type[PeerTool], ...] = (Nothing, *TOOLS)
    model, prompt = tiny_llama(), prompt_ids()
    block = partial(decode_by_generate, model, prompt, steps)
    block()
    runs: dict[str, list[dict[str, Any]]] = {tool.name: [] for tool in tools}
    # Before anything starts a thread here: a fork would not take it along.
    for number in range(repeats):
        for place, tool in enumerate(tools):
            runs[tool.name].append(_run(tool, model, partial(_repeat, block), blocks))
            advance(RUNS_SHARE * (number + (place + 1) / len(tools)) / repeats)
    with tempfile.TemporaryDirectory(prefix="pertoken-bench-") as folder:
        made = [tool(model, Path(folder)) for tool in TOOLS]
        variants = [Variant(tool.name, partial(recording_with, tool), tool.settle) for tool in made]
        steps_compared = compare(
            variants,
            block,
            rounds=rounds,
            advance=lambda share: advance(RUNS_SHARE + (1 - RUNS_SHARE) * share),
        )
    tokens = blocks * (1 + WARM_UP_STEPS + steps)
    base_bytes = median_interval(run["growth_bytes"] for run in runs[Nothing.name])["median"]
    return {
        "repeats": repeats,
        "tokens": tokens,
        "rounds": rounds,
        "steps_a_block": steps,
        "opening_missing": missing_tool(),
        "nothing_growth_bytes": base_bytes,
        "control": steps_compared["nothing again"],
        "tools": {
            tool.name: {
                "configuration": tool.configuration,
                "step": steps_compared[tool.name],
                **_run_estimates(tool, runs[tool.name], tokens, base_bytes),
            }
            for tool in TOOLS
        },
    }


def _repeat(block: Callable[[], object], blocks: int) -> None:
    for _ in range(blocks):
        block()


def _run(
    tool: type[PeerTool], model: torch.nn.Module, work: Callable[[int], None], blocks: int
) -> dict[str, Any]:
    """One run of a tool in a process of its own, and the opening of its files in others."""
    with tempfile.TemporaryDirectory(prefix="pertoken-bench-") as name:
        folder = Path(name)
        result = _in_fork(partial(_record, tool, model, work, blocks, folder))
        for file in tool.files:
            result["files"][file.suffix].update(_open(file, _path(folder, file)))
        return result


def _record(
    tool_class: type[PeerTool],
    model: torch.nn.Module,
    work: Callable[[int], None],
    blocks: int,
    folder: Path,
) -> dict[str, Any]:
    """Records the work and writes the files; runs in the fork."""
    # A fork begins without the pages of the libraries; nobody's run shall count them.
    work(1)
    tool = tool_class(model, folder)
    before_bytes = _own_bytes()
    result: dict[str, Any] = {"files": {}}

    def whole_run() -> None:
        tool.start()
        work(blocks)
        result["growth_bytes"] = _own_bytes() - before_bytes
        start_ns = perf_counter_ns()
        tool.stop()
        result["stop_ns"] = perf_counter_ns() - start_ns
        for file in tool.files[:1]:
            _write(tool, file)

    def _write(tool: PeerTool, file: FileFormat) -> None:
        path = _path(folder, file)
        start_ns = perf_counter_ns()
        tool.write(path)
        write_ns = perf_counter_ns() - start_ns
        result["files"][file.suffix] = {"bytes": path.stat().st_size, "write_ns": write_ns}

    result["peak_bytes"] = peak_growth_bytes(whole_run)
    for file in tool.files[1:]:
        _write(tool, file)
    return result


def _path(folder: Path, file: FileFormat) -> Path:
    return folder / f"trace{file.suffix}"


def _open(file: FileFormat, path: Path) -> dict[str, Any]:
    """How a file is opened: in Perfetto, and by its own reader where it has one."""
    result: dict[str, Any] = {}
    if missing_tool() is None:
        result["perfetto"] = opened = open_trace(path)
        if "refused" in opened and file.read is None:
            raise RuntimeError(f"Perfetto refused {path.name}: {opened['refused']}")
    if file.read is not None:
        start_ns = perf_counter_ns()
        spans = file.read(path)
        result["own"] = {"open_ns": perf_counter_ns() - start_ns, "spans": spans}
    return result


def _run_estimates(
    tool: type[PeerTool], runs: list[dict[str, Any]], tokens: int, base_bytes: float
) -> dict[str, Any]:
    """The medians over the repeats; what grows with the work by the token."""
    peaks = [run["peak_bytes"] for run in runs]
    files: dict[str, dict[str, Any]] = {}
    for file in tool.files:
        of = [run["files"][file.suffix] for run in runs]
        estimates: dict[str, Any] = {
            "bytes_a_token": median_interval(one["bytes"] / tokens for one in of),
            "write_ns": median_interval(one["write_ns"] for one in of),
        }
        opened = [one["perfetto"] for one in of if "perfetto" in one]
        if opened and "refused" in opened[0]:
            estimates["refused"] = opened[0]["refused"]
        elif opened:
            estimates["open_ns"] = median_interval(one["open_ns"] for one in opened)
            estimates["slices_a_token"] = opened[-1]["slices"] / tokens
            estimates["complaints"] = opened[-1]["complaints"]
        if file.read is not None:
            estimates["reader"] = file.reader
            estimates["read_ns"] = median_interval(one["own"]["open_ns"] for one in of)
            estimates["spans_a_token"] = of[-1]["own"]["spans"] / tokens
        files[file.suffix] = estimates
    return {
        "memory_bytes_a_token": median_interval(
            (run["growth_bytes"] - base_bytes) / tokens for run in runs
        ),
        "peak_bytes_a_token": None
        if None in peaks
        else median_interval((peak - base_bytes) / tokens for peak in peaks),
        "stop_ns": median_interval(run["stop_ns"] for run in runs),
        "files": files,
    }


def _own_bytes() -> int:
    """What the process holds in memory that is no file's."""
    gc.collect()
    # What is free is returned first, or a tool that reuses it would seem to take none.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    return status_bytes("RssAnon")


def _in_fork(run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `run` returns in a forked process, where the model is loaded and warm already."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def child() -> None:
        try:
            sender.send(run())
        except BaseException:
            sender.send(traceback.format_exc())
            raise

    process = context.Process(target=child)
    process.start()
    sender.close()
    try:
        answer = receiver.recv()
    except EOFError:
        answer = "it ended without a word"
    process.join()
    if not isinstance(answer, dict):
        raise RuntimeError(f"the forked process failed: {answer}")
    return answer


if __name__ == "__main__":
    run_script("peers", measure)
