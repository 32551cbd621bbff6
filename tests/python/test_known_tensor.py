"""Sizes that are read where torch keeps them are those that torch states, or are left to torch."""

from __future__ import annotations

import pytest
import torch

from pertoken import _native
from pertoken.known_tensor import learn_tensor


@pytest.fixture(autouse=True)
def _learned() -> None:
    learn_tensor()


def kept(tensor: torch.Tensor) -> tuple[int, ...] | None:
    return tuple(_native.kept_sizes(tensor)) or None


@pytest.mark.parametrize("dims", range(1, 6))
def test_sizes_are_those_that_torch_states(dims: int) -> None:
    generator = torch.Generator().manual_seed(dims)
    for _ in range(50):
        sizes = torch.randint(1, 6, (dims,), generator=generator).tolist()
        whole = torch.zeros(sizes)
        forms = {
            "whole": whole,
            "without its first row": whole[:1],
            "turned": whole.transpose(0, dims - 1),
            "expanded": torch.zeros(1).expand(sizes),
            "parameter": torch.nn.Parameter(whole),
            "without values": whole.to("meta"),
            "half precision": whole.half(),
        }
        for form, tensor in forms.items():
            assert kept(tensor) == tuple(tensor.shape), form


def test_sizes_follow_a_tensor_that_changes() -> None:
    tensor = torch.zeros(2, 3)
    tensor.resize_(4, 5, 6)
    assert kept(tensor) == (4, 5, 6)
    tensor.data = torch.zeros(7, 8)
    assert kept(tensor) == (7, 8)
    tensor.resize_(1, 1, 1, 1, 1, 1, 1)
    assert kept(tensor) is None
    tensor.resize_(3)
    assert kept(tensor) == (3,)


def test_what_may_keep_them_elsewhere_is_left_to_torch() -> None:
    class Own(torch.Tensor):
        pass

    left = {
        "more dimensions than fit": torch.zeros(1, 2, 1, 2, 1, 2),
        "no dimension": torch.tensor(1.0),
        "no length": torch.zeros(3, 0),
        "of a subclass": torch.zeros(2, 3).as_subclass(Own),
        "nested": torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
        "no tensor": [1, 2],
    }
    for what, value in left.items():
        assert _native.kept_sizes(value) == [], what


def test_sparse_ones_and_batched_ones_have_their_own_sizes() -> None:
    assert kept(torch.eye(3, 4).to_sparse()) == (3, 4)
    seen = []

    def look(row: torch.Tensor) -> torch.Tensor:
        seen.append((kept(row), tuple(row.shape)))
        return row

    torch.func.vmap(look)(torch.zeros(5, 3, 2))
    torch.func.grad(lambda row: look(row).sum())(torch.zeros(3, 2))
    for found, stated in seen:
        assert found in (None, stated)
    assert len(seen) == 2


def test_nothing_is_learned_of_tensors_that_do_not_agree() -> None:
    class Own(torch.Tensor):
        pass

    sizes = ((10007,), (3, 10009), (10037, 7, 5))
    tensors = [torch.zeros(1).expand(each) for each in sizes]
    for wrong in (
        [],
        tensors[:1],
        [*tensors, 7],
        [*tensors, torch.zeros(2, 3).as_subclass(Own)],
        [*tensors, torch.zeros(1).expand(1, 2, 3, 4, 5, 10007)],
        [*tensors, torch.tensor(1.0)],
        [*tensors, torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])],
    ):
        assert not _native.learn_sizes(wrong)
    assert _native.learn_sizes(tensors)
    assert kept(torch.zeros(2, 3)) == (2, 3)
