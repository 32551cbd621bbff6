"""Decode loops outside generate: what shapes and the cache tell, and nothing more."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DynamicCache, StaticCache

import invariants
import pertoken
from forward_log import ForwardLog
from models import LAYERS, left_padded, llama, prompt, t5
from pertoken import Profile


def columns(profile: Profile, *names: str) -> list[tuple[Any, ...]]:
    return list(zip(*(profile.steps[name].tolist() for name in names), strict=True))


def assert_nothing_is_claimed(profile: Profile) -> None:
    """No request, no tokens: nobody said that these forwards belong together."""
    invariants.check(profile)
    assert len(profile.requests) == 0
    assert len(profile.tokens) == 0
    assert set(profile.steps["tokens_committed"].tolist()) == {-1}
    assert set(profile.steps["request"].tolist()) == {-1}


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_a_loop_over_a_cache_is_told_by_the_cache(kind: str) -> None:
    model = llama()
    cache = (
        DynamicCache(config=model.config)
        if kind == "dynamic"
        else StaticCache(config=model.config, max_cache_len=32)
    )
    recording = pertoken.profile(model)
    with torch.no_grad(), ForwardLog(model) as log, recording:
        model(input_ids=prompt(2), past_key_values=cache, use_cache=True)
        for _ in range(3):
            model(prompt(2, 1), past_key_values=cache, use_cache=True)
    profile = recording.result()
    assert_nothing_is_claimed(profile)
    assert log.column("past") == [0, 7, 8, 9]
    assert columns(profile, "kind", "rows", "tokens_in", "context_len") == [
        ("prefill", 2, 14, 0),
        ("decode", 2, 2, 7),
        ("decode", 2, 2, 8),
        ("decode", 2, 2, 9),
    ]
    assert len(profile.spans.where(profile.spans["category"] == "generate")) == 0


def test_a_cache_that_the_model_makes_is_a_prefill_where_it_was_asked_for() -> None:
    model = llama()
    recording = pertoken.profile(model)
    with torch.no_grad(), recording:
        out = model(prompt(), use_cache=True)
        model(prompt(1, 1), past_key_values=out.past_key_values)
        model(prompt())
    assert columns(recording.result(), "kind", "tokens_in", "context_len") == [
        ("prefill", 7, 0),
        ("decode", 1, 7),
        ("other", 7, 0),
    ]


def test_several_tokens_after_a_cache_are_a_verify_only_where_all_logits_are_kept() -> None:
    model = llama()
    cache = DynamicCache(config=model.config)
    recording = pertoken.profile(model)
    with torch.no_grad(), recording:
        model(prompt(), past_key_values=cache)
        model(prompt(1, 3), past_key_values=cache)
        model(prompt(1, 3), past_key_values=cache, logits_to_keep=1)
        model(prompt(1, 3), past_key_values=cache, logits_to_keep=3)
        model(prompt(1, 3), past_key_values=cache, logits_to_keep=2)
    assert columns(recording.result(), "kind", "context_len") == [
        ("prefill", 0),
        ("other", 7),
        ("other", 10),
        ("verify", 13),
        ("other", 16),
    ]


def test_masks_of_a_loop_are_read_at_every_step() -> None:
    model = llama()
    cache = DynamicCache(config=model.config)
    ids, mask = left_padded([7, 4])
    recording = pertoken.profile(model)
    with torch.no_grad(), recording:
        for fed in (ids, prompt(2, 1), prompt(2, 1)):
            if cache.get_seq_length():
                mask = torch.cat([mask, mask.new_ones(2, 1)], dim=1)
            model(fed, attention_mask=mask, past_key_values=cache)
    profile = recording.result()
    invariants.check(profile)
    rows = profile.step_rows
    assert rows["query_len"].tolist() == [7, 4, 1, 1, 1, 1]
    assert rows["context_len"].tolist() == [0, 0, 7, 4, 8, 5]
    assert profile.steps["context_len"].tolist() == [0, 7, 8]


def test_padding_on_the_right_is_left_out_of_the_query() -> None:
    ids, mask = left_padded([7, 4])
    recording = pertoken.profile(llama())
    with torch.no_grad(), recording:
        llama()(ids.flip(1), attention_mask=mask.flip(1).bool())
    rows = recording.result().step_rows
    assert rows["query_len"].tolist() == [7, 4]
    assert rows["context_len"].tolist() == [0, 0]


def test_a_mask_that_covers_less_than_cache_and_query_leaves_lengths_unknown() -> None:
    model = llama()
    cache = DynamicCache(config=model.config)
    recording = pertoken.profile(model)
    with torch.no_grad(), recording:
        model(prompt(), past_key_values=cache)
        model(prompt(1, 2), past_key_values=cache, attention_mask=torch.ones(1, 5).long())
    profile = recording.result()
    rows = profile.step_rows.where(profile.step_rows["step"] == 1)
    assert rows["query_len"].tolist() == [-1]
    assert rows["context_len"].tolist() == [-1]
    assert profile.losses["faults"] == {}


def test_an_encoder_decoder_is_described_by_its_decoder() -> None:
    recording = pertoken.profile(t5())
    with torch.no_grad(), recording:
        t5()(input_ids=prompt(2, 6), decoder_input_ids=prompt(2, 3))
    profile = recording.result()
    assert columns(profile, "kind", "rows", "tokens_in") == [("other", 2, 6)]
    sites = set(profile.spans["site"].tolist())
    assert {f"encoder.block.{LAYERS - 1}", f"decoder.block.{LAYERS - 1}"} <= sites


def test_a_request_round_a_loop_holds_its_steps_and_their_tokens_stay_unknown() -> None:
    model = llama()
    cache = DynamicCache(config=model.config)
    recording = pertoken.profile(model)
    with torch.no_grad(), recording, pertoken.request(id=7, model_version="v2", tenant="a"):
        model(prompt(2), past_key_values=cache)
        model(prompt(2, 1), past_key_values=cache)
    profile = recording.result()
    invariants.check(profile)
    assert columns(profile, "kind", "request") == [("prefill", 0), ("decode", 0)]
    requests = profile.requests
    assert requests["id"].tolist() == ["7"]
    assert requests["model_version"].tolist() == ["v2"]
    assert requests["label.tenant"].tolist() == ["a"]
    assert requests["rows"].tolist() == [2]
    for unknown in ("tokens_in", "tokens_out", "ttft_ns"):
        assert requests[unknown].tolist() == [-1]
    assert requests["start_ns"][0] <= profile.steps["start_ns"][0]
    last = profile.steps["start_ns"][1] + profile.steps["wall_ns"][1]
    assert last <= requests["end_ns"][0]
