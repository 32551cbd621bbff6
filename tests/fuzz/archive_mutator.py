"""Mutations of a saved profile that stay inside its structure, for the loader's fuzzer.

A mutator of bytes alone dies at the archive's checksums. This one takes the archive apart, changes
members, columns, the manifest or the archive's own records, and packs it again with checksums that
hold. What it makes is either consistent (the loader should accept it, and every view must cope with
the values), or wrong in one or two places (the loader must refuse it).
"""

from __future__ import annotations

import io
import json
import struct
import warnings
import zipfile
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np

from pertoken import schema

Members = list[tuple[str, bytes]]
MutateBytes = Callable[[bytes, int], bytes]

MANIFEST = "manifest.json"
MOST_ROWS = 300
NPY_HEADER_BYTES = 128

INTEGERS = (0, 1, -1, -2, 2, 3, 7, 1000, 10**6, 10**9, 10**18, 2**22, 2**31 - 1, 2**31, 2**32)
EXTREMES = (2**53, 2**62, 2**63 - 1, -(2**63), -(2**62), -(2**31))
FLOATS = (0.0, 1.0, -1.0, 0.1, 1e-13, 1e13, 5e-324, 1e308, np.inf, -np.inf, np.nan)
TEXTS = (
    "", "decode", "prefill", "draft", "verify", "module", "region", "generate", "root", "error",
    "\ud800", "a\udfffb", "\x00", "\x1b[31m", "\n", '"', "\\", "\u2028", "\U0001f680", "\x7f\x9f",
    "</script>", "generate: outside forward", "[red]", "x" * 500, "{0}%s", "\u202e", "e\u0301",
)  # fmt: skip
VALUES = (
    None, True, False, 0, 1, -1, 2**31, 2**63, 10**19, 10**25, 1.5, 1e400, -0.0, "", "x", [], {},
    [[]], ["a", "a"], {"a": 1}, {"": {}}, "int64", "int32", "object", "float64",
)  # fmt: skip
META_KEYS = (
    "format_version", "pid", "rank", "boot_origin_ns", "unix_origin_ns", "duration_ns", "model",
    "clock", "build", "cost", "device", "modules", "pertoken_version", "host", "new_key",
)  # fmt: skip
LOSS_KEYS = (
    "records_dropped", "clock_error_ns", "spans_evicted", "steps_evicted", "requests_evicted",
    "faults", "inlined_modules", "reasons", "new_key",
)  # fmt: skip
NAMES = (
    "../../evil.npy", "/etc/passwd", "C:\\x.npy", "tables/", "", "manifest.json", ".", "a\x00b",
    "tables/steps/../steps/step.npy", "tables/requests/label.%2E%2E%2F.npy", "\ud800",
)  # fmt: skip
HEADERS = (
    b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
    b"{'descr': '<i8', 'fortran_order': True, 'shape': (1,), }",
    b"{'descr': '<i8', 'fortran_order': False, 'shape': (-1,), }",
    b"{'descr': '<i8', 'fortran_order': False, 'shape': (1, 1), }",
    b"{'descr': '<i8', 'fortran_order': False, 'shape': (4611686018427387904,), }",
    b"{'descr': '>i8', 'fortran_order': False, 'shape': (1,), }",
    b"__import__('os').system('false')",
)


