"""The version of the package, as it was built."""

from __future__ import annotations

from pertoken import _native

__version__: str = _native.build_info()["pertoken"]
