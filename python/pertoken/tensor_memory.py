"""Where the values of an array or tensor lie: what `Histogram.from_values` reads, whoever holds it.

Nothing is imported for it: a tensor of torch exists only where torch is imported.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pertoken import _native
from pertoken.errors import UnsupportedTensorError

_FORMATS: dict[str, int] = _native.FLOAT_FORMATS
_TAKEN = ", ".join(_FORMATS)
# Integers up to this are doubles; above it some are not.
_EXACT = 2**53
_DLPACK_CPU = 1
_DLPACK_CUDA = 2
# numpy's names of the formats that ``__cuda_array_interface__`` can tell of.
_CUDA_ARRAY_TYPES = {"<f2": "float16", "<f4": "float32", "<f8": "float64"}


@dataclass(frozen=True)
class Device:
    """A GPU, and the stream behind which the values are there.

    Attributes:
        ordinal: the number of the CUDA device.
        stream: the driver's handle.
    """

    ordinal: int
    stream: int


@dataclass(frozen=True)
class TensorMemory:
    """Values in host memory, or on a GPU.

    Attributes:
        address: of the value whose indices are all 0.
        format: number of the floating-point format, of `_native.FLOAT_FORMATS`.
        shape: sizes of the dimensions.
        strides_bytes: steps of the dimensions.
        owner: keeps the memory alive.
        device: the GPU that holds them; None: they are in host memory.
    """

    address: int
    format: int
    shape: tuple[int, ...]
    strides_bytes: tuple[int, ...]
    owner: object
    device: Device | None = None


def memory_of(values: object) -> TensorMemory:
    """The memory of an array, a tensor, or numbers in nested lists.

    Raises:
        UnsupportedTensorError: there are no floating-point numbers where they can be read.
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(values, torch.Tensor):
        return _of_torch(values, torch)
    if isinstance(values, np.ma.MaskedArray):
        raise UnsupportedTensorError(
            "a masked array has values that do not count; pass array.compressed()"
        )
    if isinstance(values, np.ndarray):
        return _of_numpy(values)
    if hasattr(values, "__cuda_array_interface__"):
        return _of_cuda_array(values)
    if torch is not None and _is_on_gpu(values):
        return _of_torch(_taken_by_torch(values, torch), torch)
    return _of_numpy(_as_numpy(values))


def _of_torch(tensor: Any, torch: Any) -> TensorMemory:
    if tensor.layout is not torch.strided or tensor.is_nested:
        kind = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
        raise UnsupportedTensorError(
            f"a {kind} tensor is not one block of memory; pass its values(), or make it dense"
        )
    if tensor.device.type != "cpu":
        if tensor.is_meta:
            raise UnsupportedTensorError("a meta tensor has no values; pass one that holds data")
        if tensor.device.type != "cuda" or torch.version.cuda is None or not _has_kernels():
            raise UnsupportedTensorError(
                f"the tensor is on {tensor.device}, and this build has no kernels for it; "
                "pass tensor.cpu()"
            )
    if tensor.is_neg():
        tensor = tensor.resolve_neg()  # the memory holds the negative of what the tensor says
    name = str(tensor.dtype).removeprefix("torch.")
    if name not in _FORMATS:
        on_host = tensor.device.type == "cpu"
        if on_host and name.startswith(("int", "uint")) and not tensor.is_quantized:
            return _of_numpy(_torch_integers(tensor))
        raise _wrong_dtype(name)
    shape = tuple(tensor.shape)
    strides = tuple(step * tensor.itemsize for step in tensor.stride())
    try:
        storage = tensor.untyped_storage()
        # One that only traces shapes says where it would be, but its storage is not there.
        if storage.device.type != tensor.device.type:
            raise RuntimeError("no memory")
        address = tensor.data_ptr()
        held_bytes = storage.nbytes()
    except (RuntimeError, NotImplementedError) as error:
        raise UnsupportedTensorError(
            f"a {type(tensor).__name__} has no memory that can be read; pass a plain tensor"
        ) from error
    if 0 not in shape:
        last_byte = tensor.storage_offset() * tensor.itemsize + tensor.itemsize
        last_byte += sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        if address == 0 or last_byte > held_bytes:
            raise UnsupportedTensorError(
                "the tensor's memory was freed or never allocated; pass one that holds data"
            )
    device = None
    if tensor.device.type == "cuda":
        device = Device(tensor.device.index, torch.cuda.current_stream(tensor.device).cuda_stream)
    return TensorMemory(address, _FORMATS[name], shape, strides, tensor, device)


def _taken_by_torch(values: Any, torch: Any) -> Any:
    try:
        return torch.from_dlpack(values)
    except Exception as error:
        raise UnsupportedTensorError(
            f"the {type(values).__name__} is on a GPU (DLPack device {_DLPACK_CUDA}), and torch "
            f"cannot take it: {error}; copy it to the host"
        ) from error


