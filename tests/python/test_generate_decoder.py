"""Decoder-only models through generate: kinds, lengths, rows and tokens against what happened."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import DynamicCache, GenerationConfig

import invariants
import pertoken
from forward_log import lengths_until
from generate_run import GenerateRun, run_generate
from models import PAD, left_padded, llama, prompt


def assert_shapes_are_real(run: GenerateRun) -> None:
    """Rows, positions fed and context of each step are those of the forward's real arguments."""
    assert len(run.forwards) == len(run.profile.steps)
    assert run.steps("rows", "tokens_in", "context_len") == [
        (call.rows, call.rows * call.query_len, call.past or 0) for call in run.forwards
    ]


def assert_plain_tokens(run: GenerateRun, request: int = 0) -> None:
    """Every turn gave every row one token, and these are all there are."""
    rows = run.sequences.shape[0]
    invariants.check_sequences(run.profile)
    committing = run.profile.steps["tokens_committed"]
    assert committing[committing > 0].tolist() == [rows * grown for grown in run.grown]
    assert run.profile.requests["tokens_out"].tolist() == [rows * sum(run.grown)]
    assert run.profile.requests["rows"].tolist() == [rows]
    assert set(run.profile.tokens["request"].tolist()) == {request}


def test_greedy_decoding_is_one_prefill_and_then_decodes() -> None:
    ids = prompt(2)
    run = run_generate(llama(), ids, max_new_tokens=6, prompt_len=7)
    assert_shapes_are_real(run)
    assert_plain_tokens(run)
    assert run.profile.steps["kind"].tolist() == ["prefill"] + ["decode"] * 5
    assert [call.past for call in run.forwards] == [0, 7, 8, 9, 10, 11]
    assert run.profile.steps["context_len"].tolist() == [0, 7, 8, 9, 10, 11]
    assert run.profile.requests["tokens_in"].tolist() == [14]
    assert run.profile.requests["error"].tolist() == [""]


@pytest.mark.parametrize("cache", [None, "static"])
@pytest.mark.parametrize("keep", [2, 7, 1000])
def test_what_a_user_keeps_of_the_logits_is_no_verification(keep: int, cache: str | None) -> None:
    run = run_generate(
        llama(),
        prompt(2),
        max_new_tokens=5,
        logits_to_keep=keep,
        cache_implementation=cache,
        prompt_len=7,
    )
    assert_shapes_are_real(run)
    assert_plain_tokens(run)
    assert run.profile.steps["kind"].tolist() == ["prefill"] + ["decode"] * 4
    assert run.profile.steps["context_len"].tolist() == [0, 7, 8, 9, 10]


def test_steps_lie_where_the_forwards_were() -> None:
    run = run_generate(llama(), prompt(), max_new_tokens=5, prompt_len=7)
    steps = run.profile.steps
    start_ns = steps["start_ns"] + run.profile.meta["boot_origin_ns"]
    error_ns = run.profile.losses["clock_error_ns"]
    for start, wall, call in zip(start_ns, steps["wall_ns"], run.forwards, strict=True):
        assert start - error_ns <= call.begin_ns
        assert call.end_ns <= start + wall + error_ns
    request = run.profile.requests
    assert request["start_ns"][0] < steps["start_ns"][0]
    assert steps["start_ns"][-1] + steps["wall_ns"][-1] < request["end_ns"][0]


def test_a_static_cache_gives_the_same_steps_as_a_dynamic_one() -> None:
    ids = prompt(2)
    dynamic = run_generate(llama(), ids, max_new_tokens=6, prompt_len=7)
    static = run_generate(
        llama(), ids, max_new_tokens=6, cache_implementation="static", prompt_len=7
    )
    assert_shapes_are_real(static)
    assert_plain_tokens(static)
    columns = ("kind", "rows", "tokens_in", "tokens_committed", "context_len")
    assert static.steps(*columns) == dynamic.steps(*columns)
    assert static.rows("context_len") == dynamic.rows("context_len")
    assert static.rows("query_len") == dynamic.rows("query_len")


