"""The state of the random generators that a model's code draws from."""

from __future__ import annotations

import random
import sys
from typing import Any

import numpy as np


class RandomState:
    """The state, at the time this was made, of Python's, numpy's and torch's global generators.

    torch's is that of the CPU, and of every CUDA device if CUDA is in use.
    """

    def __init__(self) -> None:
        self._python = random.getstate()
        self._numpy = np.random.get_state()
        self._torch: Any = None
        self._cuda: Any = None
        torch = sys.modules.get("torch")
        if torch is not None:
            self._torch = torch.random.get_rng_state()
            if torch.cuda.is_initialized():
                self._cuda = torch.cuda.get_rng_state_all()

    def restore(self) -> None:
        """Puts all of them back as they were."""
        random.setstate(self._python)
        np.random.set_state(self._numpy)
        if self._torch is not None:
            torch = sys.modules["torch"]
            torch.random.set_rng_state(self._torch)
            if self._cuda is not None:
                torch.cuda.set_rng_state_all(self._cuda)
