"""Spans of modules that the compiler inlines.

While a recording asks for them, what the compiler traces has a call of an operator before and after
each selected module. What was compiled keeps these calls; they find out at run time whether anybody
records. The compiler is told at the one place where it inlines a call of a module, so that the
models themselves, and the guards on them, stay as they are.
"""

from __future__ import annotations

import logging
import types
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from pertoken import _native, patch

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("pertoken")

_OPERATORS = ("enter_layer", "leave_layer")
# The operators say that they change `order`, so that the compiler neither drops them nor changes
# their order. With "fence" they say so of the hidden state, too: what makes it stays before them
# and what uses it after them. In truth they change neither.
_OVERLOADS = {
    "": "(Tensor(a!) order, Tensor hidden, Tensor parameter, int kind) -> ()",
    ".fence": "(Tensor(a!) order, Tensor(b!) hidden, Tensor parameter, int kind) -> ()",
}

# `order`, one a device, by the name of the device.
_orders = types.SimpleNamespace()

_kinds: dict[tuple[str, str, str], int] = {}  # by the class and the place of a parameter in it


class _Known:
    """A selected module: where its parameter is, and which kind that makes it."""

    def __init__(
        self,
        name: str,
        module: torch.nn.Module,
        path: str,
        detail: int,
        address: int,
        device: int,
    ) -> None:
        self.name = name
        self.module = patch.weakly(module)
        self.path = tuple(path.split("."))
        self.kind = _kind(module, path)
        self.site = _native.intern_module(name)
        self.detail = detail
        self.address = address
        self.device = device


class CompiledLayers:
    """The inlined modules of one recording.

    Attributes:
        without_parameter: names of modules that no parameter tells from others.
        enclosed: names of modules that the compiler has put into a graph inside another one.
        reason: why nothing is recorded in what is compiled; else empty.
    """

    def __init__(self, recorder: Any) -> None:
        self.without_parameter: list[str] = []
        self.enclosed: set[str] = set()
        self.reason = ""
        self._recorder = recorder
        self._known: dict[int, _Known] = {}
        self._graph_id = 0  # of the graph that is being made

    def install(
        self,
        modules: dict[str, torch.nn.Module],
        full_only: frozenset[str],
        device_of: Callable[[torch.nn.Module], int | None],
    ) -> None:
        """From now on what the compiler inlines of these modules, by name, is recorded.

        Args:
            modules: by name, without the root.
            full_only: names of modules that get spans only in steps with all detail.
            device_of: on which device the calls of a module are timed; None: on none.
        """
        chosen = _parameters(modules)
        self.without_parameter = [name for name in modules if name not in chosen]
        for name, (path, address) in chosen.items():
            module = modules[name]
            detail = _native.DETAIL_ALL if name in full_only else _native.DETAIL_LAYERS
            device = device_of(module)
            known = _Known(name, module, path, detail, address, -1 if device is None else device)
            self._known[id(module)] = known
            self._tell(known)
            _make_order(_value(module, known.path))
        self.reason = _compiler.tell(self)

    def remove(self) -> None:
        """Ends that. What was compiled stays as it is, and records nothing."""
        _compiler.forget(self)
        _native.remove_compiled_layers(self._recorder)
        self._known.clear()

    def find(self, module: torch.nn.Module, graph_id: int) -> _Known | None:
        """The module, if it is one of them. Parameters may have moved since they were seen."""
        known = self._known.get(id(module))
        if known is None or known.module() is not module:
            return None
        if self._graph_id != graph_id:
            self._graph_id = graph_id
            self._follow_parameters()
        return known

    def reasons(self, inlined: list[str]) -> list[str]:
        """Why inlined modules, by name, have no spans, as sentences."""
        if self.reason:
            return [f"Layers that the compiler inlines are not recorded: {self.reason}."]
        said = []
        without = [name for name in self.without_parameter if name in inlined]
        if without:
            said.append(
                "Compiled code cannot tell these modules from others, as they have no parameter "
                f"of their own: {', '.join(without[:8])}."
            )
        enclosed = [name for name in inlined if name in self.enclosed]
        if enclosed:
            said.append(
                "These modules run in a graph inside the compiled one, as checkpointing and "
                f"torch.func make them, where nothing can be told: {', '.join(enclosed[:8])}."
            )
        if len(without) + len(enclosed) < len(inlined):
            said.append(
                "Layers have times only in what is compiled while a recording with "
                "compiled_layers=True runs: begin it before the first compiled call, or call "
                "torch._dynamo.reset() in it."
            )
        return said

    def _follow_parameters(self) -> None:
        for known in self._known.values():
            module = known.module()
            if module is None:
                continue
            parameter = _value(module, known.path)
            address = _address(parameter)
            if address and address != known.address:
                known.address = address
                self._tell(known)
                _make_order(parameter)

    def _tell(self, known: _Known) -> None:
        _native.add_compiled_layer(
            self._recorder, known.kind, known.address, known.site, known.detail, known.device
        )


