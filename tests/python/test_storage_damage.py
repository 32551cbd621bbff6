"""Loading files that are damaged, foreign or malicious as archives: each is refused."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
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
from saved_file import (
    Members,
    assert_same,
    edit_manifest,
    npy,
    original_profile,
    pack,
    refused,
    replace,
    saved_bytes,
    saved_members,
)
from synthetic import synthetic_profile


@pytest.fixture
def original() -> Profile:
    return original_profile()


@pytest.fixture
def content() -> bytes:
    return saved_bytes()


@pytest.fixture
def members() -> Members:
    return saved_members()


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
