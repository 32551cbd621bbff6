"""The summary: its data agree with the tables, and every rendering shows all of them, safely."""

from __future__ import annotations

import copy
import html.parser
import io
import json
import pickle
import re
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pertoken.quantity import (
    count_text,
    duration_text,
    name_text,
    plural_text,
    rate_text,
    share_text,
    size_text,
)
from pertoken.result import Profile
from pertoken.summary import Summary
from pertoken.summary_block import site_text
from pertoken.summary_layout import summary_blocks
from pertoken.summary_text import plain_text
from synthetic import EXOTIC_NAMES, synthetic_profile, with_columns

FACTORS = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9}


@pytest.mark.parametrize(
    ("value_ns", "text"),
    [
        (None, "-"),
        (0, "0 ns"),
        (1, "1 ns"),
        (999, "999 ns"),
        (1000, "1.00 us"),
        (1234, "1.23 us"),
        (12_345, "12.3 us"),
        (123_456, "123 us"),
        (999_499, "999 us"),
        (999_500, "1.00 ms"),
        (9_994_000, "9.99 ms"),
        (9_995_000, "10.0 ms"),
        (1_500_000_000, "1.50 s"),
        (90_000_000_000, "90.0 s"),
        (5_000_000_000_000, "5000 s"),
        (-1234, "-1.23 us"),
    ],
)
def test_durations_have_three_digits_and_a_unit(value_ns: int | None, text: str) -> None:
    assert duration_text(value_ns) == text


@given(st.integers(-(10**17), 10**17))
@example(999)
@example(999_999)
def test_a_duration_is_right_to_half_a_percent_and_never_shows_1000_of_a_unit(value: int) -> None:
    number, unit = duration_text(value).split(" ")
    assert abs(float(number) * FACTORS[unit] - value) <= 0.005 * abs(value)
    assert unit == "s" or abs(float(number)) < 1000


def test_counts_rates_and_shares() -> None:
    assert count_text(1234567) == "1,234,567"
    assert size_text(1_234_567) == "1.23 M"
    assert size_text(999_999) == "1.00 M"
    assert size_text(12) == "12"
    assert rate_text(None) == "-" and rate_text(1500) == "1.50 k tok/s"
    assert share_text(0.1234) == "12.3 %"
    assert plural_text(1, "step") == "1 step" and plural_text(1000, "step") == "1,000 steps"


@given(st.text(st.characters(), max_size=50))
def test_a_name_is_printable_and_keeps_what_was(name: str) -> None:
    shown = name_text(name)
    assert shown.isprintable()
    if name.isprintable():
        assert shown == name


def test_a_name_with_escapes_or_surrogates_is_escaped_and_a_long_one_cut() -> None:
    assert name_text("a\x1b[31m\n\ud800") == r"a\x1b[31m\n\ud800"
    assert len(name_text("x" * 10_000)) == 400


def test_the_data_agree_with_the_tables_and_are_plain() -> None:
    profile = synthetic_profile(slow={(5, "model.layers.1.mlp"): 700_000}, rows=2)
    data = profile.summary().as_dict()
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert data["requests"] == {"count": 2, "failed": 0, "running": 0}
    assert data["steps"]["count"] == 16 and data["tokens"]["count"] == 32
    assert data["spans"]["count"] == len(profile.spans)
    assert list(data["step_times"]) == ["prefill", "decode"]
    assert [data["step_times"][k]["count"] for k in ("prefill", "decode")] == [2, 14]
    itl_ns = profile.tokens["itl_ns"]
    assert data["inter_token"]["max_ns"] == itl_ns.max()
    assert data["inter_token"]["count"] == (itl_ns >= 0).sum()
    assert data["ttft"]["max_ns"] == profile.requests["ttft_ns"].max()
    assert data["inter_token_by_kind"] == {"decode": data["inter_token"]}
    worst = data["slowest_tokens"][0]
    assert (worst["step"], worst["request_id"]) == (5, "request-0")
    assert worst["contributors"][0]["site"] == "model.layers.1.mlp"
    assert data["hottest_sites"]["decode"][0]["site"] == "model.layers.1.mlp"
    assert data["losses"] == profile.losses and data["model"] == profile.meta["model"]

    def check(value: Any, key: str = "") -> None:
        assert type(value) in (dict, list, str, int, float, bool, type(None))
        if key.endswith("_ns"):
            assert type(value) is int
        for name, item in value.items() if isinstance(value, dict) else ():
            check(item, name)
        for item in value if isinstance(value, list) else ():
            check(item)

    check(data)


def test_nothing_changes_a_summary() -> None:
    summary = synthetic_profile().summary()
    summary.as_dict()["losses"]["reasons"].append("forged")
    assert summary.as_dict()["losses"]["reasons"] == []
    with pytest.raises(AttributeError):
        summary._data = {}
    with pytest.raises(AttributeError):
        del summary._data
    assert pickle.loads(pickle.dumps(summary)) == summary == copy.deepcopy(summary)
    assert repr(summary) == "<Summary of 2 requests, 16 steps, 16 tokens; print() shows it>"


