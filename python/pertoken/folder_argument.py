"""Folders that a recording is given as arguments."""

from __future__ import annotations

import os

from pertoken.errors import SelectionError


def folder_name(argument: str, folder: str | os.PathLike[str]) -> str:
    """The path of a folder, as text.

    Args:
        argument: what the argument is called.
        folder: what was given.

    Raises:
        SelectionError: it is no path.
    """
    try:
        return os.fsdecode(folder)
    except TypeError:
        raise SelectionError(f"{argument}={folder!r}: give the path of a folder") from None
