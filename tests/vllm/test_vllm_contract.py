"""What the adapter relies on in vLLM, and what it does to it: names, entry points, no residue."""

from __future__ import annotations

import dataclasses
import inspect
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from vllm import SamplingParams
from vllm.model_executor.models.interfaces_base import VllmModelForTextGeneration
from vllm.model_executor.models.llama import LlamaForCausalLM
from vllm.model_executor.models.qwen3 import Qwen3ForCausalLM
from vllm.plugins import DEFAULT_PLUGINS_GROUP, STAT_LOGGER_PLUGINS_GROUP, load_plugins_by_group
from vllm.v1.core.sched.output import CachedRequestData, NewRequestData, SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import FinishReason
from vllm.v1.metrics.loggers import load_stat_logger_plugin_factories
from vllm.v1.metrics.stats import FinishedRequestStats, IterationStats
from vllm.v1.outputs import AsyncModelRunnerOutput, ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.worker.worker_base import WorkerBase, WorkerWrapperBase

import pertoken
import scripted_worker
from pertoken import autostart
from pertoken.engines import vllm_stats
from pertoken.engines.vllm_stats import FrontEndTotals
from scripted_worker import LaterOutput, Script, ScriptedWorker
from vllm_engine import add, make_engine, scheduler_of, worker_of

FIELDS: dict[type, set[str]] = {
    SchedulerOutput: {
        "scheduled_new_reqs",
        "scheduled_cached_reqs",
        "num_scheduled_tokens",
        "total_num_scheduled_tokens",
        "scheduled_spec_decode_tokens",
        "finished_req_ids",
    },
    NewRequestData: {"req_id", "num_computed_tokens", "prefill_token_ids"},
    CachedRequestData: {"req_ids", "resumed_req_ids", "num_computed_tokens", "num_output_tokens"},
    ModelRunnerOutput: {"req_ids", "sampled_token_ids"},
    FinishedRequestStats: {
        "finish_reason",
        "e2e_latency",
        "num_prompt_tokens",
        "num_generation_tokens",
        "mean_time_per_output_token",
    },
}
PARAMETERS: dict[Any, list[str]] = {
    WorkerWrapperBase.execute_model: ["self", "scheduler_output"],
    WorkerBase.sample_tokens: ["self", "grammar_output"],
    WorkerBase.get_model: ["self"],
    AsyncModelRunnerOutput.get_output: ["self"],
    Scheduler.add_request: ["self", "request"],
    Scheduler.update_from_output: ["self", "scheduler_output", "model_runner_output"],
    Scheduler.finish_requests: ["self", "request_ids", "finished_status"],
}
CLASSES = (WorkerWrapperBase, Scheduler, ScriptedWorker, LaterOutput)


def test_the_fields_and_signatures_are_those_of_the_installed_vllm() -> None:
    for cls, names in FIELDS.items():
        assert {field.name for field in dataclasses.fields(cls)} >= names
    for function, names in PARAMETERS.items():
        assert list(inspect.signature(function).parameters) == names
    assert isinstance(NewRequestData.prompt_len, property)
    assert {"FINISHED_ABORTED", "FINISHED_ERROR"} <= set(RequestStatus.__members__)
    assert set(FinishReason.__members__) >= vllm_stats._FAILURES
    counted = {"num_generation_tokens", "time_to_first_tokens_iter", "inter_token_latencies_iter"}
    assert set(vars(IterationStats())) >= {*counted, "finished_requests"}
    request = Request("a", [1, 2], SamplingParams(), None)
    assert (request.num_prompt_tokens, request.num_output_tokens) == (2, 0)
    assert request.arrival_time > 0 and not request.is_finished()


def test_models_of_vllm_make_their_logits_behind_the_forward() -> None:
    """So that what their forward puts out is not read as logits."""
    for cls in (VllmModelForTextGeneration, LlamaForCausalLM, Qwen3ForCausalLM):
        assert callable(getattr(cls, "compute_logits", None)), cls


def test_vllm_finds_the_installed_plugins() -> None:
    plugins = load_plugins_by_group(DEFAULT_PLUGINS_GROUP)
    assert plugins["pertoken"] is autostart.start_in_vllm
    assert load_plugins_by_group(STAT_LOGGER_PLUGINS_GROUP)["pertoken"] is FrontEndTotals
    assert FrontEndTotals in load_stat_logger_plugin_factories()


def attributes() -> list[dict[str, Any]]:
    return [dict(vars(cls)) for cls in CLASSES]


def serve(engine: Any, names: list[str], tokens: int = 4) -> None:
    for name in names:
        add(engine, name, 20, tokens)
    while engine.has_unfinished_requests():
        engine.step()
    engine.step()