def unpacked(data: bytes) -> Members | None:
    """Take an archive apart; None when that cannot be done."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(info.file_size for info in archive.infolist()) > 4 << 20:
                return None
            return [(info.filename, archive.read(info)) for info in archive.infolist()]
    except Exception:
        return None


def packed(members: Members, compression: int = zipfile.ZIP_STORED) -> bytes:
    """Make an archive whose checksums hold, whatever the members are."""
    stream = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(stream, "w", compression) as archive:
        warnings.simplefilter("ignore")  # a name that is there twice
        for name, data in members:
            safe = name.encode("utf-8", "replace").decode()
            archive.writestr(zipfile.ZipInfo(safe), data, compress_type=compression)
    return stream.getvalue()


class SavedArchive:
    """A saved profile taken apart: its manifest as an object, its columns as arrays."""

    def __init__(self, members: Members) -> None:
        """Keep what is well formed apart from what is not."""
        self.manifest: Any = None
        self.columns: dict[str, dict[str, np.ndarray]] = {name: {} for name in schema.TABLES}
        held = dict(members)
        try:
            self.manifest = json.loads(held[MANIFEST])
            kinds = {"strings": list, "meta": dict, "losses": dict}
            if not all(isinstance(self.manifest[key], kinds[key]) for key in kinds):
                raise TypeError("a part of the manifest is of another type")
            for name, table in self.manifest["tables"].items():
                for column, entry in table["columns"].items():
                    content = held[member_name(name, column)]
                    values = np.frombuffer(content[NPY_HEADER_BYTES:], entry["dtype"]).copy()
                    self.columns[name][column] = values
        except Exception as error:
            raise ValueError("not a saved profile") from error

    def adapt(self) -> None:
        """Bring the tables to the present schema, as if the file had been saved today.

        Columns that are gone are dropped and new ones are filled with -1, so that files which were
        kept under an older schema still reach the code behind the loader.
        """
        for name, declared in schema.TABLES.items():
            old = self.columns[name]
            rows = min(map(len, old.values()), default=0)
            labels = [column for column in old if column.startswith(schema.LABEL_PREFIX)]
            new = {
                column.name: (
                    old[column.name].astype(column.dtype)
                    if column.name in old
                    else np.full(rows, -1, column.dtype)
                )
                for column in declared
            }
            new.update({label: old[label].astype(np.int32) for label in labels})
            self.columns[name] = {column: values[:rows] for column, values in new.items()}
        self.manifest["format_version"] = schema.FORMAT_VERSION

    def members(self) -> Members:
        """Give the members, the manifest rewritten so that it agrees with the columns."""
        coded = {
            (name, column.name)
            for name, columns in schema.TABLES.items()
            for column in columns
            if column.coded
        }
        result: Members = []
        tables: dict[str, Any] = {}
        for name, columns in self.columns.items():
            rows = min(map(len, columns.values()), default=0)
            entries: dict[str, Any] = {}
            for column, values in columns.items():
                held = np.ascontiguousarray(values[:rows])
                is_coded = (name, column) in coded or column.startswith(schema.LABEL_PREFIX)
                entries[column] = {
                    "dtype": held.dtype.name, "coded": is_coded, "bytes": held.nbytes
                }  # fmt: skip
                result.append((member_name(name, column), npy(held)))
            tables[name] = {"rows": rows, "columns": entries}
        text = json.dumps({**self.manifest, "tables": tables}).encode()
        return [(MANIFEST, text), *result]


def member_name(table: str, column: str) -> str:
    """Name the member of a column."""
    from pertoken.manifest import ColumnEntry

    return ColumnEntry(table, column, np.dtype("int32"), 0).member


def npy(values: np.ndarray) -> bytes:
    """Write an array as a .npy file."""
    stream = io.BytesIO()
    np.lib.format.write_array(stream, values, version=(1, 0))
    return stream.getvalue()


def mutated(data: bytes, seed: int, max_size: int, mutate_bytes: MutateBytes) -> bytes:
    """Change an input in one to four places.

    Args:
        data: a file; one that is no saved profile is changed byte by byte.
        seed: of all choices but those of `mutate_bytes`.
        max_size: the most bytes to return.
        mutate_bytes: a mutator of plain bytes, which takes the most bytes that it may return.
    """
    rng = Random(seed)
    members = unpacked(data)
    if members is None or rng.random() < 0.05:
        return mutate_bytes(data, max_size)
    kind = rng.random()
    if kind < 0.7:
        archive = _with_columns(members)
        if archive is None:
            members = change_members(members, rng, mutate_bytes)
        else:
            for _ in range(rng.choice((1, 1, 2, 4))):
                rng.choice(CONSISTENT)(archive, rng)
            members = archive.members()
            if rng.random() < 0.1:
                members = change_members(members, rng, mutate_bytes)
    elif kind < 0.9:
        members = change_members(members, rng, mutate_bytes)
    compression = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    result = packed(members, compression)
    if kind >= 0.9:
        result = change_records(result, rng)
    return result if len(result) <= max_size else mutate_bytes(data, max_size)


def _with_columns(members: Members) -> SavedArchive | None:
    """Take a saved profile apart; None for one without the columns that changes start from."""
    try:
        archive = SavedArchive(members)
    except ValueError:
        return None
    return archive if "request" in archive.columns["requests"] else None


# Consistent changes


def change_values(archive: SavedArchive, rng: Random) -> None:
    """Write values of interest, or those of other rows and columns, into a column."""
    columns, name = _some_column(archive, rng)
    values = columns[name]
    if not len(values):
        return
    if values.dtype.kind == "f":
        pool: list[Any] = list(FLOATS)
    elif values.dtype.itemsize == 4 and rng.random() < 0.8:
        pool = [-1, *range(len(archive.manifest["strings"]))][:100]
    else:
        pool = [*INTEGERS, *(EXTREMES if rng.random() < 0.3 else ())]
        pool += [int(v) + d for v in values[:8] for d in (-1, 0, 1)]
    limits = np.iinfo(values.dtype) if values.dtype.kind == "i" else None
    for _ in range(rng.choice((1, 1, 2, len(values)))):
        value = rng.choice(pool)
        if limits is not None:
            value = min(max(value, limits.min), limits.max)
        values[rng.randrange(len(values))] = value


def copy_column(archive: SavedArchive, rng: Random) -> None:
    """Let one column hold another's values: a span its own parent, an end before its start."""
    columns, name = _some_column(archive, rng)
    other = rng.choice(list(columns))
    if columns[name].dtype == columns[other].dtype and name not in _coded_names(columns):
        columns[name] = columns[other].copy()


