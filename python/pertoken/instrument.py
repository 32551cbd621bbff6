"""Puts the native wrappers into a model and takes them out again.

A module is wrapped in the slot that ``nn.Module.__call__`` reads first and that copies, pickles
and the compiler pass by. Where the slot does not exist, the instance's ``forward`` is wrapped.
"""

from __future__ import annotations

import copy
import inspect
import logging
import pickle
import pkgutil
import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from pertoken import _native, patch
from pertoken.argument_places import argument_places
from pertoken.compiled_layers import CompiledLayers
from pertoken.known_cache import learn_cache
from pertoken.known_tensor import learn_tensor
from pertoken.selection import has_forward

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("pertoken")

CALL_SLOT = "_compiled_call_impl"


class _CopiedAsInner:
    """For wrappers in attributes that copies and pickles take along: those get the inner one."""

    inner: Any

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self.inner, memo)

    def __copy__(self) -> Any:
        return self.inner

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _reduce_callable(self.inner, protocol)


class ForwardCall(_CopiedAsInner, _native.SpanCall):
    """A wrapper in an instance's own ``forward``."""


class ForwardDeviceCall(_CopiedAsInner, _native.DeviceSpanCall):
    """As `ForwardCall`, for a module that is timed on a device."""


class ForwardRootCall(_CopiedAsInner, _native.RootCall):
    """As `ForwardCall`, for the root."""


class InstanceMethodCall(_CopiedAsInner, _native.MethodCall):
    """A wrapper round a method that an instance holds itself."""


class _SlotAnnotation:
    """The type of the slot as torch annotates it, which ``torch.jit.script`` cannot compile.

    Of a filled slot it tries to, if the module's class has no annotations of its own. While
    anything is recorded it is that of ``forward``, which the compiler leaves alone.
    """

    def __init__(self) -> None:
        self._users = 0
        self._original: Any = None

    def hide(self) -> None:
        """For one more recording."""
        annotations = self._annotations()
        if self._users == 0 and CALL_SLOT in annotations:
            self._original = annotations[CALL_SLOT]
            annotations[CALL_SLOT] = annotations.get("forward")
        self._users += 1

    def show(self) -> None:
        """For one recording less."""
        self._users -= 1
        if self._users == 0 and self._original is not None:
            self._annotations()[CALL_SLOT] = self._original
            self._original = None

    def _annotations(self) -> dict[str, Any]:
        import torch

        return torch.nn.Module.__annotations__


_slot_annotation = _SlotAnnotation()


def _reduce_callable(function: Any, protocol: Any) -> Any:
    if not inspect.isfunction(function):
        return function.__reduce_ex__(protocol)
    # Pickle stores functions by name and offers no hook for that; this does the same.
    name = f"{function.__module__}:{function.__qualname__}"
    try:
        found = pkgutil.resolve_name(name)
    except (ValueError, ImportError, AttributeError):
        found = None
    if found is not function:
        raise pickle.PicklingError(f"Can't pickle {function!r}: it's not found as {name}")
    return pkgutil.resolve_name, (name,)


def has_call_slot(module: torch.nn.Module) -> bool:
    """Whether this torch reads the slot that the wrappers stand in."""
    return hasattr(type(module), CALL_SLOT)


def is_optimized(module: torch.nn.Module) -> bool:
    """Whether this is what ``torch.compile(module)`` returns."""
    return type(module).__name__ == "OptimizedModule" and hasattr(module, "_orig_mod")


def unwrap_compiled(model: torch.nn.Module) -> torch.nn.Module:
    """The module behind ``torch.compile(module)``."""
    while is_optimized(model):
        model = model._orig_mod  # type: ignore[assignment]
    return model


def calls_pass_by(compiled: torch.nn.Module, root: torch.nn.Module) -> bool:
    """Whether calls of ``torch.compile(root)`` run the graph without calling the root.

    They do for torch's own modules, such as ``nn.Sequential``.
    """
    called = getattr(compiled.__dict__.get("forward"), "_torchdynamo_orig_callable", None)
    return getattr(called, "__self__", None) is not root


