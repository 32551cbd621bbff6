"""Which devices of a model are timed, and why not where they are not."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from pertoken.errors import DeviceError, SelectionError

if TYPE_CHECKING:
    import torch

DeviceChoice: TypeAlias = Literal["auto", "cuda", "off"]


def check_choice(device: str) -> None:
    """Raises `SelectionError` unless `device` is one of the choices."""
    if device not in get_args(DeviceChoice):
        known = ", ".join(repr(choice) for choice in get_args(DeviceChoice))
        raise SelectionError(f"device={device!r}: give one of {known}")


class DeviceTiming:
    """The timing of one recording's devices.

    Attributes:
        devices: indices of the GPUs that are timed, that of the model's first parameter first.
        reason: a sentence that says why none is, where one could have been; else empty.
    """

    def __init__(self, choice: DeviceChoice) -> None:
        self.devices: list[int] = []
        self.reason = ""
        self._choice = choice

    def start(self, root: torch.nn.Module, recorder: Any) -> None:
        """Finds the model's devices and has the recorder time them; nothing on a model without.

        Raises:
            DeviceError: the choice is ``"cuda"``, and there is nothing to time.
        """
        found = [] if self._choice == "off" else devices_of(root)
        self.reason = ""
        if found:
            stream_of = current_stream_function()
            self.reason = (
                "this torch does not tell its current stream"
                if stream_of is None
                else recorder.time_devices(stream_of, found)
            )
        self.devices = [] if self.reason else found
        if self._choice == "cuda" and not self.devices:
            raise DeviceError(
                "device='cuda', but GPU times cannot be measured: "
                f"{self.reason or 'no parameter of the model is on a CUDA device'}"
            )

    def device_of(self, module: torch.nn.Module) -> int | None:
        """The GPU on which the calls of a module are timed; None where nothing is."""
        if not self.devices:
            return None
        own = devices_of(module)
        return own[0] if own else self.devices[0]


def cuda_index(tensor: torch.Tensor) -> int | None:
    """The index of the CUDA device that holds a tensor; None for any other."""
    return tensor.get_device() if tensor.is_cuda else None


def devices_of(module: torch.nn.Module) -> list[int]:
    """Indices of the CUDA devices that hold parameters or buffers, in order of appearance."""
    return list(dict.fromkeys(_indices((*module.parameters(), *module.buffers()))))


def _indices(tensors: Iterable[torch.Tensor]) -> Iterable[int]:
    for tensor in tensors:
        index = cuda_index(tensor)
        if index is not None:
            yield index


def current_stream_function() -> Callable[[int], int] | None:
    """Torch's function from a device index to the handle of the current stream there."""
    import torch

    function = getattr(torch._C, "_cuda_getCurrentRawStream", None)
    return function if callable(function) else None
