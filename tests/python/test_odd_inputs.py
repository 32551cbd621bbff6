"""Arguments that are not what they say, or change while they are read: nothing else is read."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from typing import Any

import pytest
import torch
from torch import Tensor

import pertoken
from models import left_padded, llama

PRELUDE = """
import faulthandler, json, sys, torch, pertoken
from pertoken import _native
faulthandler.enable()

class Model(torch.nn.Module):
    def forward(self, input_ids, attention_mask=None, past_key_values=None, logits_to_keep=0):
        return torch.zeros(input_ids.shape[0], 1, 8)

class Cache:
    def __init__(self, length):
        self.length = length
    def get_seq_length(self):
        return self.length

def shrunk(*shape, dtype=torch.long):
    tensor = torch.ones(shape, dtype=dtype)
    tensor.untyped_storage().resize_(64)
    return tensor

def rows_of(ids, **kwargs):
    model = Model().eval()
    with pertoken.profile(model) as recording:
        model(ids, **kwargs)
    profile = recording.result()
    assert profile.losses["faults"] == {}
    rows, steps = profile.step_rows, profile.steps
    return [steps["context_len"].tolist(), rows["query_len"].tolist()]

ids, wide = torch.zeros(2, 3, dtype=torch.long), 1 << 22
"""


def run(script: str) -> Any:
    """What the last line of the script evaluates to, in a process that may crash."""
    *lines, last = textwrap.dedent(script).strip().splitlines()
    program = "\n".join([PRELUDE, *lines, f"print(json.dumps({last}))"])
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_cache_that_says_what_none_can_hold_has_no_length() -> None:
    told = run(
        """
        mask = torch.ones(2, 3, dtype=torch.long)
        lengths = (2**63 - 1, 2**63 - 3, 2**62, 2**32 - 1, -1, -(2**63), 2**70)
        [rows_of(ids, attention_mask=mask, past_key_values=Cache(length)) for length in lengths]
        """
    )
    assert told == [[[-1], [3, 3]]] * 7


def test_masks_and_ids_whose_memory_was_given_back_are_not_read() -> None:
    """The ids say which of several positions are kept, to a forward in a declared step."""
    told = run(
        """
        fed = torch.zeros(1, 1, dtype=torch.long).expand(4, wide)
        attention = shrunk(4, 1, 8, wide // 4, dtype=torch.bool)
        masks = [
            rows_of(fed, attention_mask=shrunk(4, wide)),
            rows_of(fed[:, : wide // 4], attention_mask=attention),
        ]
        model = Model().eval()
        with pertoken.profile(model, logits=True) as recording:
            with pertoken.step("decode", rows=2, tokens_committed=2):
                model(ids, logits_to_keep=shrunk(wide))
        [masks, recording.result().losses["faults"]]
        """
    )
    assert told == [[[[0], [-1] * 4]] * 2, {}]


def test_a_list_that_changes_while_its_counts_are_read_is_read_as_it_was() -> None:
    told = run(
        """
        class Clears:
            def __index__(self):
                listed.clear()
                made.append([None] * 100)
                return 1

        made, refused = [], 0
        step = _native.StepRegion(0, -1, -1, [], {})
        for length in range(500):
            listed = [Clears() for _ in range(1 + length)] + [7] * 1000
            try:
                step.commit(listed)
            except ValueError:
                refused += 1
            listed = [(None, "decode", 1, Clears(), 1) for _ in range(1 + length)]
            _native.StepRegion(0, -1, -1, listed, {}).commit([1] * (1 + length))
        refused
        """
    )
    assert told == 500


class Own(Tensor):
    """May mean something else by what it says of itself."""


@pytest.mark.parametrize("form", [Tensor.bool, Tensor.int, Tensor.half, Tensor.double, Own])
def test_a_mask_of_any_type_is_read_unless_its_class_is_not_torchs(form: Any) -> None:
    model = llama()
    ids, mask = left_padded([7, 4])
    given = mask.as_subclass(Own) if form is Own else form(mask)
    with torch.no_grad(), pertoken.profile(model) as recording:
        model(ids, attention_mask=given)
    lengths = recording.result().step_rows["query_len"].tolist()
    assert lengths == ([-1, -1] if form is Own else [7, 4])


def test_a_mask_that_is_a_part_of_a_tensor_is_read_where_it_lies() -> None:
    model = llama()
    ids, mask = left_padded([7, 4])
    whole = torch.zeros(9, 20, dtype=torch.long)
    part = whole[3:7:2, 12:19]
    part.copy_(mask)
    turned = mask.T.contiguous().T
    with torch.no_grad(), pertoken.profile(model) as recording:
        for given in (part, turned, mask[:1].expand(2, 7)):
            model(ids, attention_mask=given)
    lengths = recording.result().step_rows["query_len"].tolist()
    assert lengths == [7, 4, 7, 4, 7, 7]
