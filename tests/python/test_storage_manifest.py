"""Loading files whose columns or manifest are wrong or malicious: each is refused."""

from __future__ import annotations

import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pertoken import schema
from pertoken.result import Profile
from pertoken.storage import load
from saved_file import (
    Members,
    edit_manifest,
    npy,
    original_profile,
    pack,
    refused,
    replace,
    saved_bytes,
    saved_members,
    step_table,
)
from synthetic import columns_of


@pytest.fixture
def original() -> Profile:
    return original_profile()


@pytest.fixture
def content() -> bytes:
    return saved_bytes()


@pytest.fixture
def members() -> Members:
    return saved_members()


class Bomb:
    """Unpickling this writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.path, "ran")


def test_an_object_array_is_refused_and_not_unpickled(members: Members, tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    values = np.array([Bomb(tmp_path / "evidence")] * 8, dtype=object)
    for name in ("tables/steps/step.npy", "tables/steps/kind.npy"):
        evil = npy(values, allow_pickle=True)
        refused(inner, pack(replace(members, name, evil)))
        refused(inner, pack(replace(members, name, evil.ljust(128 + 64, b"\0")[: 128 + 64])))
    refused(
        inner, pack(replace(members, "manifest.json", pickle.dumps(Bomb(tmp_path / "evidence"))))
    )
    assert os.listdir(tmp_path) == ["inner"]


@pytest.mark.parametrize(
    "values",
    [
        np.arange(8, dtype=">i8"),
        np.arange(8, dtype="<u8"),
        np.arange(8, dtype="<f8"),
        np.arange(16, dtype="<i4"),
        np.arange(8).reshape(2, 4),
        np.asfortranarray(np.arange(8).reshape(2, 4)),
        np.arange(7),
        np.arange(9),
    ],
    ids=str,
)
def test_a_column_of_another_type_or_shape_is_refused(
    values: np.ndarray, members: Members, tmp_path: Path
) -> None:
    assert len(columns_of(load_members(members, tmp_path))["steps"]["step"]) == 8
    refused(tmp_path, pack(replace(members, "tables/steps/step.npy", npy(values))), "step.npy")


def test_a_column_with_more_behind_it_is_refused(members: Members, tmp_path: Path) -> None:
    name = "tables/steps/step.npy"
    refused(tmp_path, pack(replace(members, name, dict(members)[name] + b"more")), "step.npy")


def load_members(members: Members, tmp_path: Path) -> Profile:
    (tmp_path / "members").write_bytes(pack(members))
    return load(tmp_path / "members")


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"\x93NUMPY",
        b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31),
        b"\x93NUMPY\x01\x00" + struct.pack("<H", 65535) + b"(" * 65535,
        b"\x93NUMPY\x01\x00v\x00" + b"__import__('os').system('touch evidence')".ljust(117) + b"\n",
    ],
    ids=["none", "magic", "huge", "deep", "code"],
)
def test_a_forged_column_header_is_refused(header: bytes, members: Members, tmp_path: Path) -> None:
    data = header.ljust(128, b" ")
    size = len(dict(members)["tables/steps/step.npy"])
    refused(tmp_path, pack(replace(members, "tables/steps/step.npy", data.ljust(size, b"\0"))))
    refused(tmp_path, pack(replace(members, "tables/steps/step.npy", header)))


def test_a_newer_format_says_which_version_to_upgrade_to(members: Members, tmp_path: Path) -> None:
    def newer(manifest: dict[str, Any]) -> None:
        manifest["format_version"] = schema.FORMAT_VERSION + 1
        manifest["meta"]["pertoken_version"] = "9.8.7"
        manifest["surprise"] = manifest["tables"].pop("spans")

    message = refused(tmp_path, pack(edit_manifest(members, newer)), "upgrade to pertoken")
    assert "9.8.7" in message and "pip install -U pertoken" in message
    assert f"reads up to {schema.FORMAT_VERSION}" in message


EDITS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "another format": lambda m: m.update(format="zip"),
    "version 0": lambda m: m.update(format_version=0),
    "version true": lambda m: m.update(format_version=True),
    "version text": lambda m: m.update(format_version="1"),
    "version missing": lambda m: m.pop("format_version"),
    "unknown key": lambda m: m.update(surprise=1),
    "no strings": lambda m: m.pop("strings"),
    "strings not a list": lambda m: m.update(strings="abc"),
    "strings not texts": lambda m: m["strings"].append(1),
    "a string twice": lambda m: m["strings"].append(m["strings"][0]),
    "codes beyond the strings": lambda m: m["strings"].pop(),
    "meta not a mapping": lambda m: m.update(meta=[]),
    "meta of a wrong type": lambda m: m["meta"].update(duration_ns="long"),
    "meta true for a number": lambda m: m["meta"].update(pid=True),
    "meta of a thousand digits": lambda m: m["meta"].update(pid=10**1000),
    "clock of a wrong type": lambda m: m["meta"]["clock"].update(error_bound_ns="40"),
    "model of a wrong type": lambda m: m["meta"].update(model=["x"]),
    "losses not a mapping": lambda m: m.update(losses=None),
    "losses of a wrong type": lambda m: m["losses"].update(records_dropped="0"),
    "faults of a wrong type": lambda m: m["losses"].update(faults={"x": "y"}),
    "reasons of a wrong type": lambda m: m["losses"].update(reasons=[1]),
    "tables not a mapping": lambda m: m.update(tables=[]),
    "unknown table": lambda m: m["tables"].update(surprise={"rows": 0, "columns": {}}),
    "table missing": lambda m: m["tables"].pop("tracks"),
    "table not a mapping": lambda m: m["tables"].update(steps=3),
    "rows negative": lambda m: step_table(m).update(rows=-1),
    "rows true": lambda m: step_table(m).update(rows=True),
    "rows wrong": lambda m: step_table(m).update(rows=7),
    "rows huge": lambda m: step_table(m).update(rows=2**62),
    "columns not a mapping": lambda m: step_table(m).update(columns=[]),
    "unknown column": lambda m: step_table(m)["columns"].update(surprise={}),
    "column missing": lambda m: step_table(m)["columns"].pop("gpu_ns"),
    "column not a mapping": lambda m: step_table(m)["columns"].update(step=1),
    "dtype object": lambda m: step_table(m)["columns"]["step"].update(dtype="object"),
    "dtype other": lambda m: step_table(m)["columns"]["step"].update(dtype="int32"),
    "coded wrong": lambda m: step_table(m)["columns"]["step"].update(coded=True),
    "bytes wrong": lambda m: step_table(m)["columns"]["step"].update(bytes=8),
    "bytes huge": lambda m: step_table(m)["columns"]["step"].update(bytes=2**62),
    "bytes a float": lambda m: step_table(m)["columns"]["step"].update(bytes=64.0),
    "key added to a column": lambda m: step_table(m)["columns"]["step"].update(surprise=1),
    "a longer table": lambda m: lengthen(step_table(m)),
}


def lengthen(table: dict[str, Any]) -> None:
    """Declare, consistently, far more rows than the file holds."""
    table["rows"] = 10**15
    for column in table["columns"].values():
        column["bytes"] = 10**15 * np.dtype(column["dtype"]).itemsize


@pytest.mark.parametrize("name", EDITS)
def test_a_manifest_that_is_wrong_in_one_place_is_refused(
    name: str, members: Members, tmp_path: Path
) -> None:
    refused(tmp_path, pack(edit_manifest(members, EDITS[name])))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"format": "pertoken", "format_version": NaN}',
        b'{"format": "pertoken", "format_version": ' + b"9" * 100_000 + b"}",
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b"[" * 50_000 + b"]" * 50_000,
    ],
    ids=["empty", "cut", "list", "null", "bytes", "nan", "digits", "lists", "maps", "closed"],
)
def test_a_manifest_that_is_not_json_is_refused(
    text: bytes, members: Members, tmp_path: Path
) -> None:
    refused(tmp_path, pack(replace(members, "manifest.json", text)), "manifest")


@pytest.mark.parametrize("depth", [40, 200, 400, 900])
def test_deeply_nested_metadata_is_refused(depth: int, members: Members, tmp_path: Path) -> None:
    text = dict(members)["manifest.json"].decode()
    deep = text.replace('"cost":{', '"cost":{"deep":' + "[" * depth + "]" * depth + ",", 1)
    assert deep != text
    refused(tmp_path, pack(replace(members, "manifest.json", deep.encode())), "nested too deeply")


def test_a_message_shows_no_control_characters_from_the_file(
    members: Members, tmp_path: Path
) -> None:
    def forge(manifest: dict[str, Any]) -> None:
        manifest["format_version"] = 99
        manifest["meta"]["pertoken_version"] = "1\n\x1b[31mred\u202e" + "x" * 10_000

    refused(tmp_path, pack(edit_manifest(members, forge)), "upgrade")


def test_codes_below_minus_one_are_refused(members: Members, tmp_path: Path) -> None:
    values = np.full(8, -2, dtype="<i4")
    refused(tmp_path, pack(replace(members, "tables/steps/kind.npy", npy(values))), "codes")


def test_tables_of_unequal_columns_are_refused(members: Members, tmp_path: Path) -> None:
    def shorten(manifest: dict[str, Any]) -> None:
        step_table(manifest)["columns"]["step"]["bytes"] = 56

    shorter = replace(members, "tables/steps/step.npy", npy(np.arange(7)))
    refused(tmp_path, pack(edit_manifest(shorter, shorten)))
