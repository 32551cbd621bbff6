"""How much a recording holds: the last seconds, or so many bytes."""

from __future__ import annotations

import re
from typing import NamedTuple

from pertoken.autostart_options import memory_size
from pertoken.errors import PertokenError, SelectionError

_SECONDS = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)\s*(ms|s|min|h)")
_MINUTES_OR_MEGABYTES = re.compile(r"(\d+(?:\.\d+)?)\s*m")
_BLANK_BEFORE_UNIT = re.compile(r"(?<=\d)\s+(?=[A-Za-z])")
_UNITS_NS = {"ms": 10**6, "s": 10**9, "min": 60 * 10**9, "h": 3600 * 10**9}
_LONGEST_NS = 10**17


class Retention(NamedTuple):
    """Bounds of the store; 0: none of its own."""

    time_ns: int = 0
    memory_bytes: int = 0


def retention(keep: str | int | None) -> Retention:
    """Reads the argument `keep` of `profile`.

    Args:
        keep: a time such as ``"5s"``, ``"500ms"``, ``"2min"``; or a size such as ``"64MB"``, or a
            number of bytes; None: no bound of its own. A blank may stand before the unit.

    Raises:
        SelectionError: it is neither, could be both, or is out of its range.
    """
    if keep is None:
        return Retention()
    if isinstance(keep, str) and (unclear := _MINUTES_OR_MEGABYTES.fullmatch(keep.strip())):
        raise SelectionError(
            f"keep={keep!r}: write '{unclear[1]}min' for minutes, or '{unclear[1]}MiB' for a size"
        )
    found = _SECONDS.fullmatch(keep.strip()) if isinstance(keep, str) else None
    if found is not None:
        time_ns = round(float(found[1]) * _UNITS_NS[found[2]])
        if 0 < time_ns <= _LONGEST_NS:
            return Retention(time_ns=time_ns)
    elif not isinstance(keep, bool):
        try:
            size = _BLANK_BEFORE_UNIT.sub("", str(keep).strip())
            return Retention(memory_bytes=memory_size(size))
        except PertokenError:
            pass
    raise SelectionError(
        f"keep={keep!r}: give a time such as '5s' or '2min', or a size of 1M or more such as '64MB'"
    )
