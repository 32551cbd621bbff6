"""A budget decides which steps are observed, too, and what is observed weighs accordingly.

That the budget is held and that weighted sums are unbiased is tested natively, on invented steps
(`tests/cpp/test_sampler.cpp`).
"""

from __future__ import annotations

import math
import re
import time
from collections import Counter
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
from odd_modules import Stack, numbers, seeded
from pertoken.analysis.activation_health import unhealthy_sites
from synthetic import columns_of
from waiting import wait_for


class Slow(nn.Module):
    """Its steps take long enough that any budget of theirs pays for all detail."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(3e-4)
        return self.inner(x)


def observed(
    steps: int,
    until: Callable[[pertoken.Profile], bool] = lambda profile: True,
    **options: Any,
) -> pertoken.Recording:
    """So many steps, and as many again until something has been seen.

    An observation that the machine held up is paid by the steps after it, so that how many are
    observed is not known.
    """
    model = Slow()
    options = {"budget": 1.0, "activations": "*", "activation_every": 1, **options}
    with pertoken.profile(model, **options) as recording:

        def enough() -> bool:
            for step in range(steps):
                model(torch.full((4,), float(step + 1)))
            return until(recording.result())

        wait_for(enough)
    return recording


def kinds_of_steps(profile: pertoken.Profile) -> set[tuple[bool, str]]:
    """Whether a step was observed, and its detail: all that there were."""
    seen = set(profile.activations["step"].tolist())
    steps = profile.steps
    return {
        (step in seen, detail)
        for step, detail in zip(steps["step"].tolist(), steps["detail"].tolist(), strict=True)
    }


def test_the_sampler_decides_which_steps_are_observed_and_the_weights_say_how() -> None:
    # Spans are decided by a coin of their own.
    expected = {(seen, detail) for seen in (True, False) for detail in ("root", "layers")}
    recording = observed(600, lambda profile: kinds_of_steps(profile) == expected)
    profile = recording.result()
    table = profile.activations
    assert table["weight"].min() >= 16 / 15 - 1e-9  # at a probability of 15/16 at most
    assert recording.totals().activations[
        pertoken.totals.SiteKey("inner", "other", "module")
    ].observations == len(table)
    invariants.check(profile)


def test_no_more_than_one_step_in_so_many_is_observed() -> None:
    recording = observed(1600, lambda profile: len(profile.activations), activation_every=16)
    profile = recording.result()
    assert 0 < len(profile.activations) < len(profile.steps) / 8
    assert profile.activations["weight"].min() >= 16 - 1e-9


def test_a_tiny_budget_observes_next_to_nothing() -> None:
    assert len(observed(300, budget=1e-6).result().activations) < 40


def test_totals_weigh_what_was_observed() -> None:
    """A site's mean is that of all steps, over and over, within the error of their number.

    Where the rate is fixed: how far a budget's estimates lie apart depends on the machine's pace.
    """
    steps, runs = 120, 30
    truth = (steps + 1) / 2
    means, weights = [], []
    model = nn.Sequential(nn.Identity())
    options: dict[str, Any] = {"activations": "*", "activation_every": 3}
    for budget in [None] * runs + [1.0] * 5:
        with pertoken.profile(model, budget=budget, **options) as recording:
            for step in range(steps):
                model(torch.full((4,), float(step + 1)))
        if not len(recording.result().activations):
            continue
        totals = next(iter(recording.totals().activations.values()))
        table = recording.result().activations
        assert totals.weight == pytest.approx(table["weight"].sum())
        assert totals.weighted_count == pytest.approx(4 * totals.weight)
        assert totals.weighted_sum == pytest.approx((table["sum"] * table["weight"]).sum())
        assert totals.rms >= totals.mean * (1 - 1e-12) > 0
        if budget is None:
            means.append(totals.weighted_sum / (4 * steps))
            weights.append(totals.weight / steps)
        again = pertoken.Totals.from_dict(recording.totals().to_dict())
        assert again == recording.totals()
        twice = next(iter((again + again).activations.values()))
        assert twice.weight == pytest.approx(2 * totals.weight)
    assert len(means) == runs
    for found, expected in ((means, truth), (weights, 1.0)):
        error = np.std(found) / math.sqrt(runs)
        assert abs(np.mean(found) - expected) < 5 * error


def test_the_share_of_wrong_outputs_is_weighted() -> None:
    model = nn.Sequential(nn.Identity())
    with pertoken.profile(model, activations="*", activation_every=1) as recording:
        for value in (math.nan, 1.0, 1.0, 1.0):
            model(torch.tensor([value]))
    profile = recording.result()
    columns = columns_of(profile)
    columns["activations"]["weight"] = np.array([16.0, 2.0, 4.0, 10.0])
    changed = pertoken.Profile.from_columns(
        columns, profile.steps.strings, profile.meta, profile.losses
    )
    (site,) = unhealthy_sites(changed)
    assert site.share == pytest.approx(0.5)
    assert "50 %" in " ".join(str(changed.summary()).split())


def test_the_rates_of_both_are_stated(tmp_path: Path) -> None:
    recording = observed(300, lambda profile: len(profile.activations))
    rates = r"sampled: other layers [\d.e-]+, activations [\d.e-]+"
    assert re.search(rates, recording.status())
    profile = recording.result()
    other = profile.meta["cost"]["kinds"]["other"]
    assert set(other["rates"]) == {"layers", "activations"}
    assert all(0 < rate <= 15 / 16 for rate in other["rates"].values())
    assert other["detailed"]["activations"] == len(profile.activations)
    assert set(other["details"]) == {"spans", "activations"}
    for own in other["details"].values():
        assert own["share"] > 0 and 0 < own["floor"] < 1
    assert other["pairs"] == sum(own["pairs"] for own in other["details"].values())
    assert other["details"]["activations"]["share"] < other["share"]
    profile.save(tmp_path / "run.pertoken")
    assert pertoken.load(tmp_path / "run.pertoken").meta["cost"] == profile.meta["cost"]
    assert re.search(rates.replace(" ", r"\s+"), str(profile.summary()))


def test_what_the_user_observes_is_part_of_the_budget() -> None:
    model = Slow()
    model.inner.register_forward_hook(lambda module, args, out: pertoken.observe("hand", out))
    with pertoken.profile(model, modules="root", budget=1.0, activation_every=1) as recording:

        def enough() -> bool:
            for _ in range(300):
                model(torch.ones(4))
            return len(recording.result().activations) > 0

        wait_for(enough)
    profile = recording.result()
    table = profile.activations
    assert 0 < len(table) < len(profile.steps) and set(table["site"].tolist()) == {"hand"}
    assert table["weight"].min() >= 16 / 15 - 1e-9
    cost = profile.meta["cost"]["kinds"]["other"]
    assert set(cost["rates"]) == {"activations"}
    assert set(profile.steps["detail"].tolist()) == {"root"}
    assert set(profile.steps["sample_weight"].tolist()) == {1.0}


def test_a_budget_without_observations_states_none() -> None:
    model = seeded(Stack)
    with pertoken.profile(model, budget=1.0) as recording:
        for _ in range(30):
            model(numbers())
    kind = recording.cost_facts()["kinds"]["other"]
    assert set(kind["rates"]) == {"layers"} and set(kind["details"]) == {"spans"}


def test_generate_and_declared_steps_are_observed_as_a_whole() -> None:
    model = models.llama()
    options: dict[str, Any] = {"activations": "model.layers.*", "activation_every": 1}
    with pertoken.profile(model, budget=1.0, **options) as recording:
        for _ in range(4):
            model.generate(models.prompt(1), max_new_tokens=8)

        def enough() -> bool:
            for _ in range(20):
                with pertoken.step(kind="decode", rows=1, tokens_committed=1):
                    model(models.prompt(1))
                    model(models.prompt(1))
            return (recording.result().activations["step"] >= 32).any()

        wait_for(enough)
    profile = recording.result()
    table = profile.activations
    of_layer = table["step"][table["site"] == "model.layers.1"]
    declared = Counter(step for step in of_layer.tolist() if step >= 32)
    assert set(declared.values()) == {2}
    weights: dict[int, set[float]] = {step: set() for step in of_layer.tolist()}
    for step, weight in zip(table["step"].tolist(), table["weight"].tolist(), strict=True):
        weights[step].add(weight)
    assert all(len(own) == 1 for own in weights.values())