def shuffle_rows(archive: SavedArchive, rng: Random) -> None:
    """Change the order of a table's rows, or of one column alone."""
    columns, name = _some_column(archive, rng)
    order = np.array(rng.sample(range(len(columns[name])), len(columns[name])), dtype=np.int64)
    for column in [name] if rng.random() < 0.5 else list(columns):
        columns[column] = columns[column][order]


def resize_table(archive: SavedArchive, rng: Random) -> None:
    """Drop rows of a table or repeat them."""
    columns, name = _some_column(archive, rng)
    rows = rng.choice((0, 1, 2, len(columns[name]) // 2, len(columns[name]) * 2, MOST_ROWS))
    for column, values in columns.items():
        filled = values if len(values) else np.zeros(1, values.dtype) - 1
        columns[column] = np.resize(filled, min(rows, MOST_ROWS))


def change_strings(archive: SavedArchive, rng: Random) -> None:
    """Replace or add a string; most stay distinct, as the format demands."""
    strings = archive.manifest["strings"]
    text = "".join(rng.choice(TEXTS) for _ in range(rng.choice((1, 1, 1, 2))))
    if text in strings and rng.random() < 0.95:
        text += str(rng.randrange(100))
    if strings and rng.random() < 0.7:
        strings[rng.randrange(len(strings))] = text
    else:
        strings.append(text)


def change_metadata(archive: SavedArchive, rng: Random) -> None:
    """Write a value of any type under a key that is known, or not."""
    side = rng.choice(("meta", "losses"))
    key = rng.choice(META_KEYS if side == "meta" else LOSS_KEYS)
    value: Any = rng.choice((*VALUES, *TEXTS, *INTEGERS))
    held = archive.manifest[side].get(key)
    if isinstance(held, dict) and rng.random() < 0.8:
        inner = rng.choice([*held, "class", "parameters", "error_bound_ns", "ticks_per_second"])
        held[inner] = value
    elif key == "faults" and rng.random() < 0.8:
        archive.manifest[side][key] = {rng.choice(TEXTS): rng.choice(INTEGERS)}
    elif key in ("reasons", "inlined_modules") and rng.random() < 0.8:
        archive.manifest[side][key] = [rng.choice(TEXTS) for _ in range(rng.randrange(12))]
    else:
        archive.manifest[side][key] = value


def add_label(archive: SavedArchive, rng: Random) -> None:
    """Add a label to the requests, with a name that no path could hold."""
    columns = archive.columns["requests"]
    rows = len(columns["request"])
    highest = len(archive.manifest["strings"])
    codes = [rng.randrange(-1, highest) for _ in range(rows)]
    name = rng.choice((*TEXTS, *NAMES))
    columns[schema.LABEL_PREFIX + name] = np.array(codes, dtype=np.int32)


CONSISTENT = (
    change_values, change_values, change_values, change_values, copy_column, shuffle_rows,
    resize_table, change_strings, change_metadata, add_label,
)  # fmt: skip


def _some_column(archive: SavedArchive, rng: Random) -> tuple[dict[str, np.ndarray], str]:
    tables = [columns for columns in archive.columns.values() if columns]
    columns = rng.choice(tables)
    return columns, rng.choice(list(columns))


def _coded_names(columns: dict[str, np.ndarray]) -> set[str]:
    known = {c.name for declared in schema.TABLES.values() for c in declared if c.coded}
    return {name for name in columns if name in known or name.startswith(schema.LABEL_PREFIX)}


# Changes that the loader has to notice


def change_members(members: Members, rng: Random, mutate_bytes: MutateBytes) -> Members:
    """Drop, rename, repeat, reorder or damage members; or damage the manifest's JSON."""
    if not members:
        return [(rng.choice(NAMES), b"")]
    members = list(members)
    place = rng.randrange(len(members)) if rng.random() < 0.6 else 0
    name, content = members[place]
    what = rng.randrange(8)
    if what == 0:
        del members[place]
    elif what == 1:
        members[place] = (rng.choice(NAMES), content)
    elif what == 2:
        members.insert(rng.randrange(len(members) + 1), (name, content))
    elif what == 3:
        rng.shuffle(members)
    elif what == 4:
        members[place] = (name, mutate_bytes(content, len(content) + 64))
    elif what == 5:
        header = rng.choice(HEADERS).ljust(NPY_HEADER_BYTES - 11) + b"\n"
        magic = b"\x93NUMPY" + rng.choice((b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x09\x00"))
        start = magic + struct.pack("<H", len(header)) + header
        members[place] = (name, start + content[NPY_HEADER_BYTES:])
    elif what == 6:
        members.append((rng.choice(NAMES), content))
    else:
        members = [(n, _with_damaged_json(c, rng) if n == MANIFEST else c) for n, c in members]
    return members


def _with_damaged_json(text: bytes, rng: Random) -> bytes:
    try:
        root = json.loads(text)
    except (ValueError, RecursionError):
        return text
    node, path = root, []
    while isinstance(node, dict | list) and node and (not path or rng.random() < 0.8):
        key = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
        path.append((node, key))
        node = node[key]
    if not path:
        return json.dumps(rng.choice(VALUES)).encode()
    parent, key = path[-1]
    if rng.random() < 0.3:
        del parent[key]
    elif isinstance(parent, dict) and rng.random() < 0.2:
        parent[rng.choice((*TEXTS, *META_KEYS))] = parent.pop(key)
    else:
        parent[key] = rng.choice((*VALUES, *INTEGERS, *EXTREMES))
    result = json.dumps(root).encode()
    if rng.random() < 0.1:
        result = result.replace(b'"rows": ', b'"rows": ' + rng.choice((b"9" * 30, b"-", b"1e5,")))
    if rng.random() < 0.05:
        deep = rng.choice((20, 40, 5000))
        result = result.replace(b'"cost": ', b'"deep": ' + b"[" * deep + b"]" * deep + b', "cost":')
    return result


def change_records(data: bytes, rng: Random) -> bytes:
    """Write values of interest into the archive's own records: sizes, offsets, flags, counts."""
    result = bytearray(data)
    signature = rng.choice((b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06"))
    places = []
    place = data.find(signature)
    while place >= 0:
        places.append(place)
        place = data.find(signature, place + 4)
    if not places:
        return data
    start = rng.choice(places)
    for _ in range(rng.choice((1, 1, 2))):
        width = rng.choice((1, 2, 4))
        offset = start + 4 + 2 * rng.randrange(21)
        value = rng.choice((0, 1, 8, 9, 12, 0x7F, 0xFFFF, 2**31, 2**32 - 1, len(data), start))
        value &= (1 << (8 * width)) - 1
        result[offset : offset + width] = value.to_bytes(width, "little")
    if rng.random() < 0.1:
        result += rng.choice((b"\0", b"PK\x05\x06" + b"\0" * 18, data[-22:]))
    if rng.random() < 0.1:
        locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, rng.choice((0, start, 2**63)), 1)
        result[-22:-22] = locator
    return bytes(result)
