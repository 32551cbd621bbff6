"""pertoken: an always-on, per-token profiler for LLM inference in PyTorch.

>>> with pertoken.profile(model) as prof:
...     model.generate(**inputs, max_new_tokens=128)
>>> print(prof.summary())
>>> prof.export_chrome_trace("trace.json")
"""

from __future__ import annotations

from pertoken.errors import (
    FileFormatError,
    MissingDependencyError,
    PertokenError,
    RecordingStateError,
    SelectionError,
)
from pertoken.recording import Recording, profile
from pertoken.result import Profile
from pertoken.scopes import request, span, step
from pertoken.storage import load
from pertoken.version import __version__

__all__ = [
    "FileFormatError",
    "MissingDependencyError",
    "PertokenError",
    "Profile",
    "Recording",
    "RecordingStateError",
    "SelectionError",
    "__version__",
    "load",
    "profile",
    "request",
    "span",
    "step",
]
