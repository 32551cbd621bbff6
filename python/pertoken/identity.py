"""Which process this is: its ranks in a distributed job, and the boot of the host it runs on."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict, dataclass
from functools import cache


@dataclass(frozen=True)
class Ranks:
    """Ranks of a process in its job; None where they are unknown."""

    rank: int | None
    local_rank: int | None
    world_size: int | None

    def as_dict(self) -> dict[str, int | None]:
        """The fields as plain data."""
        return asdict(self)


def group_ranks() -> Ranks | None:
    """The ranks in torch's default process group; None while there is none."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return None
    local_rank = _number("LOCAL_RANK")  # torch itself knows no other source
    return Ranks(int(distributed.get_rank()), local_rank, int(distributed.get_world_size()))


def ranks_of_environment() -> Ranks:
    """The ranks that torchrun and other launchers put into the environment."""
    return Ranks(_number("RANK"), _number("LOCAL_RANK"), _number("WORLD_SIZE"))


@cache
def boot_id() -> str:
    """Names the boot clock that this process reads; empty where the system does not name it.

    Processes with the same name read the same clock, in whatever containers they run. A time
    namespace that shifts the clock makes it another one.
    """
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as stream:
            name = stream.read().strip()
        shift = _time_namespace_shift()
    except (OSError, ValueError):
        return ""
    return name if shift in ("", "0 0") else f"{name} shifted by {shift}"


def _time_namespace_shift() -> str:
    try:
        with open("/proc/self/timens_offsets", encoding="ascii") as stream:
            lines = [line.split() for line in stream]
    except FileNotFoundError:
        return ""
    # The clock's number is 7 where old kernels do not name it.
    return next((" ".join(line[1:]) for line in lines if line and line[0] in ("boottime", "7")), "")


def _number(name: str) -> int | None:
    text = os.environ.get(name, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None
