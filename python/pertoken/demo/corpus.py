"""The text the demo model learns from: the prose of Python's own documentation.

Used by the training script only. It reads `pydoc_data.topics` and the docstrings of the standard
library's sources, without importing them, and needs nothing but Python. The text depends on the
version of Python that runs it, which the model's README therefore names.
"""

from __future__ import annotations

import ast
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

SKIPPED_FOLDERS = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3", "__pycache__"}
)
SHORTEST_PARAGRAPH = 60
PROSE_SHARE = 0.93


def paragraphs() -> list[str]:
    """Every paragraph of prose once, in a fixed order, each a single line of ASCII."""
    found = dict.fromkeys(
        paragraph for text in _documents() for paragraph in _prose_paragraphs(text)
    )
    return list(found)


def _documents() -> Iterator[str]:
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield topics[name]
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.rglob("*.py")):
        if not SKIPPED_FOLDERS.intersection(path.relative_to(library).parts):
            yield from _docstrings(path)


def _docstrings(path: Path) -> Iterator[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring:
                yield docstring


def _prose_paragraphs(text: str) -> Iterator[str]:
    for block in text.split("\n\n"):
        paragraph = " ".join(block.split()).encode("ascii", "ignore").decode("ascii")
        prose = sum(character.isalpha() or character in " ,." for character in paragraph)
        if len(paragraph) >= SHORTEST_PARAGRAPH and prose >= PROSE_SHARE * len(paragraph):
            yield paragraph
