"""The table of strings of a profile while its columns are made."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray


class StringTable:
    """Codes of the strings of one profile."""

    def __init__(self, strings: Iterable[str] = ()) -> None:
        self.strings: list[str] = []
        self._codes: dict[str, int] = {}
        for text in strings:
            self.code(text)

    def code(self, text: str) -> int:
        """The code of a string, new or known."""
        known = self._codes.get(text)
        if known is None:
            known = self._codes[text] = len(self.strings)
            self.strings.append(text)
        return known

    def codes(self, texts: Iterable[str]) -> NDArray[np.int32]:
        """The codes of many strings."""
        return np.array([self.code(text) for text in texts], dtype=np.int32)
