"""What an engine gives in its calls, checked where it is given.

What cannot be would otherwise be met only when the tables are made, and take all else with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from operator import index
from typing import Any

from pertoken.number_argument import is_number

# Of all rows of a step together, since each token takes a row of the table `tokens`: a number
# without sense would take the machine's memory. No forward feeds as many positions: at a width of
# 4096 the hidden states between two layers alone would take 128 GiB.
MAX_STEP_TOKENS = 1 << 24
MAX_PROMPT_TOKENS = 2**32 - 2  # what fits the native counts, of which the last means unknown

UNNAMED_ERROR = "error"

_MAX_AGO_NS = 2**63


def error_name(error: object) -> str:
    """What ended a request early, as the tables name it.

    Args:
        error: a text, an exception or the class of one; None where it ended as it should.

    Raises:
        TypeError: it is none of these.
    """
    if error is None:
        return ""
    if isinstance(error, str):
        return str.__str__(error)  # its own characters, whatever its class
    cls = error if isinstance(error, type) else type(error)
    if issubclass(cls, BaseException):
        return cls.__name__
    raise TypeError(f"error={error!r}: give a text, an exception or its class")


def arrival_ticks(ago_ns: Any, now_ticks: int, ticks_per_second: Callable[[], float]) -> int:
    """When a request arrived, in ticks.

    Args:
        ago_ns: how long ago, in nanoseconds.
        now_ticks: the time now.
        ticks_per_second: gives those of that clock; asked only where it is not now.

    Raises:
        ValueError: it is no number, negative, or longer ago than the clock can tell.
    """
    if is_number(ago_ns) and 0 <= ago_ns < _MAX_AGO_NS:
        ticks = now_ticks
        if ago_ns:
            ticks -= round(float(ago_ns) * 1e-9 * ticks_per_second())
        if ticks > 0:
            return ticks
    raise ValueError(f"ago_ns={ago_ns!r}: give nanoseconds, at most those since the machine began")


def prompt_tokens(tokens_in: Any) -> int:
    """The number of tokens of a prompt; -1 unknown.

    Raises:
        TypeError: it is no integer.
        ValueError: it is none that a prompt can have.
    """
    count = -1 if tokens_in is None else index(tokens_in)
    if not -1 <= count <= MAX_PROMPT_TOKENS:
        raise ValueError(f"tokens_in={count}: give a count of tokens, or -1 when it is unknown")
    return count


def step_counts(told: Iterable[Any]) -> list[int]:
    """The tokens that a step commits to each of its rows; -1 unknown.

    Args:
        told: by row; None is unknown, too.

    Raises:
        TypeError: one is no integer.
        ValueError: one is negative, or they are more than `MAX_STEP_TOKENS` together.
    """
    counts = [-1 if count is None else index(count) for count in told]
    if min(counts, default=0) < -1:
        raise ValueError(f"{min(counts)}: give a count of tokens, or -1 when it is unknown")
    if sum(counts) > MAX_STEP_TOKENS:
        raise ValueError(
            f"{sum(counts)} tokens in one step: there cannot be over {MAX_STEP_TOKENS}"
        )
    return counts


def label_texts(labels: Mapping[Any, Any] | None) -> dict[str, str]:
    """Labels by name, all as texts.

    Raises:
        AttributeError: they are no mapping.
    """
    return {} if labels is None else {str(name): str(value) for name, value in labels.items()}
