"""vLLM in its own processes, with `PERTOKEN_PROFILE` alone: its loaders find the plugins."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import invariants
import pertoken
from async_server import PROMPT_TOKENS, TOKENS

HERE = Path(__file__).parent


def test_a_server_that_knows_nothing_of_pertoken_is_recorded_in_all_its_processes(
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    run = subprocess.run(
        [sys.executable, HERE / "async_server.py", tmp_path, "uni", "mp"],
        capture_output=True,
        text=True,
        timeout=500,
        env={
            **os.environ,  # in which `conftest.py` has set what vLLM needs
            "PYTHONPATH": str(HERE.parent / "python"),
            "PERTOKEN_PROFILE": f"output={out},modules=all",
        },
    )
    assert run.returncode == 0, run.stdout[-5_000:] + run.stderr[-5_000:]
    served = json.loads(run.stdout.splitlines()[-1])
    assert served == {"uni": TOKENS, "mp": TOKENS}
    files = sorted(out.iterdir())
    totals = [
        pertoken.Totals.from_dict(json.loads(path.read_text()))
        for path in files
        if path.name.endswith("-frontend.json")
    ]
    assert len(totals) == 2
    for front_end in totals:
        requests = front_end.all_requests
        assert (requests.finished, requests.failed) == (3, 0)
        assert requests.tokens_out == sum(TOKENS.values())
        assert requests.ttft_ns.count == 3
    profiles = [pertoken.load(path) for path in files if path.suffix == ".pertoken"]
    assert len(profiles) == len(files) - 2 == 2
    assert len({profile.meta["pid"] for profile in profiles}) == 2
    for profile in profiles:
        invariants.check(profile)
        requests = profile.requests
        of = {name.rpartition("-")[0]: row for row, name in enumerate(requests["id"].tolist())}
        assert {name: int(requests["tokens_out"][row]) for name, row in of.items()} == TOKENS
        assert set(requests["tokens_in"].tolist()) == {PROMPT_TOKENS}
        assert (requests["ttft_ns"] > 0).all() and set(requests["error"].tolist()) == {""}
        # From the first step on, although no forward went before it.
        assert profile.steps["kind"].tolist()[0] == "prefill"
        assert "other" not in profile.steps["kind"].tolist()
        assert profile.losses["faults"] == {}
        assert not any("before" in reason for reason in profile.losses["reasons"])
