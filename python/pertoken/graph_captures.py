"""CUDA graphs that torch captures and replays while a recording runs.

Wrappers stand in `torch.cuda.CUDAGraph`: round the two ends of a capture, so that a graph is known
by what was stamped into it, and in the place of `replay`, which is timed. Where torch tells a
graph's executable, what was captured of ours is switched on and off in it; that takes the graph it
was made of, which torch drops at the end of a capture unless it is asked to keep it. So graphs
that are made meanwhile keep theirs, and are instantiated when they would have been.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType
from typing import Any

from pertoken import _native, patch

REPLAY_NAME = "torch.cuda.CUDAGraph.replay"


@dataclass
class _Captured:
    """A graph that was captured meanwhile, as long as it is there."""

    alive: weakref.ref[Any]
    executable: int = 0  # as it was told last
    is_held: bool = False  # it is known to be there


class GraphCaptures:
    """The wrappers of one recording, and the graphs that were captured while it ran."""

    def __init__(self, recorder: Any, observer: Any) -> None:
        # By whom, and by identity: what end_capture() of each gave for it.
        self._parts: tuple[tuple[Any, dict[int, int]], ...] = ((recorder, {}), (observer, {}))
        self._captured: dict[int, _Captured] = {}
        # Those that torch would not keep by itself.
        self._kept: weakref.WeakSet[Any] = weakref.WeakSet()
        self._installed: list[tuple[type, str, Callable[[], Any]]] = []

    def install(self) -> None:
        """Puts the wrappers in; nothing where torch has no CUDA graphs."""
        cls = graph_class()
        if cls is None:
            return
        (recorder, graphs), (observer, observed) = self._parts

        def after_begin(_: Any, result: Any, error: type | None) -> None:
            if error is None:
                recorder.begin_capture()

        def before_end(args: tuple[Any, ...], kwargs: Any) -> Any:
            self._note(args[0])
            return args[0]

        def before_change(args: tuple[Any, ...], kwargs: Any) -> Any:
            self._release(id(args[0]), is_there=False)
            return args[0]

        if hasattr(cls, "raw_cuda_graph_exec"):
            self._put(cls, "__init__", lambda inner: _Method(inner, self._make))
            self._put(cls, "capture_end", lambda inner: _Method(inner, self._end))
            self._put_round(cls, "instantiate", before_change, self._hold)
            self._put_round(cls, "reset", before_change, _go_on)
        self._put_round(cls, "capture_begin", _go_on, after_begin)
        self._put_round(cls, "capture_end", before_end, self._hold)
        self._put(
            cls,
            "replay",
            lambda inner: _native.GraphReplayCall(
                inner, recorder, REPLAY_NAME, graphs, observer, observed
            ),
        )

        for key, captured in list(self._captured.items()):
            # It is another one where somebody captured again meanwhile.
            if captured.executable and not self._hold_same(captured):
                self._forget(key)

    def _put_round(self, cls: type, name: str, before: Any, after: Any) -> None:
        self._put(cls, name, lambda inner: _native.MethodCall(inner, before, after))

    def _put(self, cls: type, name: str, make: Callable[[Any], Any]) -> None:
        wrapper = patch.put(cls, name, inspect.getattr_static(cls, name), make)
        self._installed.append((cls, name, patch.weakly(wrapper)))

    def remove(self) -> None:
        """Takes the wrappers out again, and switches off what stays in the graphs."""
        # First, while the wrappers see what other threads launch, which must stay as it is.
        for key in list(self._captured):
            self._release(key, is_there=True)
        for cls, name, wrapper in reversed(self._installed):
            patch.take_out(cls, name, wrapper())
        if self._installed:
            self._parts[0][0].abandon_captures()
        self._installed.clear()

    def _make(self, inner: Any, graph: Any, args: Any, kwargs: Any) -> None:
        if args not in ((), (False,)) or kwargs not in ({}, {"keep_graph": False}):
            inner(graph, *args, **kwargs)
            return
        inner(graph, keep_graph=True)
        self._kept.add(graph)

    def _end(self, inner: Any, graph: Any, args: Any, kwargs: Any) -> Any:
        result = inner(graph, *args, **kwargs)
        if graph in self._kept:
            graph.instantiate()
        return result

    def _note(self, graph: Any) -> None:
        key, own = id(graph), weakref.ref(self)

        def forget(_: Any) -> None:
            captures = own()
            if captures is not None:
                captures._forget(key)

        self._forget(key)  # it may have been captured before
        for part, numbers in self._parts:
            number = part.end_capture()
            if number:
                numbers[key] = number
                self._captured[key] = _Captured(weakref.ref(graph, forget))

    def _forget(self, key: int) -> None:
        self._release(key, is_there=False)
        for _, numbers in self._parts:
            numbers.pop(key, None)
        self._captured.pop(key, None)

    def _hold(self, graph: Any, result: Any, error: type | None) -> None:
        captured = self._captured.get(id(graph))
        if error is None and captured is not None and not captured.is_held:
            captured.executable = _executable(graph)
            self._hold_same(captured)

    def _hold_same(self, captured: _Captured) -> bool:
        graph = captured.alive()
        if not captured.executable or _executable(graph) != captured.executable:
            return False
        captured.is_held = True
        for part, numbers in self._parts:
            if id(graph) in numbers:
                part.hold_executable(numbers[id(graph)], captured.executable)
        return True

    def _release(self, key: int, *, is_there: bool) -> None:
        captured = self._captured.get(key)
        if captured is None or not captured.is_held:
            return
        captured.is_held = False
        for part, numbers in self._parts:
            if key in numbers:
                part.release_executable(numbers[key], is_there)


class _Method:
    """A wrapper in a class that runs the method below it in its own way: `run(inner, ...)`."""

    def __init__(self, inner: Any, run: Callable[..., Any]) -> None:
        self.inner = inner
        self._run = run

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else MethodType(self, instance)

    def __call__(self, graph: Any, /, *args: Any, **kwargs: Any) -> Any:
        return self._run(self.inner, graph, args, kwargs)


def _go_on(*_: Any) -> bool:
    return True


def _executable(graph: Any) -> int:
    """The handle of what replays launch; 0 where it is not to be had, or its graph is not kept."""
    try:
        graph.raw_cuda_graph()
        return int(graph.raw_cuda_graph_exec())
    except (AttributeError, RuntimeError):
        return 0


def graph_class() -> type | None:
    """Torch's class of CUDA graphs."""
    import torch

    found = getattr(torch.cuda, "CUDAGraph", None)
    return found if isinstance(found, type) else None
