"""`measure_overhead` and `pertoken overhead`: costs that were planted are found, nothing remains.

Time is that of a virtual clock, which the run moves on by itself: no machine is measured.
"""

from __future__ import annotations

import itertools
import json
import math
import random
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import pertoken
from models import NextToken, Regressor
from pertoken import cli, experiment
from pertoken.errors import ExperimentError, SelectionError
from pertoken.experiment import Measured, Metric, Plan
from pertoken.overhead_measurement import overhead_looks
from pertoken.random_state import RandomState
from residue import assert_untouched

CALL_NS = 1_000_000
PLAN = {"block_length": 1, "max_seconds": None, "max_pairs": 400}


class Planted:
    """A run of a model that takes a millisecond, and a share more while it is recorded."""

    def __init__(self, share: float) -> None:
        self.model = NextToken()
        self.share = share
        self.now_ns = 0
        self.calls = 0
        self.recorded_calls = 0
        self._noise = random.Random(1)

    def clock(self) -> int:
        return self.now_ns

    def is_recorded(self) -> bool:
        return self.model.layers[0].__dict__.get("_compiled_call_impl") is not None

    def __call__(self) -> str:
        self.model(torch.ones((1, 3), dtype=torch.int64))
        recorded = self.is_recorded()
        self.calls += 1
        self.recorded_calls += recorded
        cost = 1.0 + (self.share if recorded else 0.0)
        self.now_ns += round(CALL_NS * cost * self._noise.uniform(0.97, 1.03))
        return "dropped"

    def measure(self, **options) -> experiment.Result:
        return pertoken.measure_overhead(self.model, self, clock=self.clock, **options)


@pytest.mark.parametrize(("share", "verdict"), [(0.0, "under"), (0.005, "under"), (0.03, "over")])
def test_the_cost_that_was_planted_is_found(share, verdict):
    planted = Planted(share)
    result = planted.measure(plan=Plan(margin=0.015, **PLAN))
    assert (result.verdict, result.names, result.notes) == (verdict, ("off", "on"), ())
    assert result["mean"].low <= share <= result["mean"].high
    assert result["mean"].change == pytest.approx(share, abs=0.004)
    assert result["mean"].baseline == pytest.approx(CALL_NS, rel=0.01)


def test_half_of_what_counts_is_recorded_and_each_switch_has_a_call_that_does_not_count():
    planted = Planted(0.0)
    result = planted.measure(plan=Plan(margin=0.5, warm_up_calls=5, **PLAN))
    # Of ABBA, the two in the middle are one block.
    assert planted.calls == 2 * (5 + 1) + result.pairs * (4 + 3)
    recorded = planted.recorded_calls - (5 + 1) - 2 * result.pairs
    assert result.pairs < recorded < 2 * result.pairs  # a switch, or two, by the coin


def test_blocks_are_as_long_as_pays_for_the_call_that_a_switch_costs():
    """Of noise that is independent the longer ones; of a slow swing, short ones."""
    planted = Planted(0.0)
    plan = {"margin": 0.5, "max_seconds": None, "max_pairs": 100}
    independent = planted.measure(plan=Plan(**plan))
    assert independent.block_length >= 4
    planted = Planted(0.0)

    def swinging():
        planted()
        planted.now_ns += round(CALL_NS * (1.0 + math.sin(planted.calls / 30)))

    swing = pertoken.measure_overhead(
        planted.model, swinging, plan=Plan(**plan), clock=planted.clock
    )
    assert swing.block_length <= 2
    assert swing.autocorrelation_time > 2


def test_the_budget_is_the_margin_of_the_plan_that_is_used():
    planted = Planted(0.2)
    result = planted.measure(budget=0.1)
    assert result.plan == Plan(["mean"], 0.1)
    assert result.verdict == "over"


def test_the_time_of_the_drain_thread_counts(monkeypatch):
    """As much as if all calls were recorded: those that do not count bear their part."""
    planted = Planted(0.0)
    recording = pertoken.profile(planted.model)

    class SlowDrain:
        """A twentieth of a call's time for each that is recorded, by rounds of some calls."""

        def __init__(self, recorder):
            self._recorder = recorder

        def __getattr__(self, name):
            return getattr(self._recorder, name)

        @property
        def drain_cpu_ns(self):
            return planted.recorded_calls // 10 * 10 * CALL_NS // 20

    recording.recorder = SlowDrain(recording.recorder)
    monkeypatch.setattr("pertoken.overhead_measurement.profile", lambda model, **_: recording)
    result = planted.measure(plan=Plan(margin=0.01, **PLAN))
    assert result.verdict == "over"
    assert result["mean"].change == pytest.approx(0.05, abs=0.006)


