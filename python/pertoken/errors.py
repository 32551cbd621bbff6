"""Every error that pertoken raises on purpose. Each message says what to do about it."""

from __future__ import annotations


class PertokenError(Exception):
    """Base of all errors raised on purpose by this package."""


class FileFormatError(PertokenError):
    """A file is not a profile that this version can read."""


class MissingDependencyError(PertokenError, ImportError):
    """An optional library is absent; the message names the extra that brings it."""


class RecordingStateError(PertokenError):
    """A recording was asked for something that its state does not allow."""


class SelectionError(PertokenError, ValueError):
    """An argument selects nothing, or is not of a form that can select."""