class _Wrapped:
    """A module and the wrapper in it; neither is held."""

    def __init__(self, name: str, module: torch.nn.Module, attribute: str, wrapper: Any) -> None:
        self.name = name
        self.attribute = attribute
        self.module = patch.weakly(module)
        self.wrapper = patch.weakly(wrapper)


class Instrumentation:
    """The wrappers of one recording in one model, which it does not hold.

    Args:
        makes_cycles: the wrappers hold their modules, which is quicker, so that a model that is
            dropped waits for the garbage collector. Otherwise it goes at once, as without us.
        compiled_layers: sees to the modules that the compiler inlines; None: nobody does.
    """

    def __init__(
        self, makes_cycles: bool = True, compiled_layers: CompiledLayers | None = None
    ) -> None:
        self._makes_cycles = makes_cycles
        self.compiled_layers = compiled_layers
        self.names: list[str] = []  # of the selected modules
        self.overwritten: set[str] = set()  # modules whose wrapper somebody else had replaced
        self.compiled: set[str] = set()  # modules that ran compiled, "" the root
        self._root_name = ""
        self._wrappers: dict[int, _Wrapped] = {}  # by the id of the module
        self._sampling: Any = None  # the native recorder, where it samples
        self._undo: list[Callable[[], object]] = []  # what was done to torch's own classes
        self._aside: list[tuple[Any, Any]] = []  # modules and their wrappers, while set aside

    def install(
        self,
        model: torch.nn.Module,
        modules: dict[str, torch.nn.Module],
        inner_roots: dict[str, torch.nn.Module],
        recorder: Any,
        generation_var: Any,
        observed: dict[str, torch.nn.Module],
        observer: Any,
        device_of: Callable[[torch.nn.Module], int | None],
        full_only: frozenset[str] = frozenset(),
    ) -> None:
        """Wraps the root and every selected or observed module.

        Args:
            model: what the user gave, the root or what ``torch.compile(root)`` returned.
            modules: by name, without the root.
            inner_roots: modules whose calls are steps where no call of the root is round them.
            recorder: the native recorder.
            generation_var: holds the state of the running ``generate()``.
            observed: modules whose outputs are observed, by name, "" the root.
            observer: the native observer.
            device_of: on which device the calls of a module are timed; None: on none.
            full_only: names of modules that get spans only in steps with all detail.
        """
        import torch

        self._sampling = recorder if recorder.sampling() is not None else None
        root = unwrap_compiled(model)
        modules = {**modules, **{name: module for name, module in observed.items() if name}}
        self.names = list(modules)
        self._root_name = type(root).__name__

        def make_root(
            name: str,
            module: torch.nn.Module,
            site: int,
            is_span_when_nested: bool,
            only_own_generate: bool,
            span_detail: int = _native.DETAIL_LAYERS,
        ) -> tuple[Any, Any]:
            places, takes_first = argument_places(module)
            learn_cache()
            learn_tensor()
            only_of = id(module) if only_own_generate else 0
            rest = (recorder, site, generation_var, places, takes_first)
            own = observer if name in observed else None
            nested = (is_span_when_nested, only_of, span_detail, own)
            return (
                lambda inner: _native.RootCall(inner, *rest, *nested),
                lambda inner: ForwardRootCall(inner, *rest, *nested),
            )

        root_makers = make_root("", root, _native.intern_module(self._root_name), True, False)
        self._wrap("", root, *root_makers)
        if model is not root and calls_pass_by(model, root):
            self._wrap("", model, *root_makers)
        for name, module in {**modules, **inner_roots}.items():
            if id(module) in self._wrappers:
                continue
            site = _native.intern_module(name)
            detail = _native.DETAIL_ALL if name in full_only else _native.DETAIL_LAYERS
            if name in inner_roots:
                makers = make_root(
                    name, module, site, name in modules, len(inner_roots) > 1, detail
                )
            else:
                own = observer if name in observed else None
                makers = _span_makers(recorder, site, detail, own, device_of(module))
            self._wrap(name, module, *makers)
        # module.compile() writes into the slot; we go back on top of what it put there.
        self._hook_class(torch.nn.Module, "compile", self._before_compile, self._after_compile)
        # These copy attributes as they are, wrappers included.
        for name in ("__setstate__", "_replicate_for_data_parallel"):
            self._hook_class(torch.nn.Module, name, _before_copy, _after_copy)
        _slot_annotation.hide()
        self._undo.append(_slot_annotation.show)
        if self.compiled_layers is not None:
            self._undo.append(self.compiled_layers.remove)
            self.compiled_layers.install(modules, full_only, device_of)

    def _hook_class(self, owner: Any, name: str, before: Any, after: Any) -> None:
        method = owner.__dict__.get(name)
        if inspect.isfunction(method) or isinstance(method, _native.MethodCall):
            hook = patch.put(
                owner, name, method, lambda inner: _native.MethodCall(inner, before, after)
            )
            self._undo.append(partial(patch.take_out, owner, name, hook))

    def _wrap(self, name: str, module: torch.nn.Module, make: Any, make_forward: Any) -> None:
        try:
            if has_call_slot(module):
                base: Any = module._call_impl
                if not self._makes_cycles and inspect.ismethod(base):
                    base = _native.WeakMethod(base.__func__, module)
                wrapper = patch.put(module, CALL_SLOT, base, make)
                # What it calls is the module itself, and steps come without its spans.
                is_alone = wrapper.inner is base and isinstance(wrapper, _native.SpanCall)
                if self._sampling is not None and is_alone:
                    self._sampling.let_step_aside(CALL_SLOT, wrapper)
                self._wrappers[id(module)] = _Wrapped(name, module, CALL_SLOT, wrapper)
            elif has_forward(module):
                wrapper = patch.put(module, "forward", module.forward, make_forward)
                self._wrappers[id(module)] = _Wrapped(name, module, "forward", wrapper)
        except Exception as error:
            logger.warning("pertoken: module %r cannot be recorded: %s", name, error)
            self.overwritten.add(name or self._root_name)

    def set_aside(self) -> bool:
        """Has the model run without the wrappers until `bring_back`; tells whether that is so.

        Only values of attributes change. `remove` changes classes, and attributes come and go: the
        model's next steps are slower, until the interpreter has learned of them again. It is
        refused where a wrapper is not alone with its module's own call.
        """
        with patch.change_lock:
            held = [(each.module(), each) for each in self._wrappers.values()]
            if not held or self.compiled_layers is not None:
                return False
            if not all(module is not None and _is_plain(module, each) for module, each in held):
                return False
            self._aside = [(module, each.wrapper()) for module, each in held]
            for module, _ in self._aside:
                module.__dict__[CALL_SLOT] = None
            return True

    def bring_back(self) -> None:
        """Puts the wrappers that were set aside into their places."""
        with patch.change_lock:
            for module, wrapper in self._aside:
                patch.bring_back(module, CALL_SLOT, wrapper)
            self._aside.clear()

    @property
    def is_aside(self) -> bool:
        """Whether the model runs without wrappers that are there."""
        return bool(self._aside)

    def remove(self) -> None:
        """Takes every wrapper out and lets go of the model, which is as it was."""
        self.bring_back()
        self.note_compiled()
        if self._sampling is not None:
            self._sampling.forget_wrappers()  # it holds those that have stepped aside
        for wrapped in reversed(list(self._wrappers.values())):
            module = wrapped.module()
            if module is None:
                continue
            if not patch.take_out(module, wrapped.attribute, wrapped.wrapper()):
                self.overwritten.add(wrapped.name or self._root_name)
        self._wrappers.clear()
        while self._undo:
            self._undo.pop()()

    @property
    def is_installed(self) -> bool:
        """Whether any wrapper of this recording stands in the model."""
        return bool(self._wrappers or self._undo)

    def note_compiled(self) -> None:
        """Notes which of the wrapped modules the compiler has a hand in by now."""
        for wrapped in list(self._wrappers.values()):
            module, wrapper = wrapped.module(), wrapped.wrapper()
            if module is not None and _is_compiled(module, wrapped.attribute, wrapper):
                self.compiled.add(wrapped.name)

    def _before_compile(self, args: tuple[Any, ...], kwargs: Any) -> Any:
        wrapped = self._wrappers.get(id(args[0])) if args else None
        if wrapped is None or wrapped.module() is not args[0]:
            return None
        # What it is replaced by may be all that holds the wrapper.
        return args[0], wrapped.attribute, wrapped.wrapper()

    def _after_compile(self, token: Any, result: Any, error: Any) -> None:
        patch.put_back_on_top(*token)


