"""Inputs of the spool's fuzzer: the files of a recording's folder in one piece, and its mutator.

A piece is, for each file, a line with its name and size, then its bytes. Zeros at the end of a
mapped file are left out.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random

CORPUS = Path(__file__).parent / "corpus" / "spool"
_FRAME = struct.Struct("<IIII")
_JOURNALS = ("journal", "observations")
_MAPPED = ("ring-", *_JOURNALS)
_JOURNAL_HEADER = struct.Struct("<QIIQ")
RING_BYTES = 4096 + 128 + 64 * 32


def packed(folder: Path) -> bytes:
    """The files of a folder."""
    content = b""
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        if path.name.startswith(_MAPPED):
            data = data[: _end_of(data)] if path.name in _JOURNALS else data.rstrip(b"\0")
        content += f"{path.name} {len(data)}\n".encode() + data
    return content


def _end_of(journal: bytes) -> int:
    """Where what is in a journal ends; there is no telling it from zeros."""
    return 64 + (_JOURNAL_HEADER.unpack_from(journal)[3] & 0xFFFFFFFF)


def parts(content: bytes) -> dict[str, bytes]:
    """The files in a piece; what cannot be one is left out."""
    found: dict[str, bytes] = {}
    while content:
        line, _, rest = content.partition(b"\n")
        name, _, size = line.partition(b" ")
        if not size.isdigit() or not name.replace(b"-", b"").replace(b".", b"").isalnum():
            break
        length = int(size[:6])
        found[name.decode("ascii", "replace")] = rest[:length]
        content = rest[length:]
    return found


def unpack(content: bytes, folder: Path) -> None:
    """Writes the files of a piece into a new folder."""
    folder.mkdir()
    for name, data in parts(content).items():
        if name.startswith("ring-"):
            data = data.ljust(RING_BYTES, b"\0")
        (folder / name[:100]).write_bytes(data)


def joined(files: dict[str, bytes]) -> bytes:
    """The piece that has these files."""
    return b"".join(f"{name} {len(data)}\n".encode() + data for name, data in files.items())


def mutated(
    content: bytes, seed: int, largest: int, change: Callable[[bytes, int], bytes]
) -> bytes:
    """Changes one file, mostly such that its frames bear their checksums again.

    Args:
        content: a piece.
        seed: decides which file, and how.
        largest: of the result, in bytes.
        change: changes bytes, to no more than so many.
    """
    rng = Random(seed)
    files = parts(content)
    if not files:
        return change(content, largest)
    name = rng.choice(sorted(files))
    files[name] = change(files[name], largest)
    if rng.random() < 0.8:
        files[name] = with_checksums(files[name], 64 if name in _JOURNALS else 0)
    return joined(files)[:largest]


def with_checksums(content: bytes, begin: int) -> bytes:
    """Each frame from `begin` on with the checksum of what is in it."""
    data, at = bytearray(content), begin
    while len(data) - at >= _FRAME.size:
        magic, _, kind, size = _FRAME.unpack_from(data, at)
        end = at + _FRAME.size + size
        if magic != 0x4D465450 or end > len(data):
            break
        _FRAME.pack_into(data, at, magic, zlib.crc32(data[at + 8 : end]), kind, size)
        at = end
    return bytes(data)