@pytest.mark.parametrize("cache", [None, "static"])
@pytest.mark.parametrize("explicit_mask", [True, False])
def test_left_padding_is_left_out_of_the_lengths_of_each_row(
    explicit_mask: bool, cache: str | None
) -> None:
    ids, mask = left_padded([7, 4, 6])
    extra: dict[str, Any] = {"attention_mask": mask} if explicit_mask else {}
    run = run_generate(
        llama(), ids, max_new_tokens=4, cache_implementation=cache, prompt_len=7, **extra
    )
    assert_plain_tokens(run)
    assert run.profile.steps["kind"].tolist() == ["prefill"] + ["decode"] * 3
    assert run.profile.steps["tokens_in"].tolist() == [21, 3, 3, 3]
    assert run.rows("query_len") == [[7, 4, 6]] + [[1, 1, 1]] * 3
    assert run.rows("context_len") == [[0, 0, 0], [7, 4, 6], [8, 5, 7], [9, 6, 8]]
    assert run.profile.requests["tokens_in"].tolist() == [17]
    if cache is None:
        by_mask = [
            [valid - query for valid, query in zip(call.valid, lengths, strict=True)]
            for call, lengths in zip(run.forwards, run.rows("query_len"), strict=True)
        ]
        assert run.rows("context_len") == by_mask


def test_beams_are_rows_of_the_steps_and_their_tokens_come_at_the_end() -> None:
    run = run_generate(llama(), prompt(2), num_beams=3, max_new_tokens=5, prompt_len=7)
    assert run.steps("kind", "rows") == [("prefill", 6)] + [("decode", 6)] * 4
    assert_shapes_are_real(run)
    returned = run.sequences.shape[0] * (run.sequences.shape[1] - 7)
    assert run.profile.steps["tokens_committed"].tolist() == [0, 0, 0, 0, returned]
    assert run.profile.requests["tokens_out"].tolist() == [returned]
    assert run.profile.requests["rows"].tolist() == [2]
    assert run.profile.requests["tokens_in"].tolist() == [14]
    tokens = run.profile.tokens
    assert tokens["row"].tolist() == [0] * 5 + [1] * 5
    assert tokens["position"].tolist() == [0, 1, 2, 3, 4] * 2
    assert set(tokens["step"].tolist()) == {4}
    assert set(tokens["itl_ns"].tolist()) == {-1}
    request = run.profile.requests
    assert request["ttft_ns"][0] == tokens["commit_ns"][0] - request["start_ns"][0]


def test_beams_that_end_early_have_the_lengths_of_the_returned_rows() -> None:
    ids = prompt(2)
    plain = llama().generate(ids, num_beams=3, max_new_tokens=12)
    eos = int(plain[0, 9])
    run = run_generate(
        llama(),
        ids,
        num_beams=3,
        num_return_sequences=2,
        max_new_tokens=12,
        eos_token_id=eos,
        prompt_len=7,
    )
    lengths = lengths_until(run.sequences, 7, eos)
    assert len(lengths) == 4
    assert run.profile.requests["tokens_out"].tolist() == [sum(lengths)]
    assert [np.count_nonzero(run.profile.tokens["row"] == row) for row in range(4)] == lengths


def test_beams_continue_a_cache_with_the_new_ids_alone() -> None:
    cache = DynamicCache(config=llama().config)
    llama().generate(prompt(2), past_key_values=cache, max_new_tokens=3, num_beams=1)
    cache.batch_repeat_interleave(2)
    held = cache.get_seq_length()
    new = prompt(2, 2, seed=5)
    run = run_generate(
        llama(),
        new,
        past_key_values=cache,
        attention_mask=torch.ones(2, held + 2, dtype=torch.long),
        num_beams=2,
        max_new_tokens=4,
        prompt_len=2,
    )
    returned = 2 * (run.sequences.shape[1] - 2)
    assert run.profile.requests["tokens_out"].tolist() == [returned]
    assert run.profile.requests["tokens_in"].tolist() == [4]
    assert run.steps("kind", "context_len", "tokens_in")[:2] == [
        ("prefill", held, 8),
        ("decode", held + 2, 4),
    ]


def test_several_sampled_sequences_a_prompt_are_rows_of_their_own() -> None:
    run = run_generate(
        llama(), prompt(2), do_sample=True, num_return_sequences=3, max_new_tokens=4, prompt_len=7
    )
    assert_shapes_are_real(run)
    assert_plain_tokens(run)
    assert run.steps("kind", "rows") == [("prefill", 6)] + [("decode", 6)] * 3
    assert run.profile.requests["tokens_in"].tolist() == [14]


