"""The `pertoken` command: help, exit codes, messages, and what its subcommands write."""

from __future__ import annotations

import errno
import gzip
import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from pertoken import cli
from pertoken.errors import PertokenError
from synthetic import synthetic_profile


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the command in an empty folder; what it raises beyond exit codes fails the test."""
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments: object):
        result = CliRunner().invoke(cli.main, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return invoke


@pytest.fixture
def saved(tmp_path) -> Path:
    path = tmp_path / "run.pertoken"
    synthetic_profile(requests=2, tokens=40).save(path)
    return path


@pytest.fixture
def failing(monkeypatch):
    """Makes `pertoken doctor` raise what it is given."""

    def install(error: BaseException) -> None:
        @click.command()
        def command() -> None:
            raise error

        monkeypatch.setattr(import_module("pertoken.cli.doctor"), "command", command)

    return install


def strict_json(text: str | bytes):
    """What `text` holds; a NaN, an infinity or a key given twice is an error."""

    def refuse(name: str):
        raise ValueError(f"{name} is not JSON")

    def unique(pairs):
        assert len({key for key, _ in pairs}) == len(pairs)
        return dict(pairs)

    return json.loads(text, parse_constant=refuse, object_pairs_hook=unique)


def assert_one_line_error(result, *parts: str) -> None:
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("pertoken: error: ")
    assert result.stderr.count("\n") == 1 and result.stderr.endswith("\n")
    for part in parts:
        assert part in result.stderr


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_names_every_command_and_exits_with_0(run, option):
    result = run(option)
    assert result.exit_code == 0
    listed = result.stdout.split("Commands:")[1]
    assert [line.split()[0] for line in listed.splitlines() if line] == sorted(cli.COMMANDS)


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_every_command_has_help(run, name):
    result = run(name, "--help")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"Usage: main {name} ")


def test_help_imports_nothing_heavy():
    program = """
import sys
from pertoken.cli import main
main(["--help"], standalone_mode=False)
heavy = {"torch", "transformers", "rich", "pandas", "pyarrow", "pertoken.cli.demo"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_version_is_that_of_the_distribution(run):
    from importlib.metadata import version

    result = run("--version")
    assert (result.exit_code, result.stdout) == (0, f"pertoken {version('pertoken')}\n")


def test_python_m_pertoken_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "pertoken", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert done.stdout.startswith("Usage: pertoken ")


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["--nonsense"],
        ["summary"],
        ["summary", "a", "b"],
        ["summary", "a", "--top", "0"],
        ["summary", "a", "--top", "many"],
        ["export", "a"],
        ["export", "a", "--to", "nonsense"],
        ["demo", "--tokens", "1"],
        ["demo", "--tokens", "1024"],
        ["demo", "--threads", "0"],
        ["demo", "--prompt", ""],
    ],
)
def test_wrong_usage_exits_with_2_and_says_where_help_is(run, tmp_path, arguments):
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("Usage: ") and "--help" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["summary"], ["export", "--to", "chrome"]])
def test_a_missing_file_is_one_line(run, tmp_path, arguments):
    result = run(*arguments, tmp_path / "absent.pertoken")
    assert_one_line_error(result, "absent.pertoken", "o such file")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["summary"], ["export", "--to", "chrome"]])
