"""Saving and loading: what is saved comes back, no file does anything but load or be refused."""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pertoken import schema, storage
from pertoken.errors import FileFormatError, PertokenError
from pertoken.result import Profile
from pertoken.storage import load, save
from synthetic import EXOTIC_NAMES, columns_of, synthetic_profile, with_columns

Members = list[tuple[str, bytes]]


def assert_same(left: Profile, right: Profile) -> None:
    before, after = columns_of(left), columns_of(right)
    assert list(before) == list(after)
    for name in before:
        assert left.tables[name].columns == right.tables[name].columns
        for column in before[name]:
            assert before[name][column].dtype == after[name][column].dtype
            np.testing.assert_array_equal(before[name][column], after[name][column])
    assert left.requests.strings == right.requests.strings
    assert left.meta == right.meta and left.losses == right.losses


@pytest.fixture(scope="module")
def original() -> Profile:
    return with_columns(
        synthetic_profile(exotic_names=True, layers=len(EXOTIC_NAMES), tokens=4),
        "requests",
        label__tier=["gold", ""],
    )


@pytest.fixture(scope="module")
def content(original: Profile, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("saved") / "whole.pertoken"
    save(original, path)
    return path.read_bytes()


@pytest.fixture
def members(content: bytes) -> Members:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return [(info.filename, archive.read(info)) for info in archive.infolist()]


def pack(members: Members, compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name), data, compress_type=compression)
    return stream.getvalue()


def edit_manifest(members: Members, edit: Callable[[dict[str, Any]], Any]) -> Members:
    manifest = json.loads(dict(members)["manifest.json"])
    edit(manifest)
    return replace(members, "manifest.json", json.dumps(manifest).encode())


def replace(members: Members, name: str, data: bytes) -> Members:
    assert name in dict(members)
    return [(n, data if n == name else d) for n, d in members]


def refused(folder: Path, data: bytes, match: str | None = None) -> str:
    """Load the bytes and check that exactly one clear error comes of it, and nothing else."""
    path = folder / "refused.pertoken"
    path.write_bytes(data)
    before = sorted(os.listdir(folder))
    with pytest.raises(FileFormatError, match=match) as caught:
        load(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message and len(message) < 600
    assert message.isprintable()
    assert sorted(os.listdir(folder)) == before
    assert path.read_bytes() == data
    return message


def test_a_profile_comes_back_as_it_was(original: Profile, tmp_path: Path) -> None:
    path = tmp_path / "run.pertoken"
    original.save(path)
    loaded = load(str(path))
    assert_same(original, loaded)
    assert loaded.summary() == original.summary()
    with pytest.raises(ValueError, match="read-only"):
        loaded.steps["step"][0] = 1


@pytest.mark.parametrize(
    "profile", [synthetic_profile(requests=0), Profile.from_columns({}, (), {}, {})]
)
def test_an_empty_profile_comes_back(profile: Profile, tmp_path: Path) -> None:
    save(profile, tmp_path / "empty")
    assert_same(profile, load(tmp_path / "empty"))


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(st.text(), min_size=16, max_size=16),
    host=st.text(),
    label=st.text(),
    weights=st.lists(st.floats(), min_size=16, max_size=16),
)
def test_any_names_and_numbers_come_back(
    texts: list[str], host: str, label: str, weights: list[float], tmp_path: Path
) -> None:
    profile = synthetic_profile(meta={"host": host, "cost": {host: 1.5}})
    profile = with_columns(profile, "steps", detail=texts, sample_weight=weights)
    profile = with_columns(profile, "requests", **{f"label__{label}": ["x", "y"]})
    save(profile, tmp_path / "any")
    assert_same(profile, load(tmp_path / "any"))