class Cells(html.parser.HTMLParser):
    """The text of an HTML fragment, and the tags it opens."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def html_text(summary: Summary) -> str:
    parser = Cells()
    parser.feed(summary._repr_html_())
    parser.close()
    assert not parser.open
    allowed = {"div", "h4", "p", "table", "thead", "tbody", "tr", "th", "td", "br"}
    assert set(parser.tags) <= allowed
    return "\n".join(parser.text)


def renderings(summary: Summary, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.setenv("COLUMNS", "400")
    result = {"rich": str(summary), "plain": plain_text(summary_blocks(summary.as_dict()))}
    return {**result, "html": html_text(summary)}


def test_every_rendering_shows_every_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    profile = synthetic_profile(
        slow={(5, "model.layers.1.mlp"): 700_000, (11, "generate"): 400_000},
        losses={"records_dropped": 1200, "reasons": ["A reason [bold]given[/bold]."]},
    )
    summary = profile.summary()
    blocks = summary_blocks(summary.as_dict())
    assert [block.title.split(" ")[0] for block in blocks] == [
        "pertoken:",
        "Latency",
        "Slowest",
        "Confidence",
        "Least",
        "Hottest",
        "Activations",
        "Losses",
    ]
    for name, text in renderings(summary, monkeypatch).items():
        for block in blocks:
            for part in (block.title, *block.lines, *block.columns):
                assert part in text, (name, part)
            for row in block.rows:
                for cell in row:
                    for line in cell.split("\n"):
                        assert line in text, (name, line)
        assert "TinyForCausalLM" in text and "1,200 records were dropped" in text
        assert "model.layers.1.mlp +7" in text
        assert "(in generate, outside forward) +4" in text


def test_the_terminal_rendering_has_no_colour_and_fits_its_width(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    summary = synthetic_profile(
        exotic_names=True, layers=len(EXOTIC_NAMES), slow={(3, "lm_head"): 10**6}
    ).summary()
    for columns in (70, 100, 200):
        monkeypatch.setenv("COLUMNS", str(columns))
        lines = str(summary).split("\n")
        assert max(len(line) for line in lines) <= columns
        assert all(line.isprintable() for line in lines)
        assert "lm_head" in str(summary)


def test_a_rich_console_prints_the_summary() -> None:
    console = pytest.importorskip("rich.console")
    stream = io.StringIO()
    console.Console(file=stream, width=100).print(synthetic_profile().summary())
    assert "inter-token latency" in stream.getvalue()


def test_without_rich_the_summary_is_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    summary = synthetic_profile().summary()
    for module in [name for name in sys.modules if name == "rich" or name.startswith("rich.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "rich", None)
    assert str(summary) == plain_text(summary_blocks(summary.as_dict()))


def test_names_cannot_inject_html_markup_or_terminal_codes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    evil = "<img src=x onerror=alert(1)>[red]\x1b[2J&amp;"
    profile = synthetic_profile(
        requests=1,
        meta={"model": {"class": evil}, "device": evil, "modules": evil},
        losses={"faults": {evil: 1}, "reasons": [evil], "inlined_modules": [evil]},
        slow={(3, "model.layers.0.mlp"): 10**6},
    )
    profile = with_columns(profile, "requests", id=[evil])
    sites = [evil if s == "model.layers.0.mlp" else s for s in profile.spans["site"].tolist()]
    profile = with_columns(profile, "spans", site=sites)
    shown = r"<img src=x onerror=alert(1)>[red]\x1b[2J&amp;"
    for name, text in renderings(profile.summary(), monkeypatch).items():
        assert text.count(shown) >= 8, name
        assert "\x1b" not in text


def losses_lines(**losses: Any) -> tuple[str, ...]:
    blocks = summary_blocks(synthetic_profile(losses=losses).summary().as_dict())
    assert blocks[-1].title == "Losses"
    return blocks[-1].lines


def test_losses_are_each_named_and_nothing_lost_is_said_clearly() -> None:
    assert losses_lines() == ("Nothing was lost.", "Clock error: at most 40 ns.")
    lines = losses_lines(
        records_dropped=1,
        spans_evicted=2_000,
        steps_evicted=3,
        requests_evicted=4,
        faults={"wrapping model.x failed": 2},
        inlined_modules=[f"layer{i}" for i in range(10)],
        reasons=["The model was compiled."],
    )
    assert [re.split(r"[,:.]", line)[0] for line in lines[:1]] == ["1 record was dropped"]
    text = "\n".join(lines)
    for part in (
        "2,000 spans were evicted",
        "3 steps were evicted",
        "4 requests were evicted",
        "2 faults while recording: wrapping model.x failed.",
        "inlined 10 modules",
        "layer7 and 2 more",
        "The model was compiled.",
    ):
        assert part in text
    assert "Nothing" not in text


@pytest.mark.parametrize(
    "losses",
    [
        {"records_dropped": 1},
        {"spans_evicted": 1},
        {"steps_evicted": 1},
        {"requests_evicted": 1},
        {"faults": {"x": 1}},
        {"inlined_modules": ["x"]},
        {"reasons": ["x"]},
    ],
)
def test_no_loss_is_ever_called_nothing(losses: dict[str, Any]) -> None:
    assert "Nothing was lost." not in losses_lines(**losses)


def header(profile: Profile) -> str:
    return "\n".join(summary_blocks(profile.summary().as_dict())[0].lines)


def without_tokens(profile: Profile) -> Profile:
    return with_columns(profile, "tokens", **{c: [] for c in profile.tokens.columns})


def test_without_tokens_the_summary_says_why_and_shows_the_steps() -> None:
    silent = without_tokens(synthetic_profile())
    silent = with_columns(silent, "requests", ttft_ns=[-1, -1])
    assert "no request has committed one" in header(silent)
    failed = with_columns(silent, "requests", error=["ValueError", "KeyError"])
    assert "ended by an exception" in header(failed) and "2 failed" in header(failed)
    plain = with_columns(silent, "requests", **{c: [] for c in silent.requests.columns})
    assert "neither generate() nor pertoken.step() ran" in header(plain)
    for profile in (silent, failed, plain):
        data = profile.summary().as_dict()
        assert data["ttft"] is data["inter_token"] is None and data["slowest_tokens"] == []
        text = str(profile.summary())
        assert "step, prefill" in text and "step, decode" in text
        assert "inter-token" not in text and "Slowest" not in text
        assert "Hottest" in text


def test_without_steps_the_summary_says_so() -> None:
    for profile in (synthetic_profile(requests=0), Profile.from_columns({}, (), {}, {})):
        assert "the model was not called" in header(profile)
        assert str(profile.summary()) and profile.summary()._repr_html_()


def test_running_and_failed_requests_are_counted_apart() -> None:
    profile = synthetic_profile(requests=3)
    profile = with_columns(profile, "requests", error=["", "ValueError", ""])
    ends = profile.requests["end_ns"].copy()
    ends[1:] = -1
    profile = with_columns(profile, "requests", end_ns=ends)
    assert profile.summary().as_dict()["requests"] == {"count": 3, "failed": 1, "running": 1}
    assert "3 requests (1 failed, 1 running)" in header(profile)


def test_steps_that_failed_or_run_are_counted_with_their_kinds() -> None:
    profile = synthetic_profile(requests=1, tokens=8)  # a prefill and seven decode steps
    error = [""] * 8
    error[0] = error[3] = "IndexError"
    wall_ns = profile.steps["wall_ns"].copy()
    wall_ns[7] = -1
    profile = with_columns(profile, "steps", error=error, wall_ns=wall_ns)
    data = profile.summary().as_dict()
    assert data["steps"] == {"count": 8, "failed": 2, "by_kind": {"prefill": 1, "decode": 7}}
    assert data["step_times"]["decode"]["count"] == 5
    assert "8 steps (1 prefill, 7 decode; 2 failed)" in header(profile)
    assert "failed" not in header(synthetic_profile())


def test_kinds_of_commits_are_shown_apart_when_there_are_several() -> None:
    profile = synthetic_profile()
    kind = profile.steps["kind"].tolist()
    kind[3] = "verify"
    mixed = with_columns(profile, "steps", kind=kind)
    text = str(mixed.summary())
    assert "committed by verify" in text and "committed by decode" in text
    assert "step, verify" in text
    assert "committed by" not in str(profile.summary())


def test_a_token_that_was_not_slow_is_not_shown_as_slow() -> None:
    profile = synthetic_profile(requests=1, tokens=2)
    assert len(profile.summary().as_dict()["slowest_tokens"]) == 1
    assert "Slowest" not in str(profile.summary())


def test_a_token_of_unknown_position_is_not_shown_as_a_number() -> None:
    profile = synthetic_profile()
    unknown = with_columns(profile, "tokens", position=[-1] * len(profile.tokens))
    shown = str(unknown.summary())
    assert "Slowest tokens" in shown
    assert re.search(r"^ +\? ", shown, re.MULTILINE) and " -1 " not in shown


def test_sites_have_words_of_their_own_where_a_name_says_nothing() -> None:
    assert site_text("", "module") == "(root module)"
    assert site_text("", "between") == "(between steps)"
    assert site_text("generate", "generate") == "(in generate, outside forward)"
    assert site_text("sample", "generate") == "(in generate, outside forward sample)"
    assert site_text("retrieve", "region") == "retrieve (region)"


def test_the_root_module_is_named_in_the_hottest_sites() -> None:
    profile = synthetic_profile(slow={})
    empty = {c: profile.spans[c][:0].tolist() for c in profile.spans.columns}
    bare = with_columns(profile, "spans", **empty)
    bare = with_columns(bare, "steps", detail=["root"] * len(bare.steps))
    assert np.all([s[0]["site"] == "" for s in bare.summary().as_dict()["hottest_sites"].values()])
    assert "(root module)" in str(bare.summary())