def _is_on_gpu(values: Any) -> bool:
    device = getattr(values, "__dlpack_device__", None)
    return device is not None and int(device()[0]) == _DLPACK_CUDA and _has_kernels()


def _has_kernels() -> bool:
    return bool(_native.build_info()["cuda_kernels"] != "none")


def _of_cuda_array(array: Any) -> TensorMemory:
    """What has ``__cuda_array_interface__`` (version 2 or 3) and says its device, as CuPy's do."""
    kind = type(array).__name__
    if not _has_kernels() or not hasattr(array, "__dlpack_device__"):
        raise UnsupportedTensorError(
            f"the {kind} is on a GPU, and this build has no kernels for it; copy it to the host"
        )
    number, ordinal = (int(part) for part in array.__dlpack_device__())
    if number != _DLPACK_CUDA:
        raise _not_in_host_memory(array, number)
    interface = array.__cuda_array_interface__
    name = _CUDA_ARRAY_TYPES.get(interface["typestr"])
    if name is None:
        raise _wrong_dtype(str(interface["typestr"]))
    itemsize = int(name.removeprefix("float")) // 8
    shape = tuple(int(n) for n in interface["shape"])
    strides = interface.get("strides")
    if strides is None:
        steps = [itemsize]
        for n in reversed(shape[1:]):
            steps.insert(0, steps[0] * n)
        strides = steps[: len(shape)]
    # 1 is the default stream of old, which the driver calls so, too, or 0.
    stream = int(interface.get("stream") or 0)
    return TensorMemory(
        int(interface["data"][0]),
        _FORMATS[name],
        shape,
        tuple(int(step) for step in strides),
        array,
        Device(ordinal, stream),
    )


def _torch_integers(tensor: Any) -> NDArray[Any]:
    try:
        array: NDArray[Any] = tensor.detach().numpy()
    except (RuntimeError, TypeError) as error:
        raise UnsupportedTensorError(f"the tensor cannot be read: {error}") from error
    return array


def _as_numpy(values: Any) -> NDArray[Any]:
    """What is no array of numpy yet as one, without a copy where its memory can be shared."""
    if isinstance(values, (str, bytes, bytearray, dict, set, frozenset)):
        raise _no_numbers(values)
    try:
        if hasattr(values, "__dlpack_device__") and not hasattr(values, "__array_interface__"):
            device = int(values.__dlpack_device__()[0])
            if device != _DLPACK_CPU:
                raise _not_in_host_memory(values, device)
            if not hasattr(values, "__array__"):
                return np.from_dlpack(values)
        array: NDArray[Any] = np.asarray(values)
    except UnsupportedTensorError:
        raise
    except Exception as error:
        raise UnsupportedTensorError(
            f"cannot read numbers from a {type(values).__name__}: {error}"
        ) from error
    if array.dtype == object:
        raise _no_numbers(values)
    return array


def _of_numpy(array: NDArray[Any]) -> TensorMemory:
    dtype = array.dtype
    if dtype.kind in "iu":
        array = _exact_doubles(array)
    elif not dtype.isnative:
        raise UnsupportedTensorError(
            f"the array is of foreign byte order ({dtype}); pass array.astype({dtype.name!r})"
        )
    elif dtype.name not in _FORMATS:
        raise _wrong_dtype(dtype.name)
    return TensorMemory(
        array.__array_interface__["data"][0],
        _FORMATS[array.dtype.name],
        array.shape,
        array.strides,
        array,
    )


def _exact_doubles(array: NDArray[Any]) -> NDArray[np.float64]:
    if array.dtype.itemsize == 8 and array.size:
        lowest, highest = int(array.min()), int(array.max())
        if lowest < -_EXACT or highest > _EXACT:
            raise UnsupportedTensorError(
                f"integers above 2**53 in size may not be exact in float64; the array has "
                f"{lowest} to {highest}; pass array.astype('float64') to round them"
            )
    return array.astype(np.float64)


def _wrong_dtype(name: str) -> UnsupportedTensorError:
    return UnsupportedTensorError(f"cannot count values of {name}; convert them to one of {_TAKEN}")


def _not_in_host_memory(values: object, dlpack_device: int) -> UnsupportedTensorError:
    return UnsupportedTensorError(
        f"the {type(values).__name__} is not in host memory (DLPack device {dlpack_device}), "
        "and this build has no kernels for it; copy it to the host"
    )


def _no_numbers(values: object) -> UnsupportedTensorError:
    return UnsupportedTensorError(
        f"a {type(values).__name__} is not an array of numbers; pass an array, a tensor or a list"
    )
