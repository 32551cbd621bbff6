"""What a summary says of a merged profile: its processes, and the ranks that others wait for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pertoken.analysis.stragglers import LEAST_SHARE_OF_STEP, LEAST_STEPS
from pertoken.quantity import count_text, duration_text, name_text, plural_text, share_text
from pertoken.summary_block import Block, site_text, step_text

_BASES = {"boot": "boot clock", "synchronized": "measured", "unix": "Unix time"}


def process_blocks(data: Mapping[str, Any]) -> tuple[Block, ...]:
    """Put the processes and the stragglers of a summary into words; nothing for one process.

    Args:
        data: that of a `Summary`.
    """
    processes = data["processes"]
    if len(processes) < 2:
        return ()
    found = data["stragglers"] or {"groups": (), "unmatched": ()}
    groups = tuple(_group(group) for group in found["groups"])
    unmatched = tuple(found["unmatched"])
    return _processes(processes), *groups, Block("Processes not compared", unmatched)


def _processes(processes: list[Mapping[str, Any]]) -> Block:
    rows = []
    for own in processes:
        error_ns = own["clock_error_ns"]
        rows.append(
            (
                str(own["process"]),
                name_text(own["name"]),
                duration_text(own["start_ns"]),
                duration_text(own["end_ns"]),
                _BASES.get(own["clock_basis"], name_text(own["clock_basis"])),
                duration_text(own["clock_offset_ns"]),
                "unknown" if error_ns < 0 else f"at most {duration_text(error_ns)}",
            )
        )
    columns = ("number", "process", "from", "to", "clock joined by", "offset", "error")
    numeric = frozenset({"number", "from", "to", "offset", "error"})
    lines = ("Requests, steps and tokens are counted on each process.",)
    return Block("Processes", lines, columns, tuple(rows), numeric)


def _group(group: Mapping[str, Any]) -> Block:
    ranks = group["ranks"]
    rows = []
    for rank in ranks:
        late = rank["slowest_share"] > 0
        low, high = duration_text(rank["excess_low_ns"]), duration_text(rank["excess_high_ns"])
        rows.append(
            (
                name_text(rank["name"]) + (" *" if rank["is_straggler"] else ""),
                share_text(rank["slowest_share"]),
                duration_text(rank["excess_ns"]),
                f"{low} to {high}",
                duration_text(rank["mean_excess_ns"]),
                site_text(rank["site"], rank["category"]) if late else "-",
                share_text(rank["site_share"]) if late else "-",
            )
        )
    columns = ("rank", "slowest", "excess", "95 % interval", "mean", "where", "of it")
    numeric = frozenset({"slowest", "excess", "95 % interval", "mean", "of it"})
    title = (
        f"Stragglers ({plural_text(group['steps'], 'step')} that {len(ranks)} ranks ran together)"
    )
    return Block(title, tuple(_sentences(group)), columns, tuple(rows), numeric)


def _sentences(group: Mapping[str, Any]) -> list[str]:
    ranks, steps = group["ranks"], group["steps"]
    step = duration_text(group["step_ns"])
    late = [rank for rank in ranks if rank["is_straggler"]]
    lines = [
        f"{name_text(rank['name'])} holds the others up: {duration_text(rank['excess_ns'])} of a "
        f"step of {step}, most of it in {site_text(rank['site'], rank['category'])}."
        for rank in late
    ]
    if not late and steps < LEAST_STEPS:
        lines.append(f"Too few steps to tell: it takes {LEAST_STEPS}.")
    elif not late:
        lines.append(
            "No straggler: no rank's median excess is surely over "
            f"{share_text(LEAST_SHARE_OF_STEP)} of a step of {step}."
        )
    if not group["clocks_joined"]:
        lines.append(
            "The clocks are not joined: ranks are compared from the start of each step on, and "
            "what one loses after its last collective is not seen."
        )
    if group["compared_inside"] < steps:
        lines.append(
            f"In {count_text(steps - group['compared_inside'])} of the steps the ranks have "
            "different spans, so that only their ends are compared."
        )
    lines += [
        f"Step {step_text(slow['step'])}: rank {slow['rank']} (process {slow['process']}) +"
        f"{duration_text(slow['excess_ns'])} in {site_text(slow['site'], slow['category'])}"
        for slow in group["slow_steps"]
    ]
    return lines
