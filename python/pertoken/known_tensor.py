"""Tells the native side where this torch keeps the sizes of a tensor."""

from __future__ import annotations

import logging
import sys

from pertoken import _native

logger = logging.getLogger("pertoken")

# One tensor of each number of dimensions whose sizes torch keeps in place.
_SIZES = ((10007,), (3, 10009), (10037, 7, 5), (11, 2, 10039, 13), (17, 10061, 19, 23, 29))

_is_learned = False


def learn_tensor() -> None:
    """Has tensors described by torch's table, and their sizes read in place, if that is found."""
    global _is_learned
    torch = sys.modules["torch"]
    _native.learn_exchange_table(torch.Tensor, torch.nn.Parameter)
    if _is_learned:
        return
    try:
        value = torch.empty(1, dtype=torch.uint8, device="cpu")
        _is_learned = _native.learn_sizes([value.expand(sizes) for sizes in _SIZES])
    except Exception:
        logger.debug("pertoken: torch is asked for the sizes of tensors", exc_info=True)
