"""The files of the Chrome trace export: whole or not there at all, plain or gzipped."""

from __future__ import annotations

import os
import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import pertoken
from models import Regressor
from pertoken.errors import PertokenError
from pertoken.result import Profile
from synthetic import synthetic_profile
from trace_profiles import (
    export,
    profile_of,
    read_strictly,
)


@pytest.mark.parametrize("profile", [synthetic_profile(), profile_of()], ids=["some", "empty"])
def test_gzip_holds_the_same_trace(tmp_path: Path, profile: Profile) -> None:
    plain = export(profile, tmp_path / "trace.json")
    zipped = export(profile, tmp_path / "trace.json.gz")
    assert (tmp_path / "trace.json.gz").read_bytes()[:2] == b"\x1f\x8b"
    assert zipped.document.pop("traceName") == plain.document.pop("traceName") + ".gz"
    assert zipped.document == plain.document


def test_any_other_suffix_gives_plain_json(tmp_path: Path) -> None:
    assert export(synthetic_profile(), tmp_path / "trace.pt.trace").slices()


def test_a_recording_takes_a_path_in_any_form(tmp_path: Path) -> None:
    recording = pertoken.profile(Regressor())
    name = tmp_path / "trace.json"
    for path in (name, str(name), os.fsencode(name)):
        recording.export_chrome_trace(path)  # type: ignore[arg-type]
        assert read_strictly(name)
        name.unlink()


def test_an_old_file_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    target = tmp_path / "real.json"
    target.write_text("old")
    link = tmp_path / "link.json"
    link.symlink_to(target)
    export(synthetic_profile(), link)
    assert link.is_symlink()
    assert read_strictly(target).slices()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.json", "real.json"]
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(target.stat().st_mode) == 0o666 & ~mask


@contextmanager
def largest_file(size_bytes: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("name", ["trace.json", "trace.json.gz"])
def test_a_full_disk_keeps_the_old_file_and_leaves_no_other(tmp_path: Path, name: str) -> None:
    profile = synthetic_profile(requests=2, tokens=40)
    target = tmp_path / name
    target.write_text("old")
    with (
        largest_file(4096),
        pytest.raises(PertokenError, match=r"cannot write '.*trace.*': file too large") as caught,
    ):
        profile.export_chrome_trace(target)
    assert "\n" not in str(caught.value)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("no/such/folder.json", "no such file or directory"),
        ("", "is a directory"),
        ("pipe", "not a regular file"),
        ("nul\0l", "a path cannot hold a null character"),
    ],
)
def test_a_path_that_cannot_be_written_is_one_clear_error(
    tmp_path: Path, name: str, reason: str
) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(PertokenError, match=f"^cannot write '.*': {reason}"):
        synthetic_profile().export_chrome_trace(os.path.join(tmp_path, name))
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_an_interrupt_while_writing_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pertoken.export import chrome

    def interrupted(**_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(chrome._native, "write_chrome_trace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        synthetic_profile().export_chrome_trace(tmp_path / "trace.json")
    assert not list(tmp_path.iterdir())
