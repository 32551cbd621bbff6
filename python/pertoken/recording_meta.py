"""What the metadata of a profile says of the process, the model and the build."""

from __future__ import annotations

import os
import platform
import socket
import sys
from typing import TYPE_CHECKING, Any

from pertoken import _native
from pertoken.clock_sync import clock_measurements
from pertoken.identity import boot_id, group_ranks, ranks_of_environment
from pertoken.version import __version__

if TYPE_CHECKING:
    from pertoken.recording import Recording


def lasting_meta(recording: Recording) -> dict[str, Any]:
    """All of a profile's `meta` that does not depend on what is held."""
    return {
        "pertoken_version": __version__,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        **(group_ranks() or recording.ranks or ranks_of_environment()).as_dict(),
        "device": recording.model_facts["device"],
        "command": os.path.basename(sys.argv[0]) if sys.argv else "",
        "python": platform.python_version(),
        "torch": _version_of("torch"),
        "transformers": _version_of("transformers"),
        "platform": platform.platform(),
        "unix_origin_ns": recording.origin_unix_ns or _native.unix_time_ns(),
        "clock": {
            "source": _native.clock_source(),
            "boot_id": boot_id(),
            "synchronized": [measured.as_dict() for measured in clock_measurements()],
        },
        "model": {key: recording.model_facts[key] for key in ("class", "parameters", "modules")},
        "modules": recording.selection,
        "build": _native.build_info(),
        "cost": {"budget": recording.budget},
    }


def _version_of(module: str) -> str | None:
    loaded = sys.modules.get(module)
    return None if loaded is None else str(getattr(loaded, "__version__", None))
