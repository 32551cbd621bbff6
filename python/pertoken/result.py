"""The immutable result of a recording: tables of numpy columns, what made them, what is missing.

Built by a recording's snapshot and by `pertoken.load`; read by summaries, exporters and users.
"""

from __future__ import annotations

import copy
import html
import os
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from pertoken import schema
from pertoken.processes import own_process
from pertoken.quantity import plural_text
from pertoken.strings import StringTable
from pertoken.table import Array, Table, TableError

if TYPE_CHECKING:
    from pertoken.analysis.activation_health import FirstNonfinite
    from pertoken.analysis.stragglers import Stragglers
    from pertoken.histogram import Histogram
    from pertoken.summary import Summary
    from pertoken.totals import Totals


class Profile:
    """What was recorded, up to one moment; nothing changes it afterwards.

    Args:
        tables: one `Table` for each name in `schema.TABLES`; all share one table of strings.
        meta: who made it and how (host, versions, model, clock, ...). Plain JSON-able data.
        losses: what is missing from it, and the clock's error bound. Plain JSON-able data.
        totals: everything since the recording started, evicted steps included; None: not known.

    Raises:
        TableError: a table is missing, unknown, or has strings of its own, or a row is of a process
            that is not in the table of processes.
    """

    __slots__ = ("_losses", "_meta", "_tables", "_totals")

    _tables: Mapping[str, Table]
    _meta: dict[str, Any]
    _losses: dict[str, Any]
    _totals: Totals | None

    def __init__(
        self,
        tables: Mapping[str, Table],
        meta: Mapping[str, Any],
        losses: Mapping[str, Any],
        totals: Totals | None = None,
    ) -> None:
        """Check that the tables belong together and keep copies of `meta` and `losses`."""
        missing = [name for name in schema.TABLES if name not in tables]
        if missing:
            raise TableError(f"a profile needs the table(s) {', '.join(missing)}")
        for name, table in tables.items():
            if name not in schema.TABLES:
                raise TableError(f"a profile has no table {name!r}")
            if table.name != name:
                raise TableError(f"table '{table.name}' was given as '{name}'")
        ordered = {name: tables[name] for name in schema.TABLES}
        strings = next(iter(ordered.values())).strings
        if any(t.strings is not strings and t.strings != strings for t in ordered.values()):
            raise TableError("the tables of a profile must share one table of strings")
        _check_processes(ordered)
        object.__setattr__(self, "_tables", MappingProxyType(ordered))
        object.__setattr__(self, "_meta", copy.deepcopy(dict(meta)))
        object.__setattr__(self, "_losses", copy.deepcopy(dict(losses)))
        object.__setattr__(self, "_totals", totals)

    @classmethod
    def from_columns(
        cls,
        columns: Mapping[str, Mapping[str, Array]],
        strings: Sequence[str],
        meta: Mapping[str, Any],
        losses: Mapping[str, Any],
        totals: Totals | None = None,
    ) -> Profile:
        """Build a profile from plain columns; tables that are not given are empty.

        Where `processes` is not given, it has the one process that `meta` describes.

        Args:
            columns: for each table, its columns as one-dimensional arrays of the schema's dtypes.
            strings: the strings that coded columns refer to, each once.
            meta: see `Profile`.
            losses: see `Profile`.
            totals: see `Profile`.

        Raises:
            TableError: a table or column is unknown or missing, or of the wrong dtype or length.
        """
        if "processes" not in columns:
            table = StringTable(strings)
            columns = {**columns, "processes": own_process(meta, losses, table)}
            strings = [*strings, *table.strings[len(set(strings)) :]]
        shared = tuple(strings)
        if len(set(shared)) != len(shared):
            raise TableError("the table of strings holds a string twice")
        for name in columns:
            if name not in schema.TABLES:
                raise TableError(f"a profile has no table {name!r}")
        tables = {
            name: Table(name, columns[name] if name in columns else _empty(name), shared)
            for name in schema.TABLES
        }
        return cls(tables, meta, losses, totals)

    @property
    def tables(self) -> Mapping[str, Table]:
        """All tables by name, read-only, in the schema's order."""
        return self._tables

    @property
    def requests(self) -> Table:
        """One row a request."""
        return self._tables["requests"]

    @property
    def steps(self) -> Table:
        """One row a call of the root module's forward."""
        return self._tables["steps"]

    @property
    def step_rows(self) -> Table:
        """One row a sequence in a step."""
        return self._tables["step_rows"]

    @property
    def tokens(self) -> Table:
        """One row a committed token."""
        return self._tables["tokens"]

    @property
    def spans(self) -> Table:
        """One row a module call, user region or interval inside generate."""
        return self._tables["spans"]

    @property
    def activations(self) -> Table:
        """One row an observation: the values of one site in one step, or in one row of it."""
        return self._tables["activations"]

    @property
    def activation_buckets(self) -> Table:
        """One row a filled bucket of an observation's histogram."""
        return self._tables["activation_buckets"]

    @property
    def tracks(self) -> Table:
        """One row a thread."""
        return self._tables["tracks"]

    @property
    def processes(self) -> Table:
        """One row a process that was recorded: one, unless the profile was merged."""
        return self._tables["processes"]

    @property
    def meta(self) -> dict[str, Any]:
        """Who made the profile and how; a copy, plain JSON-able data."""
        return copy.deepcopy(self._meta)

    @property
    def losses(self) -> dict[str, Any]:
        """What is missing from the profile, and the clock's error bound; a copy, plain data."""
        return copy.deepcopy(self._losses)

    @property
    def totals(self) -> Totals | None:
        """Everything since the recording started, evicted steps included.

        None where that is not known: the file is of an older format, or one of those merged was.
        """
        return self._totals

    def summary(self) -> Summary:
        """Summarise: latencies by kind of step, slowest tokens, hottest sites, losses."""
        from pertoken.summary import Summary

        return Summary.of(self)

    def stragglers(self, least_share: float = 0.05) -> Stragglers:
        """Find, in a merged profile, the ranks that others wait for, and where they lose time.

        Args:
            least_share: the share of the median step that a rank surely costs to be called a
                straggler, at least 0: 0.05 is 5 %.

        Raises:
            SelectionError: `least_share` is no such number.
        """
        from pertoken.analysis.stragglers import find_stragglers

        return find_stragglers(self, least_share=least_share)

    def histogram(
        self, site: str, *, step: int | None = None, request: int | None = None
    ) -> Histogram:
        """Merge what a site put out into one histogram.

        Its counts are of the values that were seen. At a rate, the first step of a kind is seen for
        sure and others stand for `weight` of them each: to compare kinds of step, or to estimate
        how many values there were, weight the rows of `activations` instead.

        Args:
            site: the module's name, or that given to `pertoken.observe`.
            step: of this step alone.
            request: of this request alone: the rows that were its own (`activation_rows`), and the
                steps that served nobody else.

        Raises:
            SelectionError: the site was not observed at all, or an argument is not of its form.
        """
        from pertoken.analysis.activation_values import site_histogram

        return site_histogram(self, site, step, request)

    def first_nonfinite(self) -> FirstNonfinite | None:
        """Find the first site and token where a NaN or an infinity was seen; None where none was.

        A module's output counts before that of the module round it.
        """
        from pertoken.analysis.activation_health import first_nonfinite

        return first_nonfinite(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the profile to a file that `pertoken.load` reads.

        The file appears whole or not at all; one that was there before stays until then.

        Raises:
            PertokenError: the file cannot be written; the message says why.
        """
        from pertoken.storage import save

        save(self, path)

    def export_chrome_trace(self, path: str | os.PathLike[str]) -> None:
        """Write a trace for Perfetto or chrome://tracing; gzipped when `path` ends in ``.gz``.

        Raises:
            PertokenError: the file cannot be written; the message says why.
        """
        from pertoken.export.chrome import export_chrome_trace

        export_chrome_trace(self, path)

    def __setattr__(self, name: str, value: object) -> None:
        """Refuse: a profile does not change."""
        raise AttributeError(f"a Profile does not change: {name} cannot be set")

    def __delattr__(self, name: str) -> None:
        """Refuse: a profile does not change."""
        raise AttributeError(f"a Profile does not change: {name} cannot be deleted")

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by the constructor's arguments; a copy is as immutable as the original."""
        columns = {
            name: {
                column: table.codes(column) if column in table.coded else table[column]
                for column in table.columns
            }
            for name, table in self._tables.items()
        }
        arguments = (columns, self.requests.strings, self._meta, self._losses, self._totals)
        return Profile.from_columns, arguments

    def __repr__(self) -> str:
        """Name the model and the sizes."""
        counts = ", ".join(
            plural_text(len(self._tables[f"{noun}s"]), noun)
            for noun in ("request", "step", "token", "span")
        )
        return f"<Profile {self._model_name()}: {counts}>"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{html.escape(name)}</td><td>{len(table)}</td>"
            f"<td>{html.escape(', '.join(table.columns))}</td></tr>"
            for name, table in self._tables.items()
        )
        return (
            f"<table><caption>Profile of {html.escape(self._model_name())}</caption>"
            "<thead><tr><th>table</th><th>rows</th><th>columns</th></tr></thead>"
            f"<tbody>{rows}</tbody></table>"
        )

    def _model_name(self) -> str:
        model = self._meta.get("model")
        name = model.get("class") if isinstance(model, dict) else None
        return str(name or "unknown model")


def _empty(name: str) -> dict[str, Array]:
    return {column.name: np.empty(0, dtype=column.dtype) for column in schema.TABLES[name]}


def _check_processes(tables: Mapping[str, Table]) -> None:
    count = len(tables["processes"])
    if not np.array_equal(tables["processes"]["process"], np.arange(count)):
        raise TableError("table 'processes' must number its rows from 0")
    for name, declared in schema.TABLES.items():
        for column in declared:
            values = tables[name][column.name] if column.ids_of == "process" else np.zeros(0)
            if len(values) and not 0 <= values.min() <= values.max() < count:
                raise TableError(
                    f"column '{column.name}' of table '{name}' names a process that is not there"
                )
