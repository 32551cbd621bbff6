"""What holds of every profile, whatever was recorded."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

import totals_of_tables
from pertoken import Histogram, Profile
from pertoken.analysis.latency import tpot_ns, ttft_ns


def check(profile: Profile, *, clock_steps: bool = False) -> None:
    """Asserts that the tables agree with each other, and with the totals.

    Where the system's clock steps, times in the tables follow it, and those in the totals do not.
    """
    check_spans(profile)
    check_tokens(profile)
    check_steps(profile)
    if not clock_steps:
        check_totals(profile)
    assert profile.losses["faults"] == {}
    assert profile.losses["records_dropped"] == 0


def check_spans(profile: Profile) -> None:
    """Each span's parent exists and encloses it, on the same track."""
    spans = profile.spans
    assert len(set(spans["span"].tolist())) == len(spans)
    place = {span: index for index, span in enumerate(spans["span"].tolist())}
    start, end = spans["start_ns"], spans["start_ns"] + spans["dur_ns"]
    assert (spans["dur_ns"] >= 0).all()
    for index, parent in enumerate(spans["parent"].tolist()):
        if parent < 0:
            continue
        above = place[parent]
        assert start[above] <= start[index] and end[index] <= end[above]
        assert spans["track"][above] == spans["track"][index]
    steps = set(profile.steps["step"].tolist())
    assert set(spans["step"].tolist()) - {-1} <= steps


def check_tokens(profile: Profile) -> None:
    """Tokens lie at the ends of their steps; positions and latencies follow from the commits."""
    steps, tokens = profile.steps, profile.tokens
    ends = dict(
        zip(steps["step"].tolist(), (steps["start_ns"] + steps["wall_ns"]).tolist(), strict=True)
    )
    assert [ends[step] for step in tokens["step"].tolist()] == tokens["commit_ns"].tolist()
    in_step: dict[int, int] = defaultdict(int)
    for step in tokens["step"].tolist():
        in_step[step] += 1
    for step, committed in zip(
        steps["step"].tolist(), steps["tokens_committed"].tolist(), strict=True
    ):
        if in_step[step]:
            assert committed == in_step[step]


def check_sequences(profile: Profile) -> None:
    """Each sequence's positions count from 0, and its latencies are differences of its commits.

    Holds where a request has one generation and no beam search.
    """
    tokens = profile.tokens
    sequences: dict[tuple[int, int], list[tuple[int, int, int]]] = defaultdict(list)
    for request, row, position, commit, latency in zip(
        *(tokens[name].tolist() for name in ("request", "row", "position", "commit_ns", "itl_ns")),
        strict=True,
    ):
        sequences[request, row].append((position, commit, latency))
    for entries in sequences.values():
        assert [entry[0] for entry in entries] == list(range(len(entries)))
        commits = [entry[1] for entry in entries]
        assert entries[0][2] == -1
        assert [entry[2] for entry in entries[1:]] == np.diff(commits).tolist()
    requests = profile.requests
    for index, request in enumerate(requests["request"].tolist()):
        own = [c for (r, _), entries in sequences.items() if r == request for _, c, _ in entries]
        if own:
            assert requests["ttft_ns"][index] == min(own) - requests["start_ns"][index]
            assert requests["tokens_out"][index] in (len(own), -1)
            longest = max(len(entries) for (r, _), entries in sequences.items() if r == request)
            assert requests["output_len"][index] in (longest, -1)


def check_sequences_of_requests(profile: Profile) -> None:
    """Each request is one sequence, in whatever rows of the steps it lies."""
    tokens = profile.tokens
    for index, request in enumerate(profile.requests["request"].tolist()):
        own = tokens.where(tokens["request"] == request)
        commits = own["commit_ns"]
        assert own["position"].tolist() == list(range(len(own)))
        assert own["itl_ns"].tolist() == [-1, *np.diff(commits).tolist()][: len(own)]
        assert profile.requests["tokens_out"][index] == len(own)
        if len(own):
            start = profile.requests["start_ns"][index]
            assert profile.requests["ttft_ns"][index] == commits[0] - start


def check_steps(profile: Profile) -> None:
    """The rows of a step agree with the step."""
    rows = profile.step_rows
    for index, step in enumerate(profile.steps["step"].tolist()):
        own = rows.where(rows["step"] == step)
        assert len(own) == max(profile.steps["rows"][index], 0)
        assert own["row"].tolist() == list(range(len(own)))
        committed = own["committed"]
        if len(own) and (committed >= 0).all():
            assert profile.steps["tokens_committed"][index] == committed.sum()
        if len(own):
            contexts = own["context_len"]
            longest = contexts.max() if (contexts >= 0).all() else -1
            assert profile.steps["context_len"][index] == longest
            phases, requests = set(own["phase"].tolist()), set(own["request"].tolist())
            kind, request = profile.steps["kind"][index], profile.steps["request"][index]
            assert kind == (phases.pop() if len(phases) == 1 else "mixed")
            assert request == (requests.pop() if len(requests) == 1 else -1)


