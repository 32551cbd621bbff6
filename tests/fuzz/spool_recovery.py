"""Fuzzes `pertoken.recover`, guided by coverage (atheris).

    python tests/fuzz/spool_recovery.py -max_total_time=60 build-fuzz/spool

As `loader.py`; one input is the files of a recording's folder in one piece, see `spool_inputs.py`.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

import atheris
import numpy as np  # noqa: F401  # before what is instrumented, which is pertoken alone

with atheris.instrument_imports(include=["pertoken"]):
    import pertoken.recovery
    import pertoken.storage

from spool_inputs import CORPUS, mutated, unpack

LONGEST_INPUT = 1 << 15


def main() -> None:
    """Run libFuzzer with the arguments of the command line."""
    starts = {path.name: path.read_bytes() for path in CORPUS.iterdir()}
    folders = [Path(argument) for argument in sys.argv[1:] if os.path.isdir(argument)]
    for folder in folders[:1]:
        for name, data in starts.items():
            (folder / name).write_bytes(data)
    scratch = Path(tempfile.mkdtemp(prefix="pertoken-fuzz-"))

    def test_one_input(data: bytes) -> None:
        folder = scratch / "input"
        shutil.rmtree(folder, ignore_errors=True)
        unpack(data, folder)
        try:
            profile = pertoken.recover(folder)
        except pertoken.PertokenError:
            return
        profile.save(scratch / "saved.pertoken")
        pertoken.load(scratch / "saved.pertoken")

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        return mutated(data, seed, max_size, atheris.Mutate)

    # What is imported late must not be taken for something that recovery did.
    for data in starts.values():
        test_one_input(data)
    options = [f"-max_len={LONGEST_INPUT}", "-timeout=200", "-rss_limit_mb=2048"]
    atheris.Setup([sys.argv[0], *options, *sys.argv[1:]], test_one_input, custom_mutator=mutate)
    try:
        atheris.Fuzz()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main()
