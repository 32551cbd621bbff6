"""What an engine says that cannot be: a fault of that call, and all else is kept."""

from __future__ import annotations

import asyncio
import enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import invariants
import pertoken
from models import NextToken
from pertoken import Profile
from pertoken.engines import Engine, Row
from pertoken.engines.arguments import MAX_STEP_TOKENS, error_name


class Ended(str, enum.Enum):
    """An engine's own reasons."""

    BY_CLIENT = "by the client"


@pytest.fixture
def model() -> NextToken:
    return NextToken().eval()


def serve(
    model: NextToken,
    *,
    arrival: dict[str, Any] | None = None,
    tokens: Any = 1,
    end: dict[str, Any] | None = None,
) -> tuple[Profile, dict[str, int], pertoken.Totals]:
    """Two requests in one step of which something is said; the profile, the faults, the totals."""
    engine = Engine(model=model)
    recording = pertoken.profile(model)
    with recording:
        engine.request_arrived("good", tokens_in=3)
        engine.request_arrived("a", **(arrival or {}))
        with engine.step([Row("a", "decode", 1, 3), Row("good", "decode", 1, 3, 1)]) as step:
            pass
        step.committed({"a": tokens})
        engine.request_finished("a", **(end or {}))
        engine.request_finished("good")
        assert engine.open_requests == []
    profile = recording.result()
    invariants.check_tokens(profile)
    invariants.check_steps(profile)
    invariants.check_totals(profile)
    assert sum(profile.losses["faults"].values()) == sum(engine.faults.values())
    return profile, dict(engine.faults), recording.totals()


def read_everywhere(profile: Profile, folder: Path) -> Profile:
    """What a profile is read by; the same from a file."""
    str(profile.summary())
    profile.export_chrome_trace(folder / "trace.json")
    profile.save(folder / "x.pertoken")
    return pertoken.load(folder / "x.pertoken")


@pytest.mark.parametrize(
    ("error", "name"),
    [
        ("", ""),
        (None, ""),
        ("cancelled", "cancelled"),
        (ValueError("x"), "ValueError"),
        (TimeoutError, "TimeoutError"),
        (asyncio.CancelledError(), "CancelledError"),
        (Ended.BY_CLIENT, "by the client"),
    ],
)
def test_what_ended_a_request_is_kept_by_its_name(
    model: NextToken, tmp_path: Path, error: Any, name: str
) -> None:
    profile, faults, totals = serve(model, end={"error": error})
    assert faults == {}
    for each in (profile, read_everywhere(profile, tmp_path)):
        assert each.requests["error"].tolist() == ["", name]
    assert type(error_name(error)) is str
    assert totals.all_requests.failed == (name != "")


@pytest.mark.parametrize("error", [3, True, int, b"bytes", ["a"]])
def test_an_end_that_is_none_is_a_fault_and_ends_the_request(
    model: NextToken, tmp_path: Path, error: Any
) -> None:
    profile, faults, _ = serve(model, end={"error": error})
    (reason,) = faults
    assert reason.startswith("request_finished: TypeError: error=")
    loaded = read_everywhere(profile, tmp_path)
    assert loaded.requests["error"].tolist() == ["", "error"]
    assert loaded.requests["tokens_out"].tolist() == [1, 1]


