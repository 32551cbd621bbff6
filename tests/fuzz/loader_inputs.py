"""The inputs from which the loader's fuzzer starts: new seeds, and the corpus that is kept."""

from __future__ import annotations

import tempfile
from functools import lru_cache
from pathlib import Path

from archive_mutator import SavedArchive, packed, unpacked
from pertoken import Histogram, storage
from pertoken.result import Profile
from pertoken.totals import RequestTotals, SiteKey, SiteTotals, StepTotals, Totals
from synthetic import synthetic_profile

CORPUS = Path(__file__).parent / "corpus" / "loader"


@lru_cache(maxsize=1)
def starting_inputs() -> dict[str, bytes]:
    """Give all inputs by name: seeds, the kept files, and those brought to the present schema."""
    inputs = seeds()
    for path in sorted(CORPUS.iterdir()):
        data = path.read_bytes()
        inputs[path.name] = data
        adapted = adapted_to_schema(data)
        if adapted is not None:
            inputs[f"adapted-{path.name}"] = adapted
    return inputs


def seeds() -> dict[str, bytes]:
    """Save some profiles with the code of today."""
    whole = synthetic_profile(requests=1, tokens=2, layers=1)
    profiles = {
        "seed-totals": Profile(whole.tables, whole.meta, whole.losses, some_totals()),
        "seed-empty": Profile.from_columns({}, (), {}, {}),
        "seed-small": synthetic_profile(requests=1, tokens=3, layers=1),
        "seed-exotic": synthetic_profile(exotic_names=True, layers=2, tokens=3, rows=2),
    }
    result = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, profile in profiles.items():
            path = Path(folder) / name
            storage.save(profile, path)
            result[name] = path.read_bytes()
    return result


def some_totals() -> Totals:
    """Totals with something in each place."""
    times_ns = Histogram.from_values([0.0, 1.5e6, 2.5e6])
    return Totals(
        recordings=1,
        recorded_ns=10**9,
        steps={"decode": StepTotals(begun=2, rows=2, wall_ns=times_ns, itl_ns=times_ns)},
        sites={SiteKey("lm_head", "decode", "module"): SiteTotals(own_ns=5, dur_ns=times_ns)},
        requests={
            (): RequestTotals(started=1),
            (("tenant", "a"),): RequestTotals(finished=1, step_ns={"decode": times_ns}),
        },
        losses={"steps_evicted": 3},
    )


def adapted_to_schema(data: bytes) -> bytes | None:
    """Give a kept file as it would have been saved under the present schema.

    A file that was kept some versions ago would be refused for its columns, and never again reach
    what it was kept for. None when it is no saved profile, or is of the present schema anyhow.
    """
    members = unpacked(data)
    try:
        archive = SavedArchive(members or [])
        before = archive.members()
        archive.adapt()
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    after = archive.members()
    return None if after == before else packed(after)
