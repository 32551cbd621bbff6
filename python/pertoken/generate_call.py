"""What one `generate()` was given and what it returned, as far as the host can see it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pertoken.argument_places import CACHE_ARGUMENTS

_IDS_NAMES = ("inputs", "input_ids")


def positional_names(function: Any) -> tuple[str, ...]:
    """Names of the positional parameters of a `generate`, without `self`."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return _IDS_NAMES[:1]
    places = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [parameter.name for parameter in parameters if parameter.kind in places]
    return tuple(names[1:] if names[:1] == ["self"] else names) or _IDS_NAMES[:1]


@dataclass(frozen=True)
class Prompt:
    """The size of what `generate()` continues; -1 where unknown."""

    rows: int = -1
    length: int = -1
    tokens: int = -1  # over all rows, padding excluded


class GenerateCall:
    """The arguments of one `generate()`, with the model's own settings behind them.

    Args:
        model: the model that generates.
        names: of its positional parameters.
        args: without the model itself.
        kwargs: as given.
    """

    def __init__(
        self,
        model: Any,
        names: tuple[str, ...],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> None:
        self.model = model
        self.arguments = {**dict(zip(names, args, strict=False)), **kwargs}
        config = getattr(model, "config", None)
        self.is_encoder_decoder = bool(getattr(config, "is_encoder_decoder", False))
        self.is_beam_search = (self.setting("num_beams") or 1) > 1

    def setting(self, name: str) -> Any:
        """What holds for a setting: the argument, else the given config, else the model's own."""
        if self.arguments.get(name) is not None:
            return self.arguments[name]
        given = self.arguments.get("generation_config")
        for config in (given, getattr(self.model, "generation_config", None)):
            value = getattr(config, name, None)
            if value is not None:
                return value
        return None

    @property
    def has_cache(self) -> bool:
        """Whether a cache was handed in."""
        return any(self.arguments.get(name) is not None for name in CACHE_ARGUMENTS)

    @property
    def is_chunked(self) -> bool:
        """Whether the prefill may take several forwards."""
        return self.setting("prefill_chunk_size") is not None

    @property
    def is_draft(self) -> bool:
        """Whether it drafts for a `generate()` round it."""
        return bool(self.setting("is_assistant"))

    @property
    def end_tokens(self) -> frozenset[int]:
        """The tokens that end a row; reads them where they are a tensor."""
        given = self.setting("eos_token_id")
        if given is None:
            return frozenset()
        listed = given.tolist() if hasattr(given, "tolist") else given
        return frozenset(
            int(token) for token in (listed if hasattr(listed, "__iter__") else [listed])
        )

    @property
    def can_end_rows(self) -> bool:
        """Whether a row can end before the others; without that token each commits at each step."""
        return self.setting("eos_token_id") is not None

    @property
    def ids(self) -> Any:
        """The ids handed in, or None."""
        return next(
            (self.arguments[name] for name in _IDS_NAMES if self.arguments.get(name) is not None),
            None,
        )

    def prompt(self) -> Prompt:
        """The prompt's size, as far as shapes and what lies in host memory tell."""
        ids, dims = self.ids, 2
        if ids is None:
            ids, dims = self.arguments.get("inputs_embeds"), 3
        shape = tuple(getattr(ids, "shape", ()))
        if len(shape) != dims:
            return Prompt()
        rows, length = int(shape[0]), int(shape[1])
        return Prompt(rows, length, self._prompt_tokens(ids, rows, length, dims == 2))

    def _prompt_tokens(self, ids: Any, rows: int, length: int, are_ids: bool) -> int:
        mask = self.arguments.get("attention_mask")
        if mask is not None:
            # Longer than the prompt where it covers a cache as well; the prompt is its end.
            if getattr(mask, "is_cpu", False) and mask.dim() == 2 and mask.shape[1] >= length:
                return int((mask[:, -length:] != 0).sum())
            return -1
        # Without a mask generate() makes one of the padding token. A decoder's first step shows
        # it; an encoder's is not seen, so the same is counted here.
        if self.is_encoder_decoder and are_ids:
            pad = self.setting("pad_token_id")
            if pad is None:
                return rows * length
            if getattr(ids, "is_cpu", False):
                return int((ids != pad).sum())
        return -1

    def row_lengths(self, result: Any, state: Any) -> list[int] | None:
        """How many tokens each returned row was given: up to and with the one that ended it.

        The ids are complete when `generate()` returns, having waited for them itself at every
        step. None where the lengths cannot be known.
        """
        ids = getattr(result, "sequences", result)
        if len(getattr(ids, "shape", ())) != 2 or state.commits == 0:
            return None
        rows, columns = int(ids.shape[0]), int(ids.shape[1])
        prompt = self._returned_prompt(columns, state)
        if not 0 <= prompt <= columns:
            return None
        if rows == 1 and not self.is_beam_search:
            return [columns - prompt]
        ends = self.end_tokens
        if not ends and not self.is_beam_search:
            return [columns - prompt] * rows
        return self._lengths_of(ids[:, prompt:].tolist(), ends)

    def _returned_prompt(self, columns: int, state: Any) -> int:
        """Columns of the returned ids that were not generated."""
        if not self.is_beam_search and not state.tokens_unknown:
            return columns - int(state.tokens)
        if self.is_encoder_decoder:
            return int(state.prompt_len)
        if self.ids is not None:
            return int(self.ids.shape[1])
        return 0 if self.arguments.get("inputs_embeds") is not None else int(state.prompt_len)

    def _lengths_of(self, rows: list[list[int]], ends: frozenset[int]) -> list[int] | None:
        filler = self._filler() if ends else -1
        stopped_otherwise = bool(
            self.arguments.get("stopping_criteria") or self.setting("stop_strings")
        )
        lengths = []
        for row in rows:
            # Without a padding token, a beam search fills rows with -1.
            end = next((i for i, token in enumerate(row) if token in ends or token == -1), None)
            filled = bool(row) and (row[-1] if end is None else row[end]) == filler
            # Another criterion may have ended the row, and the rest of it is filled up.
            if filled and stopped_otherwise and filler >= 0:
                return None
            lengths.append(len(row) if end is None else end + (row[end] != -1))
        return lengths

    def _filler(self) -> int:
        """The token that fills up rows that have ended."""
        pad = self.setting("pad_token_id")
        if pad is None or (self.is_beam_search and not pad):  # a beam search takes 0 for none
            end = self.setting("eos_token_id")
            return int(end[0] if hasattr(end, "__len__") else end)
        return int(pad)
