"""Putting wrappers into attributes and taking them out again, in any order.

A place is an attribute that an object holds itself: a module's call slot, a class's method. Each
wrapper calls the one below it, `inner`, so that several recordings share a place as a chain; the
last one to go leaves the place as the first one found it.

A place holds neither its owner nor what stands in it: the owner holds the wrappers, and they hold
what is below them. So an owner that its program drops is gone, wrappers and all.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

from pertoken import _native

_ABSENT = object()


class ChangeLock:
    """Held while models are changed: by one thread at a time, over a fork, and by no collector.

    Meanwhile every wrapper stands in its place: none is out for a step without detail.
    The garbage collector may drop a recording at any allocation, even of the thread that is in the
    middle of a change; what it wants changed waits until that is done.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._depth = 0
        self._waiting: list[Callable[[], None]] = []
        # A forked child has one thread: a lock that another one held would never be free again.
        os.register_at_fork(
            before=self._lock.acquire,
            after_in_parent=self._lock.release,
            after_in_child=self._lock.release,
        )

    def __enter__(self) -> None:
        self._lock.acquire()
        self._depth += 1
        _native.hold_wrappers()

    def __exit__(self, *exc_info: object) -> None:
        if self._depth == 1:
            while self._waiting:
                self._waiting.pop()()
        self._depth -= 1
        _native.release_wrappers()
        self._lock.release()

    def run_outside(self, action: Callable[[], None]) -> None:
        """Runs `action` now, or at the end of the change that this thread is in."""
        with self._lock:
            if self._depth:
                self._waiting.append(action)
            else:
                action()


change_lock = ChangeLock()


def weakly(value: Any, when_gone: Callable[[Any], None] | None = None) -> Callable[[], Any]:
    """A function that returns `value`, or None once it is gone; classes and constants stay."""
    if value is None or isinstance(value, type):
        return lambda: value
    try:
        return weakref.ref(value, when_gone)
    except TypeError:
        return lambda: value


class _Place:
    """An attribute with wrappers in it.

    Attributes:
        written_over: somebody else wrote into the place, and we went on top again.
    """

    def __init__(self, owner: Any, name: str, original: Any, base: Any) -> None:
        self.name = name
        self.written_over = False
        self._owner = weakly(owner, partial(_forget_owner, (id(owner), name)))
        # The owner's own value before us, or _ABSENT; what the lowest wrapper called when it was
        # put in, which is what keeps both.
        self._original = weakly(original)
        self._base = weakly(base)
        self._wrappers: list[Callable[[], Any]] = []

    @property
    def owner(self) -> Any:
        return self._owner()

    @property
    def original(self) -> Any:
        return self._original()

    @property
    def base(self) -> Any:
        return self._base()

    @property
    def wrappers(self) -> list[Any]:
        """Those that are still there: one that was overwritten may be gone."""
        return [held for held in (ref() for ref in self._wrappers) if held is not None]

    def add(self, wrapper: Any) -> None:
        self._wrappers.append(weakly(wrapper))

    def drop(self, wrapper: Any) -> None:
        self._wrappers = [weakly(held) for held in self.wrappers if held is not wrapper]

    def read(self) -> Any:
        return self.owner.__dict__.get(self.name, _ABSENT)

    def write(self, value: Any) -> None:
        if isinstance(self.owner, type):
            setattr(self.owner, self.name, value)
        elif value is _ABSENT:
            self.owner.__dict__.pop(self.name, None)
        else:
            self.owner.__dict__[self.name] = value

    def restore(self) -> None:
        if self.original is _ABSENT and isinstance(self.owner, type):
            delattr(self.owner, self.name)
        else:
            self.write(self.original)

    def holds(self, value: Any) -> bool:
        return any(held is value for held in self.wrappers)

    def replace_elsewhere(self, wrapper: Any) -> None:
        """In attributes into which others have moved the wrapper, taking it for the original."""
        if isinstance(self.owner, type):
            return
        for name, value in self.owner.__dict__.items():
            if value is wrapper:
                self.owner.__dict__[name] = wrapper.inner


