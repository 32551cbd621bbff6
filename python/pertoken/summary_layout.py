"""The words of a summary: blocks of text cells, which a terminal and a notebook show each its way.

Built from the plain data of a `Summary`. Names are printable here; HTML escaping is left to the
renderer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pertoken.quantity import (
    count_text,
    duration_text,
    name_text,
    plural_text,
    rate_text,
    share_text,
    size_text,
)
from pertoken.summary_activations import activation_block
from pertoken.summary_block import Block, site_text, step_text
from pertoken.summary_confidence import confidence_block, mean_confidence_block
from pertoken.summary_cost import cost_text
from pertoken.summary_processes import process_blocks

_NAMES_SHOWN = 8
# A site with less of a token's extra time than this is noise, not an explanation.
_LEAST_SHARE_OF_EXTRA = 0.05


def summary_blocks(data: Mapping[str, Any]) -> tuple[Block, ...]:
    """Put the data of a summary into words."""
    blocks = [_header(data), *process_blocks(data), _latencies(data), _slowest(data)]
    blocks += [mean_confidence_block(data), confidence_block(data), _on_devices(data)]
    blocks += [_hottest(data), activation_block(data), _losses(data)]
    return tuple(block for block in blocks if block.lines or block.rows)


def _header(data: Mapping[str, Any]) -> Block:
    model = data.get("model") or {}
    title = f"pertoken: {name_text(model.get('class') or 'unknown model')}"
    facts = []
    if isinstance(model.get("parameters"), int):
        facts.append(f"{size_text(model['parameters'])} parameters")
    if isinstance(model.get("modules"), int):
        facts.append(plural_text(model["modules"], "module"))
    if data.get("device"):
        facts.append(f"on {name_text(data['device'])}")
    if data.get("modules"):
        facts.append(f"recorded: {name_text(data['modules'])}")
    run = data.get("since_start") or data
    requests = run["requests"]
    asked = plural_text(requests["count"], "request")
    states = [f"{requests[s]} {s}" for s in ("failed", "running") if requests[s]]
    asked += f" ({', '.join(states)})" if states else ""
    steps = run["steps"]
    kinds = ", ".join(
        f"{count_text(count)} {name_text(kind)}" for kind, count in steps["by_kind"].items()
    )
    kinds += f"; {count_text(steps['failed'])} failed" if steps["failed"] else ""
    stepped = plural_text(steps["count"], "step") + (f" ({kinds})" if kinds else "")
    got = plural_text(run["tokens"]["count"], "token")
    line = f"{asked}, {stepped}, {got}"
    if isinstance(data.get("duration_ns"), int):
        line += f" in {duration_text(data['duration_ns'])}"
    if data["tokens"]["per_s"] is not None:
        line += f"; {rate_text(data['tokens']['per_s'])} from the first step to the last commit"
    lines = [", ".join(facts), line, *_why_dumped(data), *_what_is_held(data)]
    lines += [*_why_nothing(data), *_costs(data)]
    return Block(title, tuple(text for text in lines if text))


def _why_dumped(data: Mapping[str, Any]) -> list[str]:
    trigger = data.get("trigger")
    if not isinstance(trigger, Mapping):
        return []
    step, wall_ns, over_ns = (trigger.get(key) for key in ("step", "wall_ns", "over_ns"))
    if isinstance(step, int) and isinstance(wall_ns, int) and isinstance(over_ns, int):
        kind = name_text(trigger.get("kind") or "other")
        return [
            f"Dumped because step {step} ({kind}) took {duration_text(wall_ns)}, over "
            f"{duration_text(over_ns)}."
        ]
    site, nans, infs = (trigger.get(key) for key in ("site", "nans", "infs"))
    if isinstance(site, str) and isinstance(nans, int) and isinstance(infs, int):
        where = f"in step {step}" if isinstance(step, int) else "outside of steps"
        return [
            f"Dumped because {name_text(site)} put out {count_text(nans)} NaN and "
            f"{count_text(infs)} infinite {where}."
        ]
    told = [trigger.get("reason") or "a trigger", trigger.get("answer")]
    return [f"Dumped: {', '.join(name_text(each) for each in told if each)}."]


def _costs(data: Mapping[str, Any]) -> list[str]:
    costs = data.get("cost") or []
    return [
        (f"{name_text(cost['process'])}: " if len(costs) > 1 else "") + cost_text(cost)
        for cost in costs
    ]


def _what_is_held(data: Mapping[str, Any]) -> list[str]:
    if not data.get("since_start"):
        return []
    held = (("step", data["steps"]["count"]), ("token", data["tokens"]["count"]))
    counts = " and ".join(plural_text(count, noun) for noun, count in held)
    return [
        f"Of this, the last {counts} are held. Latencies are of the whole run, with percentiles to "
        "within 9 %; slowest tokens, confidence, hottest sites and rates are of what is held."
    ]


def _why_nothing(data: Mapping[str, Any]) -> list[str]:
    requests = data["requests"]
    if data["steps"]["count"] == 0:
        if data.get("duration_ns") == 0 and not data["losses"].get("reasons"):
            return ["No step: it was never started; enter the recording by `with`, or start() it."]
        return [
            "No step: the model was not called while it was recorded. Calls of model.forward() "
            "itself are not seen, nor those in another process."
        ]
    if data["tokens"]["count"]:
        return []
    if requests["count"] == 0:
        return [
            "No token: neither generate() nor pertoken.step() ran, so that commits are unknown; "
            "only steps are shown."
        ]
    if requests["failed"] == requests["count"]:
        return ["No token: every request was ended by an exception; only steps are shown."]
    return [
        "No token: no request has committed one, or what was committed could not be told (in a "
        "loop of your own, by pertoken.step()); only steps are shown."
    ]


def _latencies(data: Mapping[str, Any]) -> Block:
    rows = []

    def add(name: str, times: Mapping[str, Any] | None, rate: float | None = None) -> None:
        if times is not None:
            cells = (duration_text(times[f"{key}_ns"]) for key in _STATISTICS)
            rows.append((name, count_text(times["count"]), *cells, rate_text(rate)))

    run = data.get("since_start") or data
    add("time to first token", run["ttft"])
    add("time per output token", run["tpot"])
    add("inter-token latency", run["inter_token"])
    if len(run["inter_token_by_kind"]) > 1:
        for kind, times in run["inter_token_by_kind"].items():
            add(f"  committed by {name_text(kind)}", times)
    for kind, steps in run["step_times"].items():
        # A prefill is judged by what it reads, any other step by what it brings forth.
        column = "tokens_in_per_s" if kind == "prefill" else "tokens_committed_per_s"
        held = data["step_times"].get(kind) or {}
        add(f"step, {name_text(kind)}", steps["time"], held.get(column))
    columns = ("latency", "count", *_STATISTICS, "rate")
    return Block("Latency", (), columns, tuple(rows), frozenset(columns[1:]))


_STATISTICS = ("mean", "p50", "p90", "p99", "max")


def _slowest(data: Mapping[str, Any]) -> Block:
    rows = []
    for token in data["slowest_tokens"]:
        if token["extra_ns"] <= 0:
            continue
        request = name_text(token["request_id"] or token["request"])
        where = [
            f"{site_text(part['site'], part['category'])} +{duration_text(part['extra_ns'])} "
            f"(usually {duration_text(part['median_ns'])})"
            for part in token["contributors"]
            if part["extra_ns"] >= _LEAST_SHARE_OF_EXTRA * token["extra_ns"]
        ]
        rows.append(
            (
                f"{token['position']}" if token["position"] >= 0 else "?",
                request,
                f"{token['row']}",
                f"{step_text(token['step'])} {name_text(token['kind'])}",
                duration_text(token["itl_ns"]),
                _signed(token["extra_ns"]),
                "\n".join(where) or "spread over many sites",
            )
        )
    columns = ("token", "request", "row", "step", "latency", "extra", "where the extra time went")
    title = "Slowest tokens (extra: over the median of their kind of step)"
    return Block(title, (), columns, tuple(rows), frozenset({"token", "row", "latency", "extra"}))


def _on_devices(data: Mapping[str, Any]) -> Block:
    rows = [
        (
            name_text(kind),
            count_text(times["count"]),
            *(duration_text(times["gpu"][f"{key}_ns"]) for key in ("p50", "p99")),
            duration_text(times["launch_lag"]["p50_ns"]),
            share_text(times["idle_share"]),
        )
        for kind, times in data["device_times"].items()
    ]
    columns = ("step", "count", "p50 on GPU", "p99 on GPU", "launch lag", "waiting, at most")
    title = "GPU (launch lag: median; waiting: share of the GPU's time spent waiting for the host)"
    return Block(title, (), columns, tuple(rows), frozenset(columns[1:]))


def _hottest(data: Mapping[str, Any]) -> Block:
    rows = [
        (
            name_text(kind),
            site_text(site["site"], site["category"]),
            _estimated_share(site),
            duration_text(site["self_ns_per_step"]),
            f"{site['calls_per_step']:.3g}" if site["calls_per_step"] else "-",
        )
        for kind, sites in data["hottest_sites"].items()
        for site in sites
    ]
    columns = ("step", "site", "share of step", "own time", "calls")
    title = "Hottest sites (own time and calls a step, without the sites inside)"
    unsure = any("?" in share for _, _, share, *_ in rows)
    told = "± ?: too few steps were sampled, or a few outweigh the others."
    lines = (told,) if unsure else ()
    return Block(title, lines, columns, tuple(rows), frozenset(columns[2:]))


def _estimated_share(site: Mapping[str, Any]) -> str:
    share, low, high = (site[key] for key in ("share", "share_low", "share_high"))
    if low is None:
        return f"{share_text(share)} ± ?"
    half = max(high - share, share - low)  # the interval ends at 0 and at 1
    return share_text(share) + (f" ± {share_text(half)}" if half > 0 else "")


def _losses(data: Mapping[str, Any]) -> Block:
    losses = data["losses"]
    lines = []
    for key, noun, what in (
        ("records_dropped", "record", "dropped, because a buffer was full"),
        ("spans_evicted", "span", "evicted, the oldest first, to keep within the memory bound"),
        ("steps_evicted", "step", "evicted, the oldest first, to keep within the memory bound"),
        ("requests_evicted", "request", "evicted, the oldest first, to keep within the bound"),
        ("observations_evicted", "observation", "evicted with their steps"),
    ):
        count = losses.get(key) or 0
        if count:
            lines.append(f"{plural_text(count, noun)} {'was' if count == 1 else 'were'} {what}.")
    for reason, count in (losses.get("faults") or {}).items():
        lines.append(f"{plural_text(count or 0, 'fault')} while recording: {name_text(reason)}.")
    for reason, count in (losses.get("observations_skipped") or {}).items():
        lines.append(f"{plural_text(count or 0, 'observation')} skipped: {name_text(reason)}.")
    inlined = losses.get("inlined_modules") or ()
    if inlined:
        lines.append(
            f"The compiler inlined {plural_text(len(inlined), 'module')}, which have no spans: "
            f"{_listed(inlined)}."
        )
    lines.extend(name_text(reason) for reason in losses.get("reasons") or ())
    lines = lines or ["Nothing was lost."]
    clock_error_ns = losses.get("clock_error_ns")
    if clock_error_ns is not None:
        known = clock_error_ns >= 0
        lines.append(
            f"Clock error: {'at most ' + duration_text(clock_error_ns) if known else 'unknown'}."
        )
    if losses.get("device_clock_error_ns"):
        error = duration_text(losses["device_clock_error_ns"])
        lines.append(f"Times on the GPU are placed on the host's axis to within {error}.")
    return Block("Losses", tuple(lines))


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(name_text(name) for name in names[:_NAMES_SHOWN])
    left = len(names) - _NAMES_SHOWN
    return f"{shown} and {left} more" if left > 0 else shown


def _signed(value_ns: int) -> str:
    return duration_text(value_ns) if value_ns < 0 else f"+{duration_text(value_ns)}"
