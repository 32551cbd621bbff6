"""What the logits said of each committed token: the native columns joined with the tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Columns = dict[str, NDArray[Any]]

# By the native names.
_SIGNALS = {
    "top1_prob": "top1_prob",
    "margin": "margin",
    "entropy": "entropy",
    "logprob": "logprob",
    "weight": "logits_weight",
}


def with_logits(tokens: Columns, told: Columns, steps: Columns) -> Columns:
    """The columns of tokens with those of their logits.

    A row of a step to which more was committed than its logits choose has tokens of elsewhere, and
    nobody knows which: none of them gets anything.

    Args:
        tokens: columns of ``tokens``, ascending by step, row and position.
        told: native columns ``step``, ``row``, ``place`` and float32 signals; ``place`` counts the
            tokens that a step commits to a row. A token may be told twice, the second time with
            its log-probability.
        steps: native columns of the steps; of one with several forwards it is not known which of
            them chose.
    """
    several = steps["step"][steps["several"] != 0]
    if len(several):
        held = np.isin(told["step"], several, invert=True)
        told = {name: values[held] for name, values in told.items()}
    count = len(tokens["step"])
    where, known = _find(tokens, told) if count and len(told["step"]) else (None, None)
    joined = dict(tokens)
    for name, column in _SIGNALS.items():
        values = np.full(count, np.nan, dtype=np.float32)
        if where is not None:
            values[known] = told[name][where]
        joined[column] = values
    return joined


def _find(tokens: Columns, told: Columns) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Which of the entries told are those of tokens, and of which tokens."""
    rows = 1 + max(int(tokens["row"].max()), int(told["row"].max()))
    own = tokens["step"] * rows + tokens["row"]
    all_told = told["step"] * rows + told["row"]
    order = np.lexsort((np.isnan(told["logprob"]), told["place"], all_told))
    again = (np.diff(all_told[order], prepend=-1) == 0) & (
        np.diff(told["place"][order], prepend=-1) == 0
    )
    order = order[~again]
    all_told, place_told = all_told[order], told["place"][order]

    _, begin, of_row, committed = np.unique(
        own, return_index=True, return_inverse=True, return_counts=True
    )
    place = np.arange(len(own)) - begin[of_row]
    first = np.searchsorted(all_told, own)
    chosen = np.searchsorted(all_told, own, side="right") - first
    known = committed[of_row] <= chosen
    known[known] = place_told[first[known] + place[known]] == place[known]
    return order[first[known] + place[known]], known
