"""Seeds of what recordings choose by chance: which steps get detail, and which are observed."""

from __future__ import annotations

import os


def new_seed() -> int:
    """64 bits of the system's, so that the program's own generators are left alone."""
    return int.from_bytes(os.urandom(8), "little")
