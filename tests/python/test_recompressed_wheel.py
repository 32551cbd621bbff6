"""`.ci/recompress_wheel.py`: the same wheel, in fewer bytes."""

from __future__ import annotations

import importlib.util
import io
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytest.importorskip("zopfli")


@pytest.fixture(scope="module")
def recompress():
    spec = importlib.util.spec_from_file_location(
        "recompress_wheel", ROOT / ".ci" / "recompress_wheel.py"
    )
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script.recompress


def _write(path: Path, members: dict[str, bytes], **options: object) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, **options) as wheel:
        for number, (name, data) in enumerate(members.items()):
            member = zipfile.ZipInfo(name, (2026, 1, 2, 3, 4, 2 * number))
            member.external_attr = (0o100644 + number) << 16
            member.compress_type = zipfile.ZIP_DEFLATED
            wheel.writestr(member, data)
    return path


def _members(path: Path) -> list[tuple[object, ...]]:
    with zipfile.ZipFile(path) as wheel:
        assert wheel.testzip() is None
        return [
            (m.filename, m.date_time, m.external_attr, m.CRC, m.file_size, wheel.read(m))
            for m in wheel.infolist()
        ]


def test_all_but_the_size_stays_and_is_the_same_each_time(recompress, tmp_path):
    text = b"".join(b"%d squared is %d\n" % (i, i * i) for i in range(3000))
    members = {
        "a/text.py": text,
        "a/empty": b"",
        "a/\u00e4.txt": b"x",
        "a-1.dist-info/RECORD": text,
    }
    old = _write(tmp_path / "old.whl", members, compresslevel=9)
    recompress(old, tmp_path / "new.whl")
    recompress(old, tmp_path / "again.whl")
    assert _members(tmp_path / "new.whl") == _members(old)
    assert (tmp_path / "new.whl").stat().st_size < 0.99 * old.stat().st_size
    assert (tmp_path / "again.whl").read_bytes() == (tmp_path / "new.whl").read_bytes()
    recompress(tmp_path / "new.whl", tmp_path / "twice.whl")
    assert (tmp_path / "twice.whl").read_bytes() == (tmp_path / "new.whl").read_bytes()


def test_an_archive_with_sizes_behind_its_members_is_refused(recompress, tmp_path):
    class Pipe(io.RawIOBase):
        def __init__(self) -> None:
            self.data = b""

        def writable(self) -> bool:
            return True

        def write(self, data: bytes) -> int:
            self.data += bytes(data)
            return len(data)

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr("a.py", "pass\n" * 100)
    (tmp_path / "old.whl").write_bytes(pipe.data)
    with pytest.raises(ValueError, match=r"a\.py is not simply deflated"):
        recompress(tmp_path / "old.whl", tmp_path / "new.whl")
    assert not (tmp_path / "new.whl").exists()
