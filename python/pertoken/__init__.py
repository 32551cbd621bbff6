"""pertoken: an always-on, per-token profiler for LLM inference in PyTorch.

>>> with pertoken.profile(model) as prof:
...     model.generate(**inputs, max_new_tokens=128)
>>> print(prof.summary())
>>> prof.export_chrome_trace("trace.json")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pertoken.errors import (
    DeviceError,
    ExperimentError,
    FileFormatError,
    HistogramError,
    MergeError,
    MissingDependencyError,
    PertokenError,
    RecordingStateError,
    SelectionError,
    SpoolError,
    TotalsError,
    UnsupportedTensorError,
)

if TYPE_CHECKING:
    from pertoken import experiment, triggers
    from pertoken.clock_sync import synchronize_clocks
    from pertoken.histogram import Histogram
    from pertoken.merging import merge
    from pertoken.overhead_measurement import measure_overhead
    from pertoken.recording import Recording, profile
    from pertoken.recovery import recover
    from pertoken.result import Profile
    from pertoken.scopes import request, span, step
    from pertoken.storage import load
    from pertoken.totals import Totals
    from pertoken.version import __version__

__all__ = [
    "DeviceError",
    "ExperimentError",
    "FileFormatError",
    "Histogram",
    "HistogramError",
    "MergeError",
    "MissingDependencyError",
    "PertokenError",
    "Profile",
    "Recording",
    "RecordingStateError",
    "SelectionError",
    "SpoolError",
    "Totals",
    "TotalsError",
    "UnsupportedTensorError",
    "__version__",
    "experiment",
    "load",
    "measure_overhead",
    "merge",
    "profile",
    "recover",
    "request",
    "span",
    "step",
    "synchronize_clocks",
    "triggers",
]

# Imported when first used: a program that only imports pertoken pays next to nothing.
_HOMES = {
    "Histogram": "histogram",
    "Profile": "result",
    "Recording": "recording",
    "Totals": "totals",
    "__version__": "version",
    "load": "storage",
    "measure_overhead": "overhead_measurement",
    "merge": "merging",
    "profile": "recording",
    "recover": "recovery",
    "request": "scopes",
    "span": "scopes",
    "step": "scopes",
    "synchronize_clocks": "clock_sync",
}
_PACKAGES = {"experiment", "triggers"}


def __getattr__(name: str) -> Any:
    """Finds a public name in its module."""
    if name in _PACKAGES:
        return import_module(f"pertoken.{name}")
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'pertoken' has no attribute {name!r}")
    value = getattr(import_module(f"pertoken.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)