def _span_makers(
    recorder: Any, site: int, detail: int, observer: Any, device: int | None
) -> tuple[Any, Any]:
    classes: tuple[Any, Any] = (_native.SpanCall, ForwardCall)
    rest: tuple[Any, ...] = (recorder, site, detail, observer)
    if device is not None:
        classes, rest = (_native.DeviceSpanCall, ForwardDeviceCall), (*rest, device)
    in_slot, in_forward = (partial(_make_span_call, cls, rest) for cls in classes)
    return in_slot, in_forward


def _make_span_call(cls: Any, rest: tuple[Any, ...], inner: Any) -> Any:
    return cls(inner, *rest)


def _before_copy(args: tuple[Any, ...], kwargs: Any) -> Any:
    if not args:
        return None
    _native.hold_wrappers()
    return args[0]


def _after_copy(module: Any, result: Any, error: Any) -> None:
    """Leaves no wrapper in what a method of a module has copied attributes into."""
    try:
        for name in (CALL_SLOT, "forward", "generate"):
            patch.forget_in_copy(module if result is None else result, name)
    finally:
        _native.release_wrappers()


def _is_plain(module: torch.nn.Module, wrapped: _Wrapped) -> bool:
    wrapper = wrapped.wrapper()
    return (
        wrapped.attribute == CALL_SLOT
        and patch.is_alone(module, CALL_SLOT, wrapper)
        and not _is_compiled(module, CALL_SLOT, wrapper)
    )


