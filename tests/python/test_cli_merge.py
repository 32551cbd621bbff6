"""`pertoken merge`: what it writes and prints, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import pertoken
from parallel_ranks import US, parallel_ranks
from pertoken import cli
from saved_file import edit_manifest, pack, saved_members

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command in an empty folder; what it raises beyond exit codes fails the test."""
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments: object) -> Result:
        result = CliRunner().invoke(cli.main, ["merge", *map(str, arguments)])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return invoke


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """The files of four ranks, the second of them slow."""
    made = []
    for rank, profile in enumerate(parallel_ranks(slow={(1, "blocks.0.up"): 90 * US})):
        made.append(tmp_path / f"rank{rank}.pertoken")
        profile.save(made[-1])
    return made


def refused(result: Result, *parts: str) -> None:
    assert result.exit_code == 1 and result.stdout == ""
    assert result.stderr.startswith("pertoken: error: ") and result.stderr.count("\n") == 1
    for part in parts:
        assert part in result.stderr


def test_it_writes_both_files_and_names_the_straggler(
    run: Run, files: list[Path], tmp_path: Path
) -> None:
    result = run(*reversed(files), "-o", "all.pertoken", "--chrome", "trace.json")
    assert result.exit_code == 0, result.stderr
    text = " ".join(result.stdout.split())
    assert "rank 1 (host.example, pid 101) holds the others up" in text
    assert "boot clock" in text and "at most 40 ns" in text
    assert "wrote all.pertoken" in text and "wrote trace.json" in text
    merged = pertoken.load(tmp_path / "all.pertoken")
    assert merged.processes["rank"].tolist() == [0, 1, 2, 3], "by rank, in whatever order given"
    trace = json.loads((tmp_path / "trace.json").read_text())
    assert len({e["pid"] for e in trace["traceEvents"] if e["ph"] == "X"}) == 4


def test_json_is_the_same_data_as_the_summary_has(run: Run, files: list[Path]) -> None:
    result = run(*files, "-o", "all.pertoken", "--json")
    data: dict[str, Any] = json.loads(result.stdout)
    summary = pertoken.load("all.pertoken").summary().as_dict()
    assert data == {key: summary[key] for key in ("processes", "stragglers")}
    assert [r["is_straggler"] for r in data["stragglers"]["groups"][0]["ranks"]][1]


def test_ranks_that_are_not_all_known_leave_the_order_given(run: Run, files: list[Path]) -> None:
    profile = pertoken.load(files[0])
    pertoken.Profile(
        {**profile.tables, "processes": _without_rank(profile)},
        {**profile.meta, "rank": None},
        profile.losses,
    ).save(files[0])
    assert run(files[2], files[0], files[1], "-o", "all.pertoken").exit_code == 0
    assert pertoken.load("all.pertoken").processes["rank"].tolist() == [2, -1, 1]


def _without_rank(profile: pertoken.Profile) -> Any:
    table = profile.processes
    columns = {c: table.codes(c) if c in table.coded else table[c] for c in table.columns}
    columns["rank"] = columns["rank"] * 0 - 1
    return type(table)("processes", columns, table.strings)


def test_clocks_that_nothing_joins_are_stated(run: Run, tmp_path: Path) -> None:
    paths = [tmp_path / "0.pertoken", tmp_path / "1.pertoken"]
    for path, profile in zip(paths, parallel_ranks(2, boot_ids=False), strict=True):
        profile.save(path)
    result = run(*paths, "-o", "all.pertoken")
    text = " ".join(result.stdout.split())
    assert result.exit_code == 0
    assert "joined to the others by Unix time, whose error is unknown" in text
    assert "The clocks are not joined" in text


def test_the_same_file_or_recording_twice_is_refused(run: Run, files: list[Path]) -> None:
    refused(run(files[0], files[0], "-o", "all.pertoken"), "rank0.pertoken", "given twice")
    copy = files[0].with_name("copy.pertoken")
    copy.write_bytes(files[0].read_bytes())
    refused(run(*files, copy, "-o", "all.pertoken"), "rank 0 (host.example, pid 100)", "twice")
    assert not Path("all.pertoken").exists()


def test_foreign_newer_and_missing_files_are_refused_by_name(
    run: Run, files: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "foreign.pertoken").write_text("not a profile")
    refused(run(files[0], "foreign.pertoken", "-o", "all.pertoken"), "foreign.pertoken")
    newer = edit_manifest(saved_members(), lambda manifest: manifest.update(format_version=99))
    (tmp_path / "newer.pertoken").write_bytes(pack(newer))
    refused(
        run(files[0], "newer.pertoken", "-o", "all.pertoken"), "newer.pertoken", "99", "upgrade"
    )
    refused(run(files[0], "absent.pertoken", "-o", "all.pertoken"), "absent.pertoken", "path")
    assert not Path("all.pertoken").exists()


def test_no_common_time_base_is_refused_with_the_process(
    run: Run, files: list[Path], tmp_path: Path
) -> None:
    profile = pertoken.load(files[1])
    meta = profile.meta
    meta["clock"]["boot_id"] = ""
    meta["unix_origin_ns"] = None
    pertoken.Profile(profile.tables, meta, profile.losses).save(files[1])
    refused(run(*files, "-o", "all.pertoken"), "rank 1 (host.example, pid 101)", "time base")


def test_outputs_never_replace_profiles_and_others_only_when_forced(
    run: Run, files: list[Path]
) -> None:
    before = files[1].read_bytes()
    refused(run(*files, "-o", files[1], "--force"), "would replace")
    refused(run(*files, "-o", "all.pertoken", "--chrome", files[1], "-f"), "would replace")
    refused(run(*files, "-o", "all.pertoken", "--chrome", "all.pertoken"), "two outputs")
    assert files[1].read_bytes() == before
    Path("all.pertoken").write_text("mine")
    refused(run(*files, "-o", "all.pertoken"), "--force")
    assert Path("all.pertoken").read_text() == "mine"
    assert run(*files, "-o", "all.pertoken", "--force").exit_code == 0


@pytest.mark.parametrize("arguments", [[], ["a"], ["a", "b"], ["a", "-o", "c"]])
def test_wrong_usage_exits_with_2(run: Run, arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2 and result.stderr.startswith("Usage: ")
