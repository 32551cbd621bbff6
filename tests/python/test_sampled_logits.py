"""A budget decides in which steps logits are read, too, and what was read weighs accordingly.

That the budget is held and that weighted sums are unbiased is tested natively, on invented steps
(`tests/cpp/test_sampled_logits.cpp`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import invariants
import models
import pertoken
from logit_reference import SIGNALS, sharp, signals
from pertoken import Profile, Recording
from waiting import wait_for

pytestmark = pytest.mark.usefixtures("checked_logits")

ROWS, NEW_TOKENS = 2, 12
MOST = 15 / 16  # of a step to have any detail


def wide_llama() -> Any:
    """A small decoder, whose logits take a good part of a step to read."""
    return models.llama(layers=1, vocabulary=16384)


def recorded(model: Any, until: Callable[[Profile], bool], **options: Any) -> Recording:
    """Generates until something has been seen: what a budget lets through is not known."""
    options = {"budget": 1.0, "logits": True, **options}
    with pertoken.profile(model, **options) as recording:

        def enough() -> bool:
            for _ in range(8):
                model.generate(models.prompt(ROWS), max_new_tokens=NEW_TOKENS)
            return until(recording.result())

        wait_for(enough)
    return recording


def is_read(profile: Profile) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Of each token, whether its step's logits were."""
    return np.isfinite(profile.tokens["logits_weight"])


def steps_read(profile: Profile, kind: str) -> int:
    """How many steps of a kind were read."""
    read = np.unique(profile.tokens["step"][is_read(profile)])
    return int((profile.steps["kind"][np.isin(profile.steps["step"], read)] == kind).sum())


def test_a_small_budget_reads_some_steps_and_is_kept() -> None:
    budget = 0.02

    def some_are_read_within_the_budget(profile: Profile) -> bool:
        read = is_read(profile)
        share = profile.meta["cost"]["share"]
        # A step that the machine held up while it was read is paid by those after it.
        return len(profile.steps) >= 400 and read.sum() >= 4 * ROWS and share <= budget

    recording = recorded(wide_llama(), some_are_read_within_the_budget, budget=budget)
    profile = recording.result()
    read = is_read(profile)
    assert not read.all()
    tokens = profile.tokens
    for name in SIGNALS:
        assert (np.isfinite(tokens[name]) == read).all()
    weights = tokens["logits_weight"][read]
    assert weights.min() >= 1 / MOST - 1e-6 and weights.max() > 2
    # All tokens of a step have its weight.
    for step in np.unique(tokens["step"]):
        own = tokens["logits_weight"][tokens["step"] == step]
        assert len(own) == ROWS and len(np.unique(own)) == 1
    for kind in ("prefill", "decode"):
        facts = profile.meta["cost"]["kinds"][kind]
        assert facts["detailed"]["logits"] == steps_read(profile, kind)
    decode = profile.meta["cost"]["kinds"]["decode"]
    assert 0 < decode["details"]["logits"]["share"] <= decode["share"]
    invariants.check(profile)


def test_what_is_read_in_some_steps_is_what_the_logits_say() -> None:
    model = sharp(models.llama())
    with pertoken.profile(model, logits=True, budget=1.0) as recording:

        def some_are_read() -> tuple[Any, Any] | None:
            before = recording.result().tokens
            result = model.generate(
                models.prompt(ROWS),
                max_new_tokens=NEW_TOKENS,
                output_logits=True,
                return_dict_in_generate=True,
            )
            tokens = recording.result().tokens
            tokens = tokens.where(np.arange(len(tokens)) >= len(before))
            read = np.isfinite(tokens["logits_weight"])
            return (tokens, result) if read.any() and not read.all() else None

        found = wait_for(some_are_read)
    assert found is not None
    tokens, result = found
    logits = torch.stack(result.logits, 1)
    expected = signals(logits, result.sequences[:, -logits.shape[1] :])
    tokens = tokens.where(np.isfinite(tokens["logits_weight"]))
    rows, positions = torch.tensor(tokens["row"].copy()), torch.tensor(tokens["position"].copy())
    for name in SIGNALS:
        right = expected[name][rows, positions].numpy()
        np.testing.assert_allclose(tokens[name], right, rtol=2e-5, atol=2e-5, err_msg=name)


def test_weights_are_the_inverse_of_the_probability() -> None:
    """Where the budget is ample, that is 1 in `logits_every`, but of the first two steps 15/16."""
    every = 4

    def both_are_seen(profile: Profile) -> bool:
        weights = profile.tokens["logits_weight"]
        firsts = np.isclose(weights, 1 / MOST)
        return bool(firsts.any() and np.isclose(weights, every).sum() > 20)

    profile = recorded(models.llama(), both_are_seen, logits_every=every).result()
    tokens = profile.tokens
    weights, position = tokens["logits_weight"], tokens["position"]
    assert np.nanmin(weights[position >= 2]) >= every - 1e-5
    assert set(position[np.isclose(weights, 1 / MOST)].tolist()) <= {0, 1}
    rates = profile.meta["cost"]["kinds"]["decode"]["rates"]
    assert rates["logits"] == 1 / every


