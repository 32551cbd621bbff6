"""Saving a profile to a file and loading it: a zip of `.npy` columns and a JSON manifest.

Loading runs no code from the file, writes nothing, and checks what the file declares against the
schema, and against the file's own size, before it allocates anything on the file's word.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import struct
import zipfile
import zlib
from typing import BinaryIO

import numpy as np

from pertoken import manifest, schema
from pertoken.errors import FileFormatError, PertokenError, system_errors
from pertoken.manifest import ColumnEntry, ManifestError, NewerFormatError
from pertoken.older_formats import bring_up_to_date
from pertoken.result import Profile
from pertoken.table import Array, TableError
from pertoken.whole_file import written_aside

MAX_TOTAL_BYTES = 16 << 30
MAX_RATIO = 100
# Below this size a high ratio harms nobody, and small profiles of constant columns do reach it.
ANY_RATIO_BYTES = 64 << 20
MAX_MANIFEST_BYTES = 64 << 20
MAX_MEMBERS = 4096
MAX_DIRECTORY_BYTES = 1 << 20

_MEMBER_DATE = (1980, 1, 1, 0, 0, 0)
_DEFLATE_LEVEL = 1
_LOCAL_HEADER = b"PK\x03\x04"
_END_RECORD = struct.Struct("<4s4H2LH")
_END_MAGIC = b"PK\x05\x06"
_END64_RECORD = struct.Struct("<4sQ2H2L4Q")
_END64_MAGIC = b"PK\x06\x06"
_LOCATOR64 = struct.Struct("<4sLQL")
_LOCATOR64_MAGIC = b"PK\x06\x07"


_ARCHIVE_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    ValueError,
    KeyError,
    IndexError,
    OverflowError,
    NotImplementedError,
    RuntimeError,
)


def save(profile: Profile, path: str | os.PathLike[str]) -> None:
    """Write a profile to `path`, through a temporary file in the same folder.

    The file appears whole or not at all; one that was there before stays until then. The same
    profile always gives the same bytes.

    Raises:
        PertokenError: the file cannot be written; the message says why and what to do.
    """
    name = os.fsdecode(path)
    try:
        text = manifest.dump(profile)
    except ManifestError as error:
        raise PertokenError(f"cannot save the profile: {error}") from error
    if len(text) > MAX_MANIFEST_BYTES:
        raise PertokenError(
            f"cannot save the profile: its strings and metadata take {len(text)} bytes of the "
            f"{MAX_MANIFEST_BYTES} that a file may hold; use fewer distinct ids and labels"
        )
    with system_errors("write", name), written_aside(name, durable=True) as stream:
        total = _write(stream, profile, text, zipfile.ZIP_DEFLATED)
        # What `load` would take for a zip bomb is kept as it is, without compression.
        if total > _most_bytes(stream.tell()):
            stream.seek(0)
            stream.truncate()
            _write(stream, profile, text, zipfile.ZIP_STORED)


def load(path: str | os.PathLike[str]) -> Profile:
    """Read a profile that `save` wrote. No code from the file is run, and nothing is written.

    Raises:
        FileFormatError: the file is not a profile, is damaged, or was written by a newer version.
        PertokenError: the file cannot be opened; the message says why and what to do.
    """
    name = os.fsdecode(path)
    with system_errors("read", name):
        # Opening a pipe would wait for somebody to write to it.
        if not stat.S_ISREG(os.stat(name).st_mode):
            code = errno.EISDIR if os.path.isdir(name) else errno.EINVAL
            raise OSError(code, os.strerror(code), name)
        with open(name, "rb") as stream:
            try:
                return _read(stream)
            except NewerFormatError as error:
                raise FileFormatError(f"cannot read {name!r}: {error}") from error
            except (ManifestError, TableError) as error:
                raise _damaged(name, str(error)) from error
            except _ARCHIVE_ERRORS as error:
                raise _damaged(name, manifest.shortened(error)) from error
            except OSError as error:
                # An offset that no file can have is the file's fault, not the disk's.
                if error.errno not in (errno.EINVAL, None):
                    raise
                raise _damaged(name, "its directory is damaged") from error
            except MemoryError as error:
                raise PertokenError(
                    f"cannot read {name!r}: it needs more memory than there is"
                ) from error


def _damaged(name: str, reason: str) -> FileFormatError:
    return FileFormatError(
        f"{name!r} is not a whole pertoken profile: {reason}; copy it again or save it again"
    )


def _most_bytes(archive_bytes: int) -> int:
    """Bound what an archive of this size may unpack to."""
    return min(MAX_TOTAL_BYTES, ANY_RATIO_BYTES + MAX_RATIO * archive_bytes)


def _write(stream: BinaryIO, profile: Profile, text: bytes, compression: int) -> int:
    """Write the archive; returns the bytes that its members unpack to."""
    total = len(text)
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(_member(manifest.MEMBER, compression), text, compresslevel=_DEFLATE_LEVEL)
        for table in profile.tables.values():
            for entry in manifest.column_entries(table):
                coded = entry.column in table.coded
                values = table.codes(entry.column) if coded else table[entry.column]
                little = np.ascontiguousarray(values, dtype=entry.dtype.newbyteorder("<"))
                head = io.BytesIO()
                np.lib.format.write_array_header_1_0(
                    head, np.lib.format.header_data_from_array_1_0(little)
                )
                member = _member(entry.member, compression)
                member.file_size = len(head.getvalue()) + entry.data_bytes
                total += member.file_size
                with archive.open(member, "w") as column:
                    column.write(head.getvalue())
                    column.write(little.data)
    return total


def _member(name: str, compression: int) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name, _MEMBER_DATE)
    member.compress_type = compression
    member.external_attr = 0o644 << 16
    return member


def _read(stream: BinaryIO) -> Profile:
    archive_bytes = _check_frame(stream)
    with zipfile.ZipFile(stream) as archive:
        members = _members(archive, archive_bytes)
        head = members.pop(manifest.MEMBER, None)
        if head is None:
            raise ManifestError(f"it has no {manifest.MEMBER}")
        if head.file_size > MAX_MANIFEST_BYTES:
            raise ManifestError(f"its manifest would take {head.file_size} bytes")
        declared = manifest.parse(_read_exactly(archive, head, head.file_size))

        columns: dict[str, dict[str, Array]] = {}
        wanted = {entry.member for entry in declared.columns}
        if len(wanted) != len(declared.columns) or wanted != set(members):
            differing = sorted(wanted.symmetric_difference(members))[:3]
            raise ManifestError(
                f"its members are not those that its manifest lists "
                f"({manifest.shortened(differing)})"
            )
        for entry in declared.columns:
            column = _read_column(archive, members[entry.member], entry)
            columns.setdefault(entry.table, {})[entry.column] = column
    strings = declared.strings
    if declared.format_version < schema.FORMAT_VERSION:
        strings = bring_up_to_date(columns, strings, declared.meta, declared.losses)
    return Profile.from_columns(columns, strings, declared.meta, declared.losses, declared.totals)


def _check_frame(stream: BinaryIO) -> int:
    """Check both ends of the file; returns its size.

    The standard library would look for an archive anywhere in the file, and build a directory of
    any length. A profile has nothing before it, nothing behind it, and a short directory.
    """
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    if stream.read(4) != _LOCAL_HEADER:
        raise ManifestError("it does not start like one" if size else "it is empty")
    tail_bytes = min(size, _END_RECORD.size + _LOCATOR64.size)
    stream.seek(size - tail_bytes)
    tail = stream.read(tail_bytes)
    if tail_bytes < _END_RECORD.size or tail[-_END_RECORD.size :][:4] != _END_MAGIC:
        raise ManifestError("its end is missing, so it was cut short or added to")
    record = _END_RECORD.unpack(tail[-_END_RECORD.size :])
    count, directory_bytes = record[4], record[5]
    locator = tail[: -_END_RECORD.size]
    if locator[:4] == _LOCATOR64_MAGIC and len(locator) == _LOCATOR64.size:
        stream.seek(min(_LOCATOR64.unpack(locator)[2], size))
        large = _END64_RECORD.unpack(stream.read(_END64_RECORD.size))
        if large[0] != _END64_MAGIC:
            raise ManifestError("its directory is damaged")
        count, directory_bytes = max(count, large[7]), max(directory_bytes, large[8])
    if count > MAX_MEMBERS or directory_bytes > MAX_DIRECTORY_BYTES:
        raise ManifestError(f"it claims {count} members in {directory_bytes} bytes of directory")
    return size


def _members(archive: zipfile.ZipFile, archive_bytes: int) -> dict[str, zipfile.ZipInfo]:
    """List the members, having checked that unpacking them can do no harm."""
    members: dict[str, zipfile.ZipInfo] = {}
    total = packed = 0
    for member in archive.infolist():
        label = f"member {manifest.shortened(member.filename)}"
        if member.filename in members:
            raise ManifestError(f"{label} is there twice")
        if member.flag_bits & 0x1:
            raise ManifestError(f"{label} is encrypted")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ManifestError(f"{label} is compressed by an unknown method")
        members[member.filename] = member
        total += member.file_size
        packed += member.compress_size
    if packed > archive_bytes:
        raise ManifestError("its members claim more room than the file has")
    if total > _most_bytes(archive_bytes):
        raise ManifestError(f"it claims to unpack {archive_bytes} bytes to {total}")
    return members


def _read_column(archive: zipfile.ZipFile, member: zipfile.ZipInfo, entry: ColumnEntry) -> Array:
    """Read a column whose header must say, letter for letter, what the manifest declares."""
    little = entry.dtype.newbyteorder("<")
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        head, {"descr": little.str, "fortran_order": False, "shape": (entry.rows,)}
    )
    expected = head.getvalue()
    if member.file_size != len(expected) + entry.data_bytes:
        raise ManifestError(
            f"member {manifest.shortened(member.filename)} has {member.file_size} bytes, not "
            f"{len(expected) + entry.data_bytes}"
        )
    content = _read_exactly(archive, member, member.file_size)
    if content[: len(expected)] != expected:
        raise ManifestError(
            f"member {manifest.shortened(member.filename)} is not a column of {entry.rows} "
            f"{entry.dtype.name}"
        )
    values = np.frombuffer(content, dtype=little, count=entry.rows, offset=len(expected))
    return values.astype(entry.dtype, copy=False)


def _read_exactly(archive: zipfile.ZipFile, member: zipfile.ZipInfo, size: int) -> bytes:
    # Reading to the declared end makes the standard library check the checksum.
    with archive.open(member) as stream:
        content = stream.read(size)
        if len(content) != size or stream.read(1):
            raise ManifestError(f"member {manifest.shortened(member.filename)} is cut short")
    return content
