"""What a tool must do to be compared: start, stop, write its files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch


@dataclass(frozen=True)
class FileFormat:
    """A file that a tool writes, and how it is read where Perfetto is not for it."""

    suffix: str
    reader: str | None = None  # in words
    # Opens the file and gives the spans it holds.
    read: Callable[[Path], int] | None = None


class PeerTool:
    """A profiler or tracer on one model; started and stopped any number of times.

    A start forgets what was recorded before it.
    """

    name: ClassVar[str]
    configuration: ClassVar[str]
    # All that `write` can be asked for; the first is the one that people use.
    files: ClassVar[tuple[FileFormat, ...]] = ()

    def __init__(self, model: torch.nn.Module, folder: Path) -> None:
        self.model = model
        self.folder = folder  # for what a tool writes while it records

    def start(self) -> None:
        """Begins to record."""
        raise NotImplementedError

    def stop(self) -> None:
        """Ends it; the model is free afterwards."""
        raise NotImplementedError

    def settle(self) -> None:
        """Does, while it records, what it has put off until now and would have to do itself."""

    def write(self, path: Path) -> None:
        """Writes what was recorded, in the format of the path's suffix."""
        raise NotImplementedError

    def forget(self) -> None:
        """Makes sure that nothing of what was recorded is worked on later."""


@contextmanager
def recording_with(tool: PeerTool) -> Iterator[None]:
    """Records meanwhile; what is left is dropped."""
    tool.start()
    try:
        yield
    finally:
        tool.stop()
        tool.forget()
