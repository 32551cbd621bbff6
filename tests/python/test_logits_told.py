"""Logits in steps that the user or an engine tells of, and what is no logits."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import ContinuousBatchingConfig, GenerationConfig

import models
import pertoken
from logit_reference import sharp, signals
from pertoken import Profile
from pertoken.engines.engine import manual
from pertoken.engines.row import Row


class Fixed(nn.Module):
    """Puts out given logits (rows, positions, vocabulary), whatever it is fed."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Linear(1, 1)
        self.output: Any = None

    def forward(
        self, input_ids: Tensor, attention_mask: Any = None, logits_to_keep: Any = 0
    ) -> Any:
        return self.output


def declared(output: Any, ids: Tensor, *, rows: Any = None, **step: Any) -> Profile:
    model = Fixed()
    model.output = output
    kwargs = step.pop("kwargs", {})
    with pertoken.profile(model, logits=True) as recording, pertoken.request():
        given = {"rows": rows} if rows is not None else {"kind": "decode", **step}
        with pertoken.step(**given):
            model(ids, **kwargs)
    for request in [row.request for row in rows or ()]:
        manual.request_finished(request)
    return recording.result()


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3)) * 3


def check_declared(profile: Profile, logits: Tensor) -> None:
    """`logits` (tokens, vocabulary), in the order of the table."""
    right = signals(logits, torch.zeros(len(logits), dtype=torch.int64))
    assert len(profile.tokens) == len(logits)
    for name in ("top1_prob", "margin", "entropy"):
        np.testing.assert_allclose(profile.tokens[name], right[name], rtol=2e-5, atol=2e-5)
    assert np.isnan(profile.tokens["logprob"]).all()  # which token was chosen is not seen


def test_a_declared_step_reads_the_last_position_of_each_row() -> None:
    logits = random(3, 4, 50)
    ids = models.prompt(3, 4)
    for output in (
        logits,
        {"logits": logits},
        (torch.tensor(0.5), logits),
        logits[:, -1:],
        logits[:, -1],
        logits.double(),
        logits.transpose(0, 1).contiguous().mT.mT.transpose(0, 1),
    ):
        check_declared(declared(output, ids, tokens_committed=3), logits[:, -1])


def test_padding_on_the_right_ends_a_row_before_its_last_position() -> None:
    logits = random(3, 4, 50)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]])
    profile = declared(
        logits, models.prompt(3, 4), tokens_committed=3, kwargs={"attention_mask": mask}
    )
    check_declared(profile, logits[torch.arange(3), torch.tensor([3, 1, 2])])


def test_told_rows_have_those_of_their_own_request() -> None:
    """A row apiece, or all packed into one, of which the model may keep chosen positions."""
    lengths, packed = [2, 1, 3], random(1, 7, 50)  # the last position is padding
    rows = [
        Row("a", "prefill", 2, 0, 1),
        Row("b", "decode", 1, 9, 1),
        Row("c", "prefill", 3, 0, 1),
    ]
    ends = torch.tensor(lengths).cumsum(0) - 1
    for output, kwargs in (
        (packed, {}),
        (packed[:, ends], {"logits_to_keep": ends}),
        (packed[:, ends.flip(0)], {"logits_to_keep": ends.flip(0).int()}),
    ):
        profile = declared(output, models.prompt(1, 7), rows=rows, kwargs=kwargs)
        check_declared(profile, packed[0, ends])
        names = dict(
            zip(profile.requests["request"].tolist(), profile.requests["id"].tolist(), strict=True)
        )
        assert [names[number] for number in profile.tokens["request"].tolist()] == ["a", "b", "c"]
    # Of fewer positions, and nobody says which.
    profile = declared(packed[:, ends], models.prompt(1, 7), rows=rows)
    assert np.isnan(profile.tokens["entropy"]).all()
    assert profile.losses["observations_skipped"] == {
        "logits: the positions of the rows are not known": 1
    }
    apart = random(3, 1, 50)
    decode = [Row(name, "decode", 1, 9, 1) for name in "cab"]
    check_declared(declared(apart, models.prompt(3, 1), rows=decode), apart[:, 0])


def test_a_declared_verification_reads_what_it_verifies() -> None:
    logits = random(1, 4, 50)
    profile = declared(logits, models.prompt(1, 4), kind="verify", tokens_committed=3)
    check_declared(profile, logits[0, :3])


