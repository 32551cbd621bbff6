"""One row of a step, as an engine or the user tells it."""

from __future__ import annotations

from typing import NamedTuple

RequestId = str | int


class Row(NamedTuple):
    """What one sequence does in a step.

    Attributes:
        request: the id of its request; None: the ``pertoken.request`` round the step, if any.
        phase: ``prefill`` where it works on its prompt, ``decode``, ``verify``, ``draft``, or
            ``other``.
        query_len: tokens that the step feeds for it, padding excluded; -1 unknown.
        context_len: tokens that it has in the cache before the step; -1 unknown.
        committed: tokens that the step commits to it; -1 when that is told later, or never.
    """

    request: RequestId | None = None
    phase: str = "other"
    query_len: int = -1
    context_len: int = -1
    committed: int = -1
