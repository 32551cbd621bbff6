"""Inputs that the loader's fuzzer kept, and some that its mutator makes; it needs no fuzzer.

`make fuzz` looks for more. What it finds goes to `tests/fuzz/corpus/loader` once it is mended.
"""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest

import archive_mutator
from loaded_views import check_file
from loader_inputs import CORPUS, seeds, starting_inputs


@pytest.mark.parametrize("name", sorted(starting_inputs()))
def test_kept_inputs_load_and_can_be_looked_at_or_are_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "input.pertoken"
    path.write_bytes(starting_inputs()[name])
    assert check_file(path, tmp_path) or name not in seeds()


def test_mutations_load_and_can_be_looked_at_or_are_refused(tmp_path: Path) -> None:
    def flip(data: bytes, max_size: int) -> bytes:
        changed = bytearray(data[:max_size])
        for _ in range(rng.randrange(1, 4)):
            if changed:
                changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        return bytes(changed)

    rng = Random(2024)
    path = tmp_path / "input.pertoken"
    starts = list(seeds().values())
    loaded = 0
    for number in range(400):
        data = archive_mutator.mutated(rng.choice(starts), number, 1 << 16, flip)
        path.write_bytes(data)
        loaded += check_file(path, tmp_path)
    assert 40 < loaded < 360  # neither all refused nor all harmless


def test_a_file_without_columns_is_changed_too() -> None:
    start = seeds()["seed-small"]
    members = archive_mutator.unpacked(start)
    assert members is not None
    name, content = next(member for member in members if member[0] == archive_mutator.MANIFEST)
    manifest = {**json.loads(content), "tables": {}}
    data = archive_mutator.packed([(name, json.dumps(manifest).encode())])
    changed = {
        archive_mutator.mutated(data, seed, 1 << 16, lambda data, _: data) for seed in range(60)
    }
    assert len(changed) > 2


def test_the_corpus_is_small() -> None:
    size = sum(path.stat().st_size for path in CORPUS.parent.rglob("*") if path.is_file())
    assert size < 300_000
