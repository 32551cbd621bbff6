"""What the native side reads of a cache is what the cache itself would have said."""

from __future__ import annotations

import copy
import subprocess
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import DynamicCache, EncoderDecoderCache, StaticCache, cache_utils

import models
import pertoken
from pertoken import _native
from pertoken.known_cache import countable, learn_cache


@pytest.fixture(autouse=True)
def known() -> None:
    learn_cache()


def grown(cache: Any, length: int, layers: int = 2) -> Any:
    for layer in range(layers):
        keys = torch.zeros(1, 2, length, 4)
        cache.update(keys, keys, layer)
    return cache


def caches() -> dict[str, Any]:
    config = models.llama().config
    sliding = copy.deepcopy(config)
    sliding.sliding_window = 4
    sliding.layer_types = ["sliding_attention"] * sliding.num_hidden_layers
    cropped = grown(DynamicCache(), 7)
    cropped.crop(-2)
    reset = grown(DynamicCache(), 7)
    reset.reset()
    return {
        "never used": DynamicCache(),
        "of a config": DynamicCache(config=config),
        "grown": grown(grown(DynamicCache(), 5), 1),
        "cropped": cropped,
        "reset": reset,
        "of no tokens": grown(DynamicCache(), 0),
        "past its window": grown(DynamicCache(config=sliding), 9),
        "static": grown(StaticCache(config=config, max_cache_len=16), 6),
        "of encoder and decoder": EncoderDecoderCache(grown(DynamicCache(), 3), DynamicCache()),
    }


@pytest.mark.parametrize("name", list(caches()))
def test_length_is_what_the_cache_says(name: str) -> None:
    cache = caches()[name]
    assert _native.cache_length(cache) == int(cache.get_seq_length())


def test_a_growing_cache_is_not_called(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = grown(DynamicCache(), 5)
    called: list[str] = []

    def see(frame: Any, event: str, _: Any) -> None:
        if event == "call":
            called.append(frame.f_code.co_name)

    sys.setprofile(see)
    length = _native.cache_length(cache)
    sys.setprofile(None)
    assert length == 5
    assert called == []


def test_a_method_of_the_users_own_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(DynamicCache):
        def get_seq_length(self, layer_idx: int = 0) -> int:
            return 100 + super().get_seq_length(layer_idx)

    class OwnLayer(cache_utils.DynamicLayer):
        def get_seq_length(self) -> int:
            return 200 + super().get_seq_length()

    assert _native.cache_length(grown(Own(), 5)) == 105
    cache = DynamicCache()
    cache.layers = [OwnLayer()]
    assert _native.cache_length(cache) == 200
    replaced = grown(DynamicCache(), 5)
    monkeypatch.setattr(replaced, "get_seq_length", lambda: 300)
    assert _native.cache_length(replaced) == 300
    with monkeypatch.context() as patched:
        patched.setattr(cache_utils.DynamicLayer, "get_seq_length", lambda self: 400)
        assert _native.cache_length(grown(DynamicCache(), 5)) == 400


class Odd:
    """Its attributes are not what a layer has, or raise."""

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)

    get_seq_length = cache_utils.DynamicLayer.get_seq_length


@pytest.mark.parametrize(
    "layer",
    [
        Odd(),
        Odd(is_initialized=1, keys=None),
        Odd(is_initialized=True),
        Odd(is_initialized=True, keys=SimpleNamespace(shape=3)),
        Odd(is_initialized=True, keys=SimpleNamespace(shape=(1, 2))),
        None,
    ],
)
def test_what_looks_like_no_layer_is_asked_and_may_raise(layer: Any) -> None:
    cache = DynamicCache()
    cache.layers = [layer]
    assert _native.cache_length(cache) == -1


@pytest.mark.parametrize("length", [2**63 - 1, 2**32 - 1, -1, -(2**63)])
def test_what_no_cache_can_hold_is_no_length(length: int) -> None:
    assert _native.cache_length(SimpleNamespace(get_seq_length=lambda: length)) == -1
    if length > 0:
        keys = torch.zeros(1, 1, 1, 1, device="meta").expand(1, 1, length, 1)
        assert _native.cache_length(((keys, keys),)) == -1
        cache = DynamicCache()
        cache.layers = [Odd(keys=keys, is_initialized=True)]
        assert _native.cache_length(cache) == -1


def test_layers_that_are_no_list_are_asked() -> None:
    cache = grown(DynamicCache(), 5)
    cache.layers = tuple(cache.layers)
    assert _native.cache_length(cache) == 5


@pytest.mark.parametrize("length", ["self.keys.shape[-1]", "self.keys.shape[-2] + self.offset"])
def test_a_cache_that_counts_otherwise_is_not_known(length: str) -> None:
    scope: dict[str, Any] = {}
    exec(
        "def get_seq_length(self):\n"
        "    if not self.is_initialized or self.keys.numel() == 0:\n"
        "        return 0\n"
        f"    return {length}\n",
        scope,
    )
    layer = type("DynamicLayer", (cache_utils.DynamicLayer,), {**scope, "offset": 0})
    module: Any = ModuleType("cache_utils")
    module.Cache, module.DynamicCache = cache_utils.Cache, cache_utils.DynamicCache
    module.DynamicLayer = layer
    assert countable(module) is None
    module.DynamicLayer = cache_utils.DynamicLayer
    assert countable(module) is not None


def test_a_transformers_without_such_caches_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers.cache_utils", ModuleType("cache_utils"))
    learn_cache()
    model = models.llama()
    with pertoken.profile(model) as prof:
        model(input_ids=models.prompt())
    assert not prof.result().losses["faults"]


def test_transformers_is_not_imported_for_it() -> None:
    script = (
        "import sys, torch, pertoken\n"
        "model = torch.nn.Linear(2, 2)\n"
        "with pertoken.profile(model):\n"
        "    model(torch.zeros(1, 2))\n"
        "assert 'transformers' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
