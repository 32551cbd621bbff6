"""Logits on a GPU that is not one: the same numbers as on the processor, or counted.

The fake driver runs the logit kernels' own arithmetic on the host's memory, behind the model's
thread. So what counts as lying on the GPU is held, and left as it is.
"""

from __future__ import annotations

import copy
import ctypes
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import invariants
import models
import pertoken
from fake_gpu import FakeGpu, on_gpu, put_on
from logit_reference import SIGNALS, sharp, signals
from pertoken import Profile, _native
from pertoken.engines.engine import Engine
from pertoken.engines.row import Row
from waiting import wait_for

pytestmark = [
    pytest.mark.usefixtures("checked_logits"),
    pytest.mark.skipif(
        _native.build_info()["cuda_kernels"] == "none", reason="built without kernels"
    ),
]


def of_gpu(model: Any, *, ids: bool = True, dtype: torch.dtype = torch.float32) -> Any:
    """A copy of a decoder whose logits count as lying on a GPU, and, unless told, its ids too."""
    made = copy.deepcopy(model)
    kind = type(made)
    held: list[Tensor] = []

    def there(tensor: Tensor) -> Tensor:
        held.append(on_gpu(tensor.clone()))
        return held[-1]

    class OnGpu(kind):  # type: ignore[misc, valid-type]
        @functools.wraps(kind.forward)
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            output = super().forward(*args, **kwargs)
            output.logits = there(output.logits.to(dtype))
            return output

        def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> Any:
            inputs = super().prepare_inputs_for_generation(*args, **kwargs)
            if ids and inputs.get("input_ids") is not None:
                inputs["input_ids"] = there(inputs["input_ids"])
            return inputs

        def generate(self, *args: Any, **kwargs: Any) -> Any:
            result = super().generate(*args, **kwargs)
            if ids:
                result.sequences = there(result.sequences)
            return result

    made.__class__ = OnGpu
    put_on(made, 0)
    return made


def generated(model: Any, *args: Any, **kwargs: Any) -> tuple[Profile, Any]:
    with pertoken.profile(model, logits=True) as recording:
        result = model.generate(*args, output_logits=True, return_dict_in_generate=True, **kwargs)
    profile = recording.result()
    invariants.check(profile)
    return profile, result


def check_generated(model: Any, *args: Any, **kwargs: Any) -> Profile:
    profile, result = generated(model, *args, **kwargs)
    assert profile.losses["observations_skipped"] == {}
    assert profile.losses["faults"] == {}
    logits = torch.stack(result.logits, 1)
    expected = signals(logits, result.sequences[:, -logits.shape[1] :])
    table = profile.tokens
    rows, positions = torch.tensor(table["row"].copy()), torch.tensor(table["position"].copy())
    assert len(table) == logits.shape[0] * logits.shape[1]
    for name in SIGNALS:
        right = expected[name][rows, positions].numpy()
        np.testing.assert_allclose(table[name], right, rtol=2e-5, atol=2e-5, err_msg=name)
    np.testing.assert_array_equal(table["logits_weight"], 1)
    return profile


