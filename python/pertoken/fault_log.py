"""Counts of what went wrong in pertoken itself, while the program that it watches ran on."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable

logger = logging.getLogger("pertoken")

_MOST_REASONS = 32
_MOST_CHARACTERS = 300


class FaultLog(Counter[str]):
    """Counts faults by reason; the first of each is logged.

    Messages may differ each time: after some, the further ones are counted by the place alone.

    Attributes:
        spooled: called with the reason, its place among the reasons and its count, at each fault.
    """

    spooled: Callable[[str, int, int], None] | None = None

    def note(self, where: str, error: Exception, *, is_logged: bool = True) -> None:
        """Counts one.

        Args:
            where: what was being done.
            error: what it raised.
            is_logged: whether to log it, when it is the first of its reason.
        """
        reason = f"{where}: {type(error).__name__}: {error}"[:_MOST_CHARACTERS]
        if reason not in self and len(self) >= _MOST_REASONS:
            reason = f"{where}: other faults"
        if reason not in self and is_logged:
            logger.warning("pertoken: a fault while recording, in %s", reason)
        self[reason] += 1
        if self.spooled is not None:
            self.spooled(reason, list(self).index(reason), self[reason])
