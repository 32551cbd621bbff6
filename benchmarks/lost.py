"""What a recording lost: what was not recorded took no time."""

from __future__ import annotations

import pertoken


def lost(profile: pertoken.Profile) -> dict[str, int]:
    """What was not observed, by reason, and the records that were dropped; empty: nothing."""
    losses = profile.losses
    found = {str(reason): int(count) for reason, count in losses["observations_skipped"].items()}
    if losses["records_dropped"]:
        found["records dropped"] = int(losses["records_dropped"])
    return found


def lost_text(of: list[dict[str, int]]) -> str:
    """What several recordings lost."""
    found = [f"{count} x {reason}" for each in of for reason, count in each.items()]
    return "; ".join(found) or "nothing"