def _is_compiled(module: torch.nn.Module, attribute: str, wrapper: Any) -> bool:
    """Whether calls of the module run, or may run, what the compiler made of it."""
    if is_optimized(module):
        return True
    inner = getattr(wrapper, "inner", None)
    while isinstance(inner, (_native.SpanCall, _native.RootCall)):
        inner = inner.inner
    is_own = isinstance(inner, _native.WeakMethod) or (
        inspect.ismethod(inner) and inner.__self__ is module
    )
    if attribute == CALL_SLOT and not is_own:
        return True
    forward = getattr(module, "forward", None)
    return hasattr(forward, "_torchdynamo_orig_callable") or _has_compiled_code(forward)


def _has_compiled_code(forward: Any) -> bool:
    """Whether the compiler holds code for this method, of this instance or of another one."""
    dynamo = getattr(sys.modules.get("torch._C"), "_dynamo", None)
    entries_of = getattr(getattr(dynamo, "eval_frame", None), "_debug_get_cache_entry_list", None)
    if "torch._dynamo" not in sys.modules or entries_of is None:
        return False
    while forward is not None:  # a decorator's own code may be what was compiled
        code = getattr(forward, "__code__", None)
        if code is not None and entries_of(code):
            return True
        forward = getattr(forward, "__wrapped__", None)
    return False
