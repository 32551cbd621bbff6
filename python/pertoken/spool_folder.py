"""The folder in which a recording leaves what is to outlive its process, one below the user's.

The user's folder may be shared: each recording, of whichever process, makes a folder of its own in
it, named by time and process. Who records holds a lock on a file there, which ends with the
process, however that ends.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from pertoken.errors import system_errors
from pertoken.folder_argument import folder_name
from pertoken.whole_file import written_aside

IDENTITY = "identity.json"
LOCK = "lock"
_PREFIX = "recording-"
_SEGMENTS = 10
_MIN_SEGMENT_BYTES = 1 << 17
_ABANDONED_S = 86400

_held: set[str] = set()  # folders of this process, whose locks would not hold it up


class SpoolFolder:
    """Where one recording is spooled to.

    Args:
        parent: the user's folder; made when it is not there.
        memory_limit_bytes: of the recording; what it leaves takes up to 1.25 times that, and
            besides it a ring of 2 MiB for each thread that runs.

    Raises:
        SelectionError: `parent` is no path.
    """

    def __init__(self, parent: str | os.PathLike[str], memory_limit_bytes: int) -> None:
        self._parent = folder_name("spool", parent)
        self.segment_bytes = max(memory_limit_bytes // 8, _MIN_SEGMENT_BYTES)
        self.segments = _SEGMENTS
        self._pid = os.getpid()
        self._lock = -1
        self.path = ""  # of the recording's own folder, once it is there

    def make(self, recorder: Any) -> None:
        """Makes the folder, and has the recorder spool into it; the second call is nothing.

        What recordings that are over have left goes, the oldest first, until it takes no more than
        one recording may; the newest stays.

        Raises:
            PertokenError: it cannot be made or written.
        """
        if self.path or os.getpid() != self._pid:
            return
        with system_errors("spool into", self._parent):
            os.makedirs(self._parent, exist_ok=True)
            _remove_old(Path(self._parent), self.segments * self.segment_bytes)
            path = self._make_own()
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            lock = os.open(os.path.join(path, LOCK), flags, 0o666)
            with suppress(OSError):  # where there are no locks, it looks like one that is over
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _held.add(os.path.realpath(path))
            self.path, self._lock = path, lock
            try:
                recorder.spool_into(path, self.segment_bytes, self.segments)
            except BaseException:
                self.leave()
                self.path = ""
                shutil.rmtree(path, ignore_errors=True)
                raise

    def identify(self, identity: dict[str, Any]) -> None:
        """Writes who records what, in the place of what was written before.

        Raises:
            PertokenError: it cannot be written.
        """
        if os.getpid() != self._pid:  # a forked child records nothing of this
            return
        name = os.path.join(self.path, IDENTITY)
        with system_errors("write", name), written_aside(name, durable=False) as stream:
            stream.write(json.dumps(identity).encode())

    def leave(self) -> None:
        """Lets go of the folder, which stays; the second call is nothing."""
        if self._lock >= 0 and os.getpid() == self._pid:
            _held.discard(os.path.realpath(self.path))
            os.close(self._lock)
            self._lock = -1

    def _make_own(self) -> str:
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
        number = 0
        while True:
            number += 1
            path = os.path.join(self._parent, f"{_PREFIX}{stamp}-{self._pid}-{number:03}")
            with suppress(FileExistsError):
                os.mkdir(path)
                return path


def recordings_in(folder: Path) -> list[Path]:
    """The folders of recordings in the user's folder, the newest first.

    Raises:
        OSError: it cannot be read.
    """
    found = [path for path in folder.iterdir() if path.name.startswith(_PREFIX) and path.is_dir()]
    return sorted(found, key=lambda path: path.name, reverse=True)


def is_recorded_into(folder: Path) -> bool:
    """Whether a process, this one or another, still records into the folder of a recording."""
    if os.path.realpath(folder) in _held:
        return True
    try:
        lock = os.open(folder / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.lockf(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return True
    except OSError:  # there are no locks here
        return False
    finally:
        os.close(lock)
    return False


def _remove_old(parent: Path, limit_bytes: int) -> None:
    over = [path for path in recordings_in(parent) if _is_over(path)]
    held_bytes = 0
    for number, path in enumerate(over):
        held_bytes += _size_bytes(path)
        if number > 0 and held_bytes > limit_bytes:
            shutil.rmtree(path, ignore_errors=True)


def _is_over(folder: Path) -> bool:
    if is_recorded_into(folder):
        return False
    if (folder / IDENTITY).exists():
        return True
    with suppress(OSError):  # one that is being made has no identity yet
        return time.time() - folder.stat().st_mtime > _ABANDONED_S
    return False


def _size_bytes(folder: Path) -> int:
    size = 0
    with suppress(OSError):
        for entry in os.scandir(folder):
            with suppress(OSError):
                size += entry.stat(follow_symlinks=False).st_size
    return size
