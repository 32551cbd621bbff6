"""Saving and loading: what is saved comes back, and a bad place is one clear error."""

from __future__ import annotations

import errno
import io
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pertoken import storage
from pertoken.errors import FileFormatError, PertokenError
from pertoken.result import Profile
from pertoken.storage import load, save
from saved_file import (
    Members,
    assert_same,
    original_profile,
    saved_bytes,
    saved_members,
)
from synthetic import columns_of, synthetic_profile, with_columns


@pytest.fixture
def original() -> Profile:
    return original_profile()


@pytest.fixture
def content() -> bytes:
    return saved_bytes()


@pytest.fixture
def members() -> Members:
    return saved_members()


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


@settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
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


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o400, 0o666])
@pytest.mark.parametrize("how", ["save", "export_chrome_trace"])
def test_a_file_that_is_replaced_keeps_its_permissions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, mode: int
) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"old")
    target.chmod(mode)
    link.symlink_to(target)
    meanwhile = []
    create = os.open

    def noting(path: str, flags: int, mode: int = 0o777) -> int:
        descriptor = create(path, flags, mode)
        meanwhile.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
        return descriptor

    monkeypatch.setattr(os, "open", noting)
    for path in (target, link):
        getattr(synthetic_profile(), how)(path)
        assert stat.S_IMODE(target.stat().st_mode) == mode
    assert target.read_bytes() != b"old" and link.is_symlink()
    assert meanwhile == [0o600, 0o600], "and nobody else reads what is unfinished"


def test_a_file_that_is_replaced_keeps_its_owner_and_attributes(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"old")
    try:
        os.setxattr(target, "user.origin", b"here")
        os.chown(target, 12345, 54321)
    except OSError:
        pytest.skip("the system lets nobody give files away here, or has no attributes")
    target.chmod(0o640)
    save(synthetic_profile(), target)
    status = target.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (12345, 54321, 0o640)
    assert os.getxattr(target, "user.origin") == b"here"


def test_a_group_that_cannot_be_kept_gives_its_permissions_to_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"old")
    target.chmod(0o660)
    status = os.stat

    def of_another_group(path: Any, **options: Any) -> os.stat_result:
        found = list(status(path, **options))
        found[stat.ST_GID] += 1
        return os.stat_result(found)

    def refused(descriptor: int, owner: int, group: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "stat", of_another_group)
    monkeypatch.setattr(os, "fchown", refused)
    save(synthetic_profile(), target)
    monkeypatch.undo()
    assert stat.S_IMODE(target.stat().st_mode) == 0o600


@pytest.mark.parametrize("how", ["save", "export_chrome_trace"])
def test_a_name_that_no_file_can_have_is_one_clear_error(tmp_path: Path, how: str) -> None:
    with pytest.raises(PertokenError, match=r"cannot write '.*\\ud800.*no file has such a name"):
        getattr(synthetic_profile(), how)(tmp_path / "\ud800.pertoken")
    assert os.listdir(tmp_path) == []


def test_a_name_that_no_file_has_cannot_be_read() -> None:
    with pytest.raises(PertokenError, match=r"cannot read '.*\\ud800.*no file has such a name"):
        load("\ud800.pertoken")


def test_a_saved_file_has_ordinary_permissions(tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        save(synthetic_profile(), tmp_path / "run")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o640
