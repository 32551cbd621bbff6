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
    FileFormatError,
    HistogramError,
    MissingDependencyError,
    PertokenError,
    RecordingStateError,
    SelectionError,
    UnsupportedTensorError,
)

if TYPE_CHECKING:
    from pertoken.histogram import Histogram
    from pertoken.recording import Recording, profile
    from pertoken.result import Profile
    from pertoken.scopes import request, span, step
    from pertoken.storage import load
    from pertoken.version import __version__

__all__ = [
    "FileFormatError",
    "Histogram",
    "HistogramError",
    "MissingDependencyError",
    "PertokenError",
    "Profile",
    "Recording",
    "RecordingStateError",
    "SelectionError",
    "UnsupportedTensorError",
    "__version__",
    "load",
    "profile",
    "request",
    "span",
    "step",
]

# Imported when first used: a program that only imports pertoken pays next to nothing.
_HOMES = {
    "Histogram": "histogram",
    "Profile": "result",
    "Recording": "recording",
    "__version__": "version",
    "load": "storage",
    "profile": "recording",
    "request": "scopes",
    "span": "scopes",
    "step": "scopes",
}


def __getattr__(name: str) -> Any:
    """Finds a public name in its module."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'pertoken' has no attribute {name!r}")
    value = getattr(import_module(f"pertoken.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)
