"""Calls a function as soon as the program has imported a module, without importing it itself."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from importlib.abc import Loader

Action = Callable[[ModuleType], None]


def after_import(name: str, action: Action) -> None:
    """Calls ``action(module)`` once, when the module is there: now, or right after its import.

    The same action may be given several times.
    """
    module = sys.modules.get(name)
    if module is not None:
        action(module)
        return
    actions = _waiting.actions.setdefault(name, [])
    if action not in actions:
        actions.append(action)
    if _waiting not in sys.meta_path:
        sys.meta_path.insert(0, _waiting)


class _Waiting:
    """Stands among the finders of modules until the last module that is waited for is there."""

    def __init__(self) -> None:
        self.actions: dict[str, list[Action]] = {}

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """What the other finders say, with a loader that calls us afterwards."""
        if name not in self.actions:
            return None
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            if finder is self or find is None:
                continue
            spec: ModuleSpec | None = find(name, path, target)
            if spec is not None:
                if hasattr(spec.loader, "exec_module"):
                    spec.loader = cast("Loader", _Loader(spec.loader, self))
                return spec
        return None

    def done(self, module: ModuleType) -> None:
        """Calls the actions of a module that was just imported."""
        actions = self.actions.pop(module.__name__, [])
        if not self.actions and self in sys.meta_path:
            sys.meta_path.remove(self)
        for action in actions:
            action(module)


class _Loader:
    """Loads a module as its own loader does, which the module then has."""

    def __init__(self, inner: Any, waiting: _Waiting) -> None:
        self._inner = inner
        self._waiting = waiting

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        create = getattr(self._inner, "create_module", None)
        module: ModuleType | None = None if create is None else create(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = self._inner
        module.__loader__ = self._inner
        self._inner.exec_module(module)
        self._waiting.done(module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


_waiting = _Waiting()
