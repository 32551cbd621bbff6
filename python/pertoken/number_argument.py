"""Numbers that are given as arguments."""

from __future__ import annotations

import math
import numbers
from typing import TypeGuard


def is_number(value: object, of: type = numbers.Real) -> TypeGuard[float]:
    """Whether it is a finite number of that kind, and no truth value.

    Args:
        value: what was given; numpy's numbers are as good as Python's.
        of: a class of `numbers`.
    """
    if isinstance(value, bool) or not isinstance(value, of):
        return False
    if isinstance(value, numbers.Integral):
        return True  # and perhaps too large for a float
    return isinstance(value, numbers.Real) and math.isfinite(value)
