"""What really went through a model, noted without pertoken: the truth that tests compare with."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from itertools import pairwise
from types import TracebackType
from typing import Any

from torch import Tensor
from transformers import StoppingCriteria
from transformers.generation.streamers import BaseStreamer


def boot_clock_ns() -> int:
    """The clock that a profile's ``boot_origin_ns`` is of."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


@dataclass
class Forward:
    """One call of the root: its arguments as they were at entry, and when it was (boot clock)."""

    rows: int
    query_len: int
    past: int | None  # None: no cache was given, or one without a length
    keep: int | None
    valid: list[int] | None  # of each row, by a two-dimensional mask
    begin_ns: int
    end_ns: int = 0


@dataclass
class ForwardLog:
    """Logs each forward of a model by torch's own hooks, while its context is open."""

    model: Any
    forwards: list[Forward] = field(default_factory=list)

    def __enter__(self) -> ForwardLog:
        self._handles = [
            self.model.register_forward_pre_hook(self._before, with_kwargs=True),
            self.model.register_forward_hook(self._after, always_call=True),
        ]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def _before(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        decoder = "decoder_" if getattr(model.config, "is_encoder_decoder", False) else ""
        ids = kwargs.get(decoder + "input_ids", args[0] if args else None)
        ids = kwargs[decoder + "inputs_embeds"] if ids is None else ids
        cache = kwargs.get("past_key_values")
        length = None if cache is None else int(cache.get_seq_length())
        mask = kwargs.get(decoder + "attention_mask")
        valid = mask.sum(1).tolist() if mask is not None and mask.dim() == 2 else None
        keep = kwargs.get("logits_to_keep")
        now = boot_clock_ns()
        self.forwards.append(Forward(ids.shape[0], ids.shape[1], length, keep, valid, now))

    def _after(self, model: Any, args: Any, result: Any) -> None:
        self.forwards[-1].end_ns = boot_clock_ns()

    def column(self, name: str) -> list[Any]:
        """One attribute of all forwards."""
        return [getattr(forward, name) for forward in self.forwards]


class PieceLog(BaseStreamer):
    """Notes what generate hands to a streamer: the prompt, then the tokens of each turn."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def put(self, value: Tensor) -> None:
        self.shapes.append(tuple(value.shape))

    def end(self) -> None:
        pass

    @property
    def grown(self) -> list[int]:
        """By how many tokens the sequences grew in each turn: (rows,) is one token a row."""
        return [shape[1] if len(shape) == 2 else 1 for shape in self.shapes[1:]]


class LengthLog(StoppingCriteria):
    """Notes how long the sequences are at the end of each turn of generate's loop; never stops."""

    def __init__(self, start: int) -> None:
        self.lengths = [start]

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        self.lengths.append(input_ids.shape[1])
        return input_ids.new_zeros(input_ids.shape[0]).bool()

    @property
    def grown(self) -> list[int]:
        """By how many tokens the sequences grew in each turn."""
        return [after - before for before, after in pairwise(self.lengths)]


def lengths_until(sequences: Tensor, prompt_len: int, eos: int | None) -> list[int]:
    """Generated tokens of each returned row: up to and with its first `eos`, or all."""
    lengths = []
    for row in sequences[:, prompt_len:].tolist():
        lengths.append(row.index(eos) + 1 if eos in row else len(row))
    return lengths
