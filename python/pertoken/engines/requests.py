"""The requests that an engine works on, from their arrival to their end."""

from __future__ import annotations

from collections.abc import Mapping

from pertoken import _native

UNFINISHED = "unfinished"


class EngineRequest(_native.RowRequest):
    """One request of an engine. Recordings that meet it number it and keep it."""

    __slots__ = (
        "end_ticks",
        "error",
        "id",
        "labels",
        "model_version",
        "start_ticks",
        "tokens_in",
        "whole_since_ticks",
    )

    def __init__(
        self,
        id: str,
        start_ticks: int,
        tokens_in: int = -1,
        model_version: str = "",
        labels: Mapping[str, str] | None = None,
    ) -> None:
        self.id = id
        self.start_ticks = start_ticks
        self.tokens_in = tokens_in
        self.model_version = model_version
        self.labels = dict(labels or {})
        # Since when no step of it can have been missed; 0 where it was met in the middle.
        self.whole_since_ticks = _native.now_ticks()
        self.end_ticks = 0  # 0 while it runs
        self.error = ""

    def end(self, error: str) -> None:
        """Notes the end, with the name of what ended it early."""
        self.error = error
        self.end_ticks = _native.now_ticks()
