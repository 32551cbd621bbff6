"""The recordings that run, for what an engine has to tell each of them apart from its steps."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Protocol

from pertoken.engines.requests import EngineRequest


class Listener(Protocol):
    """The part of a recording that listens to engines."""

    def records(self, model: int) -> bool:
        """Whether the model of this identity is recorded."""

    def request_arrived(self, request: EngineRequest) -> None:
        """Opens a request before its first step."""

    def request_finished(self, request: EngineRequest) -> None:
        """Closes a request that it has met."""

    def unknown(self, reason: str) -> None:
        """Notes, in a sentence, what cannot be known."""

    def fault(self, where: str, error: Exception) -> None:
        """Counts a fault."""


_listeners: weakref.WeakSet[Listener] = weakref.WeakSet()


def add(listener: Listener) -> None:
    """Begins to tell it."""
    _listeners.add(listener)


def discard(listener: Listener) -> None:
    """Tells it no more."""
    _listeners.discard(listener)


def running() -> list[Listener]:
    """Those that listen now."""
    return list(_listeners)


def guarded(what: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, of which no fault reaches the engine: those that listen are told of it."""

    def call(*args: Any) -> Any:
        try:
            return function(*args)
        except Exception as error:
            for listener in running():
                listener.fault(what, error)
            return None

    return call