def check_totals(profile: Profile) -> None:
    """What was counted natively is what the tables say, once nothing runs and nothing was lost."""
    totals, losses, steps = profile.totals, profile.losses, profile.steps
    requests, tokens = profile.requests, profile.tokens
    runs = (requests["end_ns"] < 0).any() or (steps["wall_ns"] < 0).any()
    if totals is None or runs or losses["steps_evicted"] or losses["requests_evicted"]:
        return
    kinds = steps["kind"]
    assert set(totals.steps) == set(kinds.tolist())
    for kind, counted in totals.steps.items():
        own = steps.where(kinds == kind)
        whole = own["error"] == ""
        assert (counted.begun, counted.failed) == (len(own), int((~whole).sum()))
        full = (own["detail"] == profile.meta["modules"]) & (own["sample_weight"] > 0)
        assert counted.detailed == full.sum()
        assert counted.rows == np.maximum(own["rows"], 0).sum()
        assert counted.tokens_in == np.maximum(own["tokens_in"], 0).sum()
        assert_histogram(counted.wall_ns, own["wall_ns"][whole])
        if (own["tokens_committed"] >= 0).all():
            assert counted.tokens_committed == own["tokens_committed"].sum()
            committed = np.isin(tokens["step"], own["step"]) & (tokens["itl_ns"] >= 0)
            assert_histogram(counted.itl_ns, tokens["itl_ns"][committed])
    failed = requests["error"] != ""
    counted = totals.all_requests
    assert counted.started == len(requests) == counted.finished + counted.failed
    assert counted.failed == failed.sum()
    assert_histogram(counted.duration_ns, (requests["end_ns"] - requests["start_ns"])[~failed])
    first_ns, per_token_ns = ttft_ns(profile), tpot_ns(profile)
    assert_histogram(counted.ttft_ns, first_ns[first_ns >= 0])
    assert_histogram(counted.tpot_ns, per_token_ns[~np.isnan(per_token_ns)])
    if (requests["tokens_in"] >= 0).all():
        assert counted.tokens_in == requests["tokens_in"].sum()
    if (requests["tokens_out"] >= 0).all():
        assert counted.tokens_out == requests["tokens_out"].sum()
    totals_of_tables.check_requests(profile)
    totals_of_tables.check_sites(profile)
    totals_of_tables.check_logits(profile)


def check_logits(profile: Profile) -> None:
    """What was counted of logits is what the columns of tokens say, where all of them are held."""
    runs = (profile.requests["end_ns"] < 0).any() or (profile.steps["wall_ns"] < 0).any()
    losses = profile.losses
    if not (runs or losses["steps_evicted"] or losses["requests_evicted"]):
        totals_of_tables.check_logits(profile)


def assert_histogram(histogram: Histogram, values_ns: np.ndarray) -> None:
    """It counts these values; each was converted from ticks apart, so that they differ a little."""
    assert histogram.count == len(values_ns)
    if len(values_ns):
        relative = totals_of_tables.RELATIVE * float(np.abs(values_ns).max())
        tolerance_ns = len(values_ns) * (totals_of_tables.ABSOLUTE_NS + relative)
        assert abs(histogram.sum - float(values_ns.sum())) <= tolerance_ns


def check_tiled(profile: Profile, root: str) -> None:
    """Inside each generate(), the spans outside forward and the root's spans leave no hole."""
    spans = profile.spans
    regions = np.flatnonzero((spans["site"] == "generate") & (spans["category"] == "region"))
    assert len(regions)
    for region in regions.tolist():
        inside = spans.where(spans["parent"] == spans["span"][region])
        assert set(inside["site"].tolist()) <= {root, "generate: outside forward"}
        order = np.argsort(inside["start_ns"], kind="stable")
        start = inside["start_ns"][order]
        end = start + inside["dur_ns"][order]
        assert start[0] == spans["start_ns"][region]
        assert end[-1] == spans["start_ns"][region] + spans["dur_ns"][region]
        assert (start[1:] == end[:-1]).all()
        assert set(inside["category"][order][::2].tolist()) == {"generate"}
        assert set(inside["category"][order][1::2].tolist()) <= {"module"}


def parent_sites(profile: Profile) -> list[tuple[str, str]]:
    """Each span's site with that of its parent, in the order in which they ended."""
    spans = profile.spans
    names = dict(zip(spans["span"].tolist(), spans["site"].tolist(), strict=True))
    return [
        (site, names.get(parent, ""))
        for site, parent in zip(spans["site"].tolist(), spans["parent"].tolist(), strict=True)
    ]