def test_without_a_cache_the_steps_that_grow_are_decodes() -> None:
    run = run_generate(llama(), prompt(2), use_cache=False, max_new_tokens=4, prompt_len=7)
    assert [call.query_len for call in run.forwards] == [7, 8, 9, 10]
    assert [call.past for call in run.forwards] == [None] * 4
    assert_shapes_are_real(run)
    assert_plain_tokens(run)
    assert run.profile.steps["kind"].tolist() == ["prefill"] + ["decode"] * 3


def test_embeddings_in_place_of_ids() -> None:
    embeddings = llama().get_input_embeddings()(prompt(2)).detach()
    run = run_generate(llama(), inputs_embeds=embeddings, max_new_tokens=4, prompt_len=0)
    assert run.sequences.shape == (2, 4)
    assert_shapes_are_real(run)
    assert_plain_tokens(run)
    assert run.profile.steps["kind"].tolist() == ["prefill"] + ["decode"] * 3
    assert run.profile.steps["tokens_in"].tolist() == [14, 2, 2, 2]
    assert run.profile.requests["tokens_in"].tolist() == [14]


def test_beams_from_embeddings() -> None:
    embeddings = llama().get_input_embeddings()(prompt(2)).detach()
    run = run_generate(
        llama(), inputs_embeds=embeddings, num_beams=2, max_new_tokens=4, prompt_len=0
    )
    assert run.profile.requests["tokens_out"].tolist() == [run.sequences.numel()]


@pytest.mark.parametrize("lengths", [[7], [7, 4, 2]])
def test_each_chunk_of_a_prefill_is_a_prefill_and_only_the_last_commits(
    lengths: list[int],
) -> None:
    ids, mask = left_padded(lengths)
    run = run_generate(
        llama(), ids, attention_mask=mask, prefill_chunk_size=3, max_new_tokens=3, prompt_len=7
    )
    rows = len(lengths)
    assert [(call.query_len, call.past) for call in run.forwards] == [
        (3, 0),
        (3, 3),
        (1, 6),
        (1, 7),
        (1, 8),
    ]
    assert run.profile.steps["kind"].tolist() == ["prefill"] * 3 + ["decode"] * 2
    assert run.profile.steps["tokens_committed"].tolist() == [0, 0, rows, rows, rows]
    columns = [mask[:, 0:3], mask[:, 3:6], mask[:, 6:7]]
    fed = [chunk.sum(1).tolist() for chunk in columns]
    assert run.rows("query_len")[:3] == fed
    assert run.rows("context_len")[:4] == [
        [0] * rows,
        mask[:, :3].sum(1).tolist(),
        mask[:, :6].sum(1).tolist(),
        lengths,
    ]
    assert run.profile.requests["tokens_in"].tolist() == [sum(lengths)]


def test_a_cache_continued_by_one_token_begins_with_a_prefill() -> None:
    cache = DynamicCache(config=llama().config)
    first = llama().generate(prompt(), past_key_values=cache, max_new_tokens=6)
    full = torch.cat([first, prompt(1, 1, seed=3)], dim=1)
    held = cache.get_seq_length()
    run = run_generate(
        llama(),
        full,
        past_key_values=cache,
        max_new_tokens=3,
        prompt_len=full.shape[1],
    )
    assert run.forwards[0].past == held
    assert_shapes_are_real(run)
    assert_plain_tokens(run)
    assert run.profile.steps["kind"].tolist() == ["prefill", "decode", "decode"]
    assert run.profile.requests["tokens_in"].tolist() == [full.shape[1]]


