"""The small language of PERTOKEN_PROFILE, and the names of the files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pertoken.autostart_options import AutostartOptions, memory_size
from pertoken.errors import PertokenError

TEXTS = st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=20
)
OPTIONS = st.builds(
    AutostartOptions,
    output=TEXTS,
    modules=TEXTS.map(str.strip).filter(bool),
    memory_limit=st.integers(1 << 20, (1 << 48) - 1),
    log_interval=st.floats(0, 1e9),
    spool=st.just("") | TEXTS,
    chrome=st.booleans(),
    summary=st.booleans(),
)


@given(OPTIONS)
@example(AutostartOptions(output="a=b,c%2C d", modules="model.layers.*.mlp"))
@example(AutostartOptions(output=" both ends "))
def test_what_is_written_reads_as_the_same(options: AutostartOptions) -> None:
    assert AutostartOptions.parse(options.text()) == options


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused_in_one_way(text: str) -> None:
    try:
        options = AutostartOptions.parse(text)
    except PertokenError as error:
        assert str(error)
    else:
        assert AutostartOptions.parse(options.text()) == options


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("1", AutostartOptions()),
        ("out", AutostartOptions(output="out")),
        ("a,b.pertoken", AutostartOptions(output="a,b.pertoken")),
        ("100%2525", AutostartOptions(output="100%25")),
        (
            " modules=all , log_interval=60,",
            AutostartOptions(modules="all", log_interval=60.0),
        ),
        ("output=a%2Cb,chrome=yes", AutostartOptions(output="a,b", chrome=True)),
        ("memory_limit=64M", AutostartOptions(memory_limit=64 << 20)),
    ],
)
def test_both_forms_are_understood(text: str, options: AutostartOptions) -> None:
    assert AutostartOptions.parse(text) == options


@pytest.mark.parametrize("key", ["output", "modules", "spool", "log_interval", "memory_limit"])
def test_a_value_that_is_empty_is_refused(key: str) -> None:
    with pytest.raises(PertokenError, match=key):
        AutostartOptions.parse(f"{key}=")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1048576", 1 << 20),
        ("2M", 2 << 20),
        ("2mib", 2 << 20),
        ("1GB", 1 << 30),
        ("4096k", 4 << 20),
    ],
)
def test_sizes_are_powers_of_two(text: str, size: int) -> None:
    assert memory_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "1.5M", "-1M", "1T", "1023K", "9" * 30])
def test_sizes_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(PertokenError, match="give a size"):
        memory_size(text)


def test_files_of_processes_and_models_do_not_meet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for output, folder in (("run.pertoken", "."), ("out", "out"), ("a/{pid}.pertoken", "a")):
        own = AutostartOptions(output=output).resolved()
        child = AutostartOptions.parse(own.for_children().text()).resolved()
        names = [own.file("x", 1, 1), own.file("x", 1, 2)]
        names += [child.file("x", pid, number) for pid in (2, 3) for number in (1, 2)]
        assert len(set(names)) == 6
        assert {name.parent for name in names} == {Path(os.path.abspath(folder))}
        assert child.for_children() == child


def test_the_script_and_the_process_are_in_the_name() -> None:
    options = AutostartOptions(output="/{script}/{script}-{pid}.pertoken")
    assert options.file("serve", 12, 1) == Path("/serve/serve-12.pertoken")
    assert options.file("serve", 12, 3) == Path("/serve/serve-12-model3.pertoken")
