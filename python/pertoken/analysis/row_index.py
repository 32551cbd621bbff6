"""Finding rows of a table: by the ids that another table holds, or by a text, without decoding."""

from __future__ import annotations

import numpy as np

from pertoken.table import Array, Table


def rows_of(ids: Array, wanted: Array) -> Array:
    """Find the row of each wanted id.

    Args:
        ids: int64, shape (n,): a table's ids, in any order.
        wanted: int64, shape (m,): ids to look up.

    Returns:
        int64, shape (m,): the row of each wanted id in `ids`, -1 where it is not there. Of equal
        ids the first row counts.
    """
    if len(ids) == 0 or len(wanted) == 0:
        return np.full(len(wanted), -1, dtype=np.int64)
    order: Array | None = None
    steps = np.diff(ids)
    if not (steps > 0).all():
        order = np.argsort(ids, kind="stable")
        ids = ids[order]
    elif (steps == 1).all():
        first, last = ids[0], ids[-1]
        inside = (wanted >= first) & (wanted <= last)
        return np.where(inside, wanted - first, -1)
    place = np.searchsorted(ids, wanted)
    place[place == len(ids)] = 0
    found = ids[place] == wanted
    rows = place if order is None else order[place]
    return np.where(found, rows, -1)


def holds_text(table: Table, column: str, text: str) -> Array:
    """Tell in which rows a coded column reads as `text`: bool, shape (rows,).

    Comparing codes spares the decoded copy of a column, which for a million spans is large.
    """
    # numpy's text ends before the null characters at its end.
    shown = text.rstrip("\0")
    same = [code for code, known in enumerate(table.strings) if known.rstrip("\0") == shown]
    if not shown:
        same.append(-1)
    return np.isin(table.codes(column), same)
