"""The label sets of a recording's requests, numbered, so that totals can be kept for each.

What users write into labels may differ for every request: after some, all further sets are one.
"""

from __future__ import annotations

from collections.abc import Mapping

from pertoken import _native
from pertoken.totals import OTHER, LabelSet

_MOST_LABELS = 32
_MOST_CHARACTERS = 200


class LabelSets:
    """Numbers label sets from 0; the one after the last stands for all that found no place."""

    def __init__(self) -> None:
        self._numbers: dict[LabelSet, int] = {}
        self._other: LabelSet = ()

    def number(self, model_version: str, labels: Mapping[str, str]) -> int:
        """The number of a request's label set, new or known; an empty model version is none.

        Of more labels than anybody looks at, and of longer ones, the first part counts.
        """
        named = {**labels, **({"model_version": model_version} if model_version else {})}
        cut = {name[:_MOST_CHARACTERS]: named[name][:_MOST_CHARACTERS] for name in sorted(named)}
        label_set = tuple(cut.items())[:_MOST_LABELS]
        known = self._numbers.get(label_set)
        if known is not None:
            return known
        if len(self._numbers) < _native.MAX_LABEL_SETS:
            number = self._numbers[label_set] = len(self._numbers)
            return number
        if not self._other:
            names = {name for held in (*self._numbers, label_set) for name, _ in held}
            self._other = tuple((name, OTHER) for name in sorted(names))
        return _native.MAX_LABEL_SETS

    def by_number(self) -> dict[int, LabelSet]:
        """The label sets; a set is in it from before its number was first used."""
        by_number = {number: label_set for label_set, number in list(self._numbers.items())}
        return {**by_number, _native.MAX_LABEL_SETS: self._other}
