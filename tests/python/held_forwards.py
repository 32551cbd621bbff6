"""Forwards of a model that wait for a test, so that it comes in the middle of a run."""

from __future__ import annotations

import threading
from typing import Any

from waiting import PATIENCE_S


class Held:
    """Counts a model's forwards, and holds them from one number on until they may go on."""

    def __init__(self, model: Any, at: int) -> None:
        self.at, self.count = at, 0
        self._go_on = threading.Event()
        self._hook = model.register_forward_pre_hook(self._before)

    def _before(self, *_: Any) -> None:
        self.count += 1
        if self.count > self.at:
            self._go_on.wait(PATIENCE_S)

    def __enter__(self) -> Held:
        return self

    def __exit__(self, *_: Any) -> None:
        self.go_on()
        self._hook.remove()

    def go_on(self) -> None:
        self._go_on.set()
