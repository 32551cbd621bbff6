"""The native trace writer's own interface: what it takes, refuses and reports."""

from __future__ import annotations

import json
import os
import threading
from typing import Any

import numpy as np
import pytest

from pertoken import _native
from pertoken.analysis.activation_values import site_percentiles
from pertoken.analysis.token_confidence import confidence_by_step
from synthetic import synthetic_profile


def native_arguments(target: object) -> dict[str, Any]:
    profile = synthetic_profile(requests=1, tokens=2)
    tables = {
        name: {c: t.codes(c) if c in t.coded else t[c] for c in t.columns}
        for name, t in profile.tables.items()
    }
    return {
        "tables": tables,
        "counters": {
            "values of ": site_percentiles(profile),
            "confidence": confidence_by_step(profile),
        },
        "strings": profile.requests.strings,
        "header_json": "",
        "processes": [(1, "python")],
        "root_name": "model",
        "target": target,
    }


def test_the_writer_reports_a_full_device_by_its_errno() -> None:
    with open("/dev/full", "wb") as full, pytest.raises(OSError) as caught:
        _native.write_chrome_trace(**native_arguments(full.fileno()))
    assert caught.value.errno == 28


def test_the_writer_calls_back_with_bounded_chunks_and_passes_exceptions_through() -> None:
    chunks: list[bytes] = []
    arguments = native_arguments(chunks.append)
    arguments["strings"] = [*arguments["strings"][:-1], "x" * (3 << 20)]
    _native.write_chrome_trace(**arguments)
    assert len(chunks) > 3
    assert max(map(len, chunks)) <= 1 << 20

    calls = []

    def failing(chunk: bytes) -> None:
        calls.append(len(chunk))
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        _native.write_chrome_trace(**{**arguments, "target": failing})
    assert len(calls) == 1


def test_other_threads_run_while_a_trace_is_written() -> None:
    """The writer blocks on a full pipe that only another Python thread empties."""
    read_end, write_end = os.pipe()
    arguments = native_arguments(write_end)
    arguments["strings"] = [*arguments["strings"][:-1], "x" * (3 << 20)]
    received: list[bytes] = []

    def drain() -> None:
        while chunk := os.read(read_end, 1 << 16):
            received.append(chunk)

    reader = threading.Thread(target=drain)
    reader.start()
    _native.write_chrome_trace(**arguments)
    os.close(write_end)
    reader.join()
    os.close(read_end)
    assert b"".join(received).endswith(b"\n]}\n")


BAD_COLUMNS = {
    "dtype": (lambda c: c.astype("int32"), TypeError, "must be a numpy array of int64"),
    "byte order": (lambda c: c.astype(">i8"), TypeError, "must be a numpy array of int64"),
    "list": (lambda c: c.tolist(), TypeError, "must be a numpy array of int64"),
    "strided": (lambda c: np.repeat(c, 2)[::2], ValueError, "must be contiguous"),
    "dimensions": (lambda c: c.reshape(1, -1), ValueError, "must have one dimension"),
    "length": (lambda c: c[:-1], ValueError, "rows, not"),
}


@pytest.mark.parametrize("how", BAD_COLUMNS)
def test_the_writer_refuses_a_column_that_is_not_as_declared(how: str) -> None:
    change, error, message = BAD_COLUMNS[how]
    arguments = native_arguments(pytest.fail)
    spans = arguments["tables"]["spans"]
    spans["parent"] = change(spans["parent"])
    with pytest.raises(error, match=f"column 'parent' of table 'spans'.*{message}"):
        _native.write_chrome_trace(**arguments)


@pytest.mark.parametrize("code", [-2, 10_000])
@pytest.mark.parametrize(("table", "column"), [("spans", "site"), ("requests", "label.x")])
def test_the_writer_refuses_codes_outside_the_strings(table: str, column: str, code: int) -> None:
    arguments = native_arguments(pytest.fail)
    columns = arguments["tables"][table]
    first = next(iter(columns.values()))
    columns[column] = np.full(len(first), code, dtype="int32")
    with pytest.raises(ValueError, match=f"column '{column}'.*codes outside"):
        _native.write_chrome_trace(**arguments)


def test_the_writer_takes_counters_of_any_name_and_series() -> None:
    chunks: list[bytes] = []
    arguments = native_arguments(chunks.append)
    counter = {
        "time_ns": np.array([1000, 2000], dtype="int64"),
        "process": np.zeros(2, dtype="int32"),
        'of "it"': np.array([1.5, np.nan]),
        "rest": np.array([2.0, 3.0]),
    }
    arguments["counters"] = {'a "b"': counter}
    _native.write_chrome_trace(**arguments)
    events = json.loads(b"".join(chunks))["traceEvents"]
    written = [event["args"] for event in events if event["name"] == 'a "b"']
    assert written == [{'of "it"': 1.5, "rest": 2}, {"rest": 3}]
    counter["rest"] = np.zeros(3)
    with pytest.raises(ValueError, match="column 'rest' of table 'a \"b\"' has 3 rows, not 2"):
        _native.write_chrome_trace(**arguments)


def test_the_writer_refuses_what_is_missing_or_of_another_type() -> None:
    arguments = native_arguments(pytest.fail)
    del arguments["tables"]["steps"]["kind"]
    with pytest.raises(ValueError, match="column 'kind' of table 'steps' is missing"):
        _native.write_chrome_trace(**arguments)
    del arguments["tables"]["steps"]
    with pytest.raises(ValueError, match="no table 'steps'"):
        _native.write_chrome_trace(**arguments)
    with pytest.raises(TypeError, match="strings must be str"):
        _native.write_chrome_trace(**{**native_arguments(pytest.fail), "strings": [b"x"]})
    with pytest.raises(TypeError, match="target must be"):
        _native.write_chrome_trace(**native_arguments("a path"))
