"""Tells the native side which of transformers' caches it can read without calling them."""

from __future__ import annotations

import logging
import math
import sys
from types import FunctionType, ModuleType
from typing import Any

from pertoken import _native

logger = logging.getLogger("pertoken")

# All that a layer's length may depend on for the native side to read it.
_LAYER_READS = frozenset({"is_initialized", "keys", "numel", "shape"})
_SIZES = ((1, 2, 37, 4), (3, 2, 0, 4), (2, 1, 5, 0), (0, 2, 5, 4))

_known: ModuleType | None = None


def learn_cache() -> None:
    """Once transformers is there: its growing cache is read natively, if it counts as we do."""
    global _known
    module = sys.modules.get("transformers.cache_utils")
    if module is None or module is _known:
        return
    _known = module
    try:
        functions = countable(module)
    except Exception:
        logger.debug("pertoken: the cache of this transformers is asked by call", exc_info=True)
        return
    if functions is not None:
        _native.set_known_cache(*functions)


class _Keys:
    """What a layer may look at of its keys."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def numel(self) -> int:
        return math.prod(self.shape)


def countable(module: Any) -> tuple[FunctionType, FunctionType] | None:
    """The two functions that tell the length of a growing cache, where keys alone decide it.

    Args:
        module: ``transformers.cache_utils``.

    Returns:
        ``Cache.get_seq_length`` and ``DynamicLayer.get_seq_length``; None where either depends on
        more than the native side looks at.

    Raises:
        Exception: whatever a class that is not as we know it raises.
    """
    of_cache = module.Cache.get_seq_length
    of_layer = module.DynamicLayer.get_seq_length
    if not set(of_layer.__code__.co_names) <= _LAYER_READS:
        return None
    cache = module.DynamicCache()
    cache.layers = []
    lengths = [of_cache(cache)]
    layer = module.DynamicLayer()
    if layer.keys is not None:  # what a layer without keys is known by
        return None
    cache.layers = [layer, module.DynamicLayer()]
    lengths.append(of_cache(cache))
    layer.is_initialized = True
    for size in _SIZES:
        layer.keys = _Keys(size)
        lengths.append(of_cache(cache))
    return (of_cache, of_layer) if lengths == [0, 0, 37, 0, 0, 0] else None