def test_padding_in_the_middle_of_a_continued_batch_is_left_out_where_it_lies() -> None:
    cache = DynamicCache(config=llama().config)
    ids, mask = left_padded([5, 3])
    llama().generate(ids, attention_mask=mask, past_key_values=cache, max_new_tokens=4)
    held = cache.get_seq_length()
    old = torch.cat([mask, torch.ones(2, held - 5, dtype=torch.long)], dim=1)
    new_ids, new_mask = left_padded([2, 4], seed=4)
    run = run_generate(
        llama(),
        new_ids,
        attention_mask=torch.cat([old, new_mask], dim=1),
        past_key_values=cache,
        max_new_tokens=3,
        prompt_len=4,
    )
    before, fed = old.sum(1).tolist(), [2, 4]
    assert run.rows("context_len")[:2] == [
        before,
        [b + f for b, f in zip(before, fed, strict=True)],
    ]
    assert run.rows("query_len") == [fed, [1, 1], [1, 1]]
    assert run.profile.requests["tokens_in"].tolist() == [6]


def sampled_with_an_eos(rows: int, new_tokens: int) -> tuple[torch.Tensor, int]:
    """A prompt and an end of sequence that a greedy run reaches at different lengths."""
    ids = prompt(rows, 7, seed=11)
    plain = llama().generate(ids, max_new_tokens=new_tokens)[:, 7:]
    for token in plain.unique().tolist():
        ends = {row.index(token) if token in row else new_tokens for row in plain.tolist()}
        if token != PAD and len(ends) >= 3 and max(ends) > 4:
            return ids, token
    raise AssertionError("no token ends rows at different lengths")


def test_rows_that_have_ended_are_fed_but_commit_no_more() -> None:
    ids, eos = sampled_with_an_eos(4, 16)
    run = run_generate(llama(), ids, eos_token_id=eos, max_new_tokens=16, prompt_len=7)
    lengths = lengths_until(run.sequences, 7, eos)
    turns = run.sequences.shape[1] - 7
    assert len(set(lengths)) >= 3
    assert_shapes_are_real(run)
    invariants.check_sequences(run.profile)
    assert run.rows("committed") == [
        [int(turn < length) for length in lengths] for turn in range(turns)
    ]
    assert sum(lengths) < 4 * turns
    assert run.profile.requests["tokens_out"].tolist() == [sum(lengths)]
    assert len(run.profile.tokens) == sum(lengths)


def test_settings_are_found_where_the_caller_put_them() -> None:
    ids, eos = sampled_with_an_eos(4, 16)
    config = GenerationConfig(max_new_tokens=16, eos_token_id=eos, pad_token_id=PAD)
    run = run_generate(llama(), ids, config, prompt_len=7)
    lengths = lengths_until(run.sequences, 7, eos)
    assert len(set(lengths)) >= 3
    assert run.profile.requests["tokens_out"].tolist() == [sum(lengths)]
    beams = GenerationConfig(max_new_tokens=4, num_beams=3, pad_token_id=PAD)
    run = run_generate(llama(), ids, beams, prompt_len=7)
    assert run.profile.steps["tokens_committed"].tolist() == [0, 0, 0, 16]


@pytest.mark.parametrize("modules", ["root", "layers", "all"])
def test_recording_changes_neither_the_output_nor_the_random_state(modules: str) -> None:
    model = llama()

    def sample() -> tuple[Any, torch.Tensor]:
        torch.manual_seed(5)
        result = model.generate(
            prompt(2),
            do_sample=True,
            max_new_tokens=8,
            output_logits=True,
            return_dict_in_generate=True,
        )
        return result, torch.get_rng_state()

    plain, state = sample()
    with pertoken.profile(model, modules=modules):
        recorded, recorded_state = sample()
    again, state_after = sample()
    for other, other_state in ((recorded, recorded_state), (again, state_after)):
        assert torch.equal(plain.sequences, other.sequences)
        assert all(torch.equal(a, b) for a, b in zip(plain.logits, other.logits, strict=True))
        assert torch.equal(state, other_state)


def test_guidance_runs_the_model_between_the_steps_that_commit() -> None:
    run = run_generate(llama(), prompt(), guidance_scale=1.5, max_new_tokens=4, prompt_len=7)
    assert len(run.forwards) == 8
    assert run.profile.steps["tokens_committed"].tolist() == [1, 0] * 4
    assert run.profile.steps["kind"].tolist()[::2] == ["prefill"] + ["decode"] * 3
    assert run.profile.steps["kind"].tolist()[1] == "prefill"
    assert run.profile.steps["kind"].tolist()[3::2] == ["decode"] * 3
    assert_shapes_are_real(run)
