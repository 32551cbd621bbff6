"""A budget: which detail steps get, what they weigh, what is stated of the cost.

That the budget is held and that weighted sums are unbiased is tested natively, on invented steps
(`tests/cpp/test_sampler.cpp`).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import invariants
import models
import pertoken
from odd_modules import Stack, Unhurried, numbers, seeded
from pertoken import _native, record_costs
from pertoken.analysis.site_times import Place, SiteTimes, hottest_sites
from pertoken.errors import SelectionError
from pertoken.sampling import cost_facts, unknown_cost
from pertoken.schema import STEP_KINDS
from synthetic import columns_of, synthetic_profile, with_columns

MODULES_OF_STACK = 1 + 2 * 3 + 1  # with layers: root, two blocks with two parts each, head


def sampled(model: Any, steps: int, **options: Any) -> pertoken.Profile:
    with pertoken.profile(model, **{"budget": 1.0, **options}) as recording:
        for _ in range(steps):
            model(numbers())
    return recording.result()


def spans_by_step(profile: pertoken.Profile) -> dict[int, int]:
    return Counter(profile.spans["step"].tolist())


def test_every_step_is_timed_and_some_have_no_spans_but_their_own() -> None:
    profile = sampled(seeded(Unhurried), 400)
    steps = profile.steps
    assert len(steps) == 400 and (steps["wall_ns"] >= 0).all()
    details = steps["detail"]
    assert set(details.tolist()) == {"layers", "root"}
    counts = spans_by_step(profile)
    for step, detail, weight in zip(
        steps["step"].tolist(), details.tolist(), steps["sample_weight"].tolist(), strict=True
    ):
        assert counts[step] == (MODULES_OF_STACK if detail == "layers" else 1)
        assert weight >= 1 if detail == "layers" else weight == 0
    # As the budget is ample, they had detail with a probability of 15/16, which is the most.
    weights = steps["sample_weight"][details == "layers"]
    assert weights.min() == pytest.approx(16 / 15)
    invariants.check(profile)


def test_layers_are_sampled_apart_from_all_modules() -> None:
    model = seeded(Stack)
    everything = len(list(model.modules())) - 1  # the list of layers is never called
    profile = sampled(model, 3000, modules="all", budget=0.01)
    counts = spans_by_step(profile)
    expected = {"root": 1, "layers": MODULES_OF_STACK, "all": everything}
    for step, detail, weight in zip(
        profile.steps["step"].tolist(),
        profile.steps["detail"].tolist(),
        profile.steps["sample_weight"].tolist(),
        strict=True,
    ):
        assert counts[step] == expected[detail]
        assert (weight == 0) == (detail == "root")
    assert {"all", "root"} <= set(profile.steps["detail"].tolist())
    invariants.check(profile)


def test_without_a_budget_nothing_is_sampled() -> None:
    profile = sampled(seeded(Stack), 50, budget=None)
    assert set(profile.steps["detail"].tolist()) == {"layers"}
    assert set(profile.steps["sample_weight"].tolist()) == {1.0}
    assert profile.meta["cost"]["budget"] is None and profile.meta["cost"]["kinds"] == {}
    assert profile.meta["cost"]["share"] > 0


def test_parts_without_a_step_round_them_are_recorded() -> None:
    model = seeded(Stack)
    with pertoken.profile(model, budget=1e-6) as recording:
        for _ in range(50):
            model.head(numbers())
    assert len(recording.result().spans) == 50


def test_generate_is_sampled_and_its_tokens_are_exact() -> None:
    model = models.llama.__wrapped__()
    with pertoken.profile(model, budget=1.0) as recording:
        out = model.generate(models.prompt(rows=2), max_new_tokens=60)
    plain = model.generate(models.prompt(rows=2), max_new_tokens=60)
    assert out.tolist() == plain.tolist()
    profile = recording.result()
    assert len(profile.tokens) == 120
    assert set(profile.steps["detail"].tolist()) <= {"layers", "root"}
    invariants.check(profile)
    invariants.check_sequences(profile)


def test_a_declared_step_has_one_detail_for_all_its_forwards() -> None:
    model = seeded(Stack)
    with pertoken.profile(model, budget=1.0) as recording:
        for _ in range(200):
            with pertoken.step(kind="decode", rows=1, tokens_committed=1):
                model(numbers())
                model(numbers())
    profile = recording.result()
    assert set(spans_by_step(profile).values()) == {2, 2 * MODULES_OF_STACK}
    invariants.check(profile)


def test_a_recording_goes_on_sampling_after_a_pause() -> None:
    model = seeded(Stack)
    recording = pertoken.profile(model, budget=1.0)
    for _ in range(2):
        with recording:
            for _ in range(100):
                model(numbers())
    assert "_compiled_call_impl" not in model.head.__dict__
    facts = cost_facts(recording)
    assert facts["kinds"]["other"]["steps"] == 200


def test_a_budget_may_be_one_of_numpys_numbers() -> None:
    assert pertoken.profile(seeded(Stack), budget=np.float32(0.25)).budget == 0.25


@pytest.mark.parametrize("budget", [0, -0.1, 1.01, math.nan, math.inf, "1%", True])
def test_a_budget_that_is_none_is_refused(budget: Any) -> None:
    with pytest.raises(SelectionError, match=r"budget.* 0\.01 is 1 %"):
        pertoken.profile(seeded(Stack), budget=budget)


def test_the_root_alone_has_no_spans_to_sample() -> None:
    profile = sampled(seeded(Stack), 20, modules="root", budget=0.01)
    assert set(profile.steps["sample_weight"].tolist()) == {1.0}
    assert profile.meta["cost"]["budget"] == 0.01


def test_the_cost_is_stated_in_meta_summary_and_status(tmp_path: Path) -> None:
    model = seeded(Unhurried)
    with pertoken.profile(model, budget=1.0) as recording:
        for _ in range(600):
            model(numbers())
    told = r"of a budget of 100 %; sampled: other layers [\d.e-]+"
    assert re.search(
        r"costs about [\d.e+-]+ % of the steps' time \(an estimate\), " + told, recording.status()
    )
    profile = recording.result()
    cost = profile.meta["cost"]
    assert cost["budget"] == 1.0 and 0 < cost["share"] < 1
    assert cost["pairs"] >= 12 and cost["low"] <= cost["high"]
    other = cost["kinds"]["other"]
    assert other["steps"] == 600 and set(other["rates"]) == {"layers"}
    assert 0 < other["rates"]["layers"] <= 15 / 16
    assert other["detailed"]["layers"] == (profile.steps["detail"] == "layers").sum()
    profile.save(tmp_path / "run.pertoken")
    loaded = pertoken.load(tmp_path / "run.pertoken")
    assert loaded.meta["cost"] == cost
    assert re.search(
        r"Recording cost about .* by \d+ pairs of steps\), " + told,
        " ".join(str(loaded.summary()).split()),
    )


def detail(steps: int, own_ns: tuple[float, float, float], *, is_measured: bool) -> dict[str, Any]:
    """What the native side tells of a detail: its cost, and the interval if it is measured."""
    cost_ns, low_ns, high_ns = own_ns
    return {
        "decided": 100,
        "detailed": [steps],
        "rates": [0.5],
        "floor": 0.1,
        "pairs": 20 if is_measured else 4,
        "is_measured": is_measured,
        "detail_ns": cost_ns,
        "low_ns": low_ns if is_measured else cost_ns,
        "high_ns": high_ns if is_measured else cost_ns,
    }


def stated(**kinds: list[dict[str, Any]]) -> dict[str, Any]:
    """`meta["cost"]` by these details of kinds, whose steps take 1000 ns and cost 10 without."""
    strata = {
        STEP_KINDS.index(kind): {"steps": 9, "step_ns": 1000.0, "plain_ns": 10.0, "details": rows}
        for kind, rows in kinds.items()
    }
    report = {"budget": 0.1, "drain_ns": 0.0, "strata": strata}
    recording: Any = SimpleNamespace(
        recorder=SimpleNamespace(sampling=lambda: report),
        detail="layers",
        observing=SimpleNamespace(has_sites=True),
    )
    return cost_facts(recording)


def test_a_detail_whose_cost_was_not_measured_may_have_taken_all_the_time_of_its_steps() -> None:
    """Else it would count as if what the model of costs says of it were exact."""
    measured = detail(3, (20.0, 10.0, 40.0), is_measured=True)
    open_still = detail(3, (300.0, 0.0, 0.0), is_measured=False)
    not_got = detail(0, (0.0, 0.0, 0.0), is_measured=False)
    cost = stated(decode=[open_still, measured, not_got])
    kind = cost["kinds"]["decode"]
    assert cost["share"] == kind["share"] == pytest.approx(0.33)
    assert cost["low"] == kind["low"] == pytest.approx((10 + 10) / 1000)
    assert cost["high"] == kind["high"] == pytest.approx((10 + 40 + 1000 * 3 / 9) / 1000)
    assert kind["details"]["activations"]["low"] == pytest.approx(0.01)
    assert kind["details"]["spans"]["low"] is None
    # A detail that no step got has cost nothing: it does not count.
    kind = stated(decode=[not_got, measured, not_got])["kinds"]["decode"]
    assert (kind["low"], kind["high"]) == (pytest.approx(0.02), pytest.approx(0.05))


def test_a_kind_of_which_no_pair_has_shown_anything_widens_the_whole() -> None:
    measured = detail(3, (20.0, 10.0, 40.0), is_measured=True)
    open_still = detail(1, (20.0, 0.0, 0.0), is_measured=False)
    not_got = detail(0, (0.0, 0.0, 0.0), is_measured=False)
    cost = stated(prefill=[open_still, not_got, not_got], decode=[measured, not_got, not_got])
    assert cost["low"] == pytest.approx((10 + 10 + 10) / 2000)
    assert cost["high"] == pytest.approx((10 + 1000 / 9 + 10 + 40) / 2000)
    assert cost["kinds"]["prefill"]["low"] is None
    assert cost["kinds"]["decode"]["high"] == pytest.approx(0.05)
    assert stated(decode=[not_got] * 3)["low"] is None


def test_a_bound_below_0_is_stated_as_it_is() -> None:
    """It is an estimate from differences: of a detail, of its kind and of the whole."""
    measured = detail(3, (20.0, -60.0, 40.0), is_measured=True)
    not_got = detail(0, (0.0, 0.0, 0.0), is_measured=False)
    cost = stated(decode=[measured, not_got, not_got])
    kind = cost["kinds"]["decode"]
    assert kind["details"]["spans"]["low"] == pytest.approx(-0.06)
    assert cost["low"] == kind["low"] == pytest.approx(-0.05)


def test_the_summary_tells_of_pairs_only_with_an_interval() -> None:
    profile = synthetic_profile(requests=1, tokens=3)
    for low, high in ((None, None), (0.01, 0.05)):
        cost = {**unknown_cost(0.1), "share": 0.02, "low": low, "high": high, "pairs": 40}
        changed = pertoken.Profile.from_columns(
            columns_of(profile),
            profile.steps.strings,
            {**profile.meta, "cost": cost},
            profile.losses,
        )
        assert ("40 pairs" in str(changed.summary())) == (low is not None)


@pytest.mark.parametrize(
    "cost",
    [
        None,
        unknown_cost(0.01),
        3,
        {"share": "x"},
        {"share": math.nan},
        {"share": 10**400},
        {"share": 1, "pairs": [], "kinds": {"a": {"rates": [1]}, "b": 2}},
    ],
)
def test_a_summary_survives_whatever_a_file_states(cost: Any) -> None:
    profile = synthetic_profile(requests=1, tokens=3)
    meta = {**profile.meta, "cost": cost}
    changed = pertoken.Profile.from_columns(
        columns_of(profile), profile.steps.strings, meta, profile.losses
    )
    assert "pertoken" in str(changed.summary())


def test_sampled_and_whole_recordings_merge_and_keep_what_each_states() -> None:
    model = seeded(Unhurried)
    parts = [sampled(model, 100), sampled(model, 100, budget=None)]
    merged = pertoken.merge(parts)
    assert [meta["cost"]["budget"] for meta in merged.meta["processes"]] == [1.0, None]
    rates = [meta["cost"]["kinds"] for meta in merged.meta["processes"]]
    assert 0 < rates[0]["other"]["rates"]["layers"] <= 15 / 16 and rates[1] == {}
    assert merged.totals is not None
    detailed = [part.totals.steps["other"].detailed for part in parts if part.totals]
    assert merged.totals.steps["other"].detailed == sum(detailed)
    text = str(merged.summary())
    assert text.count("Recording cost about") == 2


def test_costs_are_on_the_safe_side_where_they_cannot_be_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(record_costs, "_costs", None)
    monkeypatch.setattr(record_costs, "_measure", lambda: (_ for _ in ()).throw(RuntimeError))
    profile = sampled(seeded(Stack), 50)
    assert profile.meta["cost"]["share"] > 0


def test_a_recorder_is_told_once_to_sample() -> None:
    recorder = _native.Recorder(1 << 20, 1 << 10)
    told = {"budget": 0.1, "costs_ns": (1.0, 1.0, 1.0, 1.0), "seed": 1}
    told |= {"observed": (1.0, 1.0, True), "logits": None}
    with pytest.raises(ValueError, match="levels"):
        recorder.sample(levels=[(_native.DETAIL_LAYERS, 1.0)] * 4, **told)
    recorder.sample(levels=[(_native.DETAIL_LAYERS, 1.0)], **told)
    with pytest.raises(RuntimeError, match="once"):
        recorder.sample(levels=[(_native.DETAIL_LAYERS, 1.0)], **told)


def test_shares_of_sampled_steps_are_unbiased_and_their_intervals_hold_them() -> None:
    """Of one known run, sampled over and over with probabilities that differ between its steps."""
    whole = synthetic_profile(requests=8, tokens=40, layers=2, seed=3)
    # Every ninth decode is slow in one part, and those are sampled more seldom.
    steps, spans = whole.steps, whole.spans
    number = np.arange(len(steps))
    probability = np.where(number % 9 == 0, 0.2, 0.5)
    truth = {hot.site: hot.share for hot in hottest_sites(whole, 4)["decode"]}
    rng = np.random.default_rng(5)
    found: dict[str, list[float]] = {site: [] for site in truth}
    held: Counter[str] = Counter()
    runs = 150
    for _ in range(runs):
        detailed = rng.random(len(steps)) < probability
        weights = np.where(detailed, 1 / probability, 0.0)
        row = {step: i for i, step in enumerate(steps["step"].tolist())}
        kept = np.array([step < 0 or bool(detailed[row[step]]) for step in spans["step"].tolist()])
        rest = spans.where(kept)
        part = with_columns(
            whole,
            "steps",
            sample_weight=weights,
            detail=np.where(detailed, "layers", "root").tolist(),
        )
        part = with_columns(part, "spans", **{c: rest[c] for c in rest.columns})
        shares = {hot.site: hot for hot in hottest_sites(part, 100)["decode"]}
        for site, share in truth.items():
            hot = shares[site]
            found[site].append(hot.share)
            assert hot.share_low is not None and hot.share_high is not None
            held[site] += hot.share_low <= share <= hot.share_high
    for site, share in truth.items():
        error = np.std(found[site]) / math.sqrt(runs)
        assert abs(np.mean(found[site]) - share) < 4 * error + 1e-12
        assert held[site] >= 0.92 * runs


@pytest.mark.parametrize(
    ("rare", "dear"), [(0.0, 0.0), (0.01, 1.0), (0.02, 5.0), (0.005, 10.0), (0.002, 20.0)]
)
def test_the_interval_holds_what_a_site_takes_in_rare_steps_that_were_not_sampled(
    rare: float, dear: float
) -> None:
    """A site with a fifth of each step takes that of `dear` more in some; one in 20 has spans."""
    count, probability, runs = 1000, 0.05, 120
    base = synthetic_profile(requests=1, tokens=count, layers=1)
    rng = np.random.default_rng(2)
    stated = held = 0
    for _ in range(runs):
        wall = np.exp(0.1 * rng.standard_normal(count))
        added = dear * (rng.random(count) < rare)
        own_ns = np.rint(1e5 * (0.2 * wall * np.exp(0.2 * rng.standard_normal(count)) + added))
        wall_ns = np.rint(1e5 * (wall + added)).astype(np.int64)
        detailed = rng.random(count) < probability
        profile = with_columns(
            base,
            "steps",
            wall_ns=wall_ns,
            kind=["decode"] * count,
            sample_weight=detailed / probability,
            detail=np.where(detailed, "layers", "root").tolist(),
        )
        rows = np.flatnonzero(detailed)
        times = SiteTimes(
            places=(Place("mlp", "module", outside=False),),
            step_row=rows,
            place=np.zeros_like(rows),
            self_ns=own_ns[rows].astype(np.int64),
            calls=np.ones_like(rows),
            before_ns=np.zeros(count, dtype=np.int64),
        )
        (hot,) = hottest_sites(profile, 1, times)["decode"]
        if hot.share_low is not None and hot.share_high is not None:
            stated += 1
            held += hot.share_low <= own_ns.sum() / wall_ns.sum() <= hot.share_high
    assert stated > runs / 5
    assert held >= 0.95 * stated


def test_a_sampled_recording_is_recovered_with_its_weights(tmp_path: Path) -> None:
    model = seeded(Unhurried)
    with pertoken.profile(model, budget=1.0, spool=tmp_path) as recording:
        for _ in range(200):
            model(numbers())
    profile = recording.result()
    del recording
    recovered = pertoken.recover(tmp_path)
    for column in ("detail", "sample_weight"):
        assert recovered.steps[column].tolist() == profile.steps[column].tolist()
    cost = recovered.meta["cost"]
    assert cost.keys() == profile.meta["cost"].keys()
    assert cost == unknown_cost(1.0)
    assert "cost about" not in str(recovered.summary()) and "cost about" in str(profile.summary())
    recovered.save(tmp_path / "recovered.pertoken")
    assert pertoken.load(tmp_path / "recovered.pertoken").meta["cost"] == cost
    recovered.export_chrome_trace(tmp_path / "trace.json")
    assert recovered.totals is not None and recovered.totals.to_dict()
    merged = pertoken.merge([recovered, sampled(model, 20)])
    assert cost in [meta["cost"] for meta in merged.meta["processes"]]
    assert str(merged.summary()).count("cost about") == 1
    invariants.check(recovered)


def test_a_recovered_cost_has_the_keys_of_one_without_a_budget(tmp_path: Path) -> None:
    profile = sampled(seeded(Stack), 5, budget=None, spool=tmp_path)
    recovered = pertoken.recover(tmp_path)
    assert recovered.meta["cost"].keys() == profile.meta["cost"].keys()
    assert recovered.meta["cost"]["budget"] is None