def test_the_same_runs_before_all_blocks(monkeypatch):
    """Each is entered from the other state, whichever came before."""
    planted = Planted(0.0)
    recording = pertoken.profile(planted.model)
    moves: list[bool] = []
    before_calls: list[list[bool]] = []

    def noting(is_in, move):
        def noted():
            moves.append(is_in)
            move()

        return noted

    def run():
        before_calls.append(moves[:])
        moves.clear()
        planted()

    recording.enter_model = noting(True, recording.enter_model)
    recording.leave_model = noting(False, recording.leave_model)
    monkeypatch.setattr("pertoken.overhead_measurement.profile", lambda model, **_: recording)
    result = pertoken.measure_overhead(
        planted.model, run, plan=Plan(margin=0.5, warm_up_calls=5, **PLAN), clock=planted.clock
    )
    warm_up, pairs = before_calls[:12], before_calls[12:]
    assert len(pairs) == 7 * result.pairs
    starts = [number for number in range(len(pairs)) if number % 7 in (0, 2, 5)]
    assert all(bool(of) == (number in starts) for number, of in enumerate(pairs))
    states = [is_in for of in (*warm_up, *pairs) for is_in in of]
    assert all(first is not second for first, second in itertools.pairwise(states))
    # Of two neighbours that are alike, as of others.
    lasts = [pairs[number][-1] for number in starts]
    assert any(first is second is False for first, second in itertools.pairwise(lasts))


def test_a_run_may_measure_its_own_steps():
    planted = Planted(0.0)

    def run():
        planted()
        slower = 1.1 if planted.is_recorded() else 1.0
        noise = random.Random(planted.calls)
        return Measured({"step_ns": [1e6 * slower * noise.uniform(0.9, 1.1) for _ in range(8)]})

    plan = Plan([Metric("mean", 0.03, "step_ns")], **PLAN)
    result = pertoken.measure_overhead(planted.model, run, plan=plan, clock=planted.clock)
    assert result.verdict == "over"
    assert result["mean of step_ns"].change == pytest.approx(0.1, abs=0.02)


def test_every_call_draws_the_same_numbers_and_the_state_is_as_before():
    model = Regressor()
    drawn = set()

    def run():
        drawn.add((random.random(), float(np.random.random()), float(torch.rand(()))))
        model(torch.ones(1, 6))

    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    expected = random.random(), float(np.random.random()), float(torch.rand(()))
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    pertoken.measure_overhead(model, run, plan=Plan(margin=3.0, max_pairs=100, block_length=1))
    assert drawn == {expected}
    assert (random.random(), float(np.random.random()), float(torch.rand(()))) == expected


def test_a_random_state_is_restored_without_torch(monkeypatch):
    monkeypatch.delitem(__import__("sys").modules, "torch")
    state = RandomState()
    first = random.random(), float(np.random.random())
    state.restore()
    assert (random.random(), float(np.random.random())) == first


def test_outputs_are_the_same_and_nothing_remains_in_the_model():
    torch.manual_seed(0)
    model = Regressor()
    torch.manual_seed(0)
    control = Regressor()
    seen = set()

    def run():
        seen.add(model(torch.ones(1, 6)).item())

    result = pertoken.measure_overhead(
        model, run, plan=Plan(margin=3.0, max_pairs=100, block_length=1)
    )
    control(torch.ones(1, 6))
    assert seen == {control(torch.ones(1, 6)).item()}
    assert_untouched(model, control)
    # Real time: only the form of the result is known.
    assert result.pairs == 100 and result.ending in ("verdict", "max_pairs")
    assert experiment.Result.from_dict(result.to_dict()) == result


