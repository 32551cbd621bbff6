"""Assisted decoding: what each verify committed, and drafts that run on the model itself."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

import invariants
from generate_run import GenerateRun, run_generate
from models import llama, prompt, t5


def repeating(length: int = 8) -> torch.Tensor:
    """A prompt in which looking up n-grams finds candidates."""
    return torch.tensor([[5, 6, 7, 8] * (length // 4)])


def assert_each_verify_committed_what_it_added(run: GenerateRun) -> None:
    steps = run.profile.steps
    real = steps["kind"] != "draft"
    assert steps["tokens_committed"][real].tolist() == run.grown
    assert run.profile.requests["tokens_out"].tolist() == [sum(run.grown)]
    assert len(run.profile.tokens) == sum(run.grown)
    assert set(run.profile.tokens["request"].tolist()) == {0}
    invariants.check_sequences(run.profile)


def assert_shapes_are_real(run: GenerateRun) -> None:
    assert run.steps("rows", "tokens_in", "context_len") == [
        (call.rows, call.rows * call.query_len, call.past or 0) for call in run.forwards
    ]


def kinds_by_shape(run: GenerateRun) -> list[str]:
    """One token after the cache is a decode, several are a verify."""
    later = ["verify" if call.query_len > 1 else "decode" for call in run.forwards[1:]]
    return ["prefill", *later]


@pytest.mark.parametrize("sample", [False, True])
def test_an_assistant_model_drafts_outside_and_each_verify_is_counted(sample: bool) -> None:
    model = llama()
    assistant = copy.deepcopy(model)  # agrees with the model often, not always
    with torch.no_grad():
        for parameter in assistant.parameters():
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
            parameter.add_(0.002 * noise)
    run = run_generate(
        model,
        prompt(),
        assistant_model=assistant,
        do_sample=sample,
        max_new_tokens=16,
        prompt_len=7,
    )
    assert_each_verify_committed_what_it_added(run)
    assert_shapes_are_real(run)
    assert run.profile.steps["kind"].tolist() == kinds_by_shape(run)
    assert any(call.query_len > 1 for call in run.forwards[1:])
    assert max(run.grown) > 1
    # The first forward is prefill and verify at once.
    assert run.forwards[0].query_len > 7
    assert run.forwards[0].keep == run.forwards[0].query_len - 6


def test_prompt_lookup_verifies_from_its_first_forward_on() -> None:
    run = run_generate(
        llama(), repeating(), prompt_lookup_num_tokens=3, max_new_tokens=14, prompt_len=8
    )
    assert_each_verify_committed_what_it_added(run)
    assert_shapes_are_real(run)
    assert run.profile.steps["kind"].tolist() == kinds_by_shape(run)
    assert run.forwards[0].query_len == 11
    assert max(run.grown) > 1
    assert min(run.grown) < 4


def test_tokens_committed_at_once_have_no_time_between_them() -> None:
    run = run_generate(
        llama(), repeating(), prompt_lookup_num_tokens=3, max_new_tokens=14, prompt_len=8
    )
    tokens = run.profile.tokens
    same_step = tokens["step"][1:] == tokens["step"][:-1]
    assert same_step.any()
    assert (tokens["itl_ns"][1:][same_step] == 0).all()
    assert (tokens["itl_ns"][1:][~same_step] > 0).all()


def test_an_end_of_sequence_inside_a_verify_cuts_what_it_commits() -> None:
    plain = llama().generate(repeating(), max_new_tokens=14)
    eos = int(plain[0, -3])
    run = run_generate(
        llama(),
        repeating(),
        prompt_lookup_num_tokens=3,
        eos_token_id=eos,
        max_new_tokens=14,
        prompt_len=8,
    )
    assert int(run.sequences[0, -1]) == eos
    assert_each_verify_committed_what_it_added(run)


def test_early_exit_drafts_are_drafts_of_the_same_request() -> None:
    model = llama(layers=3)
    run = run_generate(model, prompt(), assistant_early_exit=1, max_new_tokens=10, prompt_len=7)
    assert_each_verify_committed_what_it_added(run)
    assert_shapes_are_real(run)
    steps = run.profile.steps
    assert len(steps) == len(run.forwards)
    drafts = steps["kind"] == "draft"
    assert drafts.any()
    assert set(steps["tokens_committed"][drafts].tolist()) == {0}
    assert set(steps["request"].tolist()) == {0}
    assert len(run.profile.requests) == 1
    assert set(steps["kind"][~drafts].tolist()) <= {"prefill", "verify", "decode"}
    assert steps["kind"][~drafts][0] == "prefill"
    # A draft runs one layer of the three.
    spans = run.profile.spans
    layers = spans["site"] == "model.layers.2"
    assert not set(spans["step"][layers].tolist()) & set(steps["step"][drafts].tolist())
    assert set(spans["step"][layers].tolist()) == set(steps["step"][~drafts].tolist())


def test_a_model_that_is_not_told_what_logits_to_keep_is_asked_for_its_cache() -> None:
    model = t5()
    encoder_ids = prompt(1, 6)
    start = torch.tensor([[1, 5, 6, 5, 6, 5]])
    run = run_generate(
        model,
        encoder_ids,
        decoder_input_ids=start,
        prompt_lookup_num_tokens=2,
        max_new_tokens=8,
        prompt_len=6,
    )
    assert [call.keep for call in run.forwards] == [None] * len(run.forwards)
    assert run.forwards[0].query_len > 6
    assert_each_verify_committed_what_it_added(run)
    assert_shapes_are_real(run)
    assert run.profile.steps["kind"].tolist() == kinds_by_shape(run)


class CountsInTensors(LlamaForCausalLM):
    """Hands on the number of tokens as older versions of transformers did."""

    device_of_count = "cpu"
    keep = 1

    def generate(self, inputs: Any, **kwargs: Any) -> Any:
        out = self(input_ids=inputs, use_cache=True, logits_to_keep=self.keep)
        for _ in range(3):
            count = torch.ones((), dtype=torch.long, device=self.device_of_count)
            self._update_model_kwargs_for_generation(out, {}, num_new_tokens=count)
            inputs = torch.cat([inputs, out.logits[:, -1:].argmax(-1)], dim=1)
            out = self(
                input_ids=inputs[:, -1:],
                past_key_values=out.past_key_values,
                logits_to_keep=self.keep,
            )
        return inputs


@pytest.mark.parametrize("keep", [5, 1000])
def test_a_loop_that_keeps_more_than_it_counts_has_verified_nothing(keep: int) -> None:
    model = CountsInTensors(llama().config).eval()
    model.keep = keep
    steps = run_generate(model, prompt(), prompt_len=7).profile.steps
    assert steps["kind"].tolist() == ["prefill", "decode", "decode", "decode"]
    assert steps["context_len"].tolist() == [0, 7, 8, 9]
    assert steps["tokens_committed"].tolist() == [1, 1, 1, 0]


def test_what_a_user_keeps_is_not_what_an_assistant_verifies() -> None:
    run = run_generate(
        llama(),
        repeating(),
        prompt_lookup_num_tokens=3,
        logits_to_keep=6,
        max_new_tokens=14,
        prompt_len=8,
    )
    assert_each_verify_committed_what_it_added(run)
    assert_shapes_are_real(run)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_count_in_a_tensor_is_read_from_the_host_and_never_from_a_device(device: str) -> None:
    model = CountsInTensors(llama().config).eval()
    model.device_of_count = device
    run = run_generate(model, prompt(), prompt_len=7)
    steps = run.profile.steps
    assert steps["kind"].tolist() == ["prefill", "decode", "decode", "decode"]
    assert steps["context_len"].tolist() == [0, 7, 8, 9]
    committed = [1, 1, 1, 0] if device == "cpu" else [-1] * 4
    assert steps["tokens_committed"].tolist() == committed
    assert len(run.profile.tokens) == (3 if device == "cpu" else 0)
    # What came back has three more columns than what went in, whoever counted.
    assert run.profile.requests["tokens_out"].tolist() == [3]
