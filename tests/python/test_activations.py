"""Observed outputs are those of the model, value for value, at the rate that was asked for."""

from __future__ import annotations

import copy
import threading
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import models
import pertoken
from pertoken import Histogram
from pertoken.errors import SelectionError


def outputs_by_hooks(model: nn.Module, names: list[str], run: Any) -> dict[str, list[Histogram]]:
    """What the named modules put out, counted by hooks on a run of its own."""
    found: dict[str, list[Histogram]] = {name: [] for name in names}

    def note(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            first = output if isinstance(output, Tensor) else output[0]
            found[name].append(Histogram.from_values(first))

        return hook

    handles = [model.get_submodule(name).register_forward_hook(note(name)) for name in names]
    run()
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("make", [models.llama, models.gpt2, models.t5, models.mamba])
def test_every_step_of_every_site_is_counted_exactly(make: Any) -> None:
    model = make()

    def run() -> None:
        model.generate(models.prompt(2), max_new_tokens=4)

    with pertoken.profile(model, activations="layers", activation_every=1) as recording:
        run()
    profile = recording.result()
    names = list(dict.fromkeys(profile.activations["site"].tolist()))
    assert len(names) > 3
    expected = outputs_by_hooks(model, names, run)
    table = profile.activations
    for name in names:
        steps = table["step"][table["site"] == name]
        inside = [histogram for histogram, at in zip(expected[name], steps, strict=True) if at >= 0]
        assert len(inside) == len(expected[name])
        merged = Histogram()
        for histogram in inside:
            merged = merged.merge(histogram)
        assert profile.histogram(name) == merged
    assert profile.losses["observations_skipped"] == {}
    assert set(table["weight"].tolist()) == {1.0}


def test_a_histogram_of_a_step_and_of_a_request() -> None:
    model = models.llama()
    with pertoken.profile(model, activations="lm_head", activation_every=1) as recording:
        model.generate(models.prompt(1), max_new_tokens=3)
        model.generate(models.prompt(1, seed=5), max_new_tokens=2)
    profile = recording.result()
    whole = profile.histogram("lm_head")
    first, second = (profile.histogram("lm_head", request=request) for request in (0, 1))
    assert (first.count, second.count) == (3 * models.VOCABULARY, 2 * models.VOCABULARY)
    merged = first.merge(second)
    assert (merged.count, merged.min, merged.max) == (whole.count, whole.min, whole.max)
    steps = [profile.histogram("lm_head", step=step) for step in range(5)]
    assert all(histogram.count == models.VOCABULARY for histogram in steps)
    assert profile.histogram("lm_head", step=99).count == 0
    assert profile.histogram("lm_head", step=3, request=0).count == 0
    with pytest.raises(SelectionError, match="there are lm_head"):
        profile.histogram("model.layers.0")
    given: tuple[Any, ...] = (None, 3, b"lm_head")
    for site in given:
        with pytest.raises(SelectionError, match="give the name of a site"):
            profile.histogram(site)
    for number in ({"step": "0"}, {"request": 0.5}):
        with pytest.raises(SelectionError, match="give the integer"):
            profile.histogram("lm_head", **number)  # type: ignore[arg-type]


def test_totals_have_a_histogram_a_site_and_kind_and_merge() -> None:
    model = models.llama()
    with pertoken.profile(model, activations="layers", activation_every=1) as recording:
        model.generate(models.prompt(2), max_new_tokens=4)
    profile, totals = recording.result(), recording.totals()
    by_kind = {
        kind: totals.activations[pertoken.totals.SiteKey("model.layers.1", kind, "module")]
        for kind in ("prefill", "decode")
    }
    assert {kind: own.observations for kind, own in by_kind.items()} == {"prefill": 1, "decode": 3}
    merged = by_kind["prefill"].values.merge(by_kind["decode"].values)
    found = profile.histogram("model.layers.1")
    for side in ("positive", "negative"):
        assert getattr(merged, side).offset == getattr(found, side).offset
        assert getattr(merged, side).counts.tolist() == getattr(found, side).counts.tolist()
    assert (merged.count, merged.min, merged.max) == (found.count, found.min, found.max)
    assert merged.sum == pytest.approx(found.sum, rel=1e-12)
    assert profile.totals is not None
    again = pertoken.Totals.from_dict(profile.totals.to_dict())
    assert again == profile.totals
    twice = again.merge(profile.totals)
    assert next(iter(twice.activations.values())).observations == 2


def test_one_step_in_sixteen_is_observed_and_weights_add_up() -> None:
    model = models.Regressor()
    with pertoken.profile(model, activations="*") as recording:
        for _ in range(1 + 16 * 5):
            model(torch.ones(1, 6))
    table = recording.result().activations
    weights = table["weight"][table["site"] == "first"]
    assert sorted(weights.tolist()) == [1.0] + [16.0] * 5
    assert weights.sum() == 1 + 16 * 5
    # Both sites in the same steps.
    assert (
        table["step"][table["site"] == "first"].tolist()
        == table["step"][table["site"] == "second"].tolist()
    )


def test_the_programs_random_state_and_outputs_are_left_alone() -> None:
    import random

    model, inputs = models.Regressor(), torch.ones(2, 6)
    expected = model(inputs)
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    before = (torch.random.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1])
    with pertoken.profile(model, activations="*", activation_every=1):
        assert torch.equal(model(inputs), expected)
        model(inputs).sum().backward()
    after = (torch.random.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1])
    assert before[:2] == after[:2]
    assert (before[2] == after[2]).all()
    assert "_compiled_call_impl" not in model.__dict__


