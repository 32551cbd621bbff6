"""CUDA graphs that torch captures and replays while a recording runs.

Wrappers stand in `torch.cuda.CUDAGraph`: round the two ends of a capture, so that a graph is known
by what was stamped into it, and in the place of `replay`, which is timed.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from typing import Any

from pertoken import _native, patch

REPLAY_NAME = "torch.cuda.CUDAGraph.replay"


class GraphCaptures:
    """The wrappers of one recording, and the graphs that were captured while it ran."""

    def __init__(self, recorder: Any, observer: Any) -> None:
        self._recorder = recorder
        self._observer = observer
        # By identity: what end_capture() of each gave for it.
        self._graphs: dict[int, int] = {}
        self._observed: dict[int, int] = {}
        self._alive: dict[int, weakref.ref[Any]] = {}
        self._installed: list[tuple[type, str, Callable[[], Any]]] = []

    def install(self) -> None:
        """Puts the wrappers in; nothing where torch has no CUDA graphs."""
        cls = graph_class()
        if cls is None:
            return
        graphs, observed, alive = self._graphs, self._observed, self._alive
        recorder, observer = self._recorder, self._observer

        def after_begin(_: Any, result: Any, error: type | None) -> None:
            if error is None:
                recorder.begin_capture()

        def before_end(args: tuple[Any, ...], kwargs: Any) -> None:
            given = (recorder.end_capture(), observer.end_capture())
            _note((graphs, observed), alive, args[0], given)

        self._put(
            cls, "capture_begin", lambda inner: _native.MethodCall(inner, _go_on, after_begin)
        )
        self._put(cls, "capture_end", lambda inner: _native.MethodCall(inner, before_end, _go_on))
        self._put(
            cls,
            "replay",
            lambda inner: _native.GraphReplayCall(
                inner, recorder, REPLAY_NAME, graphs, observer, observed
            ),
        )

    def _put(self, cls: type, name: str, make: Callable[[Any], Any]) -> None:
        wrapper = patch.put(cls, name, inspect.getattr_static(cls, name), make)
        self._installed.append((cls, name, patch.weakly(wrapper)))

    def remove(self) -> None:
        """Takes the wrappers out again."""
        for cls, name, wrapper in reversed(self._installed):
            patch.take_out(cls, name, wrapper())
        if self._installed:
            self._recorder.abandon_captures()
        self._installed.clear()


def _go_on(*_: Any) -> bool:
    return True


def _note(
    known: tuple[dict[int, int], ...],
    alive: dict[int, weakref.ref[Any]],
    graph: Any,
    given: tuple[int, ...],
) -> None:
    key = id(graph)

    def forget(_: Any) -> None:
        for numbers in known:
            numbers.pop(key, None)
        alive.pop(key, None)

    forget(None)  # it may have been captured before
    for numbers, number in zip(known, given, strict=True):
        if number:
            numbers[key] = number
            alive[key] = weakref.ref(graph, forget)


def graph_class() -> type | None:
    """Torch's class of CUDA graphs."""
    import torch

    found = getattr(torch.cuda, "CUDAGraph", None)
    return found if isinstance(found, type) else None
