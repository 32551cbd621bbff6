"""Generate streamed, in threads of its own, and under two recordings at once."""

from __future__ import annotations

import threading

import torch

import invariants
import pertoken
from forward_log import ForwardLog
from models import llama, prompt
from waiting import PATIENCE_S


class PassedOn:
    """A streamer, as transformers expects one."""

    def __init__(self) -> None:
        self.pieces: list[list[int]] = []
        self.ended = threading.Event()

    def put(self, value: torch.Tensor) -> None:
        self.pieces.append(value.flatten().tolist())

    def end(self) -> None:
        self.ended.set()


def test_streaming_from_a_thread_of_its_own() -> None:
    model, streamer = llama(), PassedOn()
    recording = pertoken.profile(model)
    with recording:
        kwargs = {"inputs": prompt(), "max_new_tokens": 6, "streamer": streamer}
        worker = threading.Thread(target=model.generate, kwargs=kwargs, name="worker")
        worker.start()
        assert streamer.ended.wait(PATIENCE_S)
        worker.join()
    profile = recording.result()
    invariants.check(profile)
    invariants.check_sequences(profile)
    invariants.check_tiled(profile, "LlamaForCausalLM")
    streamed = [piece for piece in streamer.pieces if len(piece) == 1]
    assert profile.steps["tokens_committed"].tolist() == [len(piece) for piece in streamed]
    tids = profile.tracks["tid"][profile.steps["thread"]]
    assert set(tids.tolist()) == {worker.native_id}


def test_generate_in_several_threads_keeps_their_requests_apart() -> None:
    model = llama()
    turns = [3, 5, 8]
    recording = pertoken.profile(model)
    start = threading.Barrier(len(turns))

    def serve(count: int) -> None:
        start.wait()
        with pertoken.request(id=count):
            model.generate(prompt(count, 4 + count), max_new_tokens=count)

    with recording:
        workers = [threading.Thread(target=serve, args=(count,)) for count in turns]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    profile = recording.result()
    invariants.check(profile)
    invariants.check_sequences(profile)
    invariants.check_tiled(profile, "LlamaForCausalLM")
    requests = profile.requests
    assert sorted(requests["id"].tolist()) == ["3", "5", "8"]
    for index, name in enumerate(requests["id"].tolist()):
        count = int(name)
        own = profile.steps.where(profile.steps["request"] == requests["request"][index])
        assert own["kind"].tolist() == ["prefill"] + ["decode"] * (count - 1)
        assert own["rows"].tolist() == [count] * count
        assert own["context_len"].tolist() == [0, *range(4 + count, 3 + 2 * count)]
        assert len(set(own["thread"].tolist())) == 1
        assert requests["tokens_in"][index] == count * (4 + count)
        assert requests["tokens_out"][index] == count * count


def test_two_recordings_of_one_generate_agree() -> None:
    model = llama()
    first, second = pertoken.profile(model), pertoken.profile(model, modules="root")
    with ForwardLog(model) as log, first, second:
        model.generate(prompt(2), max_new_tokens=4)
    for recording in (first, second):
        profile = recording.result()
        invariants.check(profile)
        invariants.check_sequences(profile)
        assert profile.steps["kind"].tolist() == ["prefill"] + ["decode"] * 3
        assert profile.steps["rows"].tolist() == log.column("rows")
        assert len(profile.tokens) == 8