class Odd(nn.Module):
    """Gives whatever it was told to."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()

    def forward(self, output: Any) -> Any:
        return self.inner(output)


class Inner(nn.Module):
    """A module inside, which is observed."""

    def forward(self, output: Any) -> Any:
        return output


def observed(output: Any, **options: Any) -> pertoken.Profile:
    model = Odd()
    with pertoken.profile(model, activations="inner", activation_every=1, **options) as recording:
        assert model(output) is output
    return recording.result()


VALUES = torch.linspace(-2, 3, 60)


@pytest.mark.parametrize(
    "tensor",
    [
        VALUES,
        VALUES.reshape(3, 4, 5).permute(2, 0, 1),
        VALUES[7::5],
        VALUES.reshape(60, 1).expand(60, 3),
        VALUES.clone().requires_grad_(),
        nn.Parameter(VALUES.clone()),
        VALUES.bfloat16(),
        VALUES.half(),
        VALUES.double(),
        VALUES.to(torch.float8_e4m3fn),
        VALUES.to(torch.float8_e5m2),
        torch.tensor(2.5),
        torch.randn(70000),
        torch._neg_view(VALUES),
    ],
    ids=lambda tensor: f"{tensor.dtype}-{tuple(tensor.shape)}-{tensor.stride()}",
)
def test_tensors_of_any_kind_and_layout_are_counted_where_they_lie(tensor: Tensor) -> None:
    profile = observed(tensor)
    assert profile.losses["observations_skipped"] == {}
    assert profile.histogram("inner") == Histogram.from_values(tensor)
    assert profile.activations["dtype"].tolist() == [str(tensor.dtype).removeprefix("torch.")]


def test_tensors_of_inference_mode_are_counted() -> None:
    with torch.inference_mode():
        tensor = torch.ones(4) * 3
    assert observed(tensor).histogram("inner").sum == 12


def test_the_first_floating_point_tensor_of_an_output_is_counted_unless_told() -> None:
    ints, first, second = torch.arange(3), torch.ones(2), torch.full((5,), 7.0)
    for output in (
        (ints, first, second),
        [None, (ints, [first]), second],
        {"ids": ints, "hidden": first, "other": second},
        (3, "text", {"deep": first}, second),
    ):
        assert observed(output).histogram("inner").sum == 2
    assert observed((ints, first, second), activation_output=2).histogram("inner").sum == 35
    named = {"ids": ints, "hidden": first, "other": second}
    assert observed(named, activation_output="other").histogram("inner").sum == 35
    chosen = observed(named, activation_output=lambda output: output["other"] * 2)
    assert chosen.histogram("inner").sum == 70


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ((torch.arange(3), "text"), "no floating-point tensor"),
        (None, "no floating-point tensor"),
        (torch.ones(3, dtype=torch.complex64), "no floating-point tensor"),
        (torch.eye(3).to_sparse(), "sparse_coo tensor is not one block"),
        (torch.eye(3).to_sparse_csr(), "sparse_csr tensor is not one block"),
        (torch.ones(3, device="meta"), "meta tensor has no values"),
        (torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "nested tensor is not"),
        (torch.ones(0, 4), "empty"),
        (torch.ones(4, 0, 2), "empty"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_read_is_skipped_and_counted(output: Any, reason: str) -> None:
    profile = observed(output)
    assert len(profile.activations) == 0
    ((text, count),) = profile.losses["observations_skipped"].items()
    assert reason in text
    assert count == 1
    assert text in str(profile.summary()).replace("\n", " ")
    assert profile.losses["faults"] == {}


def test_freed_and_cut_memory_is_not_read() -> None:
    freed, cut = torch.ones(1000), torch.ones(1000)
    freed.untyped_storage().resize_(0)
    cut.untyped_storage().resize_(400)
    for tensor in (freed, cut):
        profile = observed(tensor)
        assert "freed" in next(iter(profile.losses["observations_skipped"]))


def test_a_tensor_of_another_kind_is_skipped_not_misread() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        fake = torch.ones(4)
    assert sum(observed(fake).losses["observations_skipped"].values()) == 1

    model = Odd()
    with pertoken.profile(model, activations="inner", activation_every=1) as recording:
        torch.vmap(model)(torch.ones(3, 4))
    assert sum(recording.result().losses["observations_skipped"].values()) == 1


def test_memory_of_a_gpu_is_not_read_as_the_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    import pertoken.observing
    from pertoken.tensor_memory import Device, TensorMemory

    def on_gpu(value: object) -> TensorMemory:
        return TensorMemory(0xDEAD0000, 1, (1000,), (4,), value, Device(99, 0))

    monkeypatch.setattr(pertoken.observing, "memory_of", on_gpu)
    profile = observed(torch.ones(3, device="meta"))
    assert len(profile.activations) == 0
    reason = next(iter(profile.losses["observations_skipped"]))
    assert "CUDA driver" in reason or "first 16 GPUs" in reason
    assert profile.losses["faults"] == {}


def test_a_choice_that_raises_is_counted_and_the_model_runs() -> None:
    profile = observed(torch.ones(3), activation_output=4)
    assert profile.losses["observations_skipped"] == {"activation_output raised": 1}


class Overwritten(nn.Module):
    """Uses what a submodule gave up, in place."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.inner(x * 1)
        hidden.fill_(1e9)
        return hidden


