"""Files that appear whole or not at all: written aside in the same folder, then renamed."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO


@contextmanager
def written_aside(name: str, *, durable: bool) -> Iterator[BinaryIO]:
    """Give a stream to a temporary file that takes the place of `name` when all went well.

    A file that was there before stays until then, and for good when anything fails.

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
    aside = os.path.join(folder, f".{base[:100]}.{secrets.token_hex(6)}.tmp")
    descriptor = os.open(aside, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        with os.fdopen(descriptor, "w+b") as stream:
            yield stream
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
        os.replace(aside, target)
    except BaseException:
        os.unlink(aside)
        raise
