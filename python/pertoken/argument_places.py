"""Where a model's forward takes its ids, its cache, its mask and the like, by its signature."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_IDS, _EMBEDS, _CACHE, _MASK, _KEEP, _USE_CACHE = range(6)
_ARGUMENT_NAMES: dict[int, tuple[str, ...]] = {
    _IDS: ("input_ids",),
    _EMBEDS: ("inputs_embeds",),
    _CACHE: ("past_key_values", "past_key_value", "cache_params", "past", "state", "mems"),
    _MASK: ("attention_mask",),
    _KEEP: ("logits_to_keep", "num_logits_to_keep"),
    _USE_CACHE: ("use_cache",),
}
# What a forward with **kwargs may hand on; the other names are too common to mean a cache.
_HANDED_ON = frozenset(
    {"input_ids", "inputs_embeds", "past_key_values", "cache_params", "attention_mask", "use_cache"}
)
CACHE_ARGUMENTS = frozenset(_ARGUMENT_NAMES[_CACHE])


def argument_places(model: torch.nn.Module) -> tuple[list[tuple[int, str, int]], bool]:
    """Where the model's forward takes its ids, cache, mask and so on.

    Returns:
        (role, keyword, position or -1) for the native side, and whether nothing of the kind is
        known, so that the first positional tensor is what there is to go by.
    """
    try:
        parameters = inspect.signature(model.forward).parameters
    except (TypeError, ValueError):
        return [], True
    positions = {
        name: index
        for index, (name, parameter) in enumerate(parameters.items())
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY
        and parameter.kind is not inspect.Parameter.VAR_KEYWORD
    }
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    prefix = "decoder_" if "decoder_input_ids" in parameters else ""
    places: list[tuple[int, str, int]] = []
    for role, names in _ARGUMENT_NAMES.items():
        for name in names:
            keyword = prefix + name if role in (_IDS, _EMBEDS, _MASK) else name
            if keyword in parameters:
                places.append((role, keyword, positions.get(keyword, -1)))
            elif takes_any and name in _HANDED_ON:
                places.append((role, keyword, -1))
    known = any(role in (_IDS, _EMBEDS) and keyword in parameters for role, keyword, _ in places)
    return places, not known
