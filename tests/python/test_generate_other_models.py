"""Models that are not plain decoders through generate: encoders, recurrent states, wrappers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import LlamaForCausalLM

import invariants
import pertoken
from forward_log import ForwardLog, lengths_until
from generate_run import run_generate
from models import LAYERS, PAD, gpt2, left_padded, llama, mamba, prompt, t5


def test_the_encoder_runs_before_the_first_step_and_counts_to_its_latency() -> None:
    run = run_generate(t5(), prompt(2, 6), max_new_tokens=4, prompt_len=1)
    assert run.steps("kind", "rows", "tokens_in", "context_len") == [
        ("prefill", 2, 2, 0),
        ("decode", 2, 2, 1),
        ("decode", 2, 2, 2),
        ("decode", 2, 2, 3),
    ]
    assert [(call.rows, call.query_len, call.past) for call in run.forwards] == [
        (2, 1, 0),
        (2, 1, 1),
        (2, 1, 2),
        (2, 1, 3),
    ]
    assert run.profile.steps["tokens_committed"].tolist() == [2 * grown for grown in run.grown]
    assert run.profile.requests["tokens_in"].tolist() == [12]
    assert run.profile.requests["tokens_out"].tolist() == [8]
    invariants.check_sequences(run.profile)

    spans, steps = run.profile.spans, run.profile.steps
    blocks = np.array([site.startswith("encoder.block.") for site in spans["site"].tolist()])
    topmost = blocks & np.array([site.count(".") == 2 for site in spans["site"].tolist()])
    assert np.count_nonzero(topmost) == LAYERS
    assert set(spans["step"][blocks].tolist()) == {-1}
    first_gap = np.flatnonzero(spans["site"] == "generate: outside forward")
    first_gap = first_gap[np.argmin(spans["start_ns"][first_gap])]
    gap_begin = spans["start_ns"][first_gap]
    gap_end = gap_begin + spans["dur_ns"][first_gap]
    assert gap_end == steps["start_ns"][0]
    assert (spans["start_ns"][blocks] >= gap_begin).all()
    assert (spans["start_ns"][blocks] + spans["dur_ns"][blocks] <= gap_end).all()
    encoder_ns = spans["dur_ns"][topmost].sum()
    first_step_ns = steps["wall_ns"][0]
    assert run.profile.requests["ttft_ns"][0] >= encoder_ns + first_step_ns


def test_padding_of_the_encoder_is_left_out_of_the_prompt() -> None:
    ids, mask = left_padded([6, 3])
    ids, mask = ids.flip(1), mask.flip(1)  # encoders are padded on the right
    for kwargs in ({"attention_mask": mask}, {}):
        run = run_generate(t5(), ids, max_new_tokens=3, prompt_len=1, **kwargs)
        assert run.profile.requests["tokens_in"].tolist() == [9]
        assert run.rows("context_len") == [[0, 0], [1, 1], [2, 2]]


def test_beams_of_an_encoder_decoder_leave_the_start_token_out() -> None:
    ids = prompt(2, 6)
    embeddings = t5().get_input_embeddings()(ids).detach()
    for kwargs in ({"inputs": ids}, {"inputs_embeds": embeddings}):
        run = run_generate(t5(), num_beams=2, max_new_tokens=4, prompt_len=1, **kwargs)
        returned = 2 * (run.sequences.shape[1] - 1)
        assert run.profile.requests["tokens_out"].tolist() == [returned]
        assert run.profile.steps["tokens_committed"].tolist()[-1] == returned
        assert run.profile.requests["tokens_in"].tolist() == [12]


def test_a_recurrent_model_is_counted_without_asking_for_a_length() -> None:
    run = run_generate(mamba(), prompt(2), max_new_tokens=4, prompt_len=7)
    assert [call.past for call in run.forwards] == [None] * 4
    assert run.steps("kind", "rows", "tokens_in", "context_len", "tokens_committed") == [
        ("prefill", 2, 14, 0, 2),
        ("decode", 2, 2, 7, 2),
        ("decode", 2, 2, 8, 2),
        ("decode", 2, 2, 9, 2),
    ]
    invariants.check_sequences(run.profile)


def test_learned_positions_and_an_early_end() -> None:
    ids = prompt(3, 5, seed=7)
    plain = gpt2().generate(ids, max_new_tokens=12)
    eos = int(plain[1, 9])
    run = run_generate(gpt2(), ids, eos_token_id=eos, max_new_tokens=12, prompt_len=5)
    lengths = lengths_until(run.sequences, 5, eos)
    assert run.profile.requests["tokens_out"].tolist() == [sum(lengths)]
    assert run.steps("kind", "context_len")[:2] == [("prefill", 0), ("decode", 5)]
    invariants.check_sequences(run.profile)


class Retries(LlamaForCausalLM):
    """Generates by calling its own generate several times, as speech models do by segment."""

    attempts = 0

    def generate(self, inputs: Any = None, **kwargs: Any) -> Any:
        if self.attempts:
            return super().generate(inputs, **kwargs)
        self.attempts = 2
        self.generate(inputs, **kwargs)
        result = self.generate(inputs, **kwargs)
        self.attempts = 0
        return result


def test_a_generate_that_calls_itself_generates_for_one_request() -> None:
    model = Retries(llama().config).eval()
    model.generation_config = llama().generation_config
    recording = pertoken.profile(model)
    with recording:
        model.generate(prompt(2), max_new_tokens=3)
    profile = recording.result()
    invariants.check(profile)
    assert profile.steps["kind"].tolist() == ["prefill", "decode", "decode"] * 2
    assert profile.steps["context_len"].tolist() == [0, 7, 8] * 2
    assert profile.steps["tokens_committed"].tolist() == [2] * 6
    assert set(profile.steps["request"].tolist()) == {0}
    assert profile.requests["tokens_out"].tolist() == [12]
    assert profile.requests["tokens_in"].tolist() == [28]


class Segments(LlamaForCausalLM):
    """Runs the loop of its base class several times in one generate, each with a new cache."""

    def generate(self, inputs: Any = None, **kwargs: Any) -> Any:
        for _ in range(3):
            result = super().generate(inputs, **kwargs)
        return result


def test_each_new_cache_inside_one_generate_begins_with_a_prefill() -> None:
    model = Segments(llama().config).eval()
    model.generation_config = llama().generation_config
    recording = pertoken.profile(model)
    with ForwardLog(model) as log, recording:
        model.generate(prompt(2), max_new_tokens=3)
    profile = recording.result()
    invariants.check(profile)
    assert profile.steps["kind"].tolist() == ["prefill", "decode", "decode"] * 3
    assert profile.steps["context_len"].tolist() == log.column("past")
    assert profile.steps["tokens_committed"].tolist() == [2] * 9
    assert profile.losses["faults"] == {}


class OwnLoop(LlamaForCausalLM):
    """A generate of its own that never says when it commits."""

    def generate(self, inputs: Any = None, **kwargs: Any) -> Any:
        cache = None
        fed = inputs
        for _ in range(4):
            out = self(input_ids=fed, past_key_values=cache, use_cache=True)
            cache, fed = out.past_key_values, out.logits[:, -1:].argmax(-1)
            inputs = torch.cat([inputs, fed], dim=1)
        self(input_ids=inputs[:, -2:], past_key_values=cache, use_cache=True)
        return inputs


def test_a_generate_that_tells_nothing_leaves_the_tokens_unknown() -> None:
    model = OwnLoop(llama().config).eval()
    recording = pertoken.profile(model)
    with ForwardLog(model) as log, recording:
        model.generate(prompt(2))
    profile = recording.result()
    invariants.check(profile)
    invariants.check_tiled(profile, "OwnLoop")
    assert profile.steps["kind"].tolist() == ["prefill", "decode", "decode", "decode", "other"]
    assert profile.steps["context_len"].tolist() == [past or 0 for past in log.column("past")]
    assert profile.steps["tokens_committed"].tolist() == [-1] * 5
    assert len(profile.tokens) == 0
    assert profile.requests["tokens_out"].tolist() == [-1]
    assert profile.requests["ttft_ns"].tolist() == [-1]
    assert profile.requests["tokens_in"].tolist() == [14]


def test_rows_that_another_criterion_ended_are_unknown_where_padding_hides_it() -> None:
    class StopsRows(torch.nn.Module):
        def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
            return torch.arange(input_ids.shape[0]) < input_ids.shape[1] - 9

    unused = 47
    run = run_generate(
        llama(),
        prompt(3),
        stopping_criteria=[StopsRows()],
        eos_token_id=unused,
        max_new_tokens=8,
        prompt_len=7,
    )
    generated = run.sequences[:, 7:]
    assert (generated[0] == PAD).any() and not (generated == unused).any()
    assert run.profile.requests["tokens_out"].tolist() == [-1]
    committed = run.profile.steps["tokens_committed"].tolist()
    assert committed[0] == 3
    assert set(committed[1:]) == {-1}
