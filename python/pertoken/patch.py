"""Putting wrappers into attributes and taking them out again, in any order.

A place is an attribute that an object holds itself: a module's call slot, a class's method. Each
wrapper calls the one below it, `inner`, so that several recordings share a place as a chain; the
last one to go leaves the place as the first one found it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

_ABSENT = object()
_lock = threading.Lock()


@dataclass
class _Place:
    owner: Any
    name: str
    original: Any  # the owner's own value before us, or _ABSENT
    base: Any  # what the lowest wrapper called when it was put in
    wrappers: list[Any] = field(default_factory=list)

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


_places: dict[tuple[int, str], _Place] = {}


def put(owner: Any, name: str, base: Any, make: Callable[[Any], Any]) -> Any:
    """Puts the wrapper that `make(inner)` returns into `owner`'s own attribute `name`.

    `base` is what the lowest wrapper has to call when the owner holds nothing there of its own (or
    None). Returns the wrapper.
    """
    with _lock:
        key = (id(owner), name)
        place = _places.get(key)
        if place is None:
            own = owner.__dict__.get(name, _ABSENT)
            base = base if own is _ABSENT or own is None else own
            place = _Place(owner, name, own, base)
        held = place.read()
        inner = place.base if held is _ABSENT or held is None else held
        wrapper = make(inner)
        place.write(wrapper)
        place.wrappers.append(wrapper)
        _places[key] = place
        return wrapper


def put_back_on_top(owner: Any, name: str, wrapper: Any) -> None:
    """Puts a wrapper over a value that somebody else has meanwhile written into its place."""
    with _lock:
        place = _places.get((id(owner), name))
        if place is None or wrapper not in place.wrappers:
            return
        held = place.read()
        if held is _ABSENT or held is None or held is wrapper:
            return
        wrapper.inner = held
        place.write(wrapper)


def take_out(owner: Any, name: str, wrapper: Any) -> bool:
    """Takes a wrapper out of its place. False when somebody else had overwritten it."""
    with _lock:
        key = (id(owner), name)
        place = _places.get(key)
        if place is None or not any(held is wrapper for held in place.wrappers):
            return False
        place.wrappers = [held for held in place.wrappers if held is not wrapper]
        if not place.wrappers:
            del _places[key]
        above = place.read()
        if above is wrapper:
            # What is below is either what we found or what came in its stead meanwhile.
            if not place.wrappers and wrapper.inner is place.base:
                place.restore()
            else:
                place.write(wrapper.inner)
            return True
        while above is not _ABSENT and hasattr(type(above), "inner"):
            if above.inner is wrapper:
                above.inner = wrapper.inner
                return True
            above = above.inner
        return False