_places: dict[tuple[int, str], _Place] = {}


def _place_of(owner: Any, name: str) -> _Place | None:
    """The place, if it holds a wrapper; an owner that is gone may have had the same id."""
    place = _places.get((id(owner), name))
    return place if place is not None and place.owner is owner and place.wrappers else None


def _forget_owner(key: tuple[int, str], ref: Any) -> None:
    def forget() -> None:
        place = _places.get(key)
        if place is not None and place.owner is None:
            del _places[key]

    change_lock.run_outside(forget)


def put(owner: Any, name: str, base: Any, make: Callable[[Any], Any]) -> Any:
    """Puts the wrapper that `make(inner)` returns into `owner`'s own attribute `name`.

    `base` is what the lowest wrapper has to call when the owner holds nothing there of its own (or
    None). Returns the wrapper, which only the owner holds.
    """
    with change_lock:
        key = (id(owner), name)
        place = _place_of(owner, name)
        if place is None:
            own = owner.__dict__.get(name, _ABSENT)
            base = base if own is _ABSENT or own is None else own
            place = _Place(owner, name, own, base)
        else:
            base = place.base
        held = place.read()
        inner = base if held is _ABSENT or held is None else held
        wrapper = make(inner)
        place.write(wrapper)
        place.add(wrapper)
        _places[key] = place
        return wrapper


def put_back_on_top(owner: Any, name: str, wrapper: Any) -> None:
    """Puts a wrapper over a value that somebody else has meanwhile written into its place."""
    with change_lock:
        place = _place_of(owner, name)
        if place is None or not place.holds(wrapper):
            return
        held = place.read()
        if held is _ABSENT or held is None or held is wrapper:
            return
        wrapper.inner = held
        if place.original is _ABSENT and not place.written_over and not place.holds(held):
            # Without us the attribute would be new, and come last.
            place.write(_ABSENT)
            place.written_over = True
        place.write(wrapper)


def is_alone(owner: Any, name: str, wrapper: Any) -> bool:
    """Whether a wrapper is all that stands in its place, which its owner can do without."""
    place = _place_of(owner, name)
    return (
        place is not None
        and place.holds(wrapper)
        and place.read() is wrapper
        and wrapper.inner is place.base
        and (place.original is _ABSENT or place.original is None)
    )


def bring_back(owner: Any, name: str, wrapper: Any) -> None:
    """Writes a wrapper into its place again, from which its owner was left None."""
    with change_lock:
        place = _place_of(owner, name)
        if place is None or not place.holds(wrapper):
            return
        held = place.read()
        if held is _ABSENT or held is None:
            place.write(wrapper)
        else:
            put_back_on_top(owner, name, wrapper)


def take_out(owner: Any, name: str, wrapper: Any) -> bool:
    """Takes a wrapper out of its place. False when somebody else had overwritten it.

    A `wrapper` of None is one that is gone since then.
    """
    with change_lock:
        key = (id(owner), name)
        place = _place_of(owner, name)
        if place is None or not place.holds(wrapper):
            if place is None:
                _places.pop(key, None)
            return False
        base = place.base
        place.drop(wrapper)
        if not place.wrappers:
            del _places[key]
        above = place.read()
        if above is wrapper:
            # What is below is either what we found or what came in its stead meanwhile. Wrappers
            # that are set aside stand nowhere.
            if wrapper.inner is base:
                place.restore()
            else:
                place.write(wrapper.inner)
            return True
        while place.holds(above):
            if above.inner is wrapper:
                above.inner = wrapper.inner
                return True
            above = above.inner
        place.replace_elsewhere(wrapper)
        return False


def forget_in_copy(copied: Any, name: str) -> None:
    """Takes a wrapper out of an object that has it only as a copy of another's attributes."""
    value = copied.__dict__.get(name)
    if not hasattr(type(value), "inner"):
        return
    with change_lock:
        place = next((held for held in _places.values() if held.holds(value)), None)
        if place is None or place.owner is copied:
            return
        if place.original is _ABSENT:
            del copied.__dict__[name]
        else:
            copied.__dict__[name] = place.original
