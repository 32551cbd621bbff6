"""What the logits say of each committed token, against an independent calculation."""

from __future__ import annotations

import contextvars
import copy
import threading
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessor

import models
import pertoken
from logit_reference import SIGNALS, sharp, signals
from pertoken import Profile
from pertoken.errors import SelectionError
from pertoken.observing import COMPUTED_ELSEWHERE

pytestmark = pytest.mark.usefixtures("checked_logits")


def check_tokens(profile: Profile, expected: dict[str, Tensor], *names: str) -> None:
    """`expected` (rows, tokens): what the table must say, by row and position."""
    table = profile.tokens
    assert len(table)
    rows, positions = torch.tensor(table["row"].copy()), torch.tensor(table["position"].copy())
    for name in names or SIGNALS:
        right = expected[name][rows, positions].numpy()
        np.testing.assert_allclose(table[name], right, rtol=2e-5, atol=2e-5, err_msg=name)
    np.testing.assert_array_equal(table["logits_weight"], 1)
    assert table["top1_prob"].dtype == np.float32


def generated(model: Any, *args: Any, **kwargs: Any) -> tuple[Profile, Any]:
    """A recorded generate() that keeps its logits."""
    with pertoken.profile(model, logits=True) as recording:
        result = model.generate(*args, output_logits=True, return_dict_in_generate=True, **kwargs)
    return recording.result(), result


def returned(result: Any) -> dict[str, Tensor]:
    """What the logits that generate() returned say of its tokens (rows, tokens)."""
    logits = torch.stack(result.logits, 1)
    return signals(logits, result.sequences[:, -logits.shape[1] :])


def check_generated(model: Any, *args: Any, **kwargs: Any) -> Profile:
    profile, result = generated(model, *args, **kwargs)
    check_tokens(profile, returned(result))
    assert len(profile.tokens) == result.logits[0].shape[0] * len(result.logits)
    assert profile.losses["observations_skipped"] == {}
    return profile


def test_of_a_padded_batch_whose_tokens_are_sampled() -> None:
    """The raw logits count, whatever is made of them before a token is drawn."""
    ids, mask = models.left_padded([3, 7, 5])
    check_generated(
        sharp(models.llama()),
        ids,
        attention_mask=mask,
        max_new_tokens=6,
        do_sample=True,
        temperature=3.0,
        top_k=20,
    )


CASES: dict[str, dict[str, Any]] = {
    "sequences": {"num_return_sequences": 3, "do_sample": True},
    "no cache": {"use_cache": False},
    "chunks": {"prefill_chunk_size": 3},
    "static cache": {"cache_implementation": "static"},
    "lookup": {"prompt_lookup_num_tokens": 3},
    "more kept": {"logits_to_keep": 5},
    "all kept": {"logits_to_keep": 1000},
    "inference": {},
}


@pytest.mark.parametrize("case", CASES)
def test_of_every_way_to_generate(case: str) -> None:
    model = sharp(models.llama())
    if case == "inference":
        with torch.inference_mode():
            check_generated(model, models.prompt(2), max_new_tokens=4)
        return
    ids = models.prompt(1, 4).repeat(1, 3)  # so that something is found by a lookup
    profile = check_generated(model, ids, max_new_tokens=12, **CASES[case])
    if case == "lookup":
        committed = profile.steps["tokens_committed"]
        assert committed.max() > 1  # some step committed what it verified


@pytest.mark.parametrize("build", [models.gpt2, models.t5, models.mamba])
def test_of_every_kind_of_model(build: Any) -> None:
    model = build()
    if build is not models.t5:
        model = sharp(model)
    check_generated(model, models.prompt(2), max_new_tokens=5)


def test_of_a_prompt_of_embeddings() -> None:
    model = sharp(models.llama())
    embeds = model.get_input_embeddings()(models.prompt(2))
    check_generated(model, inputs_embeds=embeds, max_new_tokens=4)


