"""Tables in the place of the one by which torch describes tensors to others (DLPack's)."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from pertoken import _native

_ATTRIBUTE = "__dlpack_c_exchange_api__"
_CUDA = 2


class _Description(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_ordinal", ctypes.c_int32),
        ("dims", ctypes.c_int32),
        ("type_code", ctypes.c_uint8),
        ("type_bits", ctypes.c_uint8),
        ("type_lanes", ctypes.c_uint16),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("byte_offset", ctypes.c_uint64),
    ]


_Describe = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.POINTER(_Description))


class _Table(ctypes.Structure):
    _fields_ = [
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("before", ctypes.c_void_p),
        ("functions", ctypes.c_void_p * 3),
        ("describe", _Describe),
        ("current_stream", ctypes.c_void_p),
    ]


def _table_of(capsule: Any) -> _Table:
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    return _Table.from_address(get(capsule, b"dlpack_exchange_api"))


def _capsule_of(table: _Table) -> Any:
    new = ctypes.pythonapi.PyCapsule_New
    new.restype = ctypes.py_object
    new.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    return new(ctypes.addressof(table), b"dlpack_exchange_api", None)


@contextmanager
def table_of_gpu_tensors() -> Iterator[None]:
    """Torch's own table meanwhile says of a tensor with an attribute `gpu` that it lies there."""
    described = _table_of(torch.Tensor.__dict__[_ATTRIBUTE]).describe

    def describe(tensor: Any, description: Any) -> int:
        failed: int = described(tensor, description)
        if not failed and hasattr(tensor, "gpu"):
            description.contents.device_type = _CUDA
            description.contents.device_ordinal = tensor.gpu
        return failed

    with table_in_place(describe):
        yield


@contextmanager
def table_in_place(
    describe: Callable[[Any, Any], int], *, major: int = 1, before_it: bool = False
) -> Iterator[None]:
    """Offers a table with this function, with torch's own as that of an older version or not."""
    real = torch.Tensor.__dict__[_ATTRIBUTE]
    before = ctypes.addressof(_table_of(real)) if before_it else None
    # torch's own is C, into which a compiled model's tracing does not look.
    unseen = torch.compiler.disable(describe)
    table = _Table(major=major, before=before, describe=_Describe(unseen))
    _offer(_capsule_of(table))
    try:
        yield
    finally:
        _offer(real)


@contextmanager
def no_table() -> Iterator[None]:
    """As of a torch that offers none."""
    real = torch.Tensor.__dict__[_ATTRIBUTE]
    _offer(None)
    try:
        yield
    finally:
        _offer(real)


def _offer(capsule: Any) -> None:
    setattr(torch.Tensor, _ATTRIBUTE, capsule)
    _native.learn_exchange_table(torch.Tensor, torch.nn.Parameter)
