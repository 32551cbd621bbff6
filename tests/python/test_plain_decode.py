"""Decode steps without detail have a way of their own: it tells what the general one tells.

The budget is so small that next to no step has any, so that most are decided on ahead.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import DynamicCache, StaticCache

import invariants
import models
import pertoken
from forward_log import ForwardLog
from pertoken import Profile, Recording

STEPS = 100
kept: list[Any] = []
TOLD = ("kind", "rows", "tokens_in", "context_len", "tokens_committed", "request")


def frugal(model: Any) -> Recording:
    return pertoken.profile(model, modules="all", budget=1e-6)


def told(profile: Profile) -> list[tuple[Any, ...]]:
    return list(zip(*(profile.steps[name].tolist() for name in TOLD), strict=True))


def assert_mostly_plain(profile: Profile) -> None:
    invariants.check(profile)
    assert profile.steps["detail"].tolist().count("root") > 0.8 * len(profile.steps)


def by_hand(change: Callable[[DynamicCache, int], DynamicCache]) -> tuple[ForwardLog, Profile]:
    """A loop whose cache `change` gives for each step, from that of the step before."""
    model = models.llama()
    cache = DynamicCache(config=model.config)
    with torch.no_grad(), ForwardLog(model) as log, frugal(model) as recording:
        model(input_ids=models.prompt(2), past_key_values=cache, use_cache=True)
        for step in range(STEPS):
            cache = change(cache, step)
            model(input_ids=models.prompt(2, 1), past_key_values=cache, use_cache=True)
    return log, recording.result()


def crop(cache: DynamicCache, step: int) -> DynamicCache:
    if step % 7 == 6:
        cache.crop(-3)
    return cache


def replace_cache(cache: DynamicCache, step: int) -> DynamicCache:
    return copy.deepcopy(cache) if step % 9 == 8 else cache


def replace_layers(cache: DynamicCache, step: int) -> DynamicCache:
    """By copies, while the layers from before live on."""
    if step % 9 == 8:
        kept.append(cache.layers)
        cache.layers = copy.deepcopy(cache.layers)
        cache.crop(-2)
    elif step % 9 == 3:
        kept.append(cache.layers[0])
        cache.layers[0] = copy.deepcopy(cache.layers[0])
    return cache


def regrow_elsewhere(cache: DynamicCache, step: int) -> DynamicCache:
    """A token is taken away, and another fed where nobody records."""
    if step % 5 == 4:
        cache.crop(-2)
        for layer in range(len(cache)):
            keys = cache.layers[layer].keys[:, :, :1]
            cache.update(keys, keys, layer)
    return cache


@pytest.mark.parametrize(
    "change", [lambda cache, step: cache, crop, replace_cache, replace_layers, regrow_elsewhere]
)
def test_a_loop_by_hand_is_told_by_its_cache_whatever_becomes_of_it(
    change: Callable[[DynamicCache, int], DynamicCache],
) -> None:
    log, profile = by_hand(change)
    assert_mostly_plain(profile)
    assert profile.steps["context_len"].tolist() == log.column("past")
    assert profile.steps["kind"].tolist() == ["prefill"] + ["decode"] * STEPS
    assert set(profile.steps["rows"].tolist()) == {2}


def test_two_texts_by_turns_keep_their_lengths() -> None:
    model = models.llama()
    caches = [DynamicCache(config=model.config) for _ in range(2)]
    with torch.no_grad(), ForwardLog(model) as log, frugal(model) as recording:
        for length, cache in zip((5, 9), caches, strict=True):
            model(input_ids=models.prompt(1, length), past_key_values=cache, use_cache=True)
        for step in range(STEPS):
            cache = caches[step // 3 % 2]
            model(input_ids=models.prompt(1, 1), past_key_values=cache, use_cache=True)
    profile = recording.result()
    assert_mostly_plain(profile)
    assert profile.steps["context_len"].tolist() == log.column("past")


def static(cache: Any, step: int) -> dict[str, Any]:
    return {"input_ids": models.prompt(2, 1), "past_key_values": cache, "use_cache": True}


def masked(cache: Any, step: int) -> dict[str, Any]:
    mask = torch.ones(2, 7 + step + 1, dtype=torch.long)
    mask[1, :3] = 0
    return {**static(cache, step), "attention_mask": mask}


def embedded(cache: Any, step: int) -> dict[str, Any]:
    return {"inputs_embeds": torch.zeros(2, 1, 16), "past_key_values": cache}


def several(cache: Any, step: int) -> dict[str, Any]:
    return {**static(cache, step), "input_ids": models.prompt(2, 1 + step % 3)}


def renamed(cache: Any, step: int) -> dict[str, Any]:
    """Keywords that are equal to those known, and other objects."""
    return {"".join(list(name)): value for name, value in static(cache, step).items()}


@pytest.mark.parametrize("arguments", [static, masked, embedded, several, renamed])
@pytest.mark.parametrize("make", [DynamicCache, StaticCache])
def test_steps_are_told_as_without_a_budget(
    arguments: Callable[[Any, int], dict[str, Any]], make: type
) -> None:
    model = models.llama()

    def record(recording: Recording) -> Profile:
        most = {"max_cache_len": 128} if make is StaticCache else {}
        cache = make(config=model.config, **most)
        with torch.no_grad(), recording:
            model(input_ids=models.prompt(2), past_key_values=cache, use_cache=True)
            for step in range(40):
                model(**arguments(cache, step))
        return recording.result()

    profile = record(frugal(model))
    invariants.check(profile)
    assert told(profile) == told(record(pertoken.profile(model)))


@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 2}, {"cache_implementation": "static"}, {"use_cache": False}]
)
def test_generate_is_told_as_without_a_budget(options: dict[str, Any]) -> None:
    model = models.llama()

    def record(recording: Recording) -> Profile:
        with recording:
            model.generate(
                models.prompt(2), max_new_tokens=60, min_new_tokens=60, do_sample=False, **options
            )
        return recording.result()

    profile, whole = record(frugal(model)), record(pertoken.profile(model))
    assert_mostly_plain(profile)
    assert told(profile) == told(whole)
    for name in ("step", "row", "request", "position"):
        assert profile.tokens[name].tolist() == whole.tokens[name].tolist()
    for name in ("rows", "tokens_in", "tokens_out", "output_len"):
        assert profile.requests[name].tolist() == whole.requests[name].tolist()
    # The thread's time in generate() is covered without a hole, as it is there.
    gaps = [p.spans.where(p.spans["category"] == "generate") for p in (profile, whole)]
    assert len(gaps[0]) == len(gaps[1])
    assert gaps[0]["step"].tolist() == gaps[1]["step"].tolist()


def test_a_request_round_plain_steps_is_theirs() -> None:
    model = models.llama()
    cache = DynamicCache(config=model.config)
    with torch.no_grad(), frugal(model) as recording:
        model(input_ids=models.prompt(), past_key_values=cache, use_cache=True)
        for step in range(STEPS):
            inside = pertoken.request(f"r{step}") if step % 10 == 5 else contextlib.nullcontext()
            with inside:
                model(input_ids=models.prompt(1, 1), past_key_values=cache, use_cache=True)
    requests = recording.result().steps["request"].tolist()
    assert [request >= 0 for request in requests[1:]] == [s % 10 == 5 for s in range(STEPS)]


def test_what_a_plain_step_raises_is_the_users_and_the_step_has_failed() -> None:
    model = models.llama()
    cache = DynamicCache(config=model.config)
    raised = []

    def refuse(module: Any, args: Any, output: Any) -> None:
        if cache.get_seq_length() % 10 == 0:
            raise KeyError("mine")

    handle = model.lm_head.register_forward_hook(refuse)
    try:
        with torch.no_grad(), ForwardLog(model) as log, frugal(model) as recording:
            model(input_ids=models.prompt(), past_key_values=cache, use_cache=True)
            for _ in range(STEPS):
                try:
                    model(input_ids=models.prompt(1, 1), past_key_values=cache, use_cache=True)
                except KeyError as error:
                    raised.append(error.args)
    finally:
        handle.remove()
    profile = recording.result()
    assert set(raised) == {("mine",)}
    assert profile.steps["context_len"].tolist() == log.column("past")
    assert profile.steps["error"].tolist().count("exception") == len(raised)


def test_a_cache_lives_no_longer_for_being_recorded() -> None:
    model = models.llama()
    with torch.no_grad(), frugal(model) as recording:
        for _ in range(3):
            cache = DynamicCache(config=model.config)
            gone = [weakref.ref(cache)]
            model(input_ids=models.prompt(), past_key_values=cache, use_cache=True)
            for _ in range(40):
                model(input_ids=models.prompt(1, 1), past_key_values=cache, use_cache=True)
            gone += [weakref.ref(cache.layers[0]), weakref.ref(cache.layers[0].keys)]
            del cache
            gc.collect()
            assert [ref() for ref in gone] == [None] * 3
    assert recording.result().steps["kind"].tolist().count("decode") == 3 * 40
