"""Files that appear whole or not at all: written aside in the same folder, then renamed."""

from __future__ import annotations

import errno
import fcntl
import glob
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO


@contextmanager
def written_aside(name: str, *, durable: bool) -> Iterator[BinaryIO]:
    """Give a stream to a temporary file that takes the place of `name` when all went well.

    A file that was there before stays until then, and for good when anything fails. A process that
    is killed meanwhile leaves ``.<name>.<hex>.tmp`` behind, which the next write to the same name
    removes: who writes holds a lock on it.

    Args:
        name: where the file is to be; a link to a file is followed.
        durable: wait until the contents are on the disk before the old file is replaced.

    Raises:
        OSError: the place cannot be written, or is not a regular file.
    """
    target = os.path.realpath(name)
    if os.path.isdir(target):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
    if os.path.exists(target) and not os.path.isfile(target):
        raise OSError(errno.EINVAL, "not a regular file", name)
    folder, base = os.path.split(target)
    start = os.path.join(folder, f".{base[:100]}.")
    _remove_abandoned(start)
    descriptor, aside = _create_locked(start)
    try:
        with os.fdopen(descriptor, "w+b") as stream:
            yield stream
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
            os.replace(aside, target)  # before the lock goes with the descriptor
    except BaseException:
        os.unlink(aside)
        raise


def _create_locked(start: str) -> tuple[int, str]:
    while True:
        aside = f"{start}{secrets.token_hex(6)}.tmp"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        descriptor = os.open(aside, flags, 0o666)
        with suppress(OSError):  # where there are no locks, nobody can take it for abandoned
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:  # else somebody has, before it was locked
            return descriptor, aside
        os.close(descriptor)


def _remove_abandoned(start: str) -> None:
    for path in glob.glob(f"{glob.escape(start)}{'[0-9a-f]' * 12}.tmp"):
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:  # gone, or another user's
            continue
        with suppress(OSError):  # it is being written, or was renamed meanwhile
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(path)
        os.close(descriptor)
