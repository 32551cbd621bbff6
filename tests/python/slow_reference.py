"""The analyses once more, by plain loops over rows, and a varied profile to compare them on."""

from __future__ import annotations

from collections import defaultdict
from fractions import Fraction
from typing import Any

import numpy as np

from pertoken.result import Profile
from synthetic import synthetic_profile, with_columns


def nearest_rank(values: list[int], share: Fraction, weights: list[int] | None = None) -> int:
    """Walk up the sorted values until the share of the weight is reached, in exact arithmetic."""
    pairs = sorted(zip(values, weights or [1] * len(values), strict=True))
    wanted = share * sum(weight for _, weight in pairs)
    reached = 0
    for value, weight in pairs:
        reached += weight
        if weight and reached >= wanted:
            return value
    raise AssertionError("no weight")


def rows(profile: Profile, table: str) -> list[dict[str, Any]]:
    names = profile.tables[table].columns
    columns = [profile.tables[table][name].tolist() for name in names]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def varied_profile(seed: int) -> Profile:
    """A profile with drafts, weights, failures, two details, a second thread and shuffled rows."""
    rng = np.random.default_rng(seed)
    profile = synthetic_profile(
        requests=3,
        tokens=6,
        layers=2,
        rows=2,
        seed=seed,
        root_span=bool(seed % 2),
        slow={(4, "model.layers.1.mlp"): 300_000, (9, "generate"): 500_000},
    )
    steps = profile.steps
    kind = steps["kind"].tolist()
    committed = steps["tokens_committed"].copy()
    error = [""] * len(steps)
    for step in (2, 3, 14):
        kind[step] = "draft"
        committed[step] = 0
    kind[10] = "verify"
    error[16] = "exception"
    wall_ns = steps["wall_ns"].copy()
    wall_ns[17] = -1
    weights = rng.integers(0, 4, len(steps)).astype(float)
    detail = ["layers"] * 10 + ["root"] * 2 + ["all"] * 6
    profile = with_columns(
        profile,
        "steps",
        kind=kind,
        error=error,
        wall_ns=wall_ns,
        tokens_committed=committed,
        sample_weight=weights,
        detail=detail,
    )
    tokens = profile.tokens
    kept = tokens.where(~np.isin(tokens["step"], [2, 3, 14]))
    columns = {c: kept[c].copy() for c in kept.columns}
    previous: dict[tuple[int, int], int] = {}
    for i in range(len(kept)):
        sequence = (int(columns["request"][i]), int(columns["row"][i]))
        now_ns = int(columns["commit_ns"][i])
        columns["itl_ns"][i] = now_ns - previous[sequence] if sequence in previous else -1
        previous[sequence] = now_ns
    profile = with_columns(profile, "tokens", **columns)
    # A worker's span inside a step, a region in an interval of generate, and one at the end
    # of most steps, whose median has to count the steps without it.
    spans = rows(profile, "spans")
    gap = [s for s in spans if s["category"] == "generate"][5]
    inner = [s for s in spans if s["site"] == "model.layers.0.mlp"][4]
    worker = {"span": 1000, "parent": inner["span"], "site": "worker", "track": 1, "dur_ns": 7_000}
    region = {"span": 1001, "parent": gap["span"], "site": "sampler", "dur_ns": 9_000}
    spans.append({**inner, **worker, "category": "region"})
    spans.append({**gap, **region, "category": "region"})
    for step in rng.choice(len(steps), 14, replace=False).tolist():
        head = next(s for s in spans if s["step"] == step and s["site"] == "lm_head")
        often = {"span": 2000 + step, "parent": head["span"], "site": "often", "category": "region"}
        spans.append({**head, **often, "dur_ns": int(rng.integers(1, 9_000))})
    order = rng.permutation(len(spans)).tolist()
    columns = {c: [spans[i][c] for i in order] for c in profile.spans.columns}
    return with_columns(profile, "spans", **columns)


class SlowReference:
    """Self times, shares and slow tokens by loops over rows."""

    def __init__(self, profile: Profile) -> None:
        self.spans = rows(profile, "spans")
        self.steps = rows(profile, "steps")
        self.tokens = rows(profile, "tokens")
        self.requests = {r["request"]: r for r in rows(profile, "requests")}
        self.by_id = {s["span"]: s for s in self.spans}
        self.step = {s["step"]: s for s in self.steps}
        for span in self.spans:
            children = [
                s["dur_ns"]
                for s in self.spans
                if s["parent"] == span["span"] and s["track"] == span["track"]
            ]
            span["self_ns"] = max(0, span["dur_ns"] - sum(children))
        self.inside: dict[int, dict[tuple[str, str], int]] = {
            s: defaultdict(int) for s in self.step
        }
        self.calls: dict[int, dict[tuple[str, str], int]] = {s: defaultdict(int) for s in self.step}
        self.outside: dict[int, dict[tuple[str, str], int]] = {
            s: defaultdict(int) for s in self.step
        }
        self.before_ns: dict[int, int] = defaultdict(int)
        for span in self.spans:
            key = (span["site"], span["category"])
            if span["step"] >= 0:
                self.inside[span["step"]][key] += span["self_ns"]
                self.calls[span["step"]][key] += 1
                continue
            outermost = span
            while outermost["category"] != "generate" and outermost["parent"] in self.by_id:
                outermost = self.by_id[outermost["parent"]]
            delayed = self.delayed_step(outermost)
            if outermost["category"] == "generate" and delayed is not None:
                self.outside[delayed][key] += span["self_ns"]
                if span is outermost:
                    self.before_ns[delayed] += span["dur_ns"]
        for step in self.steps:
            covered_ns = sum(
                s["dur_ns"]
                for s in self.spans
                if s["step"] == step["step"]
                and s["track"] == step["thread"]
                and self.by_id.get(s["parent"], {"step": -1})["step"] != step["step"]
            )
            root_ns = max(0, max(0, step["wall_ns"]) - covered_ns)
            self.inside[step["step"]]["", "module"] += root_ns

    def delayed_step(self, gap: dict[str, Any]) -> int | None:
        later = [
            s
            for s in self.steps
            if s["thread"] == gap["track"] and s["start_ns"] >= gap["start_ns"]
        ]
        if not later:
            return None
        step = min(later, key=lambda s: s["start_ns"])
        begun_ns = self.requests[step["request"]]["start_ns"]
        return step["step"] if begun_ns <= gap["start_ns"] else None

    def finished(self, step: dict[str, Any]) -> bool:
        return step["wall_ns"] >= 0 and not step["error"]

    def served(self, step: int) -> int:
        if self.step[step]["kind"] != "draft":
            return step
        later = [s for s in range(step, len(self.steps)) if self.step[s]["kind"] != "draft"]
        same = later and self.step[later[0]]["request"] == self.step[step]["request"]
        return later[0] if same else step

    def parts(self) -> dict[int, dict[tuple[str, str, bool], int]]:
        result: dict[int, dict[tuple[str, str, bool], int]] = {
            s: defaultdict(int) for s in self.step
        }
        for step in self.step:
            for (site, category), value in self.inside[step].items():
                result[self.served(step)][site, category, False] += value
            for (site, category), value in self.outside[step].items():
                result[self.served(step)][site, category, True] += value
        return result