@pytest.mark.parametrize(
    "arrival",
    [
        {"ago_ns": 1_796_000_000 * 10**9},  # a time of day
        {"ago_ns": -1},
        {"ago_ns": -(10**9)},
        {"ago_ns": 10**400},
        {"ago_ns": float("nan")},
        {"ago_ns": float("inf")},
        {"ago_ns": "5"},
        {"ago_ns": None},
        {"tokens_in": 2**70},
        {"tokens_in": 2**32 - 1},
        {"tokens_in": -2},
        {"tokens_in": 3.5},
        {"tokens_in": "many"},
        {"labels": ["tenant"]},
        {"labels": 3},
        {"like": ["unhashable"]},
    ],
    ids=str,
)
def test_an_argument_that_cannot_be_is_a_fault_of_the_arrival_and_taken_as_not_given(
    model: NextToken, tmp_path: Path, arrival: dict[str, Any]
) -> None:
    profile, faults, totals = serve(model, arrival={"model_version": "v2", **arrival})
    assert list(faults.values()) == [1]
    assert next(iter(faults)).startswith("request_arrived: ")
    requests = read_everywhere(profile, tmp_path).requests
    assert requests["id"].tolist() == ["good", "a"]
    assert requests["model_version"].tolist() == ["", "v2"]
    assert requests["tokens_in"].tolist() == [3, -1]
    assert requests["tokens_out"].tolist() == [1, 1]
    # It arrived when it was told: no time is negative, or longer than the recording.
    ttft = requests["ttft_ns"]
    assert 0 < ttft[1] < ttft[0] < profile.meta["duration_ns"]
    assert totals.all_requests.ttft_ns.max < profile.meta["duration_ns"]


@pytest.mark.parametrize(
    "arrival",
    [
        {"ago_ns": 6e10, "tokens_in": None},
        {"ago_ns": np.int64(60_000_000_000), "tokens_in": np.int64(-1)},
        {"ago_ns": np.float32(6e10), "labels": None},
    ],
    ids=str,
)
def test_numbers_of_any_library_are_numbers(model: NextToken, arrival: dict[str, Any]) -> None:
    profile, faults, _ = serve(model, arrival=arrival)
    assert faults == {}
    start = profile.requests["start_ns"]
    assert start[1] < start[0]
    assert profile.requests["tokens_in"].tolist() == [3, -1]


@pytest.mark.parametrize("tokens", [10**9, 2**70, MAX_STEP_TOKENS, -2, 1.5, "one"])
def test_tokens_that_no_step_can_commit_are_a_fault_and_stay_unknown(
    model: NextToken, tmp_path: Path, tokens: Any
) -> None:
    """With the other row's own token even the most that can be is too much."""
    profile, faults, _ = serve(model, tokens=tokens)
    assert list(faults.values()) == [1]
    assert next(iter(faults)).startswith("committed: ")
    loaded = read_everywhere(profile, tmp_path)
    assert loaded.step_rows["committed"].tolist() == [-1, -1]
    assert loaded.requests["tokens_out"].tolist() == [-1, -1]
    assert len(loaded.tokens) == 0


def test_after_tokens_that_cannot_be_positions_are_unknown(model: NextToken) -> None:
    engine = Engine(model=model)
    with pertoken.profile(model) as recording:
        for count in (1, 10**9, 1):
            with engine.step([Row("a", "prefill", 1, 0)]) as step:
                pass
            step.committed({"a": count})
    assert recording.result().tokens["position"].tolist() == [0, -1]


def test_a_row_cannot_say_more_tokens_than_a_step_has(model: NextToken) -> None:
    engine = Engine(model=model)
    rows = [Row("a", "decode", 1, 1, MAX_STEP_TOKENS), Row("b", "decode", 1, 1, 1)]
    with pertoken.profile(model) as recording:
        with engine.step(rows):
            pass
        with pytest.raises(pertoken.SelectionError, match="tokens in one step"):
            pertoken.step(rows=rows)
    assert len(recording.result().steps) == 0
    assert [reason.split(":")[0] for reason in engine.faults] == ["step"]


def test_a_request_whose_first_row_is_just_being_told_can_be_read(
    model: NextToken, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread's result may come between the request's number and its sequence."""
    engine = Engine(model=model)
    recording = pertoken.profile(model)
    seen = []
    begin = recording.log.restore_generation

    def read_between(generation: Any) -> None:
        begin(generation)
        seen.append(recording.result().requests["tokens_out"].tolist())

    monkeypatch.setattr(recording.log, "restore_generation", read_between)
    with recording:
        engine.request_arrived("a")
    assert seen == [[-1]]
