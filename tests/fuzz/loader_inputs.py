"""The inputs from which the loader's fuzzer starts: new seeds, and the corpus that is kept."""

from __future__ import annotations

import tempfile
from functools import lru_cache
from pathlib import Path

from archive_mutator import SavedArchive, packed, unpacked
from pertoken import storage
from pertoken.result import Profile
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
    profiles = {
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