def test_what_the_run_raises_is_passed_on_and_nothing_remains():
    planted = Planted(0.0)

    def run():
        planted()
        if planted.recorded_calls == 40:
            raise ZeroDivisionError("the user's")

    state = torch.random.get_rng_state()
    with pytest.raises(ZeroDivisionError, match="the user's"):
        pertoken.measure_overhead(planted.model, run, plan=Plan(**PLAN), clock=planted.clock)
    assert not planted.is_recorded()
    assert torch.equal(state, torch.random.get_rng_state())


def test_looks_that_are_left_leave_no_recording():
    planted = Planted(0.0)
    looks = overhead_looks(
        planted.model, planted, modules="layers", plan=Plan(**PLAN), clock=planted.clock
    )
    assert next(looks).pairs == 1
    looks.close()
    assert not planted.is_recorded()


def test_a_run_that_never_calls_the_model_is_told():
    model = Regressor()
    result = pertoken.measure_overhead(
        model, lambda: None, plan=Plan(margin=3.0, max_pairs=100, block_length=1)
    )
    assert any("never called the model" in note for note in result.notes)


def test_what_cannot_be_measured_is_refused(monkeypatch):
    with pytest.raises(SelectionError):
        pertoken.measure_overhead("model", lambda: None)
    with pytest.raises(SelectionError):
        pertoken.measure_overhead(Regressor(), lambda: None, modules="nothing.like.it")
    with pytest.raises(ExperimentError, match="run"):
        pertoken.measure_overhead(Regressor(), None)
    with pytest.raises(ExperimentError, match="margin"):
        pertoken.measure_overhead(Regressor(), lambda: None, budget="1%")
    for plan in (0.01, {}, {"margin": 1}):
        with pytest.raises(ExperimentError, match=r"give a pertoken\.experiment\.Plan"):
            pertoken.measure_overhead(Regressor(), lambda: None, plan=plan)
    for budget in (1, 1.0, 2.5, 0, 0.0, -0.01):
        with pytest.raises(ExperimentError, match=r"above 0 and below 1.* 0\.01 is 1 %"):
            pertoken.measure_overhead(Regressor(), lambda: None, budget=budget)
    with pytest.raises(ExperimentError, match="below 1"):
        pertoken.measure_overhead(Regressor(), lambda: None, budget=1, sampled=True, plan=Plan())
    monkeypatch.setenv("PERTOKEN", "0")
    with pytest.raises(ExperimentError, match="PERTOKEN=0"):
        pertoken.measure_overhead(Regressor(), lambda: None)


# The command


@pytest.fixture
def told(monkeypatch):
    """Makes the command compare a virtual model, and tells how it was asked to."""
    asked = {}

    def install(share: float, **limits) -> dict:
        planted = Planted(share)

        class Run(Planted):
            def __init__(self, model, prompt_tokens, tokens):
                asked.update(prompt_tokens=prompt_tokens, tokens=tokens)

            def __call__(self):
                start_ns = planted.now_ns
                planted()
                dur_ns = planted.now_ns - start_ns
                return Measured({"generate_ns": dur_ns, "step_ns": [dur_ns / 10] * 10})

        def looks(model, run, *, modules, plan, recording_budget=None):
            asked.update(modules=modules, plan=plan)
            return overhead_looks(
                planted.model, run, modules=modules, plan=plan, clock=planted.clock
            )

        command = import_module("pertoken.cli.overhead")
        planted.model.config = SimpleNamespace(max_position_embeddings=1024)

        def load(name, threads):
            asked.update(name=name)
            return planted.model

        monkeypatch.setattr(command, "_load", load)
        monkeypatch.setattr("pertoken.timed_generate.TimedGenerate", Run)
        monkeypatch.setattr("pertoken.overhead_measurement.overhead_looks", looks)
        return asked

    return install


def overhead(*arguments: str):
    return CliRunner().invoke(cli.main, ["overhead", "--block-length", "1", *arguments])


@pytest.mark.parametrize(("share", "code", "verdict"), [(0.0, 0, "UNDER"), (0.05, 3, "OVER")])
def test_the_exit_code_says_on_which_side_of_the_budget_the_cost_is(told, share, code, verdict):
    asked = told(share)
    result = overhead("--budget", "2%", "--modules", "all", "--tokens", "5")
    assert result.exit_code == code, result.output
    assert result.stdout.splitlines()[-1].startswith(f"{verdict}: mean of generate_ns of on ")
    assert "pairs" in result.stdout and "plan" in result.stdout
    assert asked["plan"].metrics == (Metric("mean", 0.02, "generate_ns"),)
    assert (asked["modules"], asked["tokens"], asked["name"]) == ("all", 5, None)


