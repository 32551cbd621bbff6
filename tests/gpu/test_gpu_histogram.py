"""The statistics kernel on a GPU, against the same values counted on the processor."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from pertoken import DeviceError, Histogram, UnsupportedTensorError  # noqa: E402

DTYPES = [
    torch.float32, torch.float16, torch.bfloat16,
    torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz,
]  # fmt: skip
COUNTS = ("count", "zeros", "nans", "pos_infs", "neg_infs", "min", "max")


def _assert_same(tensor: torch.Tensor, scale: int = 3) -> None:
    ours, theirs = Histogram.from_values(tensor, scale), Histogram.from_values(tensor.cpu(), scale)
    for name in COUNTS:
        assert getattr(ours, name) == pytest.approx(getattr(theirs, name), rel=0, nan_ok=True), name
    for side in ("positive", "negative"):
        a, b = getattr(ours, side), getattr(theirs, side)
        assert a.offset == b.offset
        assert a.counts.tolist() == b.counts.tolist()
    size = float(tensor.cpu().to(torch.float64).nan_to_num(0, 0, 0).abs().sum())
    assert ours.sum == pytest.approx(theirs.sum, rel=1e-12, abs=1e-12 * size)
    assert ours.sum_sq == pytest.approx(theirs.sum_sq, rel=1e-12)


def _every_pattern(dtype: torch.dtype) -> torch.Tensor:
    bits = torch.uint8 if dtype.itemsize == 1 else torch.int16
    patterns = torch.arange(1 << (8 * dtype.itemsize), dtype=torch.int64)
    return patterns.to(bits).view(dtype).cuda()


@pytest.mark.parametrize("dtype", [d for d in DTYPES if d.itemsize < 4], ids=str)
def test_every_pattern(dtype: torch.dtype) -> None:
    tensor = _every_pattern(dtype)
    _assert_same(tensor)
    _assert_same(tensor.view(-1, 16)[torch.randperm(tensor.numel() // 16)].contiguous())
    _assert_same(tensor.repeat(300))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("values", [1, 31, 4096, 32 * 4096 + 5, 1 << 22, (1 << 24) + 3])
def test_sizes(dtype: torch.dtype, values: int) -> None:
    normal = torch.randn(values, device="cuda")
    _assert_same(normal.to(dtype))
    _assert_same(torch.full((values,), 1.25, device="cuda").to(dtype))
    _assert_same((normal / torch.randn(values, device="cuda").abs()).to(dtype))


def test_random_bits_of_float32() -> None:
    bits = torch.randint(-(2**31), 2**31, (1 << 22,), dtype=torch.int64).to(torch.int32)
    for scale in (3, 1, -4):
        _assert_same(bits.view(torch.float32).cuda(), scale)


def test_strides_and_offsets() -> None:
    base = torch.randn(64, 33, 130, device="cuda").to(torch.bfloat16)
    for tensor in (
        base[:, :, 1:], base[:, 1::3, 5:77], base.transpose(0, 2), base[..., ::2], base[3, 2, 1],
        base[:0], base[:1].expand(5, -1, -1), base.flip(0), base.view(-1)[7:],
    ):  # fmt: skip
        _assert_same(tensor)


def test_streams_and_work_that_is_under_way() -> None:
    streams = [torch.cuda.Stream() for _ in range(4)]
    for round_ in range(50):
        with torch.cuda.stream(streams[round_ % 4]):
            tensor = torch.zeros(100_003, device="cuda")
            torch.cuda._sleep(2_000_000)
            tensor += round_
            histogram = Histogram.from_values(tensor)
        assert histogram.max == round_
        assert histogram.sum == round_ * 100_003


def test_what_is_refused() -> None:
    with pytest.raises(UnsupportedTensorError, match="float64"):
        Histogram.from_values(torch.zeros(3, device="cuda", dtype=torch.float64))
    with pytest.raises(UnsupportedTensorError, match="int64"):
        Histogram.from_values(torch.zeros(3, device="cuda", dtype=torch.int64))
    tensor = torch.ones(10, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        doubled = tensor * 2
        with pytest.raises(DeviceError, match="captured into a CUDA graph"):
            Histogram.from_values(doubled)
    graph.replay()
    assert Histogram.from_values(doubled).sum == 20


def test_arrays_of_cupy() -> None:
    cupy = pytest.importorskip("cupy")
    array = cupy.arange(1000, dtype=cupy.float32).reshape(10, 100)
    assert Histogram.from_values(array).sum == 499_500
    assert Histogram.from_values(array[:, ::2]).count == 500
