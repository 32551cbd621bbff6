"""The manifest of a saved profile: JSON that names every column and holds what is not a column.

Written and read by `pertoken.storage`. Reading trusts nothing: every value is checked before it is
used for anything.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import numpy as np

from pertoken import schema
from pertoken.errors import TotalsError
from pertoken.result import Profile
from pertoken.table import Table
from pertoken.totals import Totals
from pertoken.totals_json import totals_from_dict

FORMAT_NAME = "pertoken"
MEMBER = "manifest.json"

_KEYS = ("format", "format_version", "strings", "meta", "losses", "tables")
_KEYS_SINCE = {"totals": 2}  # the format version that brought them
_LONGEST_INTEGER = 20
_DEEPEST_METADATA = 32

_INTEGERS = (
    "format_version",
    "pid",
    "rank",
    "local_rank",
    "world_size",
    "boot_origin_ns",
    "unix_origin_ns",
    "duration_ns",
)
_TEXTS = (
    "pertoken_version",
    "host",
    "device",
    "command",
    "python",
    "torch",
    "transformers",
    "platform",
    "modules",
)
_META_TYPES: Mapping[str, type | tuple[type, ...]] = {
    **dict.fromkeys(_INTEGERS, int),
    **dict.fromkeys(_TEXTS, str),
    **dict.fromkeys(("clock", "model", "build", "cost"), dict),
    "processes": list,
}
_CLOCK_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "source": str,
    "ticks_per_second": (int, float),
    "error_bound_ns": int,
    "boot_id": str,
    "synchronized": list,
}
_MEASUREMENT_TYPES: Mapping[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("boot_ns", "offset_ns", "error_ns"), int),
    "reference": str,
}
_MODEL_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "class": str,
    "parameters": int,
    "modules": int,
}
_LOSS_TYPES: Mapping[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("records_dropped", "clock_error_ns"), int),
    **dict.fromkeys(("spans_evicted", "steps_evicted", "requests_evicted"), int),
    "observations_evicted": int,
    **dict.fromkeys(("device_clock_error_ns", "replays_without_layers"), int),
    "device_spans_pending": int,
    **dict.fromkeys(("faults", "observations_skipped", "device_spans_lost"), dict),
    **dict.fromkeys(("inlined_modules", "reasons", "processes"), list),
}


class ManifestError(ValueError):
    """What is wrong with a manifest, in words that complete a sentence about the file."""


class NewerFormatError(ManifestError):
    """The file was written in a later version of the format."""


@dataclass(frozen=True)
class ColumnEntry:
    """One column as the manifest declares it; `dtype` is the schema's, checked."""

    table: str
    column: str
    dtype: np.dtype[Any]
    rows: int

    @property
    def member(self) -> str:
        """Name of the archive's member; a label's own characters are percent-encoded."""
        name = quote(self.column, safe="", errors="surrogatepass")
        return f"tables/{self.table}/{name}.npy"

    @property
    def data_bytes(self) -> int:
        """Size of the column's values."""
        return self.rows * self.dtype.itemsize


@dataclass(frozen=True)
class Manifest:
    """A checked manifest."""

    format_version: int
    strings: tuple[str, ...]
    meta: dict[str, Any]
    losses: dict[str, Any]
    columns: tuple[ColumnEntry, ...]
    totals: Totals | None


def column_entries(table: Table) -> Iterable[ColumnEntry]:
    """Declare the columns of a table."""
    for column in table.columns:
        dtype = np.dtype("int32") if column in table.coded else table[column].dtype
        yield ColumnEntry(table.name, column, dtype, len(table))


