"""Planted faults are found at exactly the layer and token where they were planted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import models
import pertoken
from pertoken.demo.bytes_tokenizer import encode
from pertoken.demo.model import load_model

TOKENS = 6


@contextmanager
def planted(module: nn.Module, change: Any, call: int | None = None) -> Iterator[None]:
    """Changes what a module puts out, at one of its calls or at all of them."""
    calls = iter(range(1 << 30))

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        if call is not None and next(calls) != call:
            return None
        return change(output) if isinstance(output, Tensor) else (change(output[0]), *output[1:])

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def one_value(value: float) -> Any:
    def change(output: Tensor) -> Tensor:
        changed = output.clone()
        changed.view(-1)[3] = value
        return changed

    return change


def recorded(model: Any, tokens: int = TOKENS, **options: Any) -> pertoken.Profile:
    options = {"activations": "layers", "activation_every": 1, **options}
    with pertoken.profile(model, **options) as recording:
        model.generate(models.prompt(1), max_new_tokens=tokens, min_new_tokens=tokens)
    return recording.result()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(("layer", "token"), [(0, 0), (1, 0), (0, 3), (1, 3), (1, TOKENS - 1)])
def test_a_value_that_is_not_finite_is_found_at_its_layer_and_token(
    value: float, layer: int, token: int
) -> None:
    model = models.llama()
    with planted(model.model.layers[layer].mlp, one_value(value), call=token):
        profile = recorded(model)
    found = profile.first_nonfinite()
    assert found == (f"model.layers.{layer}.mlp", token, token)
    assert profile.tokens["position"][profile.tokens["step"] == found.step].tolist() == [token]
    summary = profile.summary()
    assert f"First NaN or infinity seen: model.layers.{layer}.mlp" in str(summary)
    assert summary.as_dict()["activations"]["first_nonfinite"] == found._asdict()
    first = summary.as_dict()["activations"]["unhealthy_sites"][0]
    assert first["site"] == f"model.layers.{layer}.mlp"
    assert (first["nans"], first["infs"]) == ((1, 0) if value != value else (0, 1))
    json.dumps(summary.as_dict(), allow_nan=False)


def test_a_dead_layer_is_named_and_one_that_is_zero_once_is_not() -> None:
    model = models.llama()
    with planted(model.model.layers[1].self_attn, torch.zeros_like):
        profile = recorded(model)
    assert profile.summary().as_dict()["activations"]["unhealthy_sites"] == [
        {
            "site": "model.layers.1.self_attn",
            "observations": TOKENS,
            "nans": 0,
            "infs": 0,
            "saturated": 0,
            "dead": TOKENS,
            "share": 1.0,
        }
    ]
    with planted(model.model.layers[1].self_attn, torch.zeros_like, call=2):
        assert recorded(model).summary().as_dict()["activations"]["unhealthy_sites"] == []


def test_a_scaled_layer_shows_in_its_histogram_alone_or_after_it() -> None:
    model = models.llama()
    clean = recorded(model, tokens=1)
    with planted(model.model.layers[0].mlp, lambda output: output * 1.2):
        scaled = recorded(model, tokens=1)
    for site in ("model.embed_tokens", "model.layers.0.self_attn"):
        assert scaled.histogram(site) == clean.histogram(site)
    before, after = (p.histogram("model.layers.0.mlp") for p in (clean, scaled))
    assert after.sum_sq / before.sum_sq == pytest.approx(1.44, rel=1e-5)
    assert after.max / before.max == pytest.approx(1.2, rel=1e-6)
    # 1.2 is 2.1 buckets: percentiles move, and by no more than a bucket from where they should.
    assert 1.09 <= after.quantile(0.9) / before.quantile(0.9) <= 1.31


class Cast(nn.Module):
    """Casts to a narrow format, cut to its range as quantisation does."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.cast = CutTo(dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.cast(x).float()


