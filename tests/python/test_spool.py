"""What a spool holds is what the recording held: the same profile, by way of the disk."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import invariants
import pertoken
from models import llama
from odd_modules import Stack, numbers, seeded
from pertoken import cli, spool_folder
from pertoken.engines import Engine, Row
from pertoken.spool_folder import recordings_in

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
IDS = torch.ones(2, 4, dtype=torch.long)


def assert_same(recovered: pertoken.Profile, live: pertoken.Profile) -> None:
    """The same tables, up to the bounds of both clocks, and the same counts."""
    slack_ns = 2 * (recovered.losses["clock_error_ns"] + live.losses["clock_error_ns"]) + 2
    for name, table in live.tables.items():
        if name == "processes":
            continue
        other = recovered.tables[name]
        assert table.columns == other.columns
        for column in table.columns:
            values, found = table[column], other[column]
            if column.endswith("_ns"):
                assert np.abs(values - found).max(initial=0) <= slack_ns, (name, column)
            elif name == "tracks" and column == "name":
                continue  # Python's own names of threads are not spooled
            else:
                np.testing.assert_array_equal(found, values, err_msg=f"{name}.{column}")
    for kind, steps in live.totals.steps.items():
        found_steps = recovered.totals.steps[kind]
        assert (steps.begun, steps.tokens_in, steps.tokens_committed) == (
            found_steps.begun,
            found_steps.tokens_in,
            found_steps.tokens_committed,
        )
    assert live.totals.requests.keys() == recovered.totals.requests.keys()
    for labels, requests in live.totals.requests.items():
        found_requests = recovered.totals.requests[labels]
        assert requests.tokens_out == found_requests.tokens_out
        assert requests.ttft_ns.count == found_requests.ttft_ns.count


def recorded(model: Any, run: Any, folder: Path, **kwargs: Any) -> pertoken.Profile:
    """What a recording gives by itself; it has left its folder to be recovered."""
    recording = pertoken.profile(model, modules="all", spool=folder, **kwargs)
    with recording:
        run()
    return recording.result()


def generate() -> None:
    model = llama()
    with pertoken.request(id="a", model_version="7", tenant="blue"):
        model.generate(input_ids=IDS, max_new_tokens=4)
    model.generate(input_ids=IDS, max_new_tokens=3, num_beams=2)
    with pytest.raises(ValueError, match="stop"), pertoken.request(id="b"):
        raise ValueError("stop")


def test_a_generation_is_recovered_as_it_was_recorded(tmp_path: Path) -> None:
    live = recorded(llama(), generate, tmp_path, logits=True)
    recovered = pertoken.recover(tmp_path)
    assert_same(recovered, live)
    invariants.check(recovered)
    assert recovered.meta["model"] == live.meta["model"]
    assert recovered.meta["pid"] == os.getpid()
    assert "nothing stopped it" not in " ".join(recovered.losses["reasons"])
    assert abs(recovered.totals.recorded_ns - live.totals.recorded_ns) < 1000
    recovered.save(tmp_path / "file.pertoken")
    assert_same(pertoken.load(tmp_path / "file.pertoken"), live)


def test_observations_are_recovered_as_they_were_made(tmp_path: Path) -> None:
    model = llama()

    def run() -> None:
        with torch.no_grad():
            pertoken.observe("outside", torch.tensor([1.0, float("inf")]))
        model.generate(input_ids=IDS, max_new_tokens=4)

    options = {"activations": "*", "activation_every": 1, "activation_rows": True}
    live = recorded(model, run, tmp_path, **options)
    recovered = pertoken.recover(tmp_path)
    assert_same(recovered, live)
    invariants.check(recovered)
    assert len(recovered.activations) > 100 and len(recovered.activation_buckets) > 1000
    assert recovered.totals.activations == live.totals.activations
    assert "outside" in recovered.activations["site"].tolist()


def test_an_engine_of_ones_own_is_recovered(tmp_path: Path) -> None:
    model = seeded(Stack)
    engine = Engine(model=model)

    def run() -> None:
        engine.request_arrived("a", tokens_in=3, labels={"tenant": "blue"})
        with engine.step([Row("a", "prefill", query_len=3, context_len=0)]) as step:
            model(numbers())
        step.committed({"a": 1})
        with engine.step([Row("a", "decode", query_len=1, context_len=3)]) as step:
            model(numbers())
        step.committed({"a": 2})
        engine.request_finished("a")
        for request in ("runs", "waits"):  # until the end
            engine.request_arrived(request, tokens_in=3)
        with engine.step([Row("runs", "prefill", query_len=3, context_len=0)]) as step:
            model(numbers())
        step.committed({"runs": 1})
        with engine.step([Row("runs", "decode", query_len=1, context_len=3)]) as step:
            model(numbers())
        step.committed({"runs": 1})

    live = recorded(model, run, tmp_path)
    recovered = pertoken.recover(tmp_path)
    assert_same(recovered, live)
    assert recovered.requests["tokens_out"].tolist() == [3, 2, 0]
    assert (recovered.requests["end_ns"] == -1).tolist() == [False, True, True]
    assert (recovered.requests["ttft_ns"] == -1).tolist() == [False, False, True]


def test_pauses_and_names_that_come_later_are_recovered(tmp_path: Path) -> None:
    model = seeded(Stack)
    recording = pertoken.profile(model, modules="root", spool=tmp_path)
    for name in ("first", "second"):
        with recording, pertoken.span(f"a region made for {name}"):
            model(numbers())
    live = recording.result()
    recording_folder = recordings_in(tmp_path)
    assert len(recording_folder) == 1, "both runs are one recording"
    # It has stopped, but may start again: the process that made it holds it.
    with pytest.raises(pertoken.SpoolError, match=r"still held by the process .* start again"):
        pertoken.recover(tmp_path)
    del recording
    recovered = pertoken.recover(recording_folder[0])
    assert_same(recovered, live)
    assert "a region made for second" in recovered.spans["site"].tolist()


def test_past_its_bound_the_oldest_steps_go_whole(tmp_path: Path) -> None:
    model = seeded(Stack)

    def run() -> None:
        with pertoken.request(id="long"), torch.inference_mode():
            for _ in range(5000):
                model(numbers())

    live = recorded(model, run, tmp_path, memory_limit_bytes=1 << 20)
    recovered = pertoken.recover(tmp_path)
    steps = recovered.steps["step"].tolist()
    assert steps == list(range(steps[0], 5000)) and steps[0] > 0
    assert steps[0] <= live.steps["step"][0], "no less than the recording itself holds"
    of_step = np.bincount(recovered.spans["step"] - steps[0])
    assert (of_step == of_step[0]).all() and len(of_step) == len(steps)
    assert recovered.requests["id"].tolist() == ["long"], "told again in each segment"
    assert any("bound has dropped" in reason for reason in recovered.losses["reasons"])
    (folder,) = recordings_in(tmp_path)
    size = sum(path.stat().st_size for path in folder.glob("segment-*"))
    assert size <= 10 * (1 << 17) + 10 * (1 << 16)


def test_a_forked_child_leaves_the_spool_alone(tmp_path: Path) -> None:
    model = seeded(Stack)

    def run() -> None:
        model(numbers())
        child = os.fork()
        if child == 0:
            model(numbers())
            with pertoken.request(id="of the child"), pertoken.span("a region of the child"):
                model(numbers())
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        model(numbers())

    live = recorded(model, run, tmp_path)
    recovered = pertoken.recover(tmp_path)
    assert_same(recovered, live)
    assert len(recovered.steps) == 2 and len(recovered.requests) == 0


def test_processes_share_a_folder_and_old_recordings_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = seeded(Stack)
    for number in range(3):
        monkeypatch.setattr(
            spool_folder.time, "gmtime", lambda n=number: (2024, 1, n + 1) + (0,) * 6
        )
        recorded(model, lambda: model(numbers()), tmp_path)
    assert len(recordings_in(tmp_path)) == 3
    assert "20240103" in recordings_in(tmp_path)[0].name
    monkeypatch.setattr(spool_folder.time, "gmtime", lambda: (2024, 1, 9) + (0,) * 6)
    with pertoken.profile(model, spool=tmp_path, memory_limit_bytes=1 << 20):
        names = [path.name for path in recordings_in(tmp_path)]
        assert ["20240109" in names[0], "20240103" in names[1]] == [True, True]
        assert len(names) == 2, "the newest that is over stays, however large"


def test_a_folder_that_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    model = seeded(Stack)
    recording = pertoken.profile(model, spool=tmp_path / "file" / "below")
    with pytest.raises(pertoken.PertokenError, match="cannot spool into"):
        recording.start()
    assert not recording.is_recording and not model.__dict__.get("_compiled_call_impl")


def test_what_cannot_be_written_is_counted_and_the_model_runs_on(tmp_path: Path) -> None:
    model = seeded(Stack)
    expected = model(numbers())
    recording = pertoken.profile(model, memory_limit_bytes=1 << 20, spool=tmp_path)
    with recording:
        model(numbers())
        (folder,) = recordings_in(tmp_path)
        moved = folder.rename(folder.with_name(folder.name + "-moved"))
        for _ in range(4000):  # several segments, which cannot be begun
            assert torch.equal(model(numbers()), expected)
    live = recording.result()
    assert live.losses["records_dropped"] == 0 and live.losses["faults"] == {}
    assert any("of the spool could not be written" in reason for reason in live.losses["reasons"])
    del recording
    profile = pertoken.recover(moved)
    assert any("The spool lacks" in reason for reason in profile.losses["reasons"])
    assert 0 < len(profile.steps) < 4001
    assert profile.steps["step"].tolist() == list(range(len(profile.steps)))


def test_the_command_writes_a_profile_and_says_what_it_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    live = recorded(llama(), generate, tmp_path / "spool")

    def run(*arguments: str) -> Any:
        return CliRunner().invoke(cli.main, ["recover", *arguments])

    done = run("spool", "-o", "run.pertoken")
    assert done.exit_code == 0, done.output
    counts = f"{len(live.requests)} requests, {len(live.steps)} steps"
    assert f"wrote run.pertoken (LlamaForCausalLM, {counts}" in done.stdout
    assert_same(pertoken.load("run.pertoken"), live)
    assert "recordings" not in done.stdout
    recorded(llama(), generate, tmp_path / "spool")
    both = run("spool", "-o", "last.pertoken").stdout
    assert "The newest that is over of 2 recordings" in both
    assert all(str(path.name) in both for path in recordings_in(Path("spool")))
    again = run("spool", "-o", "run.pertoken")
    assert again.exit_code == 1 and "--force replaces it" in again.stderr
    assert run("spool", "-o", "run.pertoken", "--force").exit_code == 0
    nothing = run("absent", "-o", "other.pertoken")
    assert nothing.exit_code == 1 and nothing.stderr.startswith("pertoken: error: cannot recover")
    empty = run(str(tmp_path), "-o", "other.pertoken")
    assert empty.exit_code == 1 and "holds no recording" in empty.stderr
    assert run("spool").exit_code == 2
    assert not Path("other.pertoken").exists()


def test_the_identity_is_plain_json(tmp_path: Path) -> None:
    recorded(seeded(Stack), lambda: None, tmp_path)
    (folder,) = recordings_in(tmp_path)
    identity = json.loads((folder / "identity.json").read_text())
    assert identity["meta"]["pid"] == os.getpid()
    assert len(pertoken.recover(tmp_path).steps) == 0
