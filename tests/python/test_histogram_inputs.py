"""What `Histogram.from_values` takes, in any place and layout, and what it refuses."""

from __future__ import annotations

import array
import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from pertoken import Histogram, PertokenError, UnsupportedTensorError
from waiting import PATIENCE_S

TORCH_DTYPES = (
    "float64", "float32", "float16", "bfloat16",
    "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz",
)  # fmt: skip


def doubles_of(tensor: torch.Tensor) -> list[float]:
    return [float(v) for v in tensor.detach().to(torch.float64).reshape(-1)]


@pytest.mark.parametrize("name", TORCH_DTYPES)
def test_a_tensor_of_each_dtype_counts_as_its_values(name: str) -> None:
    tensor = (torch.randn(61, 83) * 10).to(getattr(torch, name))
    expected = Histogram.from_values(doubles_of(tensor))
    found = Histogram.from_values(tensor)
    for attribute in ("count", "zeros", "min", "max"):
        assert getattr(found, attribute) == getattr(expected, attribute)
    assert found.to_otel()["positive"] == expected.to_otel()["positive"]
    assert found.to_otel()["negative"] == expected.to_otel()["negative"]
    assert found.sum == pytest.approx(expected.sum, abs=1e-9)


@pytest.mark.parametrize("name", TORCH_DTYPES)
def test_every_layout_of_a_tensor_counts_as_its_copy(name: str) -> None:
    tensor = torch.randn(12, 17, 19).to(getattr(torch, name))
    views = [
        tensor.permute(2, 0, 1), tensor[::2, 1:, ::3], tensor[:, 3], tensor[5:5],
        tensor[3, 4, 5], tensor[..., :1].expand(12, 17, 7), tensor.as_strided((9, 9), (1, 1)),
    ]  # fmt: skip
    for view in views:
        expected = Histogram.from_values(doubles_of(view))
        assert Histogram.from_values(view).to_otel()["positive"] == expected.to_otel()["positive"]
        assert Histogram.from_values(view).count == view.numel()


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_arrays_of_any_strides_count_as_their_copies(dtype: type[np.floating]) -> None:
    base = np.random.default_rng(0).normal(size=(40, 30)).astype(dtype)
    packed = np.zeros(50, np.dtype([("flag", "u1"), ("value", dtype)]))
    packed["value"] = base.ravel()[:50]
    read_only = base.copy()
    read_only.flags.writeable = False
    for view in (
        base[::-1, ::-2], base.T, np.broadcast_to(base[:, :1], (40, 9)), packed["value"],
        read_only, np.asfortranarray(base), base[0, 0], base[..., np.newaxis],
    ):  # fmt: skip
        expected = Histogram.from_values([float(v) for v in np.ravel(view)])
        assert Histogram.from_values(view).to_otel()["positive"] == expected.to_otel()["positive"]
        assert Histogram.from_values(view).min == expected.min


@pytest.mark.parametrize("name", TORCH_DTYPES[3:])
def test_arrays_of_the_formats_that_numpy_lacks(name: str) -> None:
    values = np.random.default_rng(1).normal(size=(30, 20)).astype(getattr(ml_dtypes, name))
    found = Histogram.from_values(values[:, ::2])
    expected = Histogram.from_values(values[:, ::2].astype(np.float64))
    assert found.to_otel()["negative"] == expected.to_otel()["negative"]


class OnlyDlpack:
    """What has no way to its memory but DLPack."""

    def __init__(self, tensor: torch.Tensor, device: tuple[int, int] = (1, 0)) -> None:
        self.tensor, self.device = tensor, device

    def __dlpack__(self, **options: Any) -> object:
        return self.tensor.__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device


