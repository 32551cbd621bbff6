"""Puts the native wrappers into a model and takes them out again.

A module is wrapped in the slot that ``nn.Module.__call__`` reads first and that copies, pickles
and the compiler pass by. Where the slot does not exist, the instance's ``forward`` is wrapped.
"""

from __future__ import annotations

import copy
import inspect
import logging
from functools import partial
from typing import TYPE_CHECKING, Any

from pertoken import _native, patch

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("pertoken")

CALL_SLOT = "_compiled_call_impl"

_IDS, _EMBEDS, _CACHE, _MASK, _KEEP, _USE_CACHE = range(6)
_ARGUMENT_NAMES: dict[int, tuple[str, ...]] = {
    _IDS: ("input_ids",),
    _EMBEDS: ("inputs_embeds",),
    _CACHE: ("past_key_values", "past_key_value", "cache_params", "past", "state", "mems"),
    _MASK: ("attention_mask",),
    _KEEP: ("logits_to_keep", "num_logits_to_keep"),
    _USE_CACHE: ("use_cache",),
}
CACHE_ARGUMENTS = frozenset(_ARGUMENT_NAMES[_CACHE])


class ForwardCall(_native.SpanCall):
    """A wrapper in an instance's own ``forward``: copies and pickles are those of the inner one."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self.inner, memo)

    def __copy__(self) -> Any:
        return self.inner

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _reduce_callable(self.inner, protocol)


class ForwardRootCall(_native.RootCall):
    """As `ForwardCall`, for the root."""

    __deepcopy__ = ForwardCall.__deepcopy__
    __copy__ = ForwardCall.__copy__
    __reduce_ex__ = ForwardCall.__reduce_ex__


def _reduce_callable(function: Any, protocol: Any) -> Any:
    if inspect.isfunction(function):
        # Pickle stores functions by name and offers no hook for that; this does the same.
        import pkgutil

        return pkgutil.resolve_name, (f"{function.__module__}:{function.__qualname__}",)
    return function.__reduce_ex__(protocol)


def has_call_slot(module: torch.nn.Module) -> bool:
    """Whether this torch reads the slot that the wrappers stand in."""
    return hasattr(type(module), CALL_SLOT)


def unwrap_compiled(model: torch.nn.Module) -> torch.nn.Module:
    """The module behind ``torch.compile(module)``, through which each call of either goes."""
    original = model.__dict__.get("_modules", {}).get("_orig_mod")
    if original is not None and type(model).__name__ == "OptimizedModule":
        return original  # type: ignore[no-any-return]
    return model


def argument_places(model: torch.nn.Module) -> tuple[list[tuple[int, str, int]], bool]:
    """Where the model's forward takes its ids, cache, mask and so on.

    Returns:
        (role, keyword, position or -1) for the native side, and whether nothing of the kind is
        known, so that the first positional tensor is what there is to go by.
    """
    try:
        parameters = inspect.signature(model.forward).parameters
    except (TypeError, ValueError):
        return [], True
    positions = {
        name: index
        for index, (name, parameter) in enumerate(parameters.items())
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY
        and parameter.kind is not inspect.Parameter.VAR_KEYWORD
    }
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    prefix = "decoder_" if "decoder_input_ids" in parameters else ""
    places: list[tuple[int, str, int]] = []
    for role, names in _ARGUMENT_NAMES.items():
        for name in names:
            keyword = prefix + name if role in (_IDS, _EMBEDS, _MASK) else name
            if keyword in parameters:
                places.append((role, keyword, positions.get(keyword, -1)))
            elif takes_any and name in ("input_ids", "inputs_embeds", "past_key_values"):
                places.append((role, keyword, -1))
    known = any(role in (_IDS, _EMBEDS) and keyword in parameters for role, keyword, _ in places)
    return places, not known


class Instrumentation:
    """The wrappers of one recording in one model."""

    def __init__(self, root: torch.nn.Module, modules: dict[str, torch.nn.Module]) -> None:
        self.root = root
        self.modules = modules
        self.overwritten: list[str] = []  # modules whose wrapper somebody else had replaced
        self._wrappers: dict[int, tuple[str, torch.nn.Module, str, Any]] = {}
        self._compiled: set[str] = set()  # modules that were, when their wrapper was taken out
        self._compile_hook: Any = None
        self._module_class: Any = None

    def install(self, recorder: Any, generation_var: Any, request_hook: Any) -> None:
        """Wraps the root and every selected module."""
        import torch

        places, takes_first = argument_places(self.root)
        site = _native.intern_module(type(self.root).__name__)

        def make_root(cls: Any) -> Any:
            return lambda inner: cls(
                inner, recorder, site, generation_var, request_hook, places, takes_first
            )

        self._wrap("", self.root, make_root(_native.RootCall), make_root(ForwardRootCall))
        for name, module in self.modules.items():
            if module is self.root:
                continue
            code = _native.intern_module(name)
            self._wrap(
                name,
                module,
                partial(_make_span_call, _native.SpanCall, recorder, code),
                partial(_make_span_call, ForwardCall, recorder, code),
            )
        # module.compile() writes into the slot; we go back on top of what it put there.
        self._module_class = torch.nn.Module
        self._compile_hook = patch.put(
            torch.nn.Module,
            "compile",
            torch.nn.Module.compile,
            lambda inner: _native.MethodCall(inner, self._before_compile, self._after_compile),
        )

    def _wrap(self, name: str, module: torch.nn.Module, make: Any, make_forward: Any) -> None:
        try:
            if has_call_slot(module):
                wrapper = patch.put(module, CALL_SLOT, module._call_impl, make)
                self._wrappers[id(module)] = (name, module, CALL_SLOT, wrapper)
            else:
                wrapper = patch.put(module, "forward", module.forward, make_forward)
                self._wrappers[id(module)] = (name, module, "forward", wrapper)
        except Exception as error:
            logger.warning("pertoken: module %r cannot be recorded: %s", name, error)
            self.overwritten.append(name)

    def remove(self) -> None:
        """Takes every wrapper out; the model is as it was."""
        self._compiled |= {
            name
            for name, module, _, _ in self._wrappers.values()
            if self.was_compiled(name, module)
        }
        for name, module, attribute, wrapper in reversed(list(self._wrappers.values())):
            if not patch.take_out(module, attribute, wrapper):
                self.overwritten.append(name or type(self.root).__name__)
        self._wrappers.clear()
        if self._compile_hook is not None:
            patch.take_out(self._module_class, "compile", self._compile_hook)
            self._compile_hook = None

    @property
    def is_installed(self) -> bool:
        """Whether any wrapper of this recording stands in the model."""
        return bool(self._wrappers)

    def was_compiled(self, name: str, module: torch.nn.Module) -> bool:
        """Whether calls of this module ran what ``module.compile()`` made of it."""
        entry = self._wrappers.get(id(module))
        if entry is None:
            return name in self._compiled
        inner = entry[3].inner
        while isinstance(inner, (_native.SpanCall, _native.RootCall)):
            inner = inner.inner
        return not (inspect.ismethod(inner) and inner.__self__ is module)

    def _before_compile(self, args: tuple[Any, ...], kwargs: Any) -> Any:
        return self._wrappers.get(id(args[0])) if args else None

    def _after_compile(self, token: Any, result: Any, error: Any) -> None:
        _, module, attribute, wrapper = token
        patch.put_back_on_top(module, attribute, wrapper)


def _make_span_call(cls: Any, recorder: Any, site: int, inner: Any) -> Any:
    return cls(inner, recorder, site)