def test_a_truncated_file_is_one_line_and_nothing_is_written(run, saved, arguments):
    saved.write_bytes(saved.read_bytes()[: saved.stat().st_size // 2])
    assert_one_line_error(run(*arguments, saved), "run.pertoken")
    assert list(saved.parent.iterdir()) == [saved]


def test_a_folder_instead_of_a_file_is_one_line(run, tmp_path):
    assert_one_line_error(run("summary", tmp_path))


def test_a_message_of_several_lines_becomes_one(run, failing):
    failing(PertokenError("first\n  second\tthird\n"))
    result = run("doctor")
    assert_one_line_error(result)
    assert result.stderr == "pertoken: error: first second third\n"


def test_an_error_of_the_system_names_the_file(run, failing):
    failing(OSError(errno.ENOSPC, "No space left on device", "trace.json"))
    result = run("doctor")
    assert_one_line_error(result)
    assert result.stderr == "pertoken: error: trace.json: No space left on device\n"


def test_an_error_without_a_message_is_named_by_its_type(run, failing):
    failing(PertokenError())
    assert run("doctor").stderr == "pertoken: error: PertokenError\n"


def test_debug_shows_the_traceback():
    done = subprocess.run(
        [sys.executable, "-m", "pertoken", "--debug", "summary", "absent.pertoken"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback (most recent call last):")
    assert "absent.pertoken" in done.stderr


def test_a_fault_of_our_own_is_not_hidden(run, failing):
    failing(ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError, match="a bug"):
        run("doctor")


def _interrupted_import() -> ImportError:
    error = ImportError("initialization failed")
    error.__cause__ = KeyboardInterrupt()
    return error


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt(), _interrupted_import()], ids=repr)
def test_an_interrupt_exits_with_130_and_without_a_traceback(run, failing, interrupt):
    failing(interrupt)
    result = run("doctor")
    assert (result.exit_code, result.stderr) == (130, "pertoken: interrupted\n")


def test_a_reader_that_goes_away_is_no_error_worth_words(saved):
    synthetic_profile(requests=30, tokens=40).save(saved)
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pertoken", "summary", str(saved)],
            stdout=write_end,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        os.close(write_end)
    assert done.stderr == ""
    assert done.returncode == 1


def test_summary_prints_what_the_profile_says(run, saved):
    import pertoken

    result = run("summary", saved)
    assert result.exit_code == 0 and result.stderr == ""
    assert result.stdout == f"{pertoken.load(saved).summary()}\n"
    assert "model.layers.0.mlp" in result.stdout


def test_summary_as_json_is_strictly_valid_and_the_same_data(run, saved):
    import pertoken

    result = run("summary", saved, "--json")
    assert result.exit_code == 0
    assert strict_json(result.stdout) == pertoken.load(saved).summary().as_dict()


@pytest.mark.parametrize("top", [1, 3])
def test_top_sets_how_many_tokens_and_sites_are_listed(run, saved, top):
    data = strict_json(run("summary", saved, "--json", "--top", top).stdout)
    assert len(data["slowest_tokens"]) == top
    assert {len(sites) for sites in data["hottest_sites"].values()} == {top}


def test_summary_of_an_empty_profile_works(run, tmp_path):
    from pertoken.result import Profile
    from synthetic import synthetic_losses, synthetic_meta

    path = tmp_path / "empty.pertoken"
    Profile.from_columns({}, [], synthetic_meta(), synthetic_losses()).save(path)
    assert run("summary", path).exit_code == 0
    assert strict_json(run("summary", path, "--json").stdout)


def test_export_writes_beside_the_profile_by_default(run, saved):
    result = run("export", saved, "--to", "chrome")
    assert (result.exit_code, result.stdout) == (0, f"wrote {saved.with_suffix('.json')}\n")
    trace = strict_json(saved.with_suffix(".json").read_bytes())
    assert len(trace["traceEvents"]) > 80


def test_export_compresses_when_asked_by_name(run, saved, tmp_path):
    run("export", saved, "--to", "chrome", "-o", "plain.json")
    run("export", saved, "--to", "chrome", "-o", "packed.json.gz")
    packed = gzip.decompress((tmp_path / "packed.json.gz").read_bytes())
    plain = (tmp_path / "plain.json").read_bytes()
    assert len(strict_json(packed)["traceEvents"]) == len(strict_json(plain)["traceEvents"])


def test_export_leaves_an_existing_output_alone_unless_forced(run, saved):
    output = saved.with_suffix(".json")
    output.write_text("mine")
    assert_one_line_error(run("export", saved, "--to", "chrome"), "run.json", "--force")
    assert output.read_text() == "mine"
    assert run("export", saved, "--to", "chrome", "--force").exit_code == 0
    assert strict_json(output.read_bytes())["traceEvents"]


def test_export_never_replaces_the_profile_itself(run, saved):
    before = saved.read_bytes()
    result = run("export", saved, "--to", "chrome", "-o", saved, "--force")
    assert_one_line_error(result, "the profile itself")
    assert saved.read_bytes() == before


def test_export_into_a_folder_that_is_not_there_is_one_line(run, saved, tmp_path):
    result = run("export", saved, "--to", "chrome", "-o", tmp_path / "absent" / "trace.json")
    assert_one_line_error(result, "absent")


@pytest.mark.parametrize("library", ["torch", "transformers"])
def test_the_demo_without_its_libraries_names_the_extra(run, tmp_path, monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)
    result = run("demo", "--output", "out")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("pertoken: error: ")
    assert "pip install 'pertoken[demo]'" in result.stderr


def test_the_demo_says_when_recording_is_switched_off(run, monkeypatch):
    monkeypatch.setenv("PERTOKEN", "0")
    assert_one_line_error(run("demo"), "PERTOKEN=0")
