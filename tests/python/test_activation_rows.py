"""Each row's values are those of its own request, and padding is no value."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import models
import pertoken
from pertoken import Histogram
from pertoken.engines.engine import manual
from pertoken.engines.row import Row

MARK = 1e6


class Batch(nn.Module):
    """Hands its input on, in three forms."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(models.VOCABULARY, 8)
        self.whole = nn.Identity()
        self.flat = nn.Identity()
        self.last = nn.Identity()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        hidden = self.whole(self.embedding(input_ids))
        self.flat(hidden.reshape(-1, 8))
        return self.last(hidden[:, -1])


SITES = ("whole", "flat", "last")


def test_a_value_planted_in_one_row_is_found_at_its_own_request_only() -> None:
    """Under reordering, and with rows that have finished: one request holds the marked token."""
    model = Batch()
    marked = models.VOCABULARY - 1
    with torch.no_grad():
        model.embedding.weight[marked] = MARK
    batches = [["a", "b", "c"], ["c", "a", "b"], ["b", "c"], ["c"], ["d", "c", None]]
    with pertoken.profile(
        model, activations="*", activation_every=1, activation_rows=True
    ) as recording:
        for number, batch in enumerate(batches):
            ids = models.prompt(len(batch), 2, seed=number).clamp(max=marked - 1)
            for row, request in enumerate(batch):
                if request == "b":
                    ids[row] = marked
            rows = [Row(request, "decode", 2, 4, 1) for request in batch]
            with pertoken.step(rows=rows):
                model(ids)
        for request in "abcd":
            manual.request_finished(request)
    profile = recording.result()
    names = dict(
        zip(profile.requests["request"].tolist(), profile.requests["id"].tolist(), strict=True)
    )
    held = {}
    for number, name in names.items():
        for site in SITES:
            histogram = profile.histogram(site, request=number)
            if histogram.count:
                held[name, site] = histogram
    assert {name for name, _ in held} >= set("abcd")
    for (name, site), histogram in held.items():
        steps = sum(batch.count(name) for batch in batches)
        values = 8 * steps * (1 if site == "last" else 2)
        assert histogram.count == values, (name, site)
        assert (histogram.max == MARK) == (name == "b"), (name, site)
        if name == "b":
            assert (histogram.min, histogram.sum) == (MARK, MARK * values)


def test_rows_of_generate_are_its_own_steps_rows() -> None:
    model = models.llama()
    with pertoken.profile(
        model, activations="model.layers.*", activation_every=1, activation_rows=True
    ) as recording:
        model.generate(models.prompt(3), max_new_tokens=4)
    table = recording.result().activations
    rows = table["row"][table["site"] == "model.layers.1"]
    assert rows.tolist() == [0, 1, 2] * 4
    whole = recording.result().histogram("model.layers.1")
    assert whole.count == 3 * (7 + 3) * 16


def test_a_tensor_without_rows_is_one_observation() -> None:
    model = nn.Sequential(nn.Flatten(0))
    with pertoken.profile(
        model, activations="0", activation_every=1, activation_rows=True
    ) as recording:
        model(torch.ones(3, 4))
    assert recording.result().activations["row"].tolist() == [-1]


def padded_reference(hidden: Tensor, mask: Tensor) -> Histogram:
    return Histogram.from_values(hidden[mask.bool()])


@pytest.mark.parametrize("by_row", [False, True])
@pytest.mark.parametrize(
    "mask",
    [
        [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 1, 1, 1, 1]],
        [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]],
        [[1, 0, 1, 0, 1], [0, 1, 0, 1, 0], [0, 0, 0, 0, 0]],
        [[1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1]],
    ],
    ids=["left", "right", "holes", "none"],
)
def test_masked_positions_are_not_counted(mask: list[list[int]], by_row: bool) -> None:
    model = Batch()
    ids, valid = models.prompt(3, 5), torch.tensor(mask)
    with pertoken.profile(
        model, activations="*", activation_every=1, activation_rows=by_row
    ) as recording:
        model(ids, attention_mask=valid)
    profile = recording.result()
    with torch.no_grad():
        hidden = model.embedding(ids)
    for site in ("whole", "flat"):
        found = profile.histogram(site)
        expected = padded_reference(hidden, valid)
        assert (found.count, found.min, found.max) == (expected.count, expected.min, expected.max)
        assert found.positive.counts.tolist() == expected.positive.counts.tolist()
    assert profile.histogram("last").count == 3 * 8  # no positions, so nothing is masked
    table = profile.activations
    counts = table["count"][table["site"] == "whole"].tolist()
    assert counts == ([8 * sum(row) for row in mask] if by_row else [8 * int(valid.sum())])


def test_the_padded_prefill_of_generate_is_masked() -> None:
    model = models.llama()
    ids, mask = models.left_padded([3, 7, 5])
    seen: list[Histogram] = []

    def hook(module: nn.Module, args: Any, output: Any) -> None:
        hidden = output if isinstance(output, Tensor) else output[0]
        seen.append(padded_reference(hidden, mask) if hidden.shape[1] == 7 else Histogram())

    handle = model.model.layers[0].register_forward_hook(hook)
    with pertoken.profile(model, activations="model.layers.0", activation_every=1) as recording:
        model.generate(ids, attention_mask=mask, max_new_tokens=3)
    handle.remove()
    found = recording.result().histogram("model.layers.0", step=0)
    assert (found.count, found.min, found.max) == (15 * 16, seen[0].min, seen[0].max)
    assert recording.result().histogram("model.layers.0", step=1).count == 3 * 16


class Packed(nn.Module):
    """Sequences one after the other in one row, as continuous batching feeds them."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Identity()

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.inner(input_ids[..., None].float())


@pytest.mark.parametrize("padding", [0, 3])
def test_rows_of_a_packed_batch_are_told_apart_by_their_lengths(padding: int) -> None:
    model = Packed()
    ids = torch.tensor([[1, 1, 1, 2, 3, 3] + [9] * padding])
    rows = [Row("x", "prefill", 3, 0, 1), Row("y", "decode", 1, 4, 1), Row("z", "verify", 2, 4, 1)]
    with pertoken.profile(
        model, activations="*", activation_every=1, activation_rows=True
    ) as recording:
        with pertoken.step(rows=rows):
            model(ids)
        with pertoken.step(rows=[Row("x"), Row("y")]):  # of unknown lengths
            model(ids)
        for request in "xyz":
            manual.request_finished(request)
    assert manual.open_requests == []
    profile = recording.result()
    requests = dict(zip(profile.requests["id"], profile.requests["request"], strict=True))
    for name, value, length in (("x", 1, 3), ("y", 2, 1), ("z", 3, 2)):
        histogram = profile.histogram("inner", request=int(requests[name]))
        assert (histogram.min, histogram.max, histogram.count) == (value, value, length)
    assert profile.histogram("inner", step=1).count == 6 + padding
    assert profile.activations["row"].tolist() == [0, 1, 2, -1]