def dump(profile: Profile) -> bytes:
    """Write the manifest of a profile.

    A float that is not finite becomes null, since JSON has no name for it.

    Raises:
        ManifestError: meta or losses hold something that cannot be written or read back.
    """
    meta, losses = profile.meta, profile.losses
    check_metadata(meta, losses)
    tables = {
        name: {
            "rows": len(table),
            "columns": {
                entry.column: {
                    "dtype": entry.dtype.name,
                    "coded": entry.column in table.coded,
                    "bytes": entry.data_bytes,
                }
                for entry in column_entries(table)
            },
        }
        for name, table in profile.tables.items()
    }
    content = {
        "format": FORMAT_NAME,
        "format_version": schema.FORMAT_VERSION,
        "meta": _finite(meta),
        "losses": _finite(losses),
        "tables": tables,
        "strings": list(profile.requests.strings),
        "totals": None if profile.totals is None else _finite(profile.totals.to_dict()),
    }
    try:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")
    except (TypeError, ValueError, RecursionError) as error:
        raise ManifestError(f"meta or losses are not plain JSON data: {error}") from error


def parse(text: bytes) -> Manifest:
    """Read a manifest and check all of it.

    Raises:
        NewerFormatError: the file was written in a later version of the format.
        ManifestError: the manifest is damaged, or was not written by this package.
    """
    try:
        content = json.loads(
            text.decode("ascii"), parse_int=_integer, parse_constant=_refuse_constant
        )
    except RecursionError as error:
        raise ManifestError("its manifest is nested too deeply") from error
    except ValueError as error:
        raise ManifestError(f"its manifest is not valid JSON ({shortened(error)})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT_NAME:
        raise ManifestError("its manifest does not say that it is a pertoken profile")
    version = _checked_version(content)
    keys = (*_KEYS, *(key for key, since in _KEYS_SINCE.items() if since <= version))
    missing = [key for key in keys if key not in content]
    unknown = [key for key in content if key not in keys]
    if missing or unknown:
        raise ManifestError(f"its manifest lacks {missing} and has unknown {shortened(unknown)}")
    strings = content["strings"]
    if not isinstance(strings, list) or not all(isinstance(s, str) for s in strings):
        raise ManifestError("its table of strings is not a list of strings")
    check_metadata(content["meta"], content["losses"])
    return Manifest(
        version,
        tuple(strings),
        content["meta"],
        content["losses"],
        _columns(content["tables"], schema.tables_of(version)),
        _totals(content.get("totals")),
    )


def _totals(content: object) -> Totals | None:
    try:
        return None if content is None else totals_from_dict(content)
    except TotalsError as error:
        raise ManifestError(f"its totals are damaged: {shortened(error)}") from error


def _checked_version(content: Mapping[str, Any]) -> int:
    version = content.get("format_version")
    if type(version) is not int or version < 1:
        raise ManifestError(f"its format version is {shortened(version)}, not a positive integer")
    if version > schema.FORMAT_VERSION:
        meta = content.get("meta")
        writer = meta.get("pertoken_version") if isinstance(meta, dict) else None
        wanted = f"pertoken {shortened(writer)} or later" if isinstance(writer, str) else "pertoken"
        raise NewerFormatError(
            f"its format version is {version} and this pertoken reads up to "
            f"{schema.FORMAT_VERSION}; upgrade to {wanted} (pip install -U pertoken)"
        )
    return version


def _columns(
    tables: object, expected_tables: Mapping[str, tuple[schema.Column, ...]]
) -> tuple[ColumnEntry, ...]:
    if not isinstance(tables, dict) or set(tables) != set(expected_tables):
        raise ManifestError(
            f"its manifest must list the tables {', '.join(expected_tables)} and no others"
        )
    entries: list[ColumnEntry] = []
    for name, declared in expected_tables.items():
        table = tables[name]
        if not isinstance(table, dict) or set(table) != {"rows", "columns"}:
            raise ManifestError(f"its entry for table '{name}' is not of the right form")
        rows, columns = table["rows"], table["columns"]
        if type(rows) is not int or rows < 0 or not isinstance(columns, dict):
            raise ManifestError(f"its entry for table '{name}' is not of the right form")
        known = {column.name: column for column in declared}
        absent = [column for column in known if column not in columns]
        if absent:
            raise ManifestError(f"table '{name}' lacks the column(s) {', '.join(absent)}")
        for column, entry in columns.items():
            if column not in known and not column.startswith(schema.LABEL_PREFIX):
                raise ManifestError(f"table '{name}' has an unknown column {shortened(column)}")
            dtype = np.dtype(known[column].dtype if column in known else "int32")
            coded = known[column].coded if column in known else True
            expected = {"dtype": dtype.name, "coded": coded, "bytes": rows * dtype.itemsize}
            if entry != expected or type(entry["bytes"]) is not int:
                raise ManifestError(
                    f"column {shortened(column)} of table '{name}' is declared as "
                    f"{shortened(entry)}, not as {expected}"
                )
            entries.append(ColumnEntry(name, column, dtype, rows))
    return tuple(entries)


def check_metadata(meta: object, losses: object) -> None:
    """Checks that a profile may have these `meta` and `losses`.

    Raises:
        ManifestError: it may not; the message says why.
    """
    _check_meta("meta", meta)
    _check_losses("losses", losses)
    assert isinstance(meta, dict) and isinstance(losses, dict)
    _check_depth(meta, _DEEPEST_METADATA)
    _check_depth(losses, _DEEPEST_METADATA)
    # Those of each process, in a merged profile.
    for position, own in enumerate(meta.get("processes") or ()):
        _check_meta(f"meta.processes.{position}", own)
    for position, own in enumerate(losses.get("processes") or ()):
        _check_losses(f"losses.processes.{position}", own)


def _check_meta(label: str, meta: object) -> None:
    _check_types(label, meta, _META_TYPES)
    assert isinstance(meta, dict)
    clock = meta.get("clock") or {}
    _check_types(f"{label}.clock", clock, _CLOCK_TYPES)
    for measurement in clock.get("synchronized") or ():
        _check_types(f"{label}.clock.synchronized", measurement, _MEASUREMENT_TYPES)
        if any(measurement.get(key) is None for key in _MEASUREMENT_TYPES):
            raise ManifestError(f"{label}.clock.synchronized lacks a value")
    _check_types(f"{label}.model", meta.get("model") or {}, _MODEL_TYPES)


def _check_losses(label: str, losses: object) -> None:
    _check_types(label, losses, _LOSS_TYPES)
    assert isinstance(losses, dict)
    for key in ("faults", "observations_skipped", "device_spans_lost"):
        counts = losses.get(key) or {}
        _check_types(f"{label}.{key}", counts, dict.fromkeys(counts, int))
    for key in ("inlined_modules", "reasons"):
        if not all(isinstance(item, str) for item in losses.get(key) or ()):
            raise ManifestError(f"{label}.{key} is not a list of strings")


def _check_types(label: str, values: object, types: Mapping[str, type | tuple[type, ...]]) -> None:
    if not isinstance(values, dict):
        raise ManifestError(f"{label} is not a mapping")
    for key, value in values.items():
        if not isinstance(key, str):
            raise ManifestError(f"{label} has a key that is not a string: {shortened(key)}")
        expected = types.get(key)
        if expected is None or value is None:
            continue
        if not isinstance(value, expected) or isinstance(value, bool):
            raise ManifestError(
                f"{label}.{shortened(key)} is {shortened(value)}, of the wrong type"
            )


def _check_depth(value: object, levels: int) -> None:
    if levels == 0:
        raise ManifestError("its metadata is nested too deeply")
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return
    for item in value:
        _check_depth(item, levels - 1)


def _integer(digits: str) -> int:
    # Converting a number of a million digits takes time that grows with their square.
    if len(digits) > _LONGEST_INTEGER:
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def shortened(value: object) -> str:
    """Show a value from a file on one line, in ASCII, at a length that a message can bear."""
    text = str(value) if isinstance(value, Exception) else ascii(value)
    text = text.encode("ascii", "backslashreplace").decode().replace("\n", " ")
    return text if len(text) <= 80 else f"{text[:77]}..."
