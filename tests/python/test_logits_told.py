"""Logits in steps that the user or an engine tells of, and what is no logits."""

from __future__ import annotations

import contextvars
import math
import threading
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import ContinuousBatchingConfig, GenerationConfig

import models
import pertoken
from logit_reference import SIGNALS, sharp, signals
from pertoken import Profile
from pertoken.engines.engine import Engine, manual
from pertoken.engines.row import Row

pytestmark = pytest.mark.usefixtures("checked_logits")


class Fixed(nn.Module):
    """Puts out given logits (rows, positions, vocabulary), whatever it is fed."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Linear(1, 1)
        self.output: Any = None

    def forward(
        self, input_ids: Tensor, attention_mask: Any = None, logits_to_keep: Any = 0
    ) -> Any:
        return self.output


def declared(output: Any, ids: Tensor, *, rows: Any = None, **step: Any) -> Profile:
    model = Fixed()
    model.output = output
    kwargs = step.pop("kwargs", {})
    with pertoken.profile(model, logits=True) as recording, pertoken.request():
        given = {"rows": rows} if rows is not None else {"kind": "decode", **step}
        with pertoken.step(**given):
            model(ids, **kwargs)
    for request in [row.request for row in rows or ()]:
        manual.request_finished(request)
    return recording.result()


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3)) * 3


def check_declared(profile: Profile, logits: Tensor) -> None:
    """`logits` (tokens, vocabulary), in the order of the table."""
    right = signals(logits, torch.zeros(len(logits), dtype=torch.int64))
    assert len(profile.tokens) == len(logits)
    for name in ("top1_prob", "margin", "entropy"):
        np.testing.assert_allclose(profile.tokens[name], right[name], rtol=2e-5, atol=2e-5)
    assert np.isnan(profile.tokens["logprob"]).all()  # which token was chosen is not seen


def test_a_declared_step_reads_the_last_position_of_each_row() -> None:
    logits = random(3, 4, 50)
    ids = models.prompt(3, 4)
    for output in (
        logits,
        {"logits": logits},
        (torch.tensor(0.5), logits),
        logits[:, -1:],
        logits[:, -1],
        logits.double(),
        logits.transpose(0, 1).contiguous().mT.mT.transpose(0, 1),
    ):
        check_declared(declared(output, ids, tokens_committed=3), logits[:, -1])


def test_padding_on_the_right_ends_a_row_before_its_last_position() -> None:
    logits = random(3, 4, 50)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]])
    profile = declared(
        logits, models.prompt(3, 4), tokens_committed=3, kwargs={"attention_mask": mask}
    )
    check_declared(profile, logits[torch.arange(3), torch.tensor([3, 1, 2])])


def test_told_rows_have_those_of_their_own_request() -> None:
    """A row apiece, or all packed into one, of which the model may keep chosen positions."""
    lengths, packed = [2, 1, 3], random(1, 7, 50)  # the last position is padding
    rows = [
        Row("a", "prefill", 2, 0, 1),
        Row("b", "decode", 1, 9, 1),
        Row("c", "prefill", 3, 0, 1),
    ]
    ends = torch.tensor(lengths).cumsum(0) - 1
    for output, kwargs in (
        (packed, {}),
        (packed[:, ends], {"logits_to_keep": ends}),
        (packed[:, ends.flip(0)], {"logits_to_keep": ends.flip(0).int()}),
    ):
        profile = declared(output, models.prompt(1, 7), rows=rows, kwargs=kwargs)
        check_declared(profile, packed[0, ends])
        names = dict(
            zip(profile.requests["request"].tolist(), profile.requests["id"].tolist(), strict=True)
        )
        assert [names[number] for number in profile.tokens["request"].tolist()] == ["a", "b", "c"]
    # Of fewer positions, and nobody says which.
    profile = declared(packed[:, ends], models.prompt(1, 7), rows=rows)
    assert np.isnan(profile.tokens["entropy"]).all()
    assert profile.losses["observations_skipped"] == {
        "logits: the positions of the rows are not known": 1
    }
    apart = random(3, 1, 50)
    decode = [Row(name, "decode", 1, 9, 1) for name in "cab"]
    check_declared(declared(apart, models.prompt(3, 1), rows=decode), apart[:, 0])


def test_a_declared_verification_reads_what_it_verifies() -> None:
    logits = random(1, 4, 50)
    profile = declared(logits, models.prompt(1, 4), kind="verify", tokens_committed=3)
    check_declared(profile, logits[0, :3])


def test_a_verification_that_keeps_more_than_it_is_fed_reads_what_that_is() -> None:
    for keep in (5, 10**9):
        logits, kwargs = random(1, 4, 50), {"logits_to_keep": keep}
        profile = declared(
            logits, models.prompt(1, 4), kind="verify", tokens_committed=3, kwargs=kwargs
        )
        check_declared(profile, logits[0, :3])
        packed = random(1, 7, 50)
        rows = [Row("a", "verify", 4, 9, 3), Row("b", "verify", 3, 9, 2)]
        profile = declared(packed, models.prompt(1, 7), rows=rows, kwargs=kwargs)
        check_declared(profile, packed[0, [0, 1, 2, 4, 5]])


def test_more_tokens_than_the_logits_choose_are_of_elsewhere() -> None:
    profile = declared(random(1, 4, 50), models.prompt(1, 4), tokens_committed=3)
    assert len(profile.tokens) == 3
    assert np.isnan(profile.tokens["entropy"]).all()


def test_of_several_forwards_in_a_step_nobody_knows_which_chose() -> None:
    model = Fixed()
    model.output = random(1, 1, 50)
    step = pertoken.step(kind="decode", rows=1, tokens_committed=1)
    with pertoken.profile(model, logits=True) as recording, pertoken.request(), step:
        model(models.prompt(1, 1))
        model(models.prompt(1, 1))
    table = recording.result().tokens
    assert len(table) == 1
    assert np.isnan(table["entropy"]).all()


class Output(dict):  # type: ignore[type-arg]
    """A structure."""


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        (Output(last_hidden_state=torch.ones(2, 1, 8)), "a model's output has no logits"),
        (7, "a model's output has no logits"),
        (None, "a model's output has no logits"),
        ((torch.tensor(0.5),), "a model's output has no logits"),
        (torch.ones(2, 1, 3, dtype=torch.int64), "a model's output has no logits"),
        (torch.ones(3, 1, 8), "of another form"),
        (torch.ones(2, 1, 3, 4), "of another form"),
        (torch.ones(2, 1, 0), "of another form"),
        (torch.ones(2, 0, 4), "of another form"),
        (torch.ones(2, 1, 4, device="meta"), ""),
        (torch.ones(2, 1, 4).to_sparse(), ""),
        (torch.ones(2, 1, 4, dtype=torch.complex64), ""),
        (torch.nested.nested_tensor([torch.ones(1, 3), torch.ones(2, 3)]), ""),
    ],
)
def test_what_is_no_logits_is_skipped_and_counted(output: Any, reason: str) -> None:
    profile = declared(output, models.prompt(2, 1), tokens_committed=2)
    ((found, count),) = profile.losses["observations_skipped"].items()
    assert found.startswith("logits: ")
    assert reason in found
    assert count == 1
    assert np.isnan(profile.tokens["entropy"]).all()
    assert profile.losses["faults"] == {}


def test_a_masked_vocabulary_and_a_nan() -> None:
    logits = random(3, 1, 50)
    logits[0, 0, 1:] = -math.inf
    logits[1, 0, 7] = math.nan
    profile = declared(logits, models.prompt(3, 1), tokens_committed=3)
    assert profile.tokens["top1_prob"][0] == 1
    assert profile.tokens["entropy"][0] == 0
    assert np.isnan(profile.tokens["top1_prob"]).tolist() == [False, True, False]
    assert profile.tokens["logits_weight"].tolist() == [1, 1, 1]


def test_the_packed_rows_of_generate_batch() -> None:
    model = sharp(models.llama())
    prompts = [models.prompt(1, length, seed=length)[0].tolist() for length in (3, 9, 5)]
    settings = GenerationConfig(max_new_tokens=5, do_sample=False, eos_token_id=-1, pad_token_id=0)
    with pertoken.profile(model, logits=True) as recording:
        results = model.generate_batch(
            prompts,
            generation_config=settings,
            continuous_batching_config=ContinuousBatchingConfig(
                page_size=4, num_blocks=64, max_batch_tokens=16
            ),
            progress_bar=False,
        )
    profile = recording.result()
    table = profile.tokens
    assert len(table) == 15
    names = dict(
        zip(profile.requests["request"].tolist(), profile.requests["id"].tolist(), strict=True)
    )
    for name, result in results.items():
        whole = torch.tensor([result.prompt_ids + result.generated_tokens])
        with torch.no_grad():
            logits = model(whole).logits[0, len(result.prompt_ids) - 1 : -1]
        right = signals(logits, whole[0, len(result.prompt_ids) :])
        own = np.array([names[number] == name for number in table["request"].tolist()])
        at = table["position"][own]
        for signal in SIGNALS:
            np.testing.assert_allclose(
                table[signal][own], right[signal].numpy()[at], rtol=1e-4, atol=1e-4
            )


def by_hand(model: Any, ids: Tensor, tokens: int, **mask: Any) -> tuple[list[Tensor], list[Tensor]]:
    """A loop as users write it, greedy; the logits and the tokens of each step."""
    logits, chosen = [], []
    cache = None
    for number in range(tokens):
        kind = "prefill" if number == 0 else "decode"
        with pertoken.step(kind=kind, rows=len(ids), tokens_committed=len(ids)):
            output = model(input_ids=ids, past_key_values=cache, use_cache=True, **mask)
        cache = output.past_key_values
        logits.append(output.logits[:, -1])
        chosen.append(logits[-1].argmax(-1))
        ids = chosen[-1][:, None]
        if mask:
            one = torch.ones(len(ids), 1, dtype=torch.int64)
            mask = {"attention_mask": torch.cat([mask["attention_mask"], one], 1)}
    return logits, chosen


def check_loop(profile: Profile, loop: tuple[list[Tensor], list[Tensor]]) -> None:
    """All signals of each token, the log-probability of the last one, of which none says, aside."""
    right = signals(torch.stack(loop[0], 1), torch.stack(loop[1], 1))
    table = profile.tokens
    rows, positions = torch.tensor(table["row"].copy()), torch.tensor(table["position"].copy())
    for name in SIGNALS:
        known = np.isfinite(table[name])
        expected = right[name].detach()[rows, positions].numpy()
        np.testing.assert_allclose(table[name][known], expected[known], rtol=2e-5, atol=2e-5)
        last = table["position"] == len(loop[0]) - 1
        assert (known == (~last if name == "logprob" else True)).all(), name


@pytest.mark.parametrize("is_padded", [False, True])
def test_a_loop_by_hand_is_fed_what_was_chosen(is_padded: bool) -> None:
    model = sharp(models.llama())
    ids, mask = models.left_padded([3, 7, 5])
    given = {"attention_mask": mask} if is_padded else {}
    with pertoken.profile(model, logits=True) as recording, pertoken.request():
        loop = by_hand(model, ids, 5, **given)
    profile = recording.result()
    assert len(profile.tokens) == 15
    check_loop(profile, loop)
    assert profile.losses["observations_skipped"] == {}


def test_a_loop_without_a_cache_feeds_all_again() -> None:
    model = sharp(models.llama())
    ids = models.prompt(2)
    logits, chosen = [], []
    with pertoken.profile(model, logits=True) as recording, pertoken.request():
        for _ in range(4):
            with pertoken.step(kind="decode", rows=2, tokens_committed=2):
                logits.append(model(input_ids=ids, use_cache=False).logits[:, -1])
            chosen.append(logits[-1].argmax(-1))
            ids = torch.cat([ids, chosen[-1][:, None]], 1)
    check_loop(recording.result(), (logits, chosen))


def test_loops_of_two_requests_in_turns_each_have_their_own() -> None:
    model = sharp(models.llama())
    ids = [models.prompt(2, 5, seed=1), models.prompt(2, 5, seed=2)]
    caches: list[Any] = [None, None]
    logits: list[list[Tensor]] = [[], []]
    chosen: list[list[Tensor]] = [[], []]
    requests = [pertoken.request(id="a"), pertoken.request(id="b")]
    scopes = [contextvars.copy_context() for _ in requests]

    def advance(which: int) -> None:
        with pertoken.step(kind="decode", rows=2, tokens_committed=2):
            output = model(input_ids=ids[which], past_key_values=caches[which], use_cache=True)
        caches[which] = output.past_key_values
        logits[which].append(output.logits[:, -1])
        chosen[which].append(logits[which][-1].argmax(-1))
        ids[which] = chosen[which][-1][:, None]

    with pertoken.profile(model, logits=True) as recording:
        for scope, request in zip(scopes, requests, strict=True):
            scope.run(request.__enter__)
        for _ in range(4):
            for which, scope in enumerate(scopes):
                scope.run(advance, which)
        for scope, request in zip(scopes, requests, strict=True):
            scope.run(request.__exit__, None, None, None)
    profile = recording.result()
    names = profile.requests.to_pandas().set_index("request")["id"]
    for which, name in enumerate("ab"):
        own = names[profile.tokens["request"]].to_numpy() == name
        right = signals(torch.stack(logits[which], 1), torch.stack(chosen[which], 1))
        rows, positions = profile.tokens["row"][own], profile.tokens["position"][own]
        found, last = profile.tokens["logprob"][own], positions == 3
        assert np.isnan(found).tolist() == last.tolist()
        expected = right["logprob"].detach().numpy()[rows, positions]
        np.testing.assert_allclose(found[~last], expected[~last], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("next_rows", [2, 3])
def test_a_forward_that_does_not_go_on_behind_it_tells_nothing(next_rows: int) -> None:
    """Another batch, or a prompt of its own, in the same request."""
    model = sharp(models.llama())
    with pertoken.profile(model, logits=True) as recording, pertoken.request():
        for rows in (2, next_rows):
            with pertoken.step(kind="prefill", rows=rows, tokens_committed=rows):
                model(input_ids=models.prompt(rows), use_cache=True)
    table = recording.result().tokens
    assert np.isfinite(table["entropy"]).all()
    assert np.isnan(table["logprob"]).all()


def engine_step(logits: Tensor, chosen: Any, counts: Any, *, late: bool, **options: Any) -> Profile:
    model = Fixed()
    model.output = logits
    engine = Engine(model=model)
    phase = "verify" if logits.shape[1] > 1 else "decode"
    with pertoken.profile(model, logits=True, **options) as recording:
        rows = [Row(name, phase, logits.shape[1], 9) for name in counts]
        with engine.step(rows) as step:
            model(torch.ones(logits.shape[:2], dtype=torch.int64))
        assert step.keeps_logits()
        if late:
            thread = threading.Thread(target=step.committed, args=(counts, chosen))
            thread.start()
            thread.join()
        else:
            step.committed(counts, chosen)
        assert not step.keeps_logits()
        for name in counts:
            engine.request_finished(name)
    assert not engine.faults
    return recording.result()


@pytest.mark.parametrize("late", [False, True])
def test_an_engine_may_say_what_was_chosen(late: bool) -> None:
    """At once or from another thread; of several places of a row, and of some rows only."""
    logits = random(3, 1, 50)
    profile = engine_step(logits, {"a": [7], "c": [49]}, {"a": 1, "b": 1, "c": 1}, late=late)
    right = signals(logits[:, 0], torch.tensor([7, 0, 49]))
    found = profile.tokens["logprob"]
    assert np.isnan(found).tolist() == [False, True, False]
    np.testing.assert_allclose(found[[0, 2]], right["logprob"][[0, 2]], rtol=2e-5)
    np.testing.assert_allclose(profile.tokens["entropy"], right["entropy"], rtol=2e-5)

    verified = random(2, 3, 50)
    ids = {"a": [4, 5, 6], "b": [9]}
    profile = engine_step(verified, ids, {"a": 3, "b": 1}, late=late)
    right = signals(verified[[0, 0, 0, 1], [0, 1, 2, 0]], torch.tensor([4, 5, 6, 9]))
    np.testing.assert_allclose(profile.tokens["logprob"], right["logprob"], rtol=2e-5)


def test_what_was_chosen_is_what_was_said_whatever_its_reading_changes() -> None:
    class Clears:
        def __iter__(self) -> Any:
            chosen.clear()
            return iter([7])

    model = Fixed()
    model.output = random(2, 1, 50)
    chosen: list[Any] = [Clears(), [49]]
    engine = Engine(model=model)
    with pertoken.profile(model, logits=True) as recording:
        with engine.step([Row(name, "decode", 1, 9) for name in "ab"]) as step:
            model(torch.ones(2, 1, dtype=torch.int64))
        step.commit([1, 1], chosen)
        for name in "ab":
            engine.request_finished(name)
    right = signals(model.output[:, 0], torch.tensor([7, 49]))
    np.testing.assert_allclose(recording.result().tokens["logprob"], right["logprob"], rtol=2e-5)


@pytest.mark.parametrize("chosen", [{"a": ["x"]}, {"a": [50]}, {"a": [-1]}, {"a": 5}, {}, None])
def test_what_is_no_token_leaves_the_log_probability_unknown(chosen: Any) -> None:
    profile = engine_step(random(1, 1, 50), chosen, {"a": 1}, late=False)
    assert np.isnan(profile.tokens["logprob"]).tolist() == [True]
    assert np.isfinite(profile.tokens["entropy"]).all()
    assert profile.losses["faults"] == {}


def test_logits_of_steps_that_are_never_told_are_not_kept() -> None:
    model = Fixed()
    model.output = random(1, 1, 50)
    engine = Engine(model=model)
    steps = []
    with pertoken.profile(model, logits=True):
        for _ in range(12):
            with engine.step([Row("a", "decode", 1, 9)]) as step:
                model(torch.ones(1, 1, dtype=torch.int64))
            steps.append(step)
    assert [step.keeps_logits() for step in steps] == [False] * 4 + [True] * 8
