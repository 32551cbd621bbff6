"""Fuzzes `pertoken.load` and every view of what it loads, guided by coverage (atheris).

    python tests/fuzz/loader.py -max_total_time=60 build-fuzz/loader

The options are libFuzzer's. The folder takes new inputs; the seeds and the kept inputs are put into
it first. A file of one input may be given instead, to run just that.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

import atheris
import numpy as np  # noqa: F401  # before what is instrumented, which is pertoken alone

with atheris.instrument_imports(include=["pertoken", "zipfile"]):
    import pertoken.analysis.latency
    import pertoken.analysis.slow_tokens
    import pertoken.export.chrome
    import pertoken.storage
    import pertoken.summary_html
    import pertoken.summary_text  # noqa: F401

import archive_mutator
from loaded_views import check_file
from loader_inputs import starting_inputs

LONGEST_INPUT = 1 << 16


def main() -> None:
    """Run libFuzzer with the arguments of the command line."""
    folders = [Path(argument) for argument in sys.argv[1:] if os.path.isdir(argument)]
    for folder in folders[:1]:
        for name, data in starting_inputs().items():
            (folder / name).write_bytes(data)
    scratch = Path(tempfile.mkdtemp(prefix="pertoken-fuzz-"))
    path = scratch / "input.pertoken"

    def test_one_input(data: bytes) -> None:
        path.write_bytes(data)
        check_file(path, scratch)

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        return archive_mutator.mutated(data, seed, max_size, atheris.Mutate)

    # What is imported late must not be taken for something that the loader did.
    for data in starting_inputs().values():
        test_one_input(data)
    options = [f"-max_len={LONGEST_INPUT}", "-timeout=200", "-rss_limit_mb=2048"]
    atheris.Setup([sys.argv[0], *options, *sys.argv[1:]], test_one_input, custom_mutator=mutate)
    try:
        atheris.Fuzz()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main()