class _Compiler:
    """The place in the compiler where it inlines the call of a module."""

    def __init__(self) -> None:
        self._told: list[CompiledLayers] = []
        self._undo: Callable[[], object] | None = None

    def tell(self, layers: CompiledLayers) -> str:
        """For one more recording; empty, or why it cannot be."""
        with patch.change_lock:
            if self._undo is None:
                try:
                    _define_operators()
                    self._undo = self._hook()
                except Exception as error:
                    return f"this torch has no place for it: {type(error).__name__}: {error}"
            self._told.append(layers)
            return ""

    def forget(self, layers: CompiledLayers) -> None:
        """For one recording less."""
        with patch.change_lock:
            if layers in self._told:
                self._told.remove(layers)
            if not self._told and self._undo is not None:
                self._undo()
                self._undo = None

    def _hook(self) -> Callable[[], object]:
        from torch._dynamo.variables.nn_module import UnspecializedNNModuleVariable

        owner: Any = UnspecializedNNModuleVariable
        inner = owner.__dict__["call_function"]

        def call_function(variable: Any, tx: Any, args: Any, kwargs: Any) -> Any:
            return self._inline(inner, variable, tx, args, kwargs)

        owner.call_function = call_function

        def undo() -> None:
            if owner.__dict__.get("call_function") is call_function:
                owner.call_function = inner

        return undo

    def _inline(self, inner: Any, variable: Any, tx: Any, args: Any, kwargs: Any) -> Any:
        """In the place of `inner`, which inlines the call of the module `variable` stands for."""
        known = self._find(variable, tx)
        if known is None:
            return inner(variable, tx, args, kwargs)
        given = [value for value in (*args, *kwargs.values()) if _may_hold_tensor(value)]
        node = self._trace("enter_layer", variable, tx, known, given)
        result = inner(variable, tx, args, kwargs)
        if node is not None and self._trace("leave_layer", variable, tx, known, [result]) is None:
            node.graph.erase_node(node)
        return result

    def _find(self, variable: Any, tx: Any) -> _Known | None:
        try:
            if tx.output.export:
                return None  # what is exported has to run without us
            for layers in tuple(self._told):
                known = layers.find(variable.value, id(tx.output))
                if known is None:
                    continue
                # A graph inside a graph may not change anything, nor what is mapped inside one.
                if tx.output.current_tracer.parent is not None or _is_transformed():
                    layers.enclosed.add(known.name)
                    return None
                return known
        except Exception as error:
            self._note(error)
        return None

    def _trace(self, operator: str, variable: Any, tx: Any, known: _Known, values: Any) -> Any:
        """The call of the operator in the graph; None where no tensor was found."""
        from torch._dynamo.exc import TorchDynamoException, Unsupported
        from torch._dynamo.variables import TupleVariable, UserFunctionVariable
        from torch._dynamo.variables.builder import SourcelessBuilder

        function: Any = UserFunctionVariable

        try:
            hidden = function(trace_first_tensor).call_function(tx, [TupleVariable(values)], {})
            if not hasattr(hidden, "proxy"):
                return None
            overload = "fence" if _may_be_fenced(hidden.proxy.node) else "default"
            order_name = _order_name(_value(variable.value, known.path))
            constants = (operator, overload, order_name, known.path, known.kind)
            given = [SourcelessBuilder.create(tx, constant) for constant in constants]
            function(trace_call).call_function(tx, [*given, variable, hidden], {})
            return next(reversed(tx.output.graph.nodes))
        except TorchDynamoException as error:
            if not isinstance(error, Unsupported):
                raise  # how the compiler begins anew
            self._note(error)
        except Exception as error:
            self._note(error)
        return None

    def _note(self, error: Exception) -> None:
        for layers in self._told:
            layers.reason = f"the compiler could not trace it: {type(error).__name__}"
        logger.debug("pertoken: an inlined module is not recorded", exc_info=error)


