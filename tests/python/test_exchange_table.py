"""What is recorded is the same whether torch describes its tensors by an exchange table or not."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from transformers import DynamicCache

import models
import pertoken
from fake_exchange import no_table, table_in_place


def decode() -> pertoken.Profile:
    """A prefill with padding and three steps by hand, all observed."""
    model = models.llama()
    ids = torch.arange(1, 11).reshape(2, 5)
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    cache = DynamicCache()
    with (
        torch.inference_mode(),
        pertoken.profile(model, activations="layers", activation_every=1) as prof,
    ):
        model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True)
        for _ in range(3):
            model(input_ids=ids[:, :1], past_key_values=cache, use_cache=True)
    return prof.result()


def recorded(profile: pertoken.Profile) -> dict[str, Any]:
    """All that comes from descriptions of tensors."""
    return {
        "steps": [
            profile.steps[name].tolist() for name in ("kind", "rows", "tokens_in", "context_len")
        ],
        "observed": [
            profile.activations[name].tolist()
            for name in ("site", "step", "count", "sum", "min", "max")
        ],
        "skipped": profile.losses["observations_skipped"],
    }


def refuse(tensor: Any, description: Any) -> int:
    raise AssertionError("not to be called")


CASES: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "as torch offers it": nullcontext,
    "none": no_table,
    "of a later version, with the known one behind it": lambda: table_in_place(
        refuse, major=2, before_it=True
    ),
    "of a later version": lambda: table_in_place(refuse, major=2),
    "that describes nothing": lambda: table_in_place(lambda tensor, description: -1),
}


@pytest.mark.parametrize("case", CASES)
def test_whatever_the_table_the_same_is_recorded(case: str) -> None:
    with no_table():
        expected = recorded(decode())
    assert expected["steps"][1] == [2, 2, 2, 2]
    assert expected["skipped"] == {}
    assert len(expected["observed"][0]) > 0
    with CASES[case]():
        assert recorded(decode()) == expected
