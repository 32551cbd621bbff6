"""Made-up ranks of a tensor-parallel model: who waits for whom is computed, not measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pertoken.result import Profile
from synthetic import synthetic_meta
from trace_profiles import profile_of

US = 1_000
UP_NS, COLLECTIVE_NS, HEAD_NS, GAP_NS = 100 * US, 20 * US, 50 * US, 30 * US
SITES = ("blocks.0.up", "blocks.0.down", "blocks.1.up", "blocks.1.down", "head")


def parallel_ranks(
    ranks: int = 4,
    steps: int = 40,
    *,
    slow: Mapping[tuple[int, str], int] | None = None,
    slow_steps: set[int] | None = None,
    noise_ns: int = 5 * US,
    seed: int = 0,
    first_step: Mapping[int, int] | None = None,
    boot_ids: bool = True,
    coupled: bool = True,
    other_kind: int = -1,
) -> list[Profile]:
    """Make one profile of each rank.

    A step is two blocks, each an `up` that works and a `down` that all ranks leave together, and a
    head without any collective.

    Args:
        ranks: how many.
        steps: how many.
        slow: nanoseconds that a rank takes longer in a site, or in ``gap`` between two steps.
        slow_steps: the steps in which it does; all of them unless given.
        noise_ns: largest random delay of any part.
        seed: of the delays.
        first_step: the first step that a rank has recorded; its steps are numbered from there.
        boot_ids: whether the files say of which boot they are.
        coupled: whether anybody waits for anybody.
        other_kind: a rank whose steps are of another kind.
    """
    rng = np.random.default_rng(seed)
    now_ns = np.zeros(ranks, dtype=np.int64)
    rows: list[dict[str, list[dict[str, Any]]]] = [{"steps": [], "spans": []} for _ in range(ranks)]

    def work(site: str, step: int, usual_ns: int) -> None:
        for rank in range(ranks):
            extra_ns = (
                0
                if slow_steps is not None and step not in slow_steps
                else (slow or {}).get((rank, site), 0)
            )
            now_ns[rank] += usual_ns + extra_ns + int(rng.integers(0, noise_ns + 1))

    for step in range(steps):
        work("gap", step, GAP_NS)
        start_ns = now_ns.copy()
        spans: list[tuple[str, np.ndarray, np.ndarray]] = []
        for site in SITES:
            begun_ns = now_ns.copy()
            if site.endswith("down"):
                if coupled:
                    now_ns[:] = now_ns.max()
                work(site, step, COLLECTIVE_NS)
            else:
                work(site, step, HEAD_NS if site == "head" else UP_NS)
            spans.append((site, begun_ns, now_ns.copy()))
        for rank in range(ranks):
            skipped = (first_step or {}).get(rank, 0)
            if step < skipped:
                continue
            table = rows[rank]
            number, root = step - skipped, len(table["spans"])
            common = {"step": number, "track": 0}
            wall_ns = int(now_ns[rank] - start_ns[rank])
            table["spans"].append(
                {
                    "span": root,
                    "site": "Model",
                    "start_ns": int(start_ns[rank]),
                    "dur_ns": wall_ns,
                    **common,
                }
            )
            for i, (site, begun_ns, ended_ns) in enumerate(spans, start=1):
                dur_ns = int(ended_ns[rank] - begun_ns[rank])
                table["spans"].append(
                    {
                        "span": root + i,
                        "parent": root,
                        "site": site,
                        "start_ns": int(begun_ns[rank]),
                        "dur_ns": dur_ns,
                        **common,
                    }
                )
            kind = "prefill" if rank == other_kind else "decode"
            table["steps"].append(
                {
                    "step": number,
                    "kind": kind,
                    "rows": 1,
                    "tokens_in": 1,
                    "tokens_committed": 1,
                    "context_len": number,
                    "start_ns": int(start_ns[rank]),
                    "wall_ns": wall_ns,
                }
            )
    result = []
    for rank in range(ranks):
        clock = synthetic_meta()["clock"]
        clock["boot_id"] = clock["boot_id"] if boot_ids else ""
        meta = {"rank": rank, "pid": 100 + rank, "duration_ns": int(now_ns.max()), "clock": clock}
        result.append(profile_of(**rows[rank], meta=meta))
    return result