def test_what_is_overwritten_right_after_the_call_was_counted_before() -> None:
    model = Overwritten()
    with pertoken.profile(model, activations="inner", activation_every=1) as recording:
        model(torch.ones(50000))
    assert recording.result().histogram("inner") == Histogram.from_values(torch.ones(50000))


def test_a_traced_graph_is_as_without_us() -> None:
    def operations(model: nn.Module) -> list[str]:
        traced: Any = torch.jit.trace(model, torch.ones(2, 6))
        return [node.kind() for node in traced.inlined_graph.nodes()]

    model = models.Regressor().eval()
    expected = operations(copy.deepcopy(model))
    with pertoken.profile(model, activations="*", activation_every=1) as recording:
        assert operations(model) == expected
    # torch.jit.trace runs the model once more to check, which is no tracing.
    assert set(recording.result().activations["step"].tolist()) <= {1, 2}


def test_the_root_and_patterns_and_predicates_select() -> None:
    model = models.Regressor()
    for activations, sites in (
        ("root", ["Regressor"]),
        ("sec*", ["second"]),
        (["first", "second"], ["first", "second"]),
        (lambda name, module: isinstance(module, nn.Linear), ["first", "second"]),
        (iter(["first"]), ["first"]),
    ):
        with pertoken.profile(
            model, modules="root", activations=activations, activation_every=1
        ) as recording:
            model(torch.ones(1, 6))
        profile = recording.result()
        assert profile.activations["site"].tolist() == sites
        assert profile.activations["step"].tolist() == [0] * len(sites)
        assert set(sites) <= set(profile.spans["site"].tolist())


