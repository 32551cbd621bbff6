"""Recording within a budget: what the native sampler is told, and what it says of the cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pertoken import _native, record_costs, seeds
from pertoken.errors import SelectionError
from pertoken.number_argument import is_number
from pertoken.schema import STEP_KINDS
from pertoken.selection import layer_names

if TYPE_CHECKING:
    import torch

    from pertoken.observing import Observed
    from pertoken.recording import Recording

# Where they cannot be measured, because as many recordings run as can: on the safe side.
_UNMEASURED = record_costs.RecordCosts(
    span_ns=300.0,
    step_ns=1000.0,
    skip_ns=150.0,
    drain_ns=100.0,
    observe_ns=20_000.0,
    logits_ns=20_000.0,
)
# Of the native side's details, in its order, by the names that `meta["cost"]` has for them.
_DETAILS = ("spans", "activations", "logits")


def checked_budget(budget: float | None) -> float | None:
    """The budget, if it is one; 1 is all of the steps' time, and so hardly a limit.

    Args:
        budget: as given to `profile`.

    Returns:
        The same as a float, or None.

    Raises:
        SelectionError: it is no share above 0, 1 at most.
    """
    if budget is None:
        return None
    if not is_number(budget) or not 0 < budget <= 1:
        raise SelectionError(
            f"budget={budget!r}: give a share of the steps' time, above 0 and 1 at most, or None; "
            "0.01 is 1 %"
        )
    return float(budget)


def sample(
    recorder: Any,
    budget: float | None,
    root: torch.nn.Module,
    modules: dict[str, torch.nn.Module],
    detail: str,
    observed: dict[str, torch.nn.Module],
    wanted: Observed,
) -> frozenset[str]:
    """Tells a native recorder to sample within the budget, once; does nothing without one.

    Args:
        recorder: the native recorder.
        budget: a share of the time of the steps; None: nothing is sampled.
        root: the model.
        modules: those that were selected, by name; their spans are sampled.
        detail: the name of that selection.
        observed: the modules whose outputs are observed; they get spans, too.
        wanted: the rates at which steps are observed, and their logits read, at most.

    Returns:
        Names of the modules that get spans only in steps with all detail.
    """
    if budget is None:
        return frozenset()
    layers = layer_names(root, modules) if detail == "all" else frozenset(modules)
    if recorder.sampling() is None:
        costs = record_costs.record_costs() or _UNMEASURED
        besides = len((observed.keys() - modules.keys()) - {""})
        levels = []
        if modules:
            levels.append((_native.DETAIL_LAYERS, float(len(layers) + besides)))
        if len(layers) < len(modules):
            every_module = float(len(modules) + besides)
            levels.append((_native.DETAIL_LAYERS | _native.DETAIL_ALL, every_module))
        recorder.sample(
            budget=budget,
            costs_ns=(
                costs.step_ns,
                costs.span_ns,
                costs.skip_ns,
                costs.drain_ns,
            ),
            levels=levels,
            observed=(
                costs.observe_ns * max(len(observed), 1),
                1 / wanted.every,
                bool(observed),
            ),
            logits=(costs.logits_ns, 1 / wanted.logits_every) if wanted.logits else None,
            seed=seeds.new_seed(),
        )
    return frozenset(modules) - layers


def unknown_cost(budget: float | None) -> dict[str, Any]:
    """What is stated of a cost of which nothing is known but the budget: each key that there is.

    Args:
        budget: of the recording.

    Returns:
        Plain data, of the form of `cost_facts`.
    """
    return {"budget": budget, "share": None, "low": None, "high": None, "pairs": 0, "kinds": {}}


def cost_facts(recording: Recording, counts: dict[str, Any] | None = None) -> dict[str, Any]:
    """What a profile states of its cost, as plain data; see "cost" in the documentation of meta.

    Args:
        recording: what is asked about.
        counts: the native status, when the caller has it.

    Returns:
        The keys of `unknown_cost`, with what is known.
    """
    report = recording.recorder.sampling()
    if report is not None:
        return _sampled_facts(report, recording.detail, recording.observing.has_sites)
    counts = counts or recording.recorder.status()
    costs = record_costs.record_costs() if counts["step_ns"] else None
    share = None
    if costs is not None:
        share = record_costs.estimated_ns(counts, costs) / counts["step_ns"]
    return {**unknown_cost(recording.budget), "share": share}


def _sampled_facts(report: dict[str, Any], detail: str, has_sites: bool) -> dict[str, Any]:
    strata = {STEP_KINDS[kind]: row for kind, row in report["strata"].items()}
    step_ns = sum(row["step_ns"] for row in strata.values())
    is_measured = any(_is_measured(row) for row in strata.values())
    # Observations by hand count from the first one on.
    observes = has_sites or any(row["details"][1]["detail_ns"] > 0 for row in strata.values())

    def total(of: str) -> float | None:
        if not step_ns:
            return None
        costs_ns = (_cost_ns(of, row) for row in strata.values() if row["step_ns"])
        return float((sum(costs_ns) + report["drain_ns"]) / step_ns)

    return {
        "budget": report["budget"],
        "share": total("detail_ns"),
        "low": total("low_ns") if is_measured else None,
        "high": total("high_ns") if is_measured else None,
        "pairs": sum(own["pairs"] for row in strata.values() for own in row["details"]),
        "kinds": {kind: _facts_of_kind(row, detail, observes) for kind, row in strata.items()},
    }


def _facts_of_kind(row: dict[str, Any], detail: str, observes: bool) -> dict[str, Any]:
    spans, observed, logits = row["details"]
    names = (["layers"] if detail == "all" else []) + [detail]
    names = names[-len(spans["rates"]) :] if spans["rates"] else []
    levels = [
        (spans, names),
        (observed, ["activations"] if observes else []),
        # Of some kinds no step has any, as outside generate().
        (logits, ["logits"] if logits["decided"] else []),
    ]

    def by_level(of: str) -> dict[str, Any]:
        return {
            name: value
            for own, named in levels
            for name, value in zip(named, own[of], strict=False)
        }

    def share(cost_ns: float) -> float | None:
        return float(cost_ns / row["step_ns"]) if row["step_ns"] else None

    def interval(is_measured: bool, low_ns: float, high_ns: float) -> dict[str, float | None]:
        bounds = {"low": low_ns, "high": high_ns}
        return {name: share(ns) if is_measured else None for name, ns in bounds.items()}

    return {
        "steps": row["steps"],
        "detailed": by_level("detailed"),
        "rates": by_level("rates"),
        "share": share(_cost_ns("detail_ns", row)),
        **interval(_is_measured(row), _cost_ns("low_ns", row), _cost_ns("high_ns", row)),
        "pairs": sum(own["pairs"] for own in row["details"]),
        "details": {
            name: {
                "share": share(own["detail_ns"]),
                **interval(own["is_measured"], own["low_ns"], own["high_ns"]),
                "pairs": own["pairs"],
                "floor": own["floor"],
            }
            for name, (own, named) in zip(_DETAILS, levels, strict=True)
            if named
        },
    }


def _is_measured(row: dict[str, Any]) -> bool:
    return any(own["is_measured"] for own in row["details"])


def _cost_ns(of: str, row: dict[str, Any]) -> float:
    """Of all steps of a kind."""
    return float(row["plain_ns"] + sum(_detail_ns(of, own, row) for own in row["details"]))


def _detail_ns(of: str, own: dict[str, Any], row: dict[str, Any]) -> float:
    """What a detail has cost, or a bound of it.

    While no pairs have shown that, it is between nothing and all the time of as many steps.
    """
    if of == "detail_ns" or own["is_measured"]:
        return float(own[of])
    if of == "low_ns" or not row["steps"]:
        return 0.0
    most_ns = row["step_ns"] * sum(own["detailed"]) / row["steps"]
    return max(float(own["detail_ns"]), float(most_ns))
