"""Measuring how the boot clocks of the hosts of a distributed job differ.

The first rank of the group is the reference. One process of every other host sends it a message and
gets its clock's reading back, some dozens of times; the reading fell between sending and receiving,
and the narrowest exchange gives the offset, half its width the bound of the error. Processes of one
host read one clock, so they share what their host measured.

What was measured goes into every profile that this process makes, as ``meta["clock"]``; nothing is
exchanged unless `synchronize_clocks` is called, since all ranks have to take part.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from pertoken.errors import RecordingStateError
from pertoken.identity import boot_id

_ROUNDS = 64
_MAX_HELD = 256


@dataclass(frozen=True)
class ClockMeasurement:
    """When this host's boot clock showed `boot_ns`, it lacked `offset_ns` to the reference's.

    The error is at most `error_ns`. `reference` names the reference's boot clock.
    """

    boot_ns: int
    offset_ns: int
    error_ns: int
    reference: str

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain data."""
        return asdict(self)


class MeasurementLog:
    """The measurements of this process, bounded: when it is full, every second one goes."""

    def __init__(self, limit: int = _MAX_HELD) -> None:
        self._limit = limit
        self._held: list[ClockMeasurement] = []
        self._lock = threading.Lock()

    def add(self, measured: ClockMeasurement) -> None:
        """Keeps one; the first and the latest always stay."""
        with self._lock:
            self._held.append(measured)
            if len(self._held) > self._limit:
                del self._held[1:-1:2]

    def held(self) -> tuple[ClockMeasurement, ...]:
        """Those that are kept, oldest first."""
        with self._lock:
            return tuple(self._held)


_log = MeasurementLog()


def clock_measurements() -> tuple[ClockMeasurement, ...]:
    """What `synchronize_clocks` measured in this process, oldest first."""
    return _log.held()


def synchronize_clocks(group: Any = None) -> ClockMeasurement:
    """Measures this host's clock against that of the group's first rank, for `pertoken.merge`.

    Every rank of the group must call it, as with any collective; it returns when all have. Call it
    where a recording begins and again where it ends: two measurements also give the drift. Profiles
    whose `result()` is taken afterwards hold what was measured. On one host there is nothing to
    measure, and the call costs two small collectives. ``PERTOKEN=0`` does not skip it, so that
    ranks with different environments do not wait for each other.

    Args:
        group: a ``torch.distributed`` process group; the default one when not given. Where its
            backend moves no tensors in host memory, a gloo group is made for the exchange.

    Returns:
        What was measured; an offset and an error of 0 on the host of the first rank.

    Raises:
        RecordingStateError: there is no process group, or a host does not name its boot clock.
    """
    distributed: Any = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        raise RecordingStateError(
            "synchronize_clocks() needs a process group: call it on all ranks, after "
            "torch.distributed.init_process_group()"
        )
    with _group_for_host_memory(distributed, group) as usable:
        measured = exchange(distributed, usable, boot_id(), _boot_ns)
    _log.add(measured)
    return measured


def exchange(
    distributed: Any, group: Any, own_boot: str, boot_ns: Callable[[], int], rounds: int = _ROUNDS
) -> ClockMeasurement:
    """Measures, together with all other ranks of the group.

    Args:
        distributed: ``torch.distributed``.
        group: a group that moves tensors in host memory; None for the default one.
        own_boot: names the boot clock of this host.
        boot_ns: reads it.
        rounds: messages that each host sends.
    """
    rank, size = distributed.get_rank(group), distributed.get_world_size(group)
    boots: list[str] = [""] * size
    distributed.all_gather_object(boots, own_boot, group=group)
    if "" in boots:
        raise RecordingStateError(
            f"the host of rank {boots.index('')} does not name its boot clock "
            "(/proc/sys/kernel/random/boot_id): clocks cannot be synchronized"
        )
    reference = boots[0]
    measuring = [boots.index(boot) for boot in dict.fromkeys(boots) if boot != reference]
    mine = ClockMeasurement(boot_ns(), 0, 0, reference)
    for other in measuring:
        if rank == other:
            mine = _ask(distributed, group, boot_ns, rounds, reference)
        elif rank == 0:
            _answer(distributed, group, boot_ns, rounds, other)
    measured: list[ClockMeasurement] = [mine] * size
    distributed.all_gather_object(measured, mine, group=group)
    return mine if own_boot == reference else measured[boots.index(own_boot)]


def _ask(
    distributed: Any, group: Any, boot_ns: Callable[[], int], rounds: int, reference: str
) -> ClockMeasurement:
    torch = sys.modules["torch"]
    first = distributed.get_global_rank(group or distributed.group.WORLD, 0)
    message = torch.zeros(1, dtype=torch.int64)
    best: ClockMeasurement | None = None
    for _ in range(rounds):
        before_ns = boot_ns()
        distributed.send(message, first, group=group)
        distributed.recv(message, first, group=group)
        after_ns = boot_ns()
        middle_ns, error_ns = (before_ns + after_ns) // 2, (after_ns - before_ns) // 2 + 1
        if best is None or error_ns < best.error_ns:
            best = ClockMeasurement(middle_ns, int(message[0]) - middle_ns, error_ns, reference)
    assert best is not None
    return best


def _answer(
    distributed: Any, group: Any, boot_ns: Callable[[], int], rounds: int, other: int
) -> None:
    torch = sys.modules["torch"]
    asking = distributed.get_global_rank(group or distributed.group.WORLD, other)
    message = torch.zeros(1, dtype=torch.int64)
    for _ in range(rounds):
        distributed.recv(message, asking, group=group)
        message[0] = boot_ns()
        distributed.send(message, asking, group=group)


@contextmanager
def _group_for_host_memory(distributed: Any, group: Any) -> Iterator[Any]:
    devices = [pair.split(":")[0] for pair in distributed.get_backend_config(group).split(",")]
    if "cpu" in devices:
        yield group
        return
    members = distributed.get_process_group_ranks(group or distributed.group.WORLD)
    made = distributed.new_group(members, backend="gloo", use_local_synchronization=True)
    try:
        yield made
    finally:
        distributed.destroy_process_group(made)


def _boot_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
