"""What files of older format versions lack, added when they are loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pertoken import schema
from pertoken.processes import own_process
from pertoken.strings import StringTable
from pertoken.table import Array


def bring_up_to_date(
    columns: dict[str, dict[str, Array]],
    strings: tuple[str, ...],
    meta: Mapping[str, Any],
    losses: Mapping[str, Any],
) -> tuple[str, ...]:
    """Add the columns and tables that came after the file was written.

    Args:
        columns: those of the file, by table; the missing ones are added.
        strings: the file's strings.
        meta: its metadata.
        losses: its losses.

    Returns:
        The strings, with those that the new columns use.
    """
    table = StringTable(strings)
    if "processes" not in columns:
        columns["processes"] = own_process(meta, losses, table)
    for name, declared in schema.TABLES.items():
        present = columns.setdefault(name, {})
        rows = len(next(iter(present.values()))) if present else 0
        for column in declared:
            if column.name not in present:
                present[column.name] = np.full(rows, column.before, dtype=column.dtype)
    return tuple(table.strings)