def test_nothing_is_in_vllm_but_while_something_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scripted_worker, "script", Script(returns_later=True))
    before = attributes()
    engine = make_engine(tmp_path)
    autostart.start_in_vllm()
    serve(engine, ["early"])
    assert attributes() == before
    with pertoken.profile(worker_of(engine).model) as recording:
        serve(engine, ["a", "b"])
        assert attributes() != before
    assert attributes() == before
    serve(engine, ["unseen"])
    with recording:  # the same worker, and wrappers anew
        serve(engine, ["c"])
    assert attributes() == before
    profile = recording.result()
    names, tokens_out = profile.requests["id"].tolist(), profile.requests["tokens_out"].tolist()
    assert ([name[0] for name in names], tokens_out) == (["a", "b", "c"], [4, 4, 4])
    assert profile.losses["faults"] == {}


def test_a_recording_that_begins_and_ends_amid_requests_knows_what_it_saw(tmp_path: Path) -> None:
    engine = make_engine(tmp_path)
    recording = pertoken.profile(worker_of(engine).model)
    add(engine, "a", 30, 12)
    add(engine, "b", 3, 40)
    engine.step()
    for _ in range(3):
        with recording:
            engine.step()
        engine.step()
    while any(name.startswith("a") for name in scheduler_of(engine).requests):
        engine.step()
    with recording:
        engine.step()
    engine.abort_request(["b"])
    profile = recording.result()
    phases = profile.step_rows["phase"].tolist()
    assert set(phases) == {"prefill", "decode"} and phases[-1] == "decode"
    of_a = [name.startswith("a") for name in profile.requests["id"].tolist()]
    assert profile.requests["error"][of_a].tolist() == ["unfinished"]
    assert profile.requests["ttft_ns"][of_a].tolist() == [-1]
    assert profile.losses["faults"] == {}
    assert any("before" in reason for reason in profile.losses["reasons"])


def test_a_forward_that_raises_reaches_the_engine_and_ends_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scripted_worker, "script", Script(fails_at=1))
    engine = make_engine(tmp_path)
    with pertoken.profile(worker_of(engine).model) as recording:
        add(engine, "a", 10, 4)
        engine.step()
        with pytest.raises(ZeroDivisionError):
            engine.step()
    steps = recording.result().steps
    assert steps["error"].tolist() == ["", "exception"]
    assert steps["tokens_committed"].tolist() == [1, 0]


def test_another_vllm_is_said_to_be_unknown_and_runs_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(tmp_path)
    monkeypatch.delattr(Scheduler, "finish_requests")
    with pertoken.profile(worker_of(engine).model) as recording:
        monkeypatch.setattr(
            "pertoken.engines.vllm_rows.VllmRows.rows_of", lambda *args: 1 / 0, raising=True
        )
        serve(engine, ["a"])
    losses = recording.result().losses
    assert losses["reasons"] == [
        "This vLLM is not known to pertoken (it has no Scheduler.finish_requests)."
    ]
    assert list(losses["faults"]) == ["vLLM, execute_model: ZeroDivisionError: division by zero"]


def test_the_front_end_counts_what_it_sees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PERTOKEN_PROFILE", f"output={tmp_path}/out.pertoken,log_interval=0.001")
    engine = make_engine(tmp_path, stat_loggers=[FrontEndTotals], disable_log_stats=False)
    (logger,) = (
        held for held in engine.logger_manager.stat_loggers if isinstance(held, FrontEndTotals)
    )
    serve(engine, ["a", "b"], tokens=5)
    add(engine, "c", 7, 50)
    engine.step()
    with caplog.at_level("INFO", logger="pertoken"):
        logger.log()
    assert "front end of vLLM: 2 requests ended, 0 of them early, TTFT p99" in caplog.text
    (requests,) = logger.totals().requests.values()
    assert (requests.started, requests.finished, requests.failed) == (2, 2, 0)
    assert (requests.tokens_in, requests.tokens_out) == (40, 11)
    assert requests.ttft_ns.count == 3 and requests.itl_ns.count == 8
    assert requests.duration_ns.count == requests.tpot_ns.count == 2
    assert 0 < requests.ttft_ns.min <= requests.duration_ns.max
    logger.write()
    logger.write()
    (path,) = tmp_path.glob("*-frontend.json")
    written = pertoken.Totals.from_dict(json.loads(path.read_text()))
    assert list(written.requests) == [(("engine", "0"),)]
    assert written.all_requests == requests


@pytest.mark.parametrize("variable", [None, "0", "1"])
def test_the_front_end_is_left_alone_where_nobody_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str | None
) -> None:
    monkeypatch.delenv("PERTOKEN_PROFILE", raising=False)
    if variable is not None:
        monkeypatch.setenv("PERTOKEN_PROFILE", variable)
    if variable == "1":
        monkeypatch.setenv("PERTOKEN", "0")
    monkeypatch.chdir(tmp_path)
    logger = FrontEndTotals(None, [0])
    logger.record(None, IterationStats())
    logger.log()
    logger.write()
    assert logger.totals().requests == {}
    assert list(tmp_path.iterdir()) == []


def test_the_plugin_does_nothing_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PERTOKEN_PROFILE", raising=False)
    before = list(sys.meta_path)
    autostart.start_in_vllm()
    assert sys.meta_path == before
    assert not autostart._was_called