def test_more_tokens_than_the_logits_choose_are_of_elsewhere() -> None:
    profile = declared(random(1, 4, 50), models.prompt(1, 4), tokens_committed=3)
    assert len(profile.tokens) == 3
    assert np.isnan(profile.tokens["entropy"]).all()


def test_of_several_forwards_in_a_step_nobody_knows_which_chose() -> None:
    model = Fixed()
    model.output = random(1, 1, 50)
    step = pertoken.step(kind="decode", rows=1, tokens_committed=1)
    with pertoken.profile(model, logits=True) as recording, pertoken.request(), step:
        model(models.prompt(1, 1))
        model(models.prompt(1, 1))
    table = recording.result().tokens
    assert len(table) == 1
    assert np.isnan(table["entropy"]).all()


class Output(dict):  # type: ignore[type-arg]
    """A structure."""


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        (Output(last_hidden_state=torch.ones(2, 1, 8)), "a model's output has no logits"),
        (7, "a model's output has no logits"),
        (None, "a model's output has no logits"),
        ((torch.tensor(0.5),), "a model's output has no logits"),
        (torch.ones(2, 1, 3, dtype=torch.int64), "a model's output has no logits"),
        (torch.ones(3, 1, 8), "of another form"),
        (torch.ones(2, 1, 3, 4), "of another form"),
        (torch.ones(2, 1, 0), "of another form"),
        (torch.ones(2, 0, 4), "of another form"),
        (torch.ones(2, 1, 4, device="meta"), ""),
        (torch.ones(2, 1, 4).to_sparse(), ""),
        (torch.ones(2, 1, 4, dtype=torch.complex64), ""),
        (torch.nested.nested_tensor([torch.ones(1, 3), torch.ones(2, 3)]), ""),
    ],
)
def test_what_is_no_logits_is_skipped_and_counted(output: Any, reason: str) -> None:
    profile = declared(output, models.prompt(2, 1), tokens_committed=2)
    ((found, count),) = profile.losses["observations_skipped"].items()
    assert found.startswith("logits: ")
    assert reason in found
    assert count == 1
    assert np.isnan(profile.tokens["entropy"]).all()
    assert profile.losses["faults"] == {}


def test_a_masked_vocabulary_and_a_nan() -> None:
    logits = random(3, 1, 50)
    logits[0, 0, 1:] = -math.inf
    logits[1, 0, 7] = math.nan
    profile = declared(logits, models.prompt(3, 1), tokens_committed=3)
    assert profile.tokens["top1_prob"][0] == 1
    assert profile.tokens["entropy"][0] == 0
    assert np.isnan(profile.tokens["top1_prob"]).tolist() == [False, True, False]
    assert profile.tokens["logits_weight"].tolist() == [1, 1, 1]


def test_the_packed_rows_of_generate_batch() -> None:
    model = sharp(models.llama())
    prompts = [models.prompt(1, length, seed=length)[0].tolist() for length in (3, 9, 5)]
    settings = GenerationConfig(max_new_tokens=5, do_sample=False, eos_token_id=-1, pad_token_id=0)
    with pertoken.profile(model, logits=True) as recording:
        results = model.generate_batch(
            prompts,
            generation_config=settings,
            continuous_batching_config=ContinuousBatchingConfig(
                page_size=4, num_blocks=64, max_batch_tokens=16
            ),
            progress_bar=False,
        )
    profile = recording.result()
    table = profile.tokens
    assert len(table) == 15
    names = dict(
        zip(profile.requests["request"].tolist(), profile.requests["id"].tolist(), strict=True)
    )
    for name, result in results.items():
        whole = torch.tensor([result.prompt_ids + result.generated_tokens])
        with torch.no_grad():
            logits = model(whole).logits[0, len(result.prompt_ids) - 1 : -1]
        right = signals(logits, whole[0, len(result.prompt_ids) :])
        own = np.array([names[number] == name for number in table["request"].tolist()])
        at = table["position"][own]
        for signal in ("top1_prob", "margin", "entropy"):
            np.testing.assert_allclose(
                table[signal][own], right[signal].numpy()[at], rtol=1e-4, atol=1e-4
            )