def test_an_undecided_end_has_a_code_of_its_own(told):
    told(0.01)
    result = overhead("--budget", "0.01", "--max-pairs", "100")
    assert result.exit_code == 4, result.output
    assert result.stdout.splitlines()[-1].startswith("UNDECIDED: ")


def test_an_end_by_time_before_there_is_an_interval_says_to_give_more(told):
    told(0.01)
    result = overhead("--max-seconds", "0.001")
    assert result.exit_code == 4, result.output
    last = result.stdout.splitlines()[-1]
    assert "fewer than the 100 pairs" in last and "give it more time" in last
    assert "anything" not in result.stdout


def test_json_is_a_result_that_can_be_read_again(told):
    told(0.0)
    result = overhead("--budget", "50%", "--p99", "100%", "--alpha", "1%", "--json")
    assert result.exit_code == 0, result.output
    again = experiment.Result.from_dict(json.loads(result.stdout))
    assert again.verdict == "under" and again.plan.alpha == 0.01
    assert [estimate.metric.name for estimate in again.estimates] == [
        "mean of generate_ns",
        "p99 of step_ns",
    ]


def test_an_interrupt_prints_what_is_known_by_then(told, monkeypatch):
    told(0.0)
    command = import_module("pertoken.overhead_measurement")
    looks = command.overhead_looks

    def interrupted(*args, **options):
        for look in looks(*args, **options):
            yield look
            if look.pairs == 50:
                raise KeyboardInterrupt

    monkeypatch.setattr(command, "overhead_looks", interrupted)
    result = overhead()
    assert result.exit_code == 130
    assert "50 pairs" in result.stdout and "undecided" in result.stdout
    assert result.stderr.splitlines()[-1] == "pertoken: interrupted"


@pytest.mark.parametrize(
    "arguments",
    [
        *(["--budget", share] for share in ("much", "0", "nan")),
        *(["--alpha", share] for share in ("2", "0")),
        *(["--max-seconds", seconds] for seconds in ("nan", "inf")),
        *(["--modules", pattern] for pattern in ("", "nope")),
        *(["--tokens", count] for count in ("1", "100000", "1009")),
        ["--p99", "301%"],
    ],
)
def test_wrong_usage_exits_with_2_and_measures_nothing(told, monkeypatch, arguments):
    told(0.0)
    monkeypatch.setattr("pertoken.overhead_measurement.overhead_looks", None)
    result = overhead(*arguments)
    assert result.exit_code == 2, result.output
    assert "Error" in result.stderr


def test_what_just_fits_the_context_is_measured(told):
    told(0.0)
    result = overhead("--budget", "50%", "--tokens", "1008")
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("budget", ["1", "100%", "1.5", "3", "400%"])
def test_a_budget_of_1_or_more_is_refused_as_it_is_a_share(budget):
    """Whoever writes 1 means 1 %, and any cost would be under 100 %."""
    result = overhead("--budget", budget)
    assert result.exit_code == 2
    told = " ".join(result.output.replace("│", " ").split())
    assert "% of the time" in told and "0.01 is 1 %" in told and "at most" not in told


def test_a_model_that_is_not_there_is_one_line(tmp_path):
    result = overhead("--model", str(tmp_path))
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("pertoken: error: cannot load the model")


def test_switched_off_is_one_line(monkeypatch):
    monkeypatch.setenv("PERTOKEN", "0")
    result = overhead()
    assert result.exit_code == 1
    assert "PERTOKEN=0" in result.stderr


def test_the_demo_is_compared_for_real():
    """Only the form of what comes out: its times are those of the machine."""
    arguments = ("--tokens", "2", "--prompt-tokens", "4", "--budget", "99%", "--max-pairs", "100")
    result = overhead(*arguments, "--p99", "300%", "--max-seconds", "15", "--json")
    assert result.exit_code in (0, 3, 4), result.output
    again = experiment.Result.from_dict(json.loads(result.stdout))
    assert again.names == ("off", "on") and again.pairs >= 1
    assert again.notes == ()
    assert "comparing" in result.stderr
