"""One table of a profile: equal-length, read-only numpy columns and a shared table of strings.

Built by whatever produces a `Profile`; read by summaries, exporters and users. Strings are stored
once: a coded column holds int32 codes into the table of strings, and code -1 is the empty string.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from pertoken import schema
from pertoken.errors import MissingDependencyError, PertokenError, SelectionError
from pertoken.quantity import name_text, plural_text

if TYPE_CHECKING:
    import pandas
    import pyarrow

Array = np.ndarray[Any, np.dtype[Any]]

_HTML_ROWS = 20


class TableError(PertokenError, ValueError):
    """Columns that do not form a table: wrong names, lengths, types or string codes."""


class Table:
    """Equal-length numpy columns under one name.

    Args:
        name: the table's name. When it is one of `schema.TABLES`, the columns must be exactly that
            table's, with their dtypes; columns named ``label.*`` may be added.
        columns: one-dimensional arrays by name. They are taken over without a copy and made
            read-only, so the caller must not write to them afterwards.
        strings: the strings that codes refer to, each once. Shared between tables.

    Raises:
        TableError: a column is missing, unknown, of another dtype or length, or holds a code
            outside the table of strings.
    """

    __slots__ = ("_coded", "_columns", "_length", "_name", "_strings")

    def __init__(
        self, name: str, columns: Mapping[str, Array], strings: Sequence[str] = ()
    ) -> None:
        """Check the columns and take them over."""
        self._name = name
        self._strings = strings if isinstance(strings, tuple) else tuple(strings)
        declared = {column.name: column for column in schema.TABLES.get(name, ())}
        ordered = _ordered(name, columns, declared)
        self._coded = frozenset(
            column
            for column in ordered
            if column.startswith(schema.LABEL_PREFIX)
            or (column in declared and declared[column].coded)
        )
        self._length = len(next(iter(ordered.values()))) if ordered else 0
        for column, array in ordered.items():
            label = f"column '{name_text(column)}' of table '{name}'"
            if array.ndim != 1 or len(array) != self._length:
                raise TableError(
                    f"{label} has shape {array.shape}; every column must have shape "
                    f"({self._length},)"
                )
            expected = "int32" if column in self._coded else None
            if column in declared:
                expected = declared[column].dtype
            if expected is not None and array.dtype != np.dtype(expected):
                raise TableError(f"{label} has dtype {array.dtype}; it must be {expected}")
            if array.dtype.hasobject:
                raise TableError(f"{label} holds Python objects; give it a plain dtype")
            if column in self._coded and self._length:
                lowest, highest = int(array.min()), int(array.max())
                if lowest < -1 or highest >= len(self._strings):
                    raise TableError(
                        f"{label} holds codes from {lowest} to {highest}; they must be between "
                        f"-1 and {len(self._strings) - 1}"
                    )
        self._columns = MappingProxyType({c: _read_only(a) for c, a in ordered.items()})

    @property
    def name(self) -> str:
        """The table's name, such as ``steps``."""
        return self._name

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns, in the order of the schema, labels last."""
        return tuple(self._columns)

    @property
    def coded(self) -> frozenset[str]:
        """Names of the columns that hold codes into `strings`."""
        return self._coded

    @property
    def strings(self) -> tuple[str, ...]:
        """The strings that codes refer to."""
        return self._strings

    def __len__(self) -> int:
        """Count the rows."""
        return self._length

    def __contains__(self, column: object) -> bool:
        """Tell whether the table has this column."""
        return column in self._columns

    def __getitem__(self, column: str) -> Array:
        """Give a column, shape (rows,): text for a coded one, else the read-only array itself.

        Text is a numpy unicode array as wide as its longest value; where that is too much memory,
        use `codes` or `to_arrow`.

        Raises:
            SelectionError: there is no such column.
        """
        values = self._column(column)
        if column not in self._coded:
            return values
        codes, names = self._compact(values)
        return _read_only(np.array(names or [""], dtype=np.str_)[codes])

    def codes(self, column: str) -> Array:
        """Give the codes of a coded column: int32, shape (rows,), -1 for the empty string.

        Raises:
            SelectionError: there is no such column, or it is not a coded one.
        """
        values = self._column(column)
        if column not in self._coded:
            raise SelectionError(
                f"column '{name_text(column)}' of table '{self._name}' has no codes"
            )
        return values

    def where(self, mask: Array) -> Table:
        """Give the rows that `mask` selects: bool of shape (rows,), or integer row numbers.

        Raises:
            SelectionError: the mask is neither, or does not fit the table.
        """
        selection = np.asarray(mask)
        if selection.ndim != 1 or selection.dtype.kind not in "biu":
            raise SelectionError("a mask must be a one-dimensional array of bool or of row numbers")
        try:
            columns = {name: array[selection] for name, array in self._columns.items()}
        except IndexError as error:
            raise SelectionError(f"the mask does not fit {self._length} rows: {error}") from error
        return Table(self._name, columns, self._strings)

    def to_pandas(self) -> pandas.DataFrame:
        """Convert to a pandas data frame; coded columns become categoricals.

        Raises:
            MissingDependencyError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise MissingDependencyError(
                "to_pandas() needs pandas: pip install 'pertoken[pandas]'"
            ) from error
        data: dict[str, Any] = {}
        for column, values in self._columns.items():
            if column in self._coded:
                codes, names = self._compact(values)
                data[column] = pandas.Categorical.from_codes(
                    codes,
                    categories=pandas.Index(names, dtype=object),
                )
            else:
                data[column] = values
        return pandas.DataFrame(data)

    def to_arrow(self) -> pyarrow.Table:
        """Convert to a pyarrow table; coded columns become dictionary arrays.

        Raises:
            MissingDependencyError: pyarrow is not installed.
        """
        try:
            import pyarrow
        except ImportError as error:
            raise MissingDependencyError(
                "to_arrow() needs pyarrow: pip install 'pertoken[arrow]'"
            ) from error
        data: dict[str, Any] = {}
        for column, values in self._columns.items():
            if column in self._coded:
                codes, names = self._compact(values)
                # A lone surrogate, which Python allows in a name, has no UTF-8.
                names = [name.encode("utf-8", "backslashreplace").decode() for name in names]
                data[column] = pyarrow.DictionaryArray.from_arrays(
                    pyarrow.array(codes), pyarrow.array(names, type=pyarrow.string())
                )
            else:
                data[column] = pyarrow.array(values)
        return pyarrow.table(data)

    def __repr__(self) -> str:
        """Name the table, its size and its columns."""
        size = f"{plural_text(self._length, 'row')} of {', '.join(map(name_text, self.columns))}"
        return f"<Table {self._name}: {size}>"

    def _repr_html_(self) -> str:
        head = self.where(np.arange(min(self._length, _HTML_ROWS)))
        titles = "".join(f"<th>{html.escape(column)}</th>" for column in self.columns)
        cells = [[html.escape(str(value)) for value in head[c].tolist()] for c in self.columns]
        rows = "".join(
            "<tr>" + "".join(f"<td>{value}</td>" for value in row) + "</tr>"
            for row in zip(*cells, strict=True)
        )
        caption = f"{html.escape(self._name)}: {self._length} rows"
        if len(head) < self._length:
            caption += f", the first {len(head)} shown"
        return (
            f"<table><caption>{caption}</caption><thead><tr>{titles}</tr></thead>"
            f"<tbody>{rows}</tbody></table>"
        )

    def _column(self, column: str) -> Array:
        values = self._columns.get(column)
        if values is None:
            raise SelectionError(
                f"table '{self._name}' has no column {column!r}; it has "
                f"{', '.join(map(name_text, self.columns))}"
            )
        return values

    def _compact(self, codes: Array) -> tuple[Array, list[str]]:
        """Renumber codes so that they index a list of just the strings in use, each once."""
        shifted = codes + 1
        seen = np.zeros(len(self._strings) + 1, dtype=bool)
        seen[shifted] = True
        used = np.flatnonzero(seen)
        names = ["" if code == 0 else self._strings[code - 1] for code in used.tolist()]
        number: dict[str, int] = {}
        for name in names:
            number.setdefault(name, len(number))
        renumbered = np.zeros(len(self._strings) + 1, dtype=np.int32)
        renumbered[used] = [number[name] for name in names]
        return renumbered[shifted], list(number)


def _ordered(
    name: str, columns: Mapping[str, Array], declared: Mapping[str, schema.Column]
) -> dict[str, Array]:
    """Put the columns in the schema's order, having checked that they are the right ones."""
    if declared:
        missing = [column for column in declared if column not in columns]
        if missing:
            raise TableError(f"table '{name}' lacks the column(s) {', '.join(missing)}")
        for column in columns:
            if column not in declared and not column.startswith(schema.LABEL_PREFIX):
                raise TableError(f"table '{name}' has no column {column!r}")
    order = [*declared, *(column for column in columns if column not in declared)]
    return {column: np.asarray(columns[column]) for column in order}


def _read_only(array: Array) -> Array:
    view: Array = array.view()
    view.flags.writeable = False
    return view
