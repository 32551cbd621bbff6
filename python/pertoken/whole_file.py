"""Files that appear whole or not at all: written aside in the same folder, then renamed."""

from __future__ import annotations

import errno
import fcntl
import glob
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO


@contextmanager
def written_aside(name: str, *, durable: bool) -> Iterator[BinaryIO]:
    """Give a stream to a temporary file that takes the place of `name` when all went well.

    A file that was there before stays until then, and for good when anything fails. Its owner, its
    extended attributes and its permissions go over to the new one, as far as the system allows. A
    process that is killed meanwhile leaves ``.<name>.<hex>.tmp`` behind, which the next write to
    the same name removes: who writes holds a lock on it.

    Args:
        name: where the file is to be; a link to a file is followed.
        durable: wait until the contents are on the disk before the old file is replaced.

    Raises:
        OSError: the place cannot be written, or is not a regular file.
    """
    target = os.path.realpath(name)
    replaced = _status(target)
    if replaced is not None and stat.S_ISDIR(replaced.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
    if replaced is not None and not stat.S_ISREG(replaced.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", name)
    folder, base = os.path.split(target)
    start = os.path.join(folder, f".{base[:100]}.")
    _remove_abandoned(start)
    # What replaces a file may be read by nobody else until it has the permissions of that.
    descriptor, aside = _create_locked(start, 0o666 if replaced is None else 0o600)
    try:
        with os.fdopen(descriptor, "w+b") as stream:
            yield stream
            stream.flush()
            if replaced is not None:
                _take_over(target, replaced, stream.fileno())
            if durable:
                os.fsync(stream.fileno())
            os.replace(aside, target)  # before the lock goes with the descriptor
    except BaseException:
        os.unlink(aside)
        raise


def _status(target: str) -> os.stat_result | None:
    """What the system says of a file; None where there is none, or it may not be asked."""
    try:
        return os.stat(target)
    except OSError:
        return None


def _take_over(target: str, replaced: os.stat_result, descriptor: int) -> None:
    """Gives a new file the owner, extended attributes and permissions of what it replaces."""
    mode = stat.S_IMODE(replaced.st_mode) & 0o777
    own = os.fstat(descriptor)
    if own.st_gid != replaced.st_gid:
        try:
            os.fchown(descriptor, -1, replaced.st_gid)
        except OSError:
            # What its group was allowed, another one is not.
            mode = mode & ~0o070 | (mode & 0o007) << 3
    if own.st_uid != replaced.st_uid:
        with suppress(OSError):
            os.fchown(descriptor, replaced.st_uid, -1)
    with suppress(OSError):
        for attribute in os.listxattr(target):
            with suppress(OSError):
                os.setxattr(descriptor, attribute, os.getxattr(target, attribute))
    with suppress(OSError):
        os.fchmod(descriptor, mode)


def _create_locked(start: str, mode: int) -> tuple[int, str]:
    while True:
        aside = f"{start}{secrets.token_hex(6)}.tmp"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        descriptor = os.open(aside, flags, mode)
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
