"""Whether a budget is kept: what is accounted at 0.2, 1 and 5 %, and an A/B test of the 1 and 5 %.

The tiny Llama decodes, 200 steps at a time: from a cold start; then with ten times the work in a
step (a batch); then with the first load again. What is accounted is read after each, and what a
step without detail costs. All that six times: of a small budget, one step that is observed takes a
good part of what 200 steps may cost, and whether there is one is chance.

The experiment takes the same decode step by step: the calls that it compares are single steps, so
that the machine has a few milliseconds to change in a pair, and not a quarter of a second. The
prefill of each text is one of them. Budgets of 0.2 % would take far more pairs to prove, so what
was reached of them is not tested here. All takes up to 17 minutes, most of them for the budget of
1 %: what it costs is not far below, so that the interval has to be narrow.

    python benchmarks/run.py sampler_budget --output FILE

The same proof for a model of one's own: `pertoken overhead --sampled --budget 0.01`.
"""

from __future__ import annotations

import statistics
from typing import Any

import torch

import pertoken
from paired import median_interval, quiet_process
from pertoken.experiment import Plan
from pertoken.schema import STEP_KINDS
from script import Advance, part, run_script
from tiny_llama import WARM_UP_STEPS, DecodeSteps, decode_by_hand, prompt_ids, tiny_llama

BUDGETS = (0.002, 0.01, 0.05)
REPEATS = 6  # the fewest that bound a median at 95 %
PROVED_STEPS = 400  # of a text: a prefill takes longer, and makes the two sides of its pair unequal
PROVED: dict[float, dict[str, Any]] = {
    0.01: {"expected_pairs": 15_000, "max_pairs": 100_000, "max_seconds": 600.0},
    0.05: {"max_seconds": 150.0},
}
# What is selected, and whether the outputs of the layers are observed, too.
SELECTIONS = {
    "layers": {"modules": "layers"},
    "all": {"modules": "all"},
    "all, observed": {"modules": "all", "activations": "layers"},
}
LOADS = (1, 64, 1)  # rows of the batch; 64 take about ten times as long as one


def measure(smoke: bool, advance: Advance) -> dict[str, Any]:
    """Accounts for each budget and selection, then tests by experiment."""
    steps = 8 if smoke else 200
    model, prompt = tiny_llama(), prompt_ids()
    repeats = 1 if smoke else REPEATS
    result: dict[str, Any] = {"steps": steps, "repeats": repeats, "accounted": {}, "proved": {}}
    cases = [(selection, budget) for selection in SELECTIONS for budget in BUDGETS]
    runs: dict[tuple[str, float], list[list[dict[str, float]]]] = {case: [] for case in cases}
    for number, case in enumerate(cases * repeats):
        selection, budget = case
        runs[case].append(accounted(model, prompt, SELECTIONS[selection], budget, steps))
        part(advance, 0, 2)((number + 1) / (len(cases) * repeats))
    for (selection, budget), own in runs.items():
        loads = [of_load(list(repeated)) for repeated in zip(*own, strict=True)]
        result["accounted"].setdefault(selection, {})[f"{budget:g}"] = loads
    for number, (budget, limits) in enumerate(PROVED.items()):
        chosen = {**limits, "max_seconds": 0.5} if smoke else limits
        with quiet_process():
            found = pertoken.measure_overhead(
                model,
                DecodeSteps(model, prompt, 8 if smoke else PROVED_STEPS),
                modules="all",
                budget=budget,
                sampled=True,
                plan=Plan(margin=budget, **chosen),
            )
        mean = found["mean"]
        result["proved"][f"{budget:g}"] = {
            "verdict": found.verdict,
            "pairs": found.pairs,
            "block_calls": found.block_length,
            "low": mean.low,
            "high": mean.high,
        }
        part(advance, 1, 2)((number + 1) / len(PROVED))
    return result


def accounted(
    model: Any, prompt: torch.Tensor, selected: dict[str, Any], budget: float, steps: int
) -> list[dict[str, float]]:
    """What is accounted under each load, of its steps by themselves.

    Returns:
        By load the share, the time of a step, how many had no detail, and what those cost together.
    """
    found = []
    cost_ns = step_ns = undetailed_ns = 0.0
    steps_before = undetailed_before = 0
    with pertoken.profile(model, **selected, budget=budget) as recording:
        for rows in LOADS:
            decode_by_hand(model, prompt.expand(rows, -1), max(1, steps - WARM_UP_STEPS - 1))
            counts = recording.recorder.status()
            total_ns, count = float(counts["step_ns"]), sum(counts["steps"])
            total_cost_ns = recording.cost_facts()["share"] * total_ns
            all_undetailed_ns, undetailed = undetailed_so_far(recording)
            found.append(
                {
                    "share": (total_cost_ns - cost_ns) / (total_ns - step_ns),
                    "step_ns": (total_ns - step_ns) / (count - steps_before),
                    "undetailed_ns": all_undetailed_ns - undetailed_ns,
                    "undetailed_steps": undetailed - undetailed_before,
                }
            )
            cost_ns, step_ns, steps_before = total_cost_ns, total_ns, count
            undetailed_ns, undetailed_before = all_undetailed_ns, undetailed
    return found


def of_load(repeats: list[dict[str, float]]) -> dict[str, Any]:
    """Of one load in all repeats: the share, with its interval, and means over steps."""
    undetailed = sum(each["undetailed_steps"] for each in repeats)
    undetailed_ns = sum(each["undetailed_ns"] for each in repeats)
    return {
        "share": median_interval(each["share"] for each in repeats),
        "step_ns": statistics.fmean(each["step_ns"] for each in repeats),
        "undetailed_ns": undetailed_ns / undetailed if undetailed else None,
        "undetailed_steps": undetailed,
    }


def undetailed_so_far(recording: pertoken.Recording) -> tuple[float, int]:
    """What the decode steps without detail have cost, in ns, and how many there were.

    That is the root's wrapper as timed in them, their records and the calls that were passed on.
    What wrappers take to leave their slots, and to come back, is part of what detail costs.
    """
    report = recording.recorder.sampling()
    row = report["strata"].get(STEP_KINDS.index("decode")) if report is not None else None
    return (row["undetailed_ns"], row["undetailed_steps"]) if row is not None else (0.0, 0)


if __name__ == "__main__":
    run_script("budgets", measure)