def test_logits_spans_and_observations_are_decided_apart() -> None:
    def combinations(profile: Profile) -> set[tuple[bool, bool, bool]]:
        steps = profile.steps
        numbers = steps["step"][steps["kind"] == "decode"]
        read = np.isin(numbers, profile.tokens["step"][is_read(profile)])
        observed = np.isin(numbers, profile.activations["step"])
        has_spans = steps["detail"][steps["kind"] == "decode"] == "layers"
        return set(zip(read.tolist(), observed.tolist(), has_spans.tolist(), strict=True))

    options: dict[str, Any] = {"activations": "model.layers.0", "activation_every": 2}
    recording = recorded(
        models.llama(), lambda profile: len(combinations(profile)) == 8, logits_every=2, **options
    )
    profile = recording.result()
    decode = profile.meta["cost"]["kinds"]["decode"]
    assert set(decode["details"]) == {"spans", "activations", "logits"}
    assert set(decode["rates"]) == set(decode["detailed"]) == {"layers", "activations", "logits"}
    assert decode["pairs"] == sum(own["pairs"] for own in decode["details"].values())


def test_the_rate_is_stated(tmp_path: Path) -> None:
    recording = recorded(models.llama(), lambda profile: bool(is_read(profile).any()))
    rates = r"decode layers [\d.e-]+, logits [\d.e-]+"
    assert re.search(rates, recording.status())
    profile = recording.result()
    assert re.search(rates.replace(" ", r"\s+"), str(profile.summary()))
    (cost,) = profile.summary().as_dict()["cost"]
    assert 0 < cost["rates"]["decode"]["logits"] <= MOST
    profile.save(tmp_path / "run.pertoken")
    loaded = pertoken.load(tmp_path / "run.pertoken")
    assert loaded.meta["cost"] == profile.meta["cost"]
    np.testing.assert_array_equal(loaded.tokens["logits_weight"], profile.tokens["logits_weight"])


def test_steps_whose_logits_nobody_can_read_state_none() -> None:
    model = models.llama()
    with pertoken.profile(model, logits=True, budget=1.0) as recording, torch.no_grad():
        for _ in range(40):
            model(models.prompt(1))
    kind = recording.cost_facts()["kinds"]["other"]
    assert set(kind["rates"]) == {"layers"} and set(kind["details"]) == {"spans"}


class Fixed(nn.Module):
    """Puts out the same logits in every call."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.inner = nn.Identity()
        self.logits = logits

    def forward(self, input_ids: Tensor) -> Tensor:
        output: Tensor = self.inner(self.logits)
        return output


def test_declared_steps_are_read_by_the_same_choice() -> None:
    model = Fixed(torch.randn(1, 1, 50, generator=torch.Generator().manual_seed(1)))
    token = torch.zeros((1, 1), dtype=torch.int64)
    with pertoken.profile(model, logits=True, budget=1.0) as recording, pertoken.request():

        def both() -> bool:
            for _ in range(50):
                with pertoken.step(kind="decode", rows=1, tokens_committed=1):
                    model(token)
            read = is_read(recording.result())
            return bool(read.any() and not read.all())

        wait_for(both)
    profile = recording.result()
    tokens, read = profile.tokens, is_read(profile)
    right = signals(model.logits[0, 0], torch.tensor(0))
    for name in ("top1_prob", "margin", "entropy"):
        np.testing.assert_allclose(tokens[name][read], right[name], rtol=2e-5, atol=2e-5)
        assert np.isnan(tokens[name][~read]).all()
    assert tokens["logits_weight"][read].min() >= 1 / MOST - 1e-6
    decode = profile.meta["cost"]["kinds"]["decode"]
    assert decode["detailed"]["logits"] == read.sum()
    assert decode["details"]["logits"]["share"] > 0


def test_a_recovered_recording_has_the_same_weights(tmp_path: Path) -> None:
    recording = recorded(
        models.llama(), lambda profile: bool(is_read(profile).any()), spool=tmp_path / "spool"
    )
    profile = recording.result()
    del recording
    recovered = pertoken.recover(tmp_path / "spool")
    for name in ("logits_weight", *SIGNALS):
        np.testing.assert_array_equal(recovered.tokens[name], profile.tokens[name])
    invariants.check(recovered)


@pytest.mark.parametrize("budget", [None, 1.0])
def test_a_beam_search_is_not_read(budget: float | None) -> None:
    model = models.llama()
    with pertoken.profile(model, logits=True, budget=budget) as recording:
        model.generate(models.prompt(2), max_new_tokens=4, num_beams=2)
    profile = recording.result()
    assert np.isnan(profile.tokens["logits_weight"]).all()
    assert all("logits" not in kind["rates"] for kind in profile.meta["cost"]["kinds"].values())
