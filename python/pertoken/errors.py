"""Every error that pertoken raises on purpose. Each message says what to do about it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager


class PertokenError(Exception):
    """Base of all errors raised on purpose by this package."""


class DeviceError(PertokenError, RuntimeError):
    """A GPU, its driver or a stream of it failed, or cannot be used as it is."""


class ExperimentError(PertokenError, ValueError):
    """A plan or a measurement of an experiment is not of a form that can be tested."""


class FileFormatError(PertokenError):
    """A file is not a profile that this version can read."""


class HistogramError(PertokenError, ValueError):
    """A histogram was asked for something that it cannot be, or be made of."""


class MissingDependencyError(PertokenError, ImportError):
    """An optional library is absent; the message names the extra that brings it."""


class MergeError(PertokenError, ValueError):
    """Profiles cannot be joined into one."""


class RecordingStateError(PertokenError):
    """A recording was asked for something that its state does not allow."""


class SelectionError(PertokenError, ValueError):
    """An argument selects nothing, or is not of a form that can select."""


class SpoolError(PertokenError):
    """A folder holds no recording that can be recovered."""


class TotalsError(PertokenError, ValueError):
    """Data is not what `Totals.to_dict` gives."""


class UnsupportedTensorError(PertokenError, TypeError):
    """The values are of a type, or in a place, that pertoken cannot read."""


_ADVICE = {
    errno.ENOENT: "check the path, and that its folder exists",
    errno.ENOTDIR: "check the path: a part of it is not a folder",
    errno.EISDIR: "give the path of a file, not of a folder",
    errno.EACCES: "check the permissions, or choose another path",
    errno.EPERM: "check the permissions, or choose another path",
    errno.EROFS: "choose a path on a file system that can be written",
    errno.ENOSPC: "free some space, or choose another path",
    errno.EDQUOT: "free some space, or choose another path",
    errno.ENAMETOOLONG: "choose a shorter name",
}


@contextmanager
def system_errors(verb: str, name: str) -> Iterator[None]:
    """Turns a failure of the system, while it works on the file `name`, into a `PertokenError`.

    Args:
        verb: what is being done, such as ``write``.
        name: the file's path.

    Raises:
        PertokenError: the system refused; the message says why and what to do.
    """
    if "\0" in name:
        raise PertokenError(f"cannot {verb} {name!r}: a path cannot hold a null character")
    try:
        os.fsencode(name)
    except UnicodeEncodeError as error:
        raise PertokenError(
            f"cannot {verb} {name!r}: no file has such a name ({error.reason})"
        ) from error
    try:
        yield
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        advice = _ADVICE.get(error.errno or 0, "check the path and the disk")
        raise PertokenError(f"cannot {verb} {name!r}: {reason}; {advice}") from error
