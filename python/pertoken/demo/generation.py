"""The work that the demo profiles: a few requests of different shapes through `generate()`.

Used by `pertoken demo` and by the tests, which run the same requests without a profiler to count
what the recording should hold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pertoken
from pertoken.demo.bytes_tokenizer import PADDING_ID, decode, encode

if TYPE_CHECKING:
    import torch

TEMPERATURE = 0.6
WARM_UP_TOKENS = 4


@dataclass(frozen=True)
class TextRequest:
    """One call of `generate()`: its id, and a prompt for each row of the batch."""

    id: str
    prompts: tuple[str, ...]


@dataclass(frozen=True)
class Generated:
    """What one request wrote: for each of its rows the text after the prompt."""

    request: TextRequest
    texts: tuple[str, ...]


def demo_requests(prompt: str) -> list[TextRequest]:
    """A short prompt, a long one, and a batch of prompts of different lengths."""
    return [
        TextRequest("short", (prompt,)),
        TextRequest(
            "long",
            (
                "The method is called when the interpreter looks up a name in a module, and the "
                "value that it returns is used ",
            ),
        ),
        TextRequest(
            "batch", (prompt, "If the argument is given, it must be ", "Raise an exception when ")
        ),
    ]


def run_requests(
    model: Any,
    requests: Sequence[TextRequest],
    tokens: int,
    on_tokens: Callable[[int], None] = lambda rows: None,
) -> list[Generated]:
    """Generates `tokens` tokens for every row of every request, one request after another.

    `model` is what `load_model` gave, or anything with its `generate()` and vocabulary.
    The text is sampled with a fixed seed; the caller's random state stays as it was. `on_tokens`
    is called once a step with the number of tokens it gave; what it does there delays the next.
    """
    import torch

    streamer = _Counter(on_tokens)
    results = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for request in requests:
            ids, mask = _padded(request.prompts)
            streamer.expect_prompt()
            with pertoken.request(id=request.id):
                output = model.generate(
                    input_ids=ids,
                    attention_mask=mask,
                    max_new_tokens=tokens,
                    do_sample=True,
                    temperature=TEMPERATURE,
                    streamer=streamer,
                )
            rows = output[:, ids.shape[1] :].tolist()
            results.append(Generated(request, tuple(decode(row) for row in rows)))
    return results


def warm_up(model: Any) -> None:
    """Pays what only a process's first tokens cost, so that no measured token does."""
    ids, mask = _padded(("The ",))
    model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=WARM_UP_TOKENS, do_sample=False
    )


def _padded(prompts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, int64 of shape (rows, longest prompt), padded on the left."""
    import torch

    encoded = [encode(prompt) for prompt in prompts]
    width = max(map(len, encoded))
    padding = [width - len(row) for row in encoded]
    ids = [[PADDING_ID] * pad + row for pad, row in zip(padding, encoded, strict=True)]
    mask = [[0] * pad + [1] * len(row) for pad, row in zip(padding, encoded, strict=True)]
    return torch.tensor(ids), torch.tensor(mask)


class _Counter:
    """A streamer, as `generate()` understands it, that counts tokens and keeps none."""

    def __init__(self, on_tokens: Callable[[int], None]) -> None:
        self._on_tokens = on_tokens
        self._prompt_is_next = True

    def expect_prompt(self) -> None:
        """The next `put` is a prompt, as the first of every `generate()` is."""
        self._prompt_is_next = True

    def put(self, value: torch.Tensor) -> None:
        """Takes the prompts, shape (rows, length), or one token a row, shape (rows,)."""
        if self._prompt_is_next:
            self._prompt_is_next = False
        else:
            self._on_tokens(value.shape[0])

    def end(self) -> None:
        """Nothing is held back, so there is nothing to do."""
