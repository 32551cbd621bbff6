"""Recording within a budget: what the native sampler is told, and what it says of the cost."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from pertoken import _native, record_costs
from pertoken.errors import SelectionError
from pertoken.schema import STEP_KINDS
from pertoken.selection import layer_names

if TYPE_CHECKING:
    import torch

    from pertoken.recording import Recording

# Where they cannot be measured, because as many recordings run as can: on the safe side.
_UNMEASURED = record_costs.RecordCosts(span_ns=300.0, step_ns=1000.0, skip_ns=40.0, drain_ns=100.0)


def checked_budget(budget: float | None) -> float | None:
    """The budget, if it is one.

    Raises:
        SelectionError: it is no share between 0 and 1.
    """
    if budget is None:
        return None
    given: object = budget
    is_number = isinstance(given, (int, float)) and not isinstance(given, bool)
    if not is_number or not 0 < budget <= 1:
        raise SelectionError(
            f"budget={budget!r}: give a share of the steps' time, such as 0.01, or None"
        )
    return float(budget)


def sample(
    recorder: Any,
    budget: float | None,
    root: torch.nn.Module,
    modules: dict[str, torch.nn.Module],
    detail: str,
) -> frozenset[str]:
    """Tells a native recorder to sample within the budget, once; does nothing without one.

    Returns:
        Names of the modules that get spans only in steps with all detail.
    """
    if budget is None or not modules:
        return frozenset()
    layers = layer_names(root, modules) if detail == "all" else frozenset(modules)
    if recorder.sampling() is None:
        costs = record_costs.record_costs() or _UNMEASURED
        levels = [(_native.DETAIL_LAYERS, float(len(layers)))]
        if len(layers) < len(modules):
            levels.append((_native.DETAIL_LAYERS | _native.DETAIL_ALL, float(len(modules))))
        recorder.sample(
            budget=budget,
            costs_ns=(costs.step_ns, costs.span_ns, costs.skip_ns, costs.drain_ns),
            levels=levels,
            seed=int.from_bytes(os.urandom(8), "little"),
        )
    return frozenset(modules) - layers


def cost_facts(recording: Recording, counts: dict[str, Any] | None = None) -> dict[str, Any]:
    """What a profile states of its cost, as plain data; see "cost" in the documentation of meta.

    Args:
        recording: what is asked about.
        counts: the native status, when the caller has it.
    """
    report = recording.recorder.sampling()
    if report is not None:
        return _sampled_facts(report, recording.detail)
    counts = counts or recording.recorder.status()
    costs = record_costs.record_costs() if counts["step_ns"] else None
    share = None
    if costs is not None:
        share = record_costs.estimated_ns(counts, costs) / counts["step_ns"]
    return {
        "budget": recording.budget,
        "share": share,
        "low": None,
        "high": None,
        "pairs": 0,
        "kinds": {},
    }


def _sampled_facts(report: dict[str, Any], detail: str) -> dict[str, Any]:
    names = ["layers", detail][-len(report["levels"]) :]
    if detail != "all":
        names = [detail]
    strata = {STEP_KINDS[kind]: row for kind, row in report["strata"].items()}
    step_ns = sum(row["step_ns"] for row in strata.values())
    pairs = sum(row["pairs"] for row in strata.values())
    is_measured = any(row["is_measured"] for row in strata.values())

    def share(of: str, row: dict[str, Any], drain_ns: float = 0.0) -> float:
        return float((row["plain_ns"] + max(row[of], 0.0) + drain_ns) / row["step_ns"])

    def total(of: str) -> float | None:
        if not step_ns:
            return None
        shares = (share(of, row) * row["step_ns"] for row in strata.values() if row["step_ns"])
        return float((sum(shares) + report["drain_ns"]) / step_ns)

    return {
        "budget": report["budget"],
        "share": total("detail_ns"),
        "low": total("low_ns") if is_measured else None,
        "high": total("high_ns") if is_measured else None,
        "pairs": pairs,
        "kinds": {
            kind: {
                "steps": row["steps"],
                "detailed": dict(zip(names, row["detailed"], strict=True)),
                "rates": dict(zip(names, row["rates"], strict=True)),
                "floor": row["floor"],
                "share": share("detail_ns", row) if row["step_ns"] else None,
                "low": share("low_ns", row) if row["is_measured"] else None,
                "high": share("high_ns", row) if row["is_measured"] else None,
                "pairs": row["pairs"],
            }
            for kind, row in strata.items()
        },
    }
