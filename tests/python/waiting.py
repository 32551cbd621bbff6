"""Waits for a condition, never for a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

# Ends what would hang. No machine is so slow that a test needs it.
PATIENCE_S = 240.0


def wait_for(condition: Callable[[], T], what: str = "it did not happen") -> T:
    """Waits until the condition holds, and gives what it answered."""
    until = time.monotonic() + PATIENCE_S
    while not (answer := condition()):
        assert time.monotonic() < until, what
        time.sleep(0.002)
    return answer
