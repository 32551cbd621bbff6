"""Whether something of a recording is left in a model: compares it with one never recorded."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


def appearance(value: Any) -> Any:
    """What of an attribute can be compared between two models."""
    if isinstance(value, torch.Tensor):
        return (type(value), value.dtype, tuple(value.shape), value.detach().numpy().tobytes())
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return (type(value), [(key, appearance(held)) for key, held in value.items()])
    if isinstance(value, (list, tuple)):
        return (type(value), [appearance(held) for held in value])
    if inspect.ismethod(value):
        return (type(value), type(value.__self__), appearance(value.__func__))
    if inspect.isfunction(value):
        return (type(value), value.__qualname__)
    return type(value)


def attribute(key: str, value: Any) -> tuple[str, Any]:
    """An attribute that can be compared; the compiler keeps the identity of its module in one."""
    return key, int if key == "_torchdynamo_wrapper_id" else appearance(value)


def state_of(model: nn.Module) -> dict[str, list[tuple[str, Any]]]:
    """The attributes of each module of a model, in their order."""
    return {
        name: [attribute(key, value) for key, value in module.__dict__.items()]
        for name, module in model.named_modules()
    }


def class_state(model: nn.Module) -> dict[type, list[tuple[str, int]]]:
    """The attributes of each class that a module of the model is of, in their order."""
    classes = {cls for module in model.modules() for cls in type(module).__mro__} - {object}
    annotations = [(key, id(value)) for key, value in nn.Module.__annotations__.items()]
    return {
        cls: [(key, id(value)) for key, value in vars(cls).items()]
        + (annotations if cls is nn.Module else [])
        for cls in classes
    }


def foreign_attributes(model: nn.Module) -> list[str]:
    """Attributes of a model's modules that hold anything of pertoken's."""
    return _foreign({name or "root": module.__dict__ for name, module in model.named_modules()})


def foreign_values(model: nn.Module) -> list[str]:
    """The same, of its classes as well."""
    classes = {cls.__name__: vars(cls) for cls in class_state(model)}
    return foreign_attributes(model) + _foreign(classes)


def _foreign(holders: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return [
        f"{name}.{key}"
        for name, attributes in holders.items()
        for key, value in attributes.items()
        if type(value).__module__.partition(".")[0] == "pertoken"
    ]


def assert_untouched(model: nn.Module, control: nn.Module) -> None:
    """Asserts that a model looks as one that made the same calls without a recording."""
    assert foreign_values(model) == []
    assert state_of(model) == state_of(control)