class OnlyInterface:
    """What has no way to its memory but the interface of arrays."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values
        self.__array_interface__ = values.__array_interface__


def test_other_holders_of_memory() -> None:
    values = [1.5, -2.0, 0.0, math.inf]
    expected = Histogram.from_values(values)
    for holder in (
        array.array("f", values),
        memoryview(array.array("d", values)),
        OnlyDlpack(torch.tensor(values)),
        OnlyInterface(np.array(values)),
        tuple(values),
        [[v] for v in values],
        [np.float32(v) for v in values],
    ):
        assert Histogram.from_values(holder) == expected
    assert Histogram.from_values(3.5) == Histogram.from_values([3.5])


def test_tensors_that_need_care_are_read_right() -> None:
    tensor = torch.randn(100, requires_grad=True)
    expected = Histogram.from_values(tensor.detach().numpy())
    assert Histogram.from_values(tensor) == expected
    assert Histogram.from_values(torch.nn.Parameter(tensor.detach())) == expected
    assert tensor.grad is None
    with torch.inference_mode():
        assert Histogram.from_values(tensor * 1) == expected
    # Its memory holds the negative of what it says.
    negated = torch.complex(tensor, tensor).detach().conj().imag
    assert negated.is_neg()
    assert Histogram.from_values(negated) == Histogram.from_values(-tensor)


def test_integers_count_where_they_are_exact() -> None:
    expected = Histogram.from_values([-3.0, 0.0, 100.0])
    for dtype in (np.int8, np.int32, np.int64):
        assert Histogram.from_values(np.array([-3, 0, 100], dtype)) == expected
    assert Histogram.from_values(torch.tensor([-3, 0, 100])) == expected
    assert Histogram.from_values([-3, 0, 100]) == expected
    assert Histogram.from_values(np.array([2**53, -(2**53)])).max == 2.0**53
    for array_ in (np.array([2**53 + 1]), np.array([2**63], np.uint64), torch.tensor([-(2**62)])):
        with pytest.raises(UnsupportedTensorError, match=r"2\*\*53"):
            Histogram.from_values(array_)


def meta() -> torch.Tensor:
    return torch.zeros(3, device="meta")


def freed() -> torch.Tensor:
    tensor = torch.randn(1000)
    tensor.untyped_storage().resize_(0)
    return tensor


def cut() -> torch.Tensor:
    tensor = torch.randn(1000)
    tensor.untyped_storage().resize_(3996)
    return tensor


def fake() -> torch.Tensor:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        return torch.zeros(3)


def quantized() -> torch.Tensor:
    return torch.quantize_per_tensor(torch.randn(4), 0.1, 0, torch.qint8)


class OnGpu:
    def __init__(self) -> None:
        self.__cuda_array_interface__ = {"shape": (3,), "typestr": "<f4", "data": (0, False)}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: torch.randn(3, 3).to_sparse(), "sparse_coo"),
        (lambda: torch.randn(3, 3).to_sparse_csr(), "sparse_csr"),
        (lambda: torch.nested.nested_tensor([torch.randn(2), torch.randn(3)]), "nested"),
        (lambda: torch.nested.nested_tensor([torch.randn(2)], layout=torch.jagged), "nested"),
        (meta, "meta"),
        (fake, "no memory"),
        (freed, "freed"),
        (cut, "freed"),
        (quantized, "qint8"),
        (lambda: torch.zeros(3, dtype=torch.complex64), "complex64"),
        (lambda: torch.zeros(3, dtype=torch.bool), "bool"),
        (lambda: torch.zeros(3).to(torch.float8_e8m0fnu), "e8m0fnu"),
        (lambda: np.zeros(3, np.complex128), "complex128"),
        (lambda: np.zeros(3, bool), "bool"),
        (lambda: np.zeros(3, object), "object"),
        (lambda: np.zeros(3, "datetime64[s]"), "datetime64"),
        (lambda: np.zeros(3, [("a", "f4")]), "void"),
        (lambda: np.zeros(3, ">f4"), "byte order"),
        (lambda: np.zeros(3, np.longdouble), "float128|longdouble"),
        (lambda: np.ma.masked_array([1.0, 2.0], [True, False]), "compressed"),
        (lambda: ["a", "b"], "str"),
        (lambda: [1.0, None], "list"),
        (lambda: [[1.0], [2.0, 3.0]], "list"),
        (lambda: [10**400], "list"),
        (lambda: "1.0", "str"),
        (lambda: b"1234", "bytes"),
        (lambda: {"a": 1.0}, "dict"),
        (lambda: {1.0}, "set"),
        (lambda: None, "NoneType"),
        (lambda: (v for v in [1.0]), "generator"),
        (lambda: object(), "object"),
        (lambda: OnlyDlpack(torch.zeros(3), (2, 0)), "DLPack device 2"),
        (lambda: OnlyDlpack(torch.zeros(3, dtype=torch.bfloat16)), "OnlyDlpack"),
        (OnGpu, "GPU"),
    ],
)
def test_what_cannot_be_counted_gets_one_clear_error(
    make: Callable[[], object], message: str
) -> None:
    with pytest.raises(UnsupportedTensorError, match=message) as caught:
        Histogram.from_values(make())
    assert isinstance(caught.value, PertokenError) and isinstance(caught.value, TypeError)
    assert "\n" not in str(caught.value)


def test_a_mapped_tensor_of_vmap_gets_one_clear_error() -> None:
    def count(row: torch.Tensor) -> torch.Tensor:
        Histogram.from_values(row)
        return row

    with pytest.raises(UnsupportedTensorError, match="no memory"):
        torch.func.vmap(count)(torch.randn(3, 4))


def test_a_histogram_needs_no_torch() -> None:
    code = (
        "import sys, numpy as np; from pertoken import Histogram;"
        "h = Histogram.from_values(np.arange(5, dtype=np.float32)); assert h.count == 5;"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=PATIENCE_S)


def test_the_hosts_flush_of_subnormals_changes_nothing() -> None:
    tensor = torch.tensor([1e-40, -1e-44, 1.0])
    expected = Histogram.from_values(tensor)
    assert torch.set_flush_denormal(True)
    try:
        assert Histogram.from_values(tensor) == expected
        assert float(torch.tensor(1e-40) * 1) == 0.0, "the setting was not kept"
    finally:
        torch.set_flush_denormal(False)
    assert expected.zeros == 0 and expected.count == 3
