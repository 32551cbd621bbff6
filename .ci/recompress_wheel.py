"""Deflates each member of a wheel as small as zopfli can: `recompress_wheel.py FROM TO`.

Names, order, times and permissions stay, so that RECORD holds, and a wheel always gives the same
bytes. Only the sizes and places in the headers are written anew: the standard library's zipfile
takes no data that is deflated already.
"""

from __future__ import annotations

import struct
import sys
import zipfile
from pathlib import Path

import zopfli.zlib

ITERATIONS = 5  # Of fifteen, the wheel is a hundred bytes smaller.
LOCAL_HEADER = struct.Struct("<4s5H3L2H")
DIRECTORY_ENTRY = struct.Struct("<4s6H3L5H2L")
DIRECTORY_END = struct.Struct("<4s4H2LH")


def recompress(source: Path, target: Path) -> None:
    """Writes the wheel at `source` to `target`. Raises `ValueError` of one that is not plain."""
    old = source.read_bytes()
    new = bytearray()
    directory = bytearray()
    with zipfile.ZipFile(source) as wheel:
        at = wheel.start_dir
        for member in wheel.infolist():
            entry = list(DIRECTORY_ENTRY.unpack_from(old, at))
            after = at + DIRECTORY_ENTRY.size
            at = after + sum(entry[10:13])
            is_deflated = member.compress_type == zipfile.ZIP_DEFLATED
            if member.flag_bits & ~0x800 or not (is_deflated or not member.file_size):
                raise ValueError(f"{source}: {member.filename} is not simply deflated")
            header = list(LOCAL_HEADER.unpack_from(old, member.header_offset))
            begin = member.header_offset + LOCAL_HEADER.size
            names = old[begin : begin + sum(header[9:11])]
            begin += len(names)
            data = old[begin : begin + member.compress_size]
            if is_deflated:
                # Before it, a zlib stream has a header of two bytes, and behind it a checksum.
                packed = zopfli.zlib.compress(wheel.read(member), numiterations=ITERATIONS)[2:-4]
                data = min(data, packed, key=len)
            header[7] = entry[8] = len(data)
            entry[16] = len(new)
            new += LOCAL_HEADER.pack(*header) + names + data
            directory += DIRECTORY_ENTRY.pack(*entry) + old[after:at]
    end = list(DIRECTORY_END.unpack_from(old, at))
    end[5:7] = len(directory), len(new)
    target.write_bytes(new + directory + DIRECTORY_END.pack(*end) + old[at + DIRECTORY_END.size :])


if __name__ == "__main__":
    recompress(Path(sys.argv[1]), Path(sys.argv[2]))
