"""Text to token ids and back: one id a character of ASCII. All the tokenizer the demo needs.

Used by the training script and by the demo. It holds no state and needs no library.
"""

from __future__ import annotations

VOCABULARY_SIZE = 128
PADDING_ID = 0


def encode(text: str) -> list[int]:
    """The ids of `text`, each below `VOCABULARY_SIZE`.

    Anything outside ASCII becomes a question mark, and a NUL, which would read as padding, a space.
    """
    return list(text.replace("\0", " ").encode("ascii", "replace"))


def decode(ids: list[int]) -> str:
    """The text of `ids`, padding left out. Raises `ValueError` for an id outside the vocabulary."""
    if any(not 0 <= token_id < VOCABULARY_SIZE for token_id in ids):
        raise ValueError(f"token ids must lie in 0..{VOCABULARY_SIZE - 1}")
    return bytes(token_id for token_id in ids if token_id != PADDING_ID).decode("ascii")