_compiler = _Compiler()


def trace_call(
    operator: str,
    overload: str,
    order_name: str,
    path: tuple[str, ...],
    kind: int,
    module: Any,
    hidden: Any,
) -> None:
    """For the compiler, which traces it."""
    import torch

    call = getattr(getattr(torch.ops.pertoken, operator), overload)
    call(getattr(_orders, order_name), hidden, _value(module, path), kind)


def trace_first_tensor(values: Any) -> Any:
    """Likewise: the first tensor in what a module is given or gives."""
    import torch

    for value in values:
        if type(value) is torch.Tensor:
            return value
        if isinstance(value, (tuple, list, dict)):
            inner = value.values() if isinstance(value, dict) else value
            found = trace_first_tensor(tuple(inner))
            if found is not None:
                return found
    return None


def _may_be_fenced(node: Any) -> bool:
    """Whether a tensor is the graph's own, and no gradient goes through it.

    To say that what the graph is given is changed would keep it out of CUDA graphs.
    """
    example = node.meta["example_value"]
    if example.requires_grad:
        return False
    storage = example.untyped_storage()._cdata
    given = (node.graph.find_nodes(op=op) for op in ("placeholder", "get_attr"))
    others = (held.meta.get("example_value") for nodes in given for held in nodes)
    return all(
        not hasattr(other, "untyped_storage") or other.untyped_storage()._cdata != storage
        for other in others
    )


def _may_hold_tensor(variable: Any) -> bool:
    """Whether it is worth a look: one at an argument that the model ignores would be a guard."""
    import torch

    peek = getattr(variable, "peek_value", None)
    if peek is None or variable.is_realized():
        return True
    return isinstance(peek(), (torch.Tensor, tuple, list))


def _is_transformed() -> bool:
    import torch

    return torch._C._functorch.peek_interpreter_stack() is not None


@cache
def _define_operators() -> Any:
    """The operators, for as long as the process lives: what was compiled may call them."""
    import torch

    make_library: Any = torch.library.Library
    library = make_library("pertoken", "DEF")
    for operator in _OPERATORS:
        on_host = getattr(_native, operator)
        for overload, schema in _OVERLOADS.items():
            name = operator + overload
            library.define(name + schema, tags=(torch.Tag.flexible_layout,))
            library.impl(name, on_host, "CPU")
            library.impl(name, on_host, "CUDA")
            library.impl(name, _on_meta, "Meta")
    return library


def _on_meta(*args: Any) -> None:
    """While the compiler looks at shapes."""


def _parameters(modules: dict[str, torch.nn.Module]) -> dict[str, tuple[str, int]]:
    """The parameter of each module that tells it from the others, and its address.

    Modules of one class share compiled code, and it is one of their parameters that they differ by.
    """
    found = {
        name: [
            (path, _address(parameter))
            for path, parameter in module.named_parameters()
            if _address(parameter)
        ]
        for name, module in modules.items()
    }
    uses = Counter(
        (_kind(modules[name], path), address)
        for name, held in found.items()
        for path, address in held
    )
    chosen = {}
    for name, held in found.items():
        for path, address in held:
            if uses[_kind(modules[name], path), address] == 1:
                chosen[name] = (path, address)
                break
    return chosen


def _kind(module: torch.nn.Module, path: str) -> int:
    cls = type(module)
    return _kinds.setdefault((cls.__module__, cls.__qualname__, path), len(_kinds))


def _value(module: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        module = getattr(module, name)
    return module


def _address(parameter: Any) -> int:
    """Where the values of a plain parameter lie; 0 for any other, which an operator may refuse."""
    import torch

    if type(parameter) is not torch.nn.Parameter or parameter.device.type == "meta":
        return 0
    return parameter.data_ptr() if parameter.numel() else 0


def _order_name(parameter: torch.Tensor) -> str:
    return f"{parameter.device.type}_{parameter.device.index or 0}"


def _make_order(parameter: torch.Tensor) -> None:
    import torch
    from torch._dynamo import mark_static_address

    name = _order_name(parameter)
    if not hasattr(_orders, name):
        order = torch.zeros(1, dtype=torch.uint8, device=parameter.device)
        mark_static_address(order)
        setattr(_orders, name, order)