def test_the_same_profile_gives_the_same_bytes(
    original: Profile, content: bytes, tmp_path: Path
) -> None:
    save(original, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == content


def test_numpy_reads_the_columns_without_pertoken(original: Profile, members: Members) -> None:
    for name, data in members:
        if name.endswith(".npy") and "label" not in name:
            _, table, column = name[: -len(".npy")].split("/")
            values = np.load(io.BytesIO(data), allow_pickle=False)
            np.testing.assert_array_equal(values, columns_of(original)[table][column])
    assert members[0][0] == "manifest.json"


def test_a_float_that_json_cannot_hold_is_saved_as_null(tmp_path: Path) -> None:
    profile = synthetic_profile(meta={"cost": {"a": float("nan"), "b": [float("inf"), 1.0]}})
    save(profile, tmp_path / "nan")
    assert load(tmp_path / "nan").meta["cost"] == {"a": None, "b": [None, 1.0]}


@pytest.mark.parametrize(
    "meta",
    [{"cost": {"a": object()}}, {"cost": {"a": {1, 2}}}, {"pid": "seven"}, {"model": {"class": 1}}],
)
def test_metadata_that_could_not_be_read_back_is_not_saved(
    meta: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(PertokenError, match="cannot save"):
        save(synthetic_profile(meta=meta), tmp_path / "never")
    assert os.listdir(tmp_path) == []


def test_columns_that_compress_too_well_are_stored_and_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "ANY_RATIO_BYTES", 1000)
    count = 200_000
    empty = synthetic_profile(requests=0)
    zeros = {c: np.zeros(count) for c in empty.tokens.columns}
    profile = with_columns(empty, "tokens", **zeros)
    save(profile, tmp_path / "zeros")
    assert (tmp_path / "zeros").stat().st_size > count * 4
    assert_same(profile, load(tmp_path / "zeros"))


# What can be wrong with a file.


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(place=st.integers(0, 10**9), mask=st.integers(1, 255))
def test_a_flipped_byte_is_refused_or_harmless(
    place: int, mask: int, original: Profile, content: bytes, tmp_path: Path
) -> None:
    data = bytearray(content)
    data[place % len(data)] ^= mask
    path = tmp_path / "flipped"
    path.write_bytes(data)
    try:
        loaded = load(path)
    except FileFormatError as error:
        assert "\n" not in str(error)
    else:
        # Dates, permissions and the like are in no checksum, and mean nothing to us.
        assert_same(original, loaded)


def test_a_flipped_byte_in_any_member_is_refused(content: bytes, tmp_path: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for info in archive.infolist():
            head = content[info.header_offset :]
            name_bytes, extra_bytes = struct.unpack("<HH", head[26:30])
            begin = info.header_offset + 30 + name_bytes + extra_bytes
            data = bytearray(content)
            data[begin + info.compress_size // 2] ^= 0x55
            refused(tmp_path, bytes(data), "not a whole pertoken profile")


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_refused(share: float, content: bytes, tmp_path: Path) -> None:
    refused(tmp_path, content[: int(share * len(content))])


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.binary(max_size=400), prefix=st.sampled_from([b"", b"PK\x03\x04", b"PK\x05\x06"]))
def test_any_bytes_are_refused(data: bytes, prefix: bytes, tmp_path: Path) -> None:
    refused(tmp_path, prefix + data)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "it is empty"),
        (b"not a zip at all, but long enough to be one" * 3, "does not start like one"),
        (pickle.dumps({"a": 1}), "does not start like one"),
        (pack([("a.txt", b"a")]), r"no manifest\.json"),
        (pack([]), "does not start like one"),
    ],
)
def test_foreign_files_are_refused(data: bytes, match: str, tmp_path: Path) -> None:
    refused(tmp_path, data, match)


@pytest.mark.parametrize("added", ["before", "behind"])
def test_bytes_before_or_behind_the_archive_are_refused(
    added: str, content: bytes, tmp_path: Path
) -> None:
    refused(tmp_path, b"#!/bin/sh\n" + content if added == "before" else content + b"x")


def test_repacked_members_still_load(original: Profile, members: Members, tmp_path: Path) -> None:
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        (tmp_path / "repacked").write_bytes(pack(members[::-1], compression))
        assert_same(original, load(tmp_path / "repacked"))


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compression_is_refused(compression: int, members: Members, tmp_path: Path) -> None:
    refused(tmp_path, pack(members, compression), "unknown method")


def test_an_encrypted_member_is_refused(content: bytes, tmp_path: Path) -> None:
    place = content.index(b"PK\x01\x02") + 8
    refused(tmp_path, content[:place] + b"\x01" + content[place + 1 :], "encrypted")


