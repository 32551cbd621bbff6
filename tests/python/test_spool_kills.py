"""After SIGKILL at a random moment, all but the calls in flight is recovered, and nothing else.

`python tests/python/spool_kills.py 200` does the same two hundred times.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import pertoken.recovery
import pertoken.spool_reader
from spool_kills import kill_one

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


@pytest.mark.parametrize("seed", range(16))
def test_what_is_recovered_is_what_the_process_logged_by_itself(seed: int, tmp_path: Path) -> None:
    assert kill_one(tmp_path, seed).steps >= 0


def test_the_comparison_finds_records_that_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = pertoken.recovery.batch_of_ring

    def without_the_last(content: bytes, taken: dict[int, int]) -> pertoken.spool_reader.Batch:
        batch = read(content, taken)
        assert batch is not None
        return replace(batch, records=batch.records[:0])

    monkeypatch.setattr(pertoken.recovery, "batch_of_ring", without_the_last)
    with pytest.raises(AssertionError):
        for seed in range(3):  # a kill may come right after a round of the collector
            kill_one(tmp_path / str(seed), seed)
