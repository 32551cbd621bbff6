"""Plans of experiments: what they accept, and that their hash is over all of it."""

from __future__ import annotations

import dataclasses
import json

import pytest

import pertoken
from pertoken import experiment
from pertoken.errors import ExperimentError
from pertoken.experiment import Metric, Plan


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("metrics", ["p99"]),
        ("metrics", ["mean", "p99"]),
        ("metrics", [Metric("mean", 0.01, "bytes")]),
        ("margin", 0.02),
        ("alpha", 0.01),
        ("block_length", 7),
        ("pilot_calls", 300),
        ("warm_up_calls", 9),
        ("expected_pairs", 500),
        ("max_pairs", 500),
        ("max_seconds", 60),
        ("max_seconds", None),
        ("seed", 1),
    ],
)
def test_the_hash_changes_with_every_field(field, value):
    assert Plan(**{field: value}).hash != Plan().hash


def test_every_field_of_a_plan_is_in_its_hash():
    told = set(Plan().to_dict()) - {"format"}
    assert told == {field.name for field in dataclasses.fields(Plan)}


def test_equal_plans_have_equal_hashes_however_they_are_written():
    written = Plan(["mean", "p99"], 0.05, max_seconds=60)
    spelled = Plan((Metric("mean", 0.05), Metric("p99", 0.05)), max_seconds=60.0)
    assert written == spelled and written.hash == spelled.hash
    assert Plan().hash == Plan().hash and len(Plan().hash) == 64


def test_the_hash_is_the_same_in_every_process_and_version():
    """A result of today must be checkable later: a new field needs a new format."""
    assert Plan().hash == "6ff1b62a3bf7c9013d1e8c29a22718ecef0460e593524951957a58b5eda08eb8"


def test_a_plan_cannot_be_changed():
    plan = Plan()
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.alpha = 0.5
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.metrics[0].margin = 0.5


def test_a_plan_survives_json():
    plan = Plan(["mean", Metric("p99.9", 0.5, "latency_ns")], alpha=0.01, block_length=3)
    again = Plan.from_dict(json.loads(json.dumps(plan.to_dict())))
    assert again == plan and again.hash == plan.hash


@pytest.mark.parametrize(
    "fields",
    [
        {"metrics": []},
        {"metrics": "mean"},
        {"metrics": ["median"]},
        {"metrics": ["p100"]},
        {"metrics": ["p10"]},
        {"metrics": [3]},
        {"metrics": ["mean", "mean"]},
        {"metrics": ["p50", "p50.0"]},
        {"margin": float("nan")},
        {"margin": 5},
        {"margin": 10**400},
        {"margin": -1},
        {"margin": "1%"},
        {"alpha": 0},
        {"alpha": 0.9},
        {"alpha": True},
        {"block_length": 0},
        {"block_length": 1.5},
        {"pilot_calls": 1},
        {"warm_up_calls": -1},
        {"expected_pairs": 10},
        {"max_pairs": 99},
        {"max_seconds": 0},
        {"max_seconds": float("inf")},
        {"seed": -1},
    ],
)
def test_a_plan_that_cannot_be_followed_is_refused_by_field(fields):
    with pytest.raises(ExperimentError, match=next(iter(fields)).removesuffix("s")):
        Plan(**fields)


@pytest.mark.parametrize("data", [{}, [], {"format": "other"}, {**Plan().to_dict(), "more": 1}])
def test_what_is_not_a_plan_is_refused(data):
    with pytest.raises(ExperimentError, match="not a plan"):
        Plan.from_dict(data)


@pytest.mark.parametrize("plan", [{"margin": 1}, {}, 0.01, 0, "mean", Plan])
def test_what_is_no_plan_is_refused_where_a_plan_is_taken(plan):
    for ask in (experiment.compare, experiment.looks):
        with pytest.raises(ExperimentError, match=r"plan: give a pertoken\.experiment\.Plan"):
            ask(lambda: None, lambda: None, plan)


def test_errors_are_those_of_the_package():
    assert issubclass(pertoken.ExperimentError, pertoken.PertokenError)
    assert issubclass(pertoken.ExperimentError, ValueError)
