"""What a summary is made of: titled blocks of text cells, and the names of sites and steps in them.

Filled by `summary_layout` and `summary_processes`; shown by `summary_text` and `summary_html`.
"""

from __future__ import annotations

from dataclasses import dataclass

from pertoken.quantity import name_text
from pertoken.schema import ID_BITS


@dataclass(frozen=True)
class Block:
    """A title, sentences under it, and a table that may be empty.

    `columns` are the headings; each row has as many cells. The columns named in `numeric` are
    aligned to the right.
    """

    title: str
    lines: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    numeric: frozenset[str] = frozenset()


def site_text(site: str, category: str) -> str:
    """Name a site for people: the root module and time between steps have words of their own."""
    if category == "between":
        return "(between steps)"
    if category == "generate":
        known = site in ("", "generate", "generate: outside forward")
        return f"(in generate, outside forward{'' if known else ' ' + name_text(site)})"
    if site == "":
        return "(root module)"
    return name_text(site) if category == "module" else f"{name_text(site)} ({category})"


def step_text(step: int) -> str:
    """Number a step as its own process did; those of process 1 and on say whose they are."""
    process, own = divmod(step, 1 << ID_BITS)
    return f"{own} of process {process}" if process > 0 else str(step)
