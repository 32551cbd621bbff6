"""`pertoken demo`, run as people run it, against counts made without the profiler."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import pertoken
from pertoken.demo.generation import demo_requests, run_requests
from pertoken.demo.model import encode, load_model

TOKENS = 16
COLUMNS = 120
PROMPT = "Return the "

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")


@dataclass(frozen=True)
class Run:
    """One finished run of the command."""

    folder: Path
    stdout: str
    stderr: str
    returncode: int


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("demo") / "new" / "folder"
    command = [sys.executable, "-m", "pertoken", "demo", "--tokens", str(TOKENS)]
    done = subprocess.run(
        [*command, "--prompt", PROMPT, "--output", str(folder)],
        env={**os.environ, "HF_HOME": str(folder.parent / "empty"), "COLUMNS": str(COLUMNS)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return Run(folder, done.stdout, done.stderr, done.returncode)


@pytest.fixture(scope="module")
def profile(demo) -> pertoken.Profile:
    assert demo.returncode == 0, demo.stderr
    return pertoken.load(demo.folder / "demo.pertoken")


@pytest.fixture(scope="module")
def control():
    """Each request's forwards, as shapes of the input ids, and its texts, without pertoken."""
    model = load_model()
    shapes: list[tuple[int, int]] = []
    model.register_forward_pre_hook(
        lambda module, arguments, options: shapes.append(tuple(options["input_ids"].shape)),
        with_kwargs=True,
    )
    requests = demo_requests(PROMPT)
    result = {}
    written = run_requests(model, requests, TOKENS)
    for request, generated in zip(requests, written, strict=True):
        rows = len(request.prompts)
        mine = [shapes.pop(0)]
        while shapes and shapes[0] == (rows, 1):
            mine.append(shapes.pop(0))
        result[request.id] = (mine, generated.texts)
    assert not shapes
    return result


def test_it_succeeds_quietly(demo):
    assert demo.returncode == 0, demo.stderr
    assert [line.split()[0] for line in demo.stderr.splitlines()] == ["loading", "generating"]


def test_it_shows_the_prompts_with_their_texts(demo, control):
    for _, texts in control.values():
        for text in texts:
            assert len(text) == TOKENS
            assert text.replace("\n", " ").rstrip() in demo.stdout
    assert f"  {PROMPT}{control['short'][1][0]}".replace("\n", " ").rstrip() in demo.stdout


def test_it_prints_the_summary_and_how_to_open_the_files(demo, profile, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    assert str(profile.summary()) in demo.stdout
    assert f"wrote {demo.folder / 'trace.json'}" in demo.stdout
    assert "https://ui.perfetto.dev" in demo.stdout and "chrome://tracing" in demo.stdout
    assert f"pertoken summary {demo.folder / 'demo.pertoken'}" in demo.stdout
    assert sorted(path.name for path in demo.folder.iterdir()) == ["demo.pertoken", "trace.json"]


def test_the_trace_is_strictly_valid_json_with_an_event_a_span_at_least(demo, profile):
    def refuse(name: str):
        raise ValueError(f"{name} is not JSON")

    trace = json.loads((demo.folder / "trace.json").read_bytes(), parse_constant=refuse)
    assert len(trace["traceEvents"]) >= len(profile.spans) + len(profile.steps)


def test_steps_are_those_that_a_control_counts(profile, control):
    expected = [shape for shapes, _ in control.values() for shape in shapes]
    steps = profile.steps
    assert list(zip(steps["rows"].tolist(), steps["tokens_in"].tolist(), strict=True)) == [
        (rows, rows * length) for rows, length in expected
    ]
    assert steps["kind"].tolist() == (["prefill"] + ["decode"] * (TOKENS - 1)) * len(control)
    assert (steps["wall_ns"] > 0).all()
    assert (steps["tokens_committed"] == steps["rows"]).all()


def test_tokens_are_those_that_a_control_counts(profile, control):
    ids = dict(
        zip(profile.requests["request"].tolist(), profile.requests["id"].tolist(), strict=True)
    )
    assert list(ids.values()) == list(control)
    for number, name in ids.items():
        tokens = profile.tokens.where(profile.tokens["request"] == number)
        texts = control[name][1]
        assert len(tokens) == sum(len(encode(text)) for text in texts)
        assert sorted(zip(tokens["row"].tolist(), tokens["position"].tolist(), strict=True)) == [
            (row, position) for row in range(len(texts)) for position in range(TOKENS)
        ]


def test_requests_count_prompts_without_their_padding(profile):
    prompts = [request.prompts for request in demo_requests(PROMPT)]
    requests = profile.requests
    assert requests["rows"].tolist() == [len(rows) for rows in prompts]
    assert requests["tokens_in"].tolist() == [sum(map(len, rows)) for rows in prompts]
    assert requests["tokens_out"].tolist() == [TOKENS * len(rows) for rows in prompts]
    assert (requests["ttft_ns"] > 0).all()
    assert requests["error"].tolist() == [""] * len(prompts)


def test_nothing_was_lost(profile):
    losses = profile.losses
    for name in ("records_dropped", "spans_evicted", "steps_evicted", "requests_evicted"):
        assert losses[name] == 0
    assert losses["faults"] == {}


def test_the_callers_random_state_is_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    run_requests(load_model(), demo_requests(PROMPT)[:1], 2)
    assert torch.equal(torch.rand(3), expected)


def test_an_interrupt_while_it_generates_exits_with_130_and_leaves_no_file(tmp_path):
    command = [sys.executable, "-m", "pertoken", "demo", "--tokens", "900"]
    with subprocess.Popen(
        [*command, "--output", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background job ignores it, and what it starts with it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as running:
        for line in running.stderr:
            if line.startswith("generating"):
                break
        running.send_signal(signal.SIGINT)
        output, rest = running.communicate(timeout=300)
    assert (running.returncode, output, rest) == (130, "", "pertoken: interrupted\n")
    assert list(tmp_path.iterdir()) == []