@pytest.mark.parametrize("takes_keep", [True, False])
def test_of_an_assistant_that_drafts(takes_keep: bool) -> None:
    """Some drafts are accepted, others are not; whether or not the model keeps all positions."""
    model = sharp(models.llama())
    assistant = copy.deepcopy(model)
    with torch.no_grad():
        assistant.lm_head.weight[::4] *= 0.2
    if not takes_keep:
        inner = type(model).forward

        class Keeping(type(model)):  # type: ignore[misc]
            def forward(self, input_ids: Tensor | None = None, **kwargs: Any) -> Any:
                return inner(self, input_ids=input_ids, **kwargs)

        model.__class__ = Keeping
    profile, result = generated(
        model, models.prompt(1), max_new_tokens=16, assistant_model=assistant
    )
    table, right = profile.tokens, returned(result)
    known = ~np.isnan(table["entropy"])
    # Of the first step of a model that keeps all, nobody says how many positions choose.
    assert known.all() or (not takes_keep and not known[0] and known[table["step"] > 0].all())
    for name in SIGNALS:
        expected = right[name][0].numpy()[table["position"]]
        np.testing.assert_allclose(table[name][known], expected[known], rtol=2e-5, atol=2e-5)
    assert profile.steps["tokens_committed"].max() > 1


def test_rows_that_have_ended_get_nothing_and_the_others_their_own() -> None:
    model = sharp(models.llama())
    ids = models.prompt(4)
    plain = model.generate(ids, max_new_tokens=8)[:, 7:]
    end = plain[1, 2].item()
    profile, result = generated(model, ids, max_new_tokens=8, eos_token_id=end)
    lengths = [
        row.index(end) + 1 if end in row else len(row) for row in result.sequences[:, 7:].tolist()
    ]
    assert len(set(lengths)) > 1
    assert np.bincount(profile.tokens["row"]).tolist() == lengths
    check_tokens(profile, returned(result))


def test_a_beam_search_says_nothing_and_why() -> None:
    model = sharp(models.llama())
    with pertoken.profile(model, logits=True) as recording:
        model.generate(models.prompt(2), max_new_tokens=4, num_beams=3)
    profile = recording.result()
    assert len(profile.tokens) == 8
    for name in (*SIGNALS, "logits_weight"):
        assert np.isnan(profile.tokens[name]).all()
    assert profile.losses["observations_skipped"] == {
        "logits: a beam search, whose rows are not its sequences": 1
    }


def test_of_forwards_of_one_generate_at_once_those_inside_another_are_counted() -> None:
    """Threads with a copy of the context, as asyncio.to_thread makes one, share a generate()."""
    model = sharp(models.llama())
    ran: list[threading.Thread] = []

    def run_in_copy(rows: int) -> None:
        context = contextvars.copy_context()
        thread = threading.Thread(target=context.run, args=(model, models.prompt(rows)))
        ran.append(thread)
        thread.start()
        thread.join()

    def inside(*_: Any) -> None:
        if ran and threading.current_thread() is ran[0]:
            run_in_copy(5)

    class Guide(LogitsProcessor):
        def __call__(self, input_ids: Any, scores: Any) -> Any:
            if not ran:
                run_in_copy(3)
            return scores

    model.model.register_forward_pre_hook(inside)
    profile, _ = generated(model, models.prompt(), max_new_tokens=4, logits_processor=[Guide()])
    assert len(ran) == 2
    assert profile.losses["observations_skipped"] == {
        "logits: another step of the same generate() is running": 1
    }
    assert profile.losses["faults"] == {}
    assert np.isfinite(profile.tokens["entropy"]).tolist() == [True] * 4


def test_off_by_default() -> None:
    model = models.llama()
    with pertoken.profile(model) as recording:
        model.generate(models.prompt(), max_new_tokens=3)
    profile = recording.result()
    for name in (*SIGNALS, "logits_weight"):
        assert np.isnan(profile.tokens[name]).all()
    assert profile.losses["observations_skipped"] == {}


def test_the_users_tokens_and_random_numbers_are_the_same() -> None:
    model = sharp(models.llama())

    def run() -> tuple[Any, Tensor]:
        torch.manual_seed(5)
        result = model.generate(
            models.prompt(2),
            max_new_tokens=6,
            do_sample=True,
            output_logits=True,
            return_dict_in_generate=True,
        )
        return result, torch.rand(3)

    plain, drawn = run()
    with pertoken.profile(model, logits=True):
        recorded, drawn_again = run()
    assert torch.equal(plain.sequences, recorded.sequences)
    assert torch.equal(torch.stack(plain.logits), torch.stack(recorded.logits))
    assert torch.equal(drawn, drawn_again)