class CutTo(nn.Module):
    """The cast itself."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        limit = torch.finfo(self.dtype).max
        return x.clamp(-limit, limit).to(self.dtype)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float16])
def test_a_saturated_cast_is_named(dtype: torch.dtype) -> None:
    model = Cast(dtype)
    limit = torch.finfo(dtype).max
    inputs = [torch.tensor([1.0, -2.0]), torch.tensor([1.0, -4 * limit]), torch.tensor([3.0])]
    with pertoken.profile(model, activations="cast", activation_every=1) as recording:
        for x in inputs:
            model(x)
    profile = recording.result()
    (site,) = profile.summary().as_dict()["activations"]["unhealthy_sites"]
    assert (site["site"], site["saturated"], site["observations"]) == ("cast", 1, 3)
    assert site["share"] == pytest.approx(1 / 3)
    assert profile.histogram("cast").min == -limit
    assert profile.first_nonfinite() is None


def test_large_values_of_wide_formats_are_not_saturated() -> None:
    model = nn.Sequential(nn.Identity())
    with pertoken.profile(model, activations="0", activation_every=1) as recording:
        model(torch.tensor([65504.0, -448.0, 57344.0]))
    assert recording.result().summary().as_dict()["activations"]["unhealthy_sites"] == []


def demo_text(model: Any) -> pertoken.Profile:
    ids = torch.tensor([encode("This function ")])
    with pertoken.profile(model, activations="layers", activation_every=1) as recording:
        model.generate(ids, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False)
    return recording.result()


def wrong(profile: pertoken.Profile) -> dict[str, str]:
    """What the summary says is wrong, by site."""
    sites = profile.summary().as_dict()["activations"]["unhealthy_sites"]
    names = ("nans", "infs", "saturated", "dead")
    return {site["site"]: " ".join(name for name in names if site[name]) for site in sites}


def test_faults_planted_in_trained_weights_are_found_where_they_are() -> None:
    """In the demo model: one value at a token, a dead layer, a scaled one and a saturated cast."""
    model = load_model()
    mlp = model.model.layers[2].mlp
    site = "model.layers.2.mlp"
    clean = demo_text(model)
    assert wrong(clean) == {}
    for value, word in ((float("nan"), "nans"), (float("inf"), "infs")):
        with planted(mlp, one_value(value), call=4):
            profile = demo_text(model)
        assert profile.first_nonfinite() == (site, 4, 4)
        assert wrong(profile)[site] == word
    with planted(mlp, torch.zeros_like):
        assert wrong(demo_text(model)) == {site: "dead"}
    with planted(mlp, lambda output: output * 1.2):
        scaled = demo_text(model)
    assert wrong(scaled) == {}
    before, after = (profile.histogram(site, step=0) for profile in (clean, scaled))
    assert after.sum_sq / before.sum_sq == pytest.approx(1.44, rel=1e-5)
    earlier = "model.layers.1.mlp"
    assert scaled.histogram(earlier, step=0) == clean.histogram(earlier, step=0)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_a_cast_that_saturates_on_trained_activations_is_named(dtype: torch.dtype) -> None:
    """Of what the demo model puts out, scaled so that its largest value is or is not cut."""
    model = load_model()
    ids = torch.tensor([encode("This function ")])
    with torch.inference_mode():
        hidden = model.model(ids).last_hidden_state
    largest = torch.finfo(dtype).max / hidden.abs().max()
    for share, found in ((0.9, {}), (1.5, {"cast": "saturated"})):
        with pertoken.profile(cast := Cast(dtype), activations="cast") as recording:
            cast(hidden * largest * share)
        assert wrong(recording.result()) == found


def test_no_false_alarm_in_a_thousand_clean_tokens_of_the_demo_model() -> None:
    model = load_model()
    ids = torch.tensor([encode("This function ")]).expand(8, -1)
    with pertoken.profile(model, activations="layers", activation_every=1) as recording:
        model.generate(ids, max_new_tokens=125, min_new_tokens=125, do_sample=True)
    profile = recording.result()
    assert len(profile.tokens) == 1000
    assert profile.first_nonfinite() is None
    assert profile.summary().as_dict()["activations"]["unhealthy_sites"] == []
    assert "nothing is wrong." in str(profile.summary())
    assert profile.losses["observations_skipped"] == {}


def test_percentiles_are_counters_of_the_trace(tmp_path: Path) -> None:
    model = models.llama()
    with planted(model.model.layers[0].mlp, lambda output: output * float("nan"), call=1):
        profile = recorded(model, tokens=2)
    path = tmp_path / "trace.json"
    profile.export_chrome_trace(path)
    events = json.loads(path.read_text())["traceEvents"]
    counters = [event for event in events if event["ph"] == "C" and "values of" in event["name"]]
    assert len(counters) == len(profile.activations)
    first = next(e for e in counters if e["name"] == "values of model.layers.0.mlp")
    histogram = profile.histogram("model.layers.0.mlp", step=0)
    assert first["args"] == {f"p{q}": histogram.quantile(q / 100) for q in (1, 50, 99)}
    assert first["ts"] == pytest.approx(profile.steps["start_ns"][0] / 1000, abs=1e-3)
    dead = [e for e in counters if e["name"] == "values of model.layers.0.mlp"][1]
    assert dead["args"] == {}  # nothing finite


def test_the_first_one_of_merged_profiles_is_the_first_in_time() -> None:
    model = models.llama()
    clean = recorded(model, tokens=2)
    with planted(model.model.layers[0].mlp, one_value(float("nan")), call=1):
        broken = recorded(model, tokens=2)
    merged = pertoken.merge([clean, broken])
    found = merged.first_nonfinite()
    assert found is not None
    assert found.site == "model.layers.0.mlp"
    assert (found.step >> 44, found.step & 0xFFFFFFFF, found.token) == (1, 1, 1)