@pytest.mark.parametrize(
    "name", ["../../evil.npy", "/etc/evil.npy", "tables/../../evil.npy", "C:\\evil", "tables/", "x"]
)
def test_members_that_do_not_belong_are_refused_wherever_they_point(
    name: str, members: Members, tmp_path: Path
) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    refused(inner, pack([*members, (name, b"evil")]), "not those that its manifest lists")
    assert os.listdir(tmp_path) == ["inner"]


def test_a_missing_member_is_refused(members: Members, tmp_path: Path) -> None:
    for name, _ in members:
        match = "manifest" if name == "manifest.json" else "not those that its manifest lists"
        refused(tmp_path, pack([m for m in members if m[0] != name]), match)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ["manifest.json", "tables/steps/step.npy"])
def test_a_member_that_is_there_twice_is_refused(
    name: str, members: Members, tmp_path: Path
) -> None:
    refused(tmp_path, pack([*members, (name, dict(members)[name])]), "there twice")


def npy(values: np.ndarray, **options: Any) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, values, **options)
    return stream.getvalue()


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


def step_table(manifest: dict[str, Any]) -> dict[str, Any]:
    table: dict[str, Any] = manifest["tables"]["steps"]
    return table


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


def bomb_members(members: Members, count: int) -> Members:
    """Make the tokens table, consistently, one of `count` rows of zeros."""

    def declare(manifest: dict[str, Any]) -> None:
        manifest["tables"]["tokens"]["rows"] = count
        for column in manifest["tables"]["tokens"]["columns"].values():
            column["bytes"] = count * np.dtype(column["dtype"]).itemsize

    members = edit_manifest(members, declare)
    for column in schema.TABLES["tokens"]:
        zeros = npy(np.zeros(count, dtype=column.dtype))
        members = replace(members, f"tables/tokens/{column.name}.npy", zeros)
    return members


def test_a_zip_bomb_is_refused_before_anything_of_it_is_unpacked(
    members: Members, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "ANY_RATIO_BYTES", 1 << 20)
    data = pack(bomb_members(members, 500_000))

    def never(*_: object) -> None:
        raise AssertionError("a member was unpacked")

    monkeypatch.setattr(zipfile.ZipFile, "open", never)
    refused(tmp_path, data, "claims to unpack")


def test_a_file_over_the_total_limit_is_refused(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "MAX_TOTAL_BYTES", 10_000)
    refused(tmp_path, content, "claims to unpack")


def test_a_member_that_lies_about_its_size_is_refused(members: Members, tmp_path: Path) -> None:
    """The directory claims the size of a short column; the data unpack to ten megabytes."""
    name = "tables/steps/step.npy"
    honest = dict(members)[name]
    data = bytearray(pack(replace(members, name, honest.ljust(10_000_000, b"\0"))))
    size = struct.pack("<L", 10_000_000)
    assert data.count(size) == 2
    data = data.replace(size, struct.pack("<L", len(honest)))
    refused(tmp_path, bytes(data), "CRC")


def test_members_that_overlap_are_refused(members: Members, tmp_path: Path) -> None:
    """Many directory entries for the same bytes make a bomb that no ratio of one member shows."""
    data = bytearray(pack(members, zipfile.ZIP_STORED))
    place = data.index(b"PK\x01\x02")
    packed = struct.pack("<L", len(data) - 10)
    data[place + 20 : place + 24] = packed
    refused(tmp_path, bytes(data), "more room than the file has")


def test_too_many_members_are_refused_before_the_directory_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = pack([(f"{i}", b"") for i in range(storage.MAX_MEMBERS + 1)])

    def never(*_: object) -> None:
        raise AssertionError("the directory was read")

    monkeypatch.setattr(zipfile, "ZipFile", never)
    refused(tmp_path, data, f"claims {storage.MAX_MEMBERS + 1} members")


def test_a_large_directory_behind_a_small_one_is_refused(tmp_path: Path) -> None:
    """The 64-bit record, which overrides the other, is checked too."""
    large = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 10**9, 10**9, 10**11, 4)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, 4, 1)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 65535, 65535, 2**32 - 1, 2**32 - 1, 0)
    refused(tmp_path, b"PK\x03\x04" + large + locator + end, "claims")
    refused(tmp_path, b"PK\x03\x04" + b"\0" * len(large) + locator + end, "directory is damaged")


