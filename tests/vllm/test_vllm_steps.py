"""The adapter of vLLM in its real engine: rows, requests and tokens against the worker's books."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import invariants
import pertoken
import scripted_worker
from pertoken import Profile
from pertoken.engines.vllm_worker import RUNS_AHEAD
from pertoken.observing import COMPUTED_ELSEWHERE
from scripted_worker import BookedRow, Script
from vllm_engine import add, make_engine, scheduler_of, worker_of

DRAFTS = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 2}


@pytest.fixture(autouse=True)
def fresh_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scripted_worker, "script", Script())


def rows_of(table: Any, *names: str) -> list[tuple[Any, ...]]:
    return list(zip(*(table[name].tolist() for name in names), strict=True))


def booked_phase(row: BookedRow) -> str:
    return "prefill" if row.is_prefill else "verify" if row.drafts else "decode"


class Run:
    """A run of an engine with requests that come, end and are cancelled at random times."""

    def __init__(self, folder: Path, seed: int, **given: Any) -> None:
        self.engine = make_engine(folder, **given)
        self.worker = worker_of(self.engine)
        self.drawn = random.Random(seed)
        self.prompts: dict[str, int] = {}
        self.tokens: Counter[str] = Counter()  # as the engine hands them out
        self.cancelled: set[str] = set()

    def name_of(self, internal: str) -> str:
        """The id that was given, to which vLLM adds a suffix."""
        return internal.rpartition("-")[0]

    def go(self, requests: int = 14, cancels: bool = True) -> None:
        arrivals = [self.drawn.randrange(0, 40) for _ in range(requests)]
        turn = 0
        while turn <= max(arrivals) or self.engine.has_unfinished_requests():
            for number in (number for number, at in enumerate(arrivals) if at == turn):
                name = f"r{number}"
                self.prompts[name] = self.drawn.randrange(1, 60)
                stops = {"stop_token_ids": [3, 4]} if self.drawn.random() < 0.5 else {}
                add(self.engine, name, self.prompts[name], self.drawn.randrange(1, 24), **stops)
            for output in self.engine.step():
                self.tokens[output.request_id] = len(output.outputs[0].token_ids)
            open_ones = [name for name in self.tokens if name not in self.cancelled]
            if cancels and open_ones and self.drawn.random() < 0.05:
                name = self.drawn.choice(open_ones)
                if any(self.name_of(key) == name for key in scheduler_of(self.engine).requests):
                    self.cancelled.add(name)
                    self.engine.abort_request([name])
            turn += 1
        for _ in range(3):  # tells the worker what has ended last
            self.engine.step()


def check(run: Run, profile: Profile, *, exact: bool = True, sees_ends: bool = True) -> None:
    invariants.check(profile)
    invariants.check_sequences_of_requests(profile)
    ids = dict(rows_of(profile.requests, "request", "id"))
    told = [
        (step, row, ids[request], phase, query_len)
        for step, row, request, phase, query_len in rows_of(
            profile.step_rows, "step", "row", "request", "phase", "query_len"
        )
    ]
    booked = [
        (step, at, row.request, booked_phase(row), row.query_len)
        for step, rows in enumerate(run.worker.steps)
        for at, row in enumerate(rows)
    ]
    assert told == booked
    contexts = [row.in_cache for rows in run.worker.steps for row in rows]
    drafts = [row.drafts for rows in run.worker.steps for row in rows]
    for context, in_cache, drafted in zip(
        profile.step_rows["context_len"].tolist(), contexts, drafts, strict=True
    ):
        assert context == in_cache or (not exact and drafted and context == -1)
    fed = [sum(row.query_len for row in rows) for rows in run.worker.steps]
    assert profile.steps["tokens_in"].tolist() == fed
    requests = {
        run.name_of(name): rest
        for name, *rest in rows_of(profile.requests, "id", "tokens_in", "tokens_out", "error")
    }
    assert {name: tokens_in for name, (tokens_in, _, _) in requests.items()} == run.prompts
    if not sees_ends:
        return
    for name, (_, tokens_out, error) in requests.items():
        assert error == ("cancelled" if name in run.cancelled else "")
        if name not in run.cancelled:  # what comes after the cancelling is not handed out
            assert tokens_out == run.tokens[name]
    assert (profile.requests["end_ns"] > 0).all()


@pytest.mark.parametrize(
    ("given", "later"),
    [
        ({}, False),
        ({}, True),
        ({"num_gpu_blocks_override": 9}, False),
        ({"speculative_config": DRAFTS}, False),
        ({"speculative_config": DRAFTS, "num_gpu_blocks_override": 9}, True),
        ({"async_scheduling": True}, True),
        ({"async_scheduling": True, "num_gpu_blocks_override": 9}, True),
        ({"enable_prefix_caching": True}, False),
    ],
    ids=["plain", "later", "preempted", "drafts", "all", "ahead", "ahead_preempted", "prefixes"],
)
def test_rows_requests_and_tokens_are_those_of_the_engine(
    tmp_path: Path, given: dict[str, Any], later: bool
) -> None:
    scripted_worker.script = Script(1, returns_later=later)
    run = Run(tmp_path, 1, **given)
    recording = pertoken.profile(run.worker.model)
    with recording:
        run.go()
    profile = recording.result()
    check(run, profile)
    kinds = set(profile.steps["kind"].tolist())
    assert kinds >= {"mixed", "prefill"}
    assert "speculative_config" not in given or "verify" in kinds
    ahead = given.get("async_scheduling", False)
    assert profile.losses["reasons"] == ([RUNS_AHEAD] if ahead else [])
    assert profile.steps["detail"].tolist() == ["layers"] * len(profile.steps)


@pytest.mark.parametrize("given", [{}, {"speculative_config": DRAFTS}, {"async_scheduling": True}])
def test_a_worker_whose_scheduler_is_elsewhere_tells_what_it_gets(
    tmp_path: Path, given: dict[str, Any]
) -> None:
    scripted_worker.script = Script(returns_later=bool(given))
    executor = "scripted_worker.SeparateExecutor"
    run = Run(tmp_path, 5, distributed_executor_backend=executor, **given)
    recording = pertoken.profile(run.worker.model)
    with recording:
        run.go(cancels=False)
    profile = recording.result()
    check(run, profile, sees_ends=False)
    tokens_out = dict(rows_of(profile.requests, "id", "tokens_out"))
    if run.engine.vllm_config.scheduler_config.async_scheduling:
        # What was sampled for requests that had ended is none of their tokens.
        assert {run.name_of(name): count for name, count in tokens_out.items()} == run.tokens
    else:
        sampled: Counter[str] = Counter()
        for rows in run.worker.steps:
            sampled.update({row.request: row.sampled for row in rows})
        assert tokens_out == sampled
    assert (profile.requests["end_ns"] > 0).all()


def test_logits_that_are_made_behind_the_forward_are_not_read(tmp_path: Path) -> None:
    """The rest is recorded as without them."""
    run = Run(tmp_path, 1)
    run.worker.model.compute_logits = lambda hidden: hidden
    recording = pertoken.profile(run.worker.model, logits=True)
    with recording:
        run.go()
    profile = recording.result()
    check(run, profile)
    assert len(profile.tokens) and np.isnan(profile.tokens["logits_weight"]).all()
    assert profile.totals is not None and profile.totals.logits == {}
    assert profile.losses["observations_skipped"] == {f"logits: {COMPUTED_ELSEWHERE}": 1}