@pytest.mark.parametrize(
    "options",
    [
        {"activations": "no.such.module"},
        {"activations": 3},
        {"activations": torch.tensor(2)},
        {"activation_rows": "x"},
        {"activation_rows": None},
        {"activations": lambda name, module: False},
        {"activation_every": 0},
        {"activation_every": 1.5},
        {"activation_every": True},
        {"activation_output": 1.5},
        {"activation_output": True},
    ],
    ids=lambda options: next(iter(options)),
)
def test_bad_arguments_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(SelectionError, match=next(iter(options))):
        pertoken.profile(models.Regressor(), **options)


def test_observe_by_hand_in_and_outside_of_steps() -> None:
    model = models.Regressor()
    model.first.register_forward_hook(lambda module, args, output: pertoken.observe("hand", output))
    pertoken.observe("nowhere", torch.ones(1))  # nothing is recorded
    with pertoken.profile(model, modules="root", activation_every=1) as recording:
        model(torch.ones(1, 6))
        pertoken.observe("outside", np.full(3, 2.0, np.float32))
        with pertoken.step(kind="decode", rows=1):
            model(torch.ones(1, 6))
            pertoken.observe("in the step", torch.ones(2))
        pertoken.observe("outside", torch.ones(1, device="meta"))
        pertoken.observe("outside", object())
    profile = recording.result()
    found = zip(profile.activations["site"], profile.activations["step"], strict=True)
    assert [(str(site), int(step)) for site, step in found] == [
        ("hand", 0),
        ("outside", -1),
        ("hand", 1),
        ("in the step", 1),
    ]
    assert profile.histogram("outside").sum == 6
    assert sum(profile.losses["observations_skipped"].values()) == 2
    for name in ("", 3, "\ud800"):
        with recording, pytest.raises(SelectionError, match="give the name of a site"):
            pertoken.observe(name, torch.ones(1))  # type: ignore[arg-type]


def test_two_recordings_observe_each_at_its_own_rate() -> None:
    model = models.Regressor()
    often = pertoken.profile(model, activations="first", activation_every=1)
    seldom = pertoken.profile(model, activations="first", activation_every=1_000_000)
    with often, seldom:
        for _ in range(5):
            model(torch.ones(1, 6))
        pertoken.observe("hand", torch.ones(1))
    assert often.result().histogram("first").count == 5 * 8
    assert seldom.result().histogram("first").count == 8
    assert often.result().histogram("hand").count == seldom.result().histogram("hand").count == 1


def test_threads_observe_at_once() -> None:
    model = models.Regressor()

    def run() -> None:
        for _ in range(40):
            model(torch.ones(3, 6))

    with pertoken.profile(model, activations="second", activation_every=1) as recording:
        threads = [threading.Thread(target=run) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    table = recording.result().activations
    assert len(table) == 120
    assert sorted(table["step"].tolist()) == list(range(120))


def test_observations_go_with_their_steps_and_the_bound_holds() -> None:
    model = nn.Sequential(nn.Linear(64, 512))
    with pertoken.profile(
        model, activations="0", activation_every=1, memory_limit_bytes=1 << 20
    ) as recording:
        for _ in range(4000):
            model(torch.randn(1, 64))
        assert recording.recorder.store_bytes <= 1 << 20
    profile = recording.result()
    evicted = profile.losses["observations_evicted"]
    assert evicted > 0
    assert len(profile.activations) + evicted == 4000
    assert set(profile.activations["step"].tolist()) <= set(profile.steps["step"].tolist())
    held = set(profile.activations["observation"].tolist())
    assert set(profile.activation_buckets["observation"].tolist()) == held
    totals = next(iter(recording.totals().activations.values()))
    assert (totals.observations, totals.values.count) == (4000, 4000 * 512)


def test_what_observing_took_is_told_of_the_step() -> None:
    model = models.Regressor()
    with pertoken.profile(model, activations="*", activation_every=1_000_000) as recording:
        for _ in range(3):
            model(torch.ones(1, 6))
    steps = recording.result().steps
    assert (steps["observe_ns"] > 0).tolist() == [True, False, False]
    assert steps["observe_ns"][0] < steps["wall_ns"][0]