@pytest.mark.parametrize("ids", [True, False], ids=["ids there", "ids in host memory"])
def test_of_a_padded_batch_whose_tokens_are_sampled(gpu: FakeGpu, ids: bool) -> None:
    prompt, mask = models.left_padded([3, 7, 5])
    check_generated(
        of_gpu(sharp(models.llama()), ids=ids),
        prompt,
        attention_mask=mask,
        max_new_tokens=6,
        do_sample=True,
        temperature=3.0,
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_of_narrow_formats(gpu: FakeGpu, dtype: torch.dtype) -> None:
    check_generated(of_gpu(sharp(models.llama()), dtype=dtype), models.prompt(2), max_new_tokens=4)


@pytest.mark.parametrize("ids", [True, False], ids=["ids there", "ids in host memory"])
def test_of_a_verification_each_place(gpu: FakeGpu, ids: bool) -> None:
    prompt = models.prompt(1, 4).repeat(1, 3)  # so that something is found by a lookup
    model = of_gpu(sharp(models.llama()), ids=ids)
    profile = check_generated(model, prompt, max_new_tokens=12, prompt_lookup_num_tokens=3)
    assert profile.steps["tokens_committed"].max() > 1


def test_of_more_positions_than_choose_the_last_one(gpu: FakeGpu) -> None:
    model = of_gpu(sharp(models.llama()))
    check_generated(model, models.prompt(2), max_new_tokens=4, logits_to_keep=5)


def test_a_budget_reads_there_in_some_steps(gpu: FakeGpu) -> None:
    model = of_gpu(sharp(models.llama()))
    with pertoken.profile(model, logits=True, budget=1.0) as recording:

        def some_are_read() -> bool:
            model.generate(models.prompt(2), max_new_tokens=8, return_dict_in_generate=True)
            read = np.isfinite(recording.result().tokens["logits_weight"])
            return bool(read.any() and not read.all())

        wait_for(some_are_read)
    profile = recording.result()
    invariants.check(profile)
    tokens, read = profile.tokens, np.isfinite(profile.tokens["logits_weight"])
    for name in SIGNALS:
        assert (np.isfinite(tokens[name]) == read).all()
    assert tokens["logits_weight"][read].min() >= 16 / 15 - 1e-6
    # Every generate() has said the same of the tokens that were read.
    for position in range(8):
        at = read & (tokens["position"] == position) & (tokens["row"] == 0)
        assert not at.any() or np.ptp(tokens["entropy"][at]) < 1e-5
    decode = profile.meta["cost"]["kinds"]["decode"]
    of_decode = profile.steps["step"][profile.steps["kind"] == "decode"]
    assert decode["detailed"]["logits"] == np.isin(of_decode, tokens["step"][read]).sum()
    assert decode["details"]["logits"]["share"] > 0
    assert profile.losses["observations_skipped"] == {}


def test_what_arrives_is_spooled(gpu: FakeGpu, tmp_path: Path) -> None:
    model = of_gpu(sharp(models.llama()))
    with pertoken.profile(model, logits=True, spool=tmp_path) as recording:
        model.generate(models.prompt(2), max_new_tokens=4, return_dict_in_generate=True)
    live = recording.result()
    del recording
    recovered = pertoken.recover(tmp_path)
    invariants.check_logits(recovered)
    assert np.isfinite(live.tokens["logprob"]).all()
    for name in (*SIGNALS, "logits_weight"):
        np.testing.assert_array_equal(recovered.tokens[name], live.tokens[name])
    assert recovered.tracks["tid"].tolist() == live.tracks["tid"][:1].tolist()  # no thread more


class Fixed(nn.Module):
    """Puts out given logits (rows, positions, vocabulary), whatever it is fed."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.weight = nn.Linear(1, 1)
        self.output: Any = on_gpu(output)
        put_on(self, 0)

    def forward(self, input_ids: Tensor, logits_to_keep: Any = 0) -> Any:
        return self.output


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3)) * 3


def declared(model: Fixed, ids: Tensor, **step: Any) -> Profile:
    with pertoken.profile(model, logits=True) as recording, pertoken.step(**step):
        model(ids)
    return recording.result()


def test_a_declared_step_and_what_an_engine_says_of_it(gpu: FakeGpu) -> None:
    logits = random(2, 3, 50)
    model = Fixed(logits)
    engine = Engine(model=model)
    with pertoken.profile(model, logits=True) as recording:
        with engine.step([Row(name, "verify", 3, 9) for name in "ab"]) as step:
            model(torch.ones(2, 3, dtype=torch.int64))
        assert step.keeps_logits()
        step.committed({"a": 3, "b": 1}, {"a": [4, 5, 6]})
        for name in "ab":
            engine.request_finished(name)
    assert not engine.faults
    profile = recording.result()
    right = signals(logits[[0, 0, 0, 1], [0, 1, 2, 0]], torch.tensor([4, 5, 6, 0]))
    table = profile.tokens
    assert np.isnan(table["logprob"]).tolist() == [False, False, False, True]
    np.testing.assert_allclose(table["logprob"][:3], right["logprob"][:3], rtol=2e-5)
    for name in ("top1_prob", "margin", "entropy"):
        np.testing.assert_allclose(table[name], right[name], rtol=2e-5, atol=2e-5)
    assert profile.losses["observations_skipped"] == {}


@pytest.mark.parametrize("ids", [True, False], ids=["ids there", "ids in host memory"])
def test_a_loop_by_hand_is_fed_what_was_chosen(gpu: FakeGpu, ids: bool) -> None:
    model = of_gpu(sharp(models.llama()), ids=ids)
    fed, cache = models.prompt(2), None
    logits, chosen, held = [], [], []
    with pertoken.profile(model, logits=True) as recording, pertoken.request():
        for _ in range(4):
            with pertoken.step(kind="decode", rows=2, tokens_committed=2):
                output = model(input_ids=fed, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            logits.append(output.logits[:, -1])
            chosen.append(logits[-1].argmax(-1))
            fed = chosen[-1][:, None]
            if ids:
                held.append(on_gpu(fed.clone()))
                fed = held[-1]
    profile = recording.result()
    right = signals(torch.stack(logits, 1), torch.stack(chosen, 1))
    rows, positions = profile.tokens["row"], profile.tokens["position"]
    for name in SIGNALS:
        found = profile.tokens[name]
        known = np.isfinite(found)
        assert (known == (positions < 3 if name == "logprob" else True)).all()
        expected = right[name].detach().numpy()[rows, positions]
        np.testing.assert_allclose(found[known], expected[known], rtol=2e-5, atol=2e-5)
    assert profile.losses["observations_skipped"] == {}


def test_what_cannot_be_read_there_is_counted(gpu: FakeGpu) -> None:
    profile = declared(
        Fixed(random(2, 1, 50).double()), models.prompt(2, 1), kind="decode", tokens_committed=2
    )
    ((reason, count),) = profile.losses["observations_skipped"].items()
    assert "float32, float16 and bfloat16" in reason
    assert count == 1
    assert np.isnan(profile.tokens["entropy"]).all()


def test_a_capture_is_left_alone_and_counted(gpu: FakeGpu) -> None:
    logits = random(3, 1, 50)
    model, graph = Fixed(logits), gpu.new_graph()
    with pertoken.profile(model, logits=True) as recording:
        graph.capture_begin()
        with pertoken.step(kind="decode", tokens_committed=3):
            model(models.prompt(3, 1))
        graph.capture_end()
        with pertoken.step(kind="decode", tokens_committed=3):
            model(models.prompt(3, 1))
    profile = recording.result()
    assert profile.losses["observations_skipped"] == {
        "tokens: the stream was being captured into a CUDA graph": 3
    }
    assert np.isfinite(profile.tokens["entropy"]).tolist() == [False] * 3 + [True] * 3


def test_a_gpu_that_fails_is_counted_and_the_model_runs(gpu: FakeGpu) -> None:
    model = Fixed(random(2, 1, 50))
    ids = models.prompt(2, 1)
    with pertoken.profile(model, logits=True) as recording:
        for step in range(3):
            if step == 1:
                wait_for(lambda: np.isfinite(recording.result().tokens["entropy"]).sum() == 2)
                gpu.library.fake_break(700)
            with pertoken.step(kind="decode", tokens_committed=2):
                assert model(ids) is model.output
    profile = recording.result()
    gpu.library.fake_break(0)
    assert profile.losses["observations_skipped"] == {
        "tokens: the GPU or its context had failed": 4
    }
    assert recording.totals().losses["observations_skipped"] == 4
    assert any("A GPU failed while it read logits" in text for text in profile.losses["reasons"])
    assert np.isfinite(profile.tokens["entropy"]).sum() == 2


def test_results_that_do_not_come_are_waited_for_so_long_and_counted(gpu: FakeGpu) -> None:
    stream = gpu.library.fake_new_stream(0)
    gpu.streams[0] = stream
    model = Fixed(random(2, 1, 50))
    with pertoken.profile(model, logits=True) as recording:
        gpu.library.fake_hold(ctypes.c_void_p(stream), 0)
        with pertoken.step(kind="decode", tokens_committed=2):
            model(models.prompt(2, 1))
    profile = recording.result()
    assert profile.losses["observations_skipped"] == {
        "tokens: the GPU did not come to it in time": 2
    }
    gpu.library.fake_release(ctypes.c_void_p(stream), 0)