def test_a_huge_manifest_is_refused(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "MAX_MANIFEST_BYTES", 100)
    refused(tmp_path, content, "manifest would take")
    with pytest.raises(PertokenError, match="fewer distinct"):
        save(synthetic_profile(), tmp_path / "never")
    assert not (tmp_path / "never").exists()


# What can be wrong with the place.


def one_line(error: pytest.ExceptionInfo[PertokenError], path: Path, advice: str) -> None:
    message = str(error.value)
    assert str(path) in message and advice in message and "\n" not in message


def test_a_missing_file_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "nothing"
    with pytest.raises(PertokenError) as caught:
        load(path)
    one_line(caught, path, "check the path")
    assert not isinstance(caught.value, FileFormatError)


def test_a_folder_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(PertokenError) as caught:
        load(tmp_path)
    one_line(caught, tmp_path, "not of a folder")
    with pytest.raises(PertokenError) as caught:
        save(synthetic_profile(), tmp_path)
    one_line(caught, tmp_path, "not of a folder")


def test_a_file_without_permission_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "secret"
    path.write_bytes(b"x")

    def denied(*_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr("builtins.open", denied)
    with pytest.raises(PertokenError) as caught:
        load(path)
    monkeypatch.undo()
    one_line(caught, path, "check the permissions")


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(PertokenError):
        load(tmp_path / "pipe")
    with pytest.raises(PertokenError, match="not a regular file"):
        save(synthetic_profile(), tmp_path / "pipe")
    assert stat.S_ISFIFO(os.stat(tmp_path / "pipe").st_mode)


def test_a_path_with_a_null_character_is_one_clear_error() -> None:
    for action in (load, lambda path: save(synthetic_profile(), path)):
        with pytest.raises(PertokenError, match="null character"):
            action("a\0b")


def test_a_folder_that_does_not_exist_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "no" / "run.pertoken"
    with pytest.raises(PertokenError) as caught:
        save(synthetic_profile(), path)
    one_line(caught, path, "its folder exists")


class FullDisk:
    """A stream that takes some bytes and then has no room."""

    def __init__(self, stream: Any, room: int) -> None:
        self.stream, self.room = stream, room

    def write(self, data: Any) -> int:
        self.room -= memoryview(data).nbytes
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return int(self.stream.write(data))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def __enter__(self) -> FullDisk:
        return self

    def __exit__(self, *error: object) -> None:
        self.stream.close()


@pytest.mark.parametrize("room", [0, 10, 1000, 5000])
@pytest.mark.parametrize("existing", [True, False])
def test_a_full_disk_leaves_no_half_file_and_keeps_the_old_one(
    room: int, existing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.pertoken"
    if existing:
        path.write_bytes(b"old")
    real = os.fdopen
    monkeypatch.setattr(os, "fdopen", lambda *args: FullDisk(real(*args), room))
    with pytest.raises(PertokenError) as caught:
        save(synthetic_profile(), path)
    monkeypatch.undo()
    one_line(caught, path, "free some space")
    assert os.listdir(tmp_path) == (["run.pertoken"] if existing else [])
    if existing:
        assert path.read_bytes() == b"old"


def test_a_real_full_disk_is_reported(tmp_path: Path) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("the system has no /dev/full")
    real = os.open
    with pytest.MonkeyPatch.context() as patch:

        def full(path: str, flags: int, mode: int = 0o777) -> int:
            real_file = real(path, flags, mode)
            os.close(real_file)
            return real("/dev/full", os.O_RDWR)

        patch.setattr(os, "open", full)
        with pytest.raises(PertokenError):
            save(synthetic_profile(), tmp_path / "run.pertoken")
    assert os.listdir(tmp_path) == []


def test_an_interrupt_while_saving_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save(synthetic_profile(), tmp_path / "run.pertoken")
    assert os.listdir(tmp_path) == []


def test_saving_replaces_the_target_of_a_link_and_keeps_the_link(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"old")
    link.symlink_to(target)
    save(synthetic_profile(), link)
    assert link.is_symlink()
    assert_same(synthetic_profile(), load(target))


def test_a_saved_file_has_ordinary_permissions(tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        save(synthetic_profile(), tmp_path / "run")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o640