def test_logits_that_are_changed_in_place_later_were_read_before() -> None:
    model = sharp(models.llama())
    kept: list[Tensor] = []

    class Spoiling(type(model)):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            output = super().forward(*args, **kwargs)
            kept.append(output.logits[:, -1].clone())
            return output

        def _update_model_kwargs_for_generation(self, outputs: Any, *args: Any, **kw: Any) -> Any:
            chosen = outputs.logits[:, -1].argmax(-1)
            outputs.logits.zero_()[:, -1, (chosen + 1) % models.VOCABULARY] = 1
            return super()._update_model_kwargs_for_generation(outputs, *args, **kw)

    model.__class__ = Spoiling
    with pertoken.profile(model, logits=True) as recording:
        out = model.generate(models.prompt(), max_new_tokens=4)
    check_tokens(recording.result(), signals(torch.stack(kept, 1), out[:, 7:]))


def test_of_so_many_steps_one_and_what_it_stands_for() -> None:
    model = sharp(models.llama())
    with pertoken.profile(model, logits=True, logits_every=4) as recording:
        result = model.generate(
            models.prompt(2), max_new_tokens=30, output_logits=True, return_dict_in_generate=True
        )
    table, right = recording.result().tokens, returned(result)
    known = ~np.isnan(table["logits_weight"])
    assert 2 * (1 + 1 + 7) <= known.sum() <= 2 * (1 + 1 + 8)
    assert set(table["logits_weight"][known].tolist()) == {1.0, 4.0}
    for name in SIGNALS:
        np.testing.assert_array_equal(np.isnan(table[name]), ~known)
        expected = right[name].numpy()[table["row"], table["position"]]
        np.testing.assert_allclose(table[name][known], expected[known], rtol=2e-5, atol=2e-5)


def test_a_generate_that_breaks_off_keeps_what_it_had() -> None:
    model = sharp(models.llama())
    calls = 0

    class Breaking(type(model)):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == 4:
                raise ValueError("broken")
            return super().forward(*args, **kwargs)

    model.__class__ = Breaking
    with pertoken.profile(model, logits=True) as recording, pytest.raises(ValueError, match="bro"):
        model.generate(models.prompt(), max_new_tokens=8)
    table = recording.result().tokens
    assert table["position"].tolist() == [0, 1, 2]
    assert not np.isnan(table["logprob"]).any()


def test_saved_and_loaded(tmp_path: Any) -> None:
    profile = check_generated(sharp(models.llama()), models.prompt(2), max_new_tokens=3)
    profile.save(tmp_path / "run.pertoken")
    loaded = pertoken.load(tmp_path / "run.pertoken")
    for name in (*SIGNALS, "logits_weight"):
        np.testing.assert_array_equal(loaded.tokens[name], profile.tokens[name])


def test_a_model_that_computes_them_outside_of_its_forward_is_not_read() -> None:
    """Its hidden states, which have the form of logits, are not taken for some."""

    class LikeVllm(torch.nn.Module):
        def forward(self, input_ids: Tensor) -> Tensor:
            return torch.randn(1, input_ids.shape[1], 16)

        def compute_logits(self, hidden: Tensor) -> Tensor:
            return hidden

    model = LikeVllm()
    with pertoken.profile(model, logits=True, budget=1.0) as recording:
        for _ in range(3):
            with pertoken.step(kind="decode", rows=1, tokens_committed=1):
                model(torch.zeros(1, 1, dtype=torch.long))
    profile = recording.result()
    assert len(profile.tokens) == 3
    for name in (*SIGNALS, "logits_weight"):
        assert np.isnan(profile.tokens[name]).all()
    assert profile.totals is not None and profile.totals.logits == {}
    assert profile.losses["observations_skipped"] == {f"logits: {COMPUTED_ELSEWHERE}": 1}
    assert COMPUTED_ELSEWHERE in str(profile.summary())


@pytest.mark.parametrize(
    "options", [{"logits": 1}, {"logits": "all"}, {"logits_every": 0}, {"logits_every": 2.5}]
)
def test_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(SelectionError, match=next(iter(options))):
        pertoken.profile(models.llama(), **options)
