"""Results of experiments: as text, as JSON, and with the plan that they followed."""

from __future__ import annotations

import io
import json

import pytest

from experiment_noise import measured_values
from pertoken import experiment
from pertoken.errors import ExperimentError
from pertoken.experiment import Plan, Result


@pytest.fixture(scope="module")
def result() -> Result:
    plan = Plan(["mean", "p99"], margin=0.3, block_length=8, max_seconds=None)
    return experiment.compare(
        measured_values(1, 1), measured_values(1.02, 2), plan, names=("old", "new")
    )


def test_a_result_survives_json_and_carries_the_hash_of_its_plan(result):
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert data["plan_hash"] == result.plan_hash == result.plan.hash
    assert Result.from_dict(data) == result


def test_a_plan_that_was_changed_afterwards_is_found_out(result):
    data = result.to_dict()
    data["plan"]["metrics"][0]["margin"] = 0.5
    with pytest.raises(ExperimentError, match="hash"):
        Result.from_dict(data)


@pytest.mark.parametrize(
    "damage",
    [
        {"format": "other"},
        {"verdict": "over"},
        {"ending": "luck"},
        {"estimates": []},
        {"estimates": [{}]},
        {"names": ["one"]},
        {"plan_hash": "0"},
    ],
)
def test_what_is_not_a_result_is_refused(result, damage):
    with pytest.raises(ExperimentError):
        Result.from_dict({**result.to_dict(), **damage})


def test_a_missing_part_of_a_result_is_refused(result):
    data = result.to_dict()
    for key in data:
        with pytest.raises(ExperimentError):
            Result.from_dict({name: value for name, value in data.items() if name != key})


def test_a_result_reads_as_a_sentence_and_as_a_table(result):
    assert result.line.startswith("UNDER: mean of new ")
    assert "above old" in result.line and "\n" not in result.line
    text = str(result)
    for word in ("old and new", "95 %", "mean", "p99", "30 %", result.plan_hash[:16]):
        assert word in text


def test_a_result_prints_on_a_rich_console(result):
    from rich.console import Console

    console = Console(width=120, record=True, file=io.StringIO())
    console.print(result)
    assert "under the margin" in console.export_text()


def test_an_unknown_metric_is_a_key_error(result):
    assert result["p99"] is result.estimates[1]
    with pytest.raises(KeyError, match="no metric p50; this result has: mean, p99"):
        result["p50"]


def test_a_key_error_lists_the_metrics_with_their_quantities():
    plan = Plan([experiment.Metric("mean", 0.3, "latency_ns")], block_length=1, max_seconds=None)
    values = [{"latency_ns": 1.0}] * 100
    result = experiment.compare(iter(values), iter(values), plan)
    with pytest.raises(KeyError, match="this result has: mean of latency_ns"):
        result["mean"]


def flat(result: Result) -> str:
    return " ".join(str(result).split())


def test_an_end_before_the_pairs_that_a_mean_takes_says_so_and_what_to_do():
    """Instead of an interval from anything to anything."""
    plan = Plan(block_length=1, max_seconds=None, warm_up_calls=0)
    result = experiment.compare(iter([1.0] * 40), iter([1.0] * 40), plan)
    assert (result.pairs, result.ending) == (20, "end of data")
    few = "fewer than the 100 pairs that an interval of a mean takes"
    assert "no interval before 100 pairs" in result.line and f"{few}: give more" in result.line
    assert f"{few}: give more values" in flat(result) and "none yet" in flat(result)
    assert f"{few}: give it more time" in flat(result.ended_by("max_seconds"))
    assert "no interval before 100 pairs" in result.progress_line
    for text in (result.line, result.progress_line, flat(result)):
        assert "anything" not in text


def test_a_quantile_needs_no_such_pairs(result):
    """And no word of them is said where there are enough."""
    assert "pairs that an interval" not in str(result) + result.line
    plan = Plan(["p99"], margin=0.3, block_length=8, max_seconds=None)
    look = next(experiment.looks(measured_values(1, 1), measured_values(1, 2), plan))
    assert "pairs that an interval" not in str(look) + look.line


def test_a_mean_under_its_margin_tells_what_may_not_have_come_up(result):
    """The rule of three: margin * calls / 3; a pair is 2 + 2 blocks of 8 calls."""
    assert (result.verdict, result.pairs) == ("under", 123)
    told = "mean: what new does in fewer than 3 of 1,968 calls may not have come up"
    assert told in flat(result) and "if each adds more than 197 times the mean" in flat(result)
    assert "p99: what new does" not in flat(result)
    plan = Plan(margin=0.0, block_length=8, max_pairs=100, max_seconds=None)
    undecided = experiment.compare(measured_values(1, 1), measured_values(1, 2), plan)
    assert "may not have come up" not in flat(undecided)
