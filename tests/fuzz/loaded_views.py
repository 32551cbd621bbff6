"""What must hold for any file: it loads and every view works, or it is refused with one error.

`check_file` is the property that the loader's fuzzer tests, and the replay of the corpus.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import sys
import warnings
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

import pertoken
from pertoken.analysis.activation_values import site_percentiles
from pertoken.analysis.token_confidence import confidence_by_step
from pertoken.errors import HistogramError, MergeError, PertokenError
from pertoken.result import Profile
from pertoken.summary_layout import summary_blocks
from pertoken.summary_text import plain_text

# A file of some kilobytes may unpack to 64 MiB; the views of more rows than this would make the
# fuzzer slow. That their time grows with the rows alone is tested elsewhere.
MOST_ROWS = 20_000
LONGEST_MESSAGE = 4000

_FORBIDDEN = (
    "socket.", "subprocess.", "ctypes.", "os.exec", "os.fork", "os.link", "os.mkdir", "os.posix",
    "os.remove", "os.rename", "os.rmdir", "os.spawn", "os.symlink", "os.system", "os.truncate",
    "os.chmod", "os.chown", "shutil.", "tempfile.", "pickle.find_class", "marshal.", "exec",
    "compile", "code.__new__", "signal.",
)  # fmt: skip
_WRITING = ("w", "a", "x", "+")

# Names of members and messages need these; to look a codec up for the first time is an import.
for _codec in ("cp437", "unicode_escape"):
    codecs.lookup(_codec)


class _Guard:
    """Notes what the interpreter is asked to do while it is armed: files, processes, sockets.

    An audit hook cannot be taken away, so there is one for the process.
    """

    def __init__(self) -> None:
        self.armed = False
        self.found: list[str] = []
        sys.addaudithook(self._audit)

    def _audit(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.armed:
            return
        writes = event == "open" and (
            (isinstance(args[1], str) and any(letter in args[1] for letter in _WRITING))
            or (isinstance(args[2], int) and args[2] & 0o3 != 0)
        )
        if writes or event.startswith(_FORBIDDEN):
            self.found.append(f"{event} {args!r:.200}")

    def __enter__(self) -> None:
        self.found = []
        self.armed = True

    def __exit__(self, *_: object) -> None:
        self.armed = False


_guard = _Guard()


def check_file(path: Path, scratch: Path) -> bool:
    """Check the property; tells whether the file was loaded.

    Args:
        path: the file.
        scratch: a folder for what the views write.

    Raises:
        AssertionError: the loader or a view did what it must not.
        Exception: anything that is no `PertokenError` is a finding, too.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            with _guard:
                profile = pertoken.load(path)
        except PertokenError as error:
            message = str(error)
            assert message.isprintable() and len(message) < LONGEST_MESSAGE, ascii(message)
            return False
        finally:
            assert not _guard.found, f"load did more than read: {_guard.found}"
        if sum(map(len, profile.tables.values())) <= MOST_ROWS:
            check_views(profile, scratch)
        return True


def check_views(profile: Profile, scratch: Path) -> None:
    """Look at a profile in every public way."""
    repr(profile)
    profile._repr_html_()
    for table in profile.tables.values():
        repr(table)
        table._repr_html_()
        for column in table.columns:
            assert len(table[column]) == len(table)
        assert len(table.where(np.arange(min(len(table), 3)))) == min(len(table), 3)
    if profile.totals is not None:
        repr(profile.totals)
        json.dumps(profile.totals.to_dict())
    profile.stragglers()
    profile.first_nonfinite()
    for site in profile.activations["site"][:1].tolist():
        with contextlib.suppress(HistogramError):
            profile.histogram(site)
    with contextlib.suppress(MergeError):
        pertoken.merge([profile])
    summary = profile.summary()
    json.dumps(summary.as_dict(), allow_nan=False)
    str(summary)
    plain_text(summary_blocks(summary.as_dict()))
    summary._repr_html_()

    saved = scratch / "again.pertoken"
    profile.save(saved)
    assert_same(profile, pertoken.load(saved))
    trace = scratch / "trace.json"
    profile.export_chrome_trace(trace)
    check_trace(profile, trace.read_bytes())


def check_trace(profile: Profile, trace: bytes) -> None:
    """Check that a trace is strict JSON in UTF-8 and has an event for each row."""
    content = json.loads(trace.decode("utf-8"), parse_constant=_refuse)
    steps = profile.steps
    finished = steps["wall_ns"] >= 0
    slices = len(profile.requests) + len(steps) + len(profile.spans)
    # By code: numpy takes a text with a null character behind it for the text without.
    decode = np.array([text == "decode" for text in (*steps.strings, "")])[steps.codes("kind")]
    slices += int((finished & decode).sum())
    counters = int((steps["context_len"] != -1).sum())
    counters += int((finished & (steps["tokens_committed"] != -1)).sum())
    counters += len(site_percentiles(profile)["time_ns"])
    counters += len(confidence_by_step(profile)["time_ns"])
    phases = [event["ph"] for event in content["traceEvents"]]
    assert (phases.count("X"), phases.count("C")) == (slices, counters)
    assert set(phases) <= {"X", "C", "M"}


def assert_same(before: Profile, after: Profile) -> None:
    """Check that a profile is the same after saving and loading."""
    assert before.requests.strings == after.requests.strings
    assert before.totals == after.totals
    for name, table in before.tables.items():
        other = after.tables[name]
        assert table.columns == other.columns
        for column in table.columns:
            coded = column in table.coded
            left = table.codes(column) if coded else table[column]
            right = other.codes(column) if coded else other[column]
            assert left.tobytes() == right.tobytes(), f"{name}.{column} changed"


def _refuse(constant: str) -> NoReturn:
    raise AssertionError(f"the trace holds {constant}, which is not JSON")
