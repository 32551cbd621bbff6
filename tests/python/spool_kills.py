"""Kills processes that record into a spool, and compares what is recovered with their own logs.

    python tests/python/spool_kills.py 200 [FIRST_SEED]

Each process is forked from this one, runs a tiny model in one or two threads, and logs by itself
when each call began and ended, by the boot clock. It is killed at a random moment. Then every call
that had ended must be there, at its time, with all its spans and what was observed in it; and
nothing that was not called.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import struct
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import pertoken
from odd_modules import Stack, numbers, seeded
from pertoken.spool_folder import recordings_in

LIMIT_BYTES = 1 << 20  # so that many kills come after the oldest segments have been deleted
LONGEST_S = 0.25
STEPS_A_REQUEST = 7
SITES = Counter(
    ["Stack", "head"]
    + [f"layers.{i}{part}" for i in range(2) for part in ("", ".attn", ".mlp", ".mlp.0", ".mlp.1")]
)
OBSERVED = ["layers.1.mlp", "head"]
_ENTRY = struct.Struct("<qqq")  # number, before or after, boot clock in ns
_BEFORE, _AFTER = 0, 1


@dataclass
class Kill:
    """What came of one process."""

    steps: int
    dropped_steps: int


def kill_one(folder: Path, seed: int) -> Kill:
    """Kills a process at a random moment, and checks what is recovered.

    Raises:
        AssertionError: something is missing, wrong or made up.
    """
    rng = random.Random(seed)
    threads, delay_s = rng.choice([1, 1, 2]), rng.uniform(0.0, LONGEST_S)
    spool, logs = folder / "spool", folder / "logs"
    logs.mkdir(parents=True)
    begun, told = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _record(spool, logs, threads, told)
        finally:
            os._exit(1)
    os.close(told)
    assert os.read(begun, 1) == b"1", "the process did not come to record"
    os.close(begun)
    time.sleep(delay_s)
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    profile = pertoken.recover(spool)
    dropped = _check(profile, logs)
    _check_bound(spool, threads)
    return Kill(len(profile.steps), dropped)


def _record(spool: Path, logs: Path, threads: int, told: int) -> None:
    torch.set_num_threads(1)
    model = seeded(Stack)
    recording = pertoken.profile(
        model,
        modules="all",
        activations=OBSERVED,
        activation_every=1,
        memory_limit_bytes=LIMIT_BYTES,
        spool=spool,
    )
    with recording:
        others = [threading.Thread(target=_call, args=(model, logs)) for _ in range(threads - 1)]
        for thread in others:
            thread.start()
        os.write(told, b"1")
        _call(model, logs)


def _call(model: Stack, logs: Path) -> None:
    tid = threading.get_native_id()
    log = os.open(logs / str(tid), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    inputs = numbers()

    def note(number: int, what: int) -> None:
        os.write(log, _ENTRY.pack(number, what, time.clock_gettime_ns(time.CLOCK_BOOTTIME)))

    with torch.inference_mode():
        for request in itertools.count():
            with pertoken.request(id=f"{tid}-{request}"):
                for number in range(STEPS_A_REQUEST):
                    note(request * STEPS_A_REQUEST + number, _BEFORE)
                    model(inputs)
                    note(request * STEPS_A_REQUEST + number, _AFTER)


def _check(profile: pertoken.Profile, logs: Path) -> int:
    """Compares; gives the number of steps that the bound of the spool has dropped."""
    assert profile.losses["faults"] == {}
    assert profile.losses["records_dropped"] == 0
    reasons = profile.losses["reasons"]
    assert not any("could not be read" in reason for reason in reasons), reasons
    tids = dict(zip(profile.tracks["track"].tolist(), profile.tracks["tid"].tolist(), strict=True))
    spans: dict[int, Counter[str]] = defaultdict(Counter)
    for step, site in zip(
        profile.spans["step"].tolist(), profile.spans["site"].tolist(), strict=True
    ):
        spans[step][site] += 1
    assert set(spans) <= set(profile.steps["step"].tolist()) | {-1}
    observed: dict[int, list[str]] = defaultdict(list)
    table = profile.activations
    for step, site in zip(table["step"].tolist(), table["site"].tolist(), strict=True):
        observed[step].append(site)
    assert set(observed) <= set(profile.steps["step"].tolist())
    put_out = set(zip(table["site"].tolist(), table["sum"].tolist(), strict=True))
    assert len(put_out) <= len(OBSERVED), "each call does the same"
    is_cut = any("bound has dropped" in reason for reason in profile.losses["reasons"])
    dropped = 0
    for path in logs.iterdir():
        calls = _calls(path)
        own = [
            index
            for index, track in enumerate(profile.steps["thread"].tolist())
            if tids[track] == int(path.name)
        ]
        dropped += _check_thread(profile, own, calls, spans, observed, is_cut, path.name)
    assert dropped == 0 or is_cut
    return dropped


def _calls(path: Path) -> list[tuple[int, int]]:
    """When each call of a thread began and ended; 0: it had not."""
    content = path.read_bytes()
    calls: list[tuple[int, int]] = []
    for number, what, now_ns in _ENTRY.iter_unpack(content[: len(content) // 24 * 24]):
        if what == _BEFORE:
            assert number == len(calls)
            calls.append((now_ns, 0))
        else:
            calls[number] = (calls[number][0], now_ns)
    return calls


def _check_thread(
    profile: pertoken.Profile,
    own: list[int],
    calls: list[tuple[int, int]],
    spans: dict[int, Counter[str]],
    observed: dict[int, list[str]],
    is_cut: bool,
    tid: str,
) -> int:
    ended = sum(after > 0 for _, after in calls)
    start_ns = profile.steps["start_ns"][own] + profile.meta["boot_origin_ns"]
    wall_ns = profile.steps["wall_ns"][own]
    slack_ns = 2 * profile.losses["clock_error_ns"] + 2000
    begun = len(calls)
    if begun > ended and not (len(own) and start_ns[-1] >= calls[-1][0] - slack_ns):
        begun = ended  # killed between the log and the call
    dropped = begun - len(own)
    assert dropped == 0 or (is_cut and dropped > 0), (begun, ended, len(own))
    requests = profile.steps["request"][own]
    ids = dict(
        zip(profile.requests["request"].tolist(), profile.requests["id"].tolist(), strict=True)
    )
    for place, (before, after) in enumerate(calls[dropped:begun]):
        assert start_ns[place] >= before - slack_ns
        step = int(profile.steps["step"][own[place]])
        names = spans[step]
        if wall_ns[place] < 0:  # it ran when the process was killed
            assert after == 0 and not names - SITES
            assert observed[step] == OBSERVED[: len(observed[step])]
            continue
        assert after == 0 or start_ns[place] + wall_ns[place] <= after + slack_ns
        assert names == SITES, names
        assert observed[step] == OBSERVED, observed[step]
        number = (dropped + place) // STEPS_A_REQUEST
        assert ids[int(requests[place])] == f"{tid}-{number}"
    return dropped


def _check_bound(spool: Path, threads: int) -> None:
    (folder,) = recordings_in(spool)
    segments = [path.stat().st_size for path in folder.glob("segment-*")]
    assert sum(segments) <= 10 * (LIMIT_BYTES // 8) + 10 * (1 << 17)
    assert len(list(folder.glob("ring-*"))) <= threads


def main() -> None:
    """Kills as many processes as the first argument says."""
    count, first = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    kills = []
    for seed in range(first, first + count):
        with tempfile.TemporaryDirectory() as folder:
            kills.append(kill_one(Path(folder), seed))
    steps = np.array([kill.steps for kill in kills])
    print(
        f"{count} kills: every recovery agrees with the process's own log; {steps.min()} to "
        f"{steps.max()} steps each; in {sum(kill.dropped_steps > 0 for kill in kills)} the "
        "spool's bound had dropped the oldest"
    )


if __name__ == "__main__":
    main()
