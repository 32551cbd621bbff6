"""Tables and profiles: what they accept, what they give back, and that they do not change."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest

from pertoken import schema
from pertoken.errors import MissingDependencyError, PertokenError, SelectionError
from pertoken.result import Profile
from pertoken.table import Table, TableError
from synthetic import EXOTIC_NAMES, columns_of, synthetic_profile, with_columns

STRINGS = ("decode", "", "prefill")


def tracks(**changes: object) -> dict[str, np.ndarray]:
    columns = {
        "track": np.array([0, 1, 2], dtype=np.int32),
        "pid": np.array([7, 7, 7]),
        "tid": np.array([8, 9, 10]),
        "name": np.array([2, -1, 0], dtype=np.int32),
        "process": np.array([0, 0, 0], dtype=np.int32),
    }
    return {**columns, **changes}  # type: ignore[dict-item]


def test_coded_columns_decode_and_plain_ones_are_given_as_they_are() -> None:
    given = tracks()
    table = Table("tracks", given, STRINGS)
    assert table["name"].tolist() == ["prefill", "", "decode"]
    assert table["name"].dtype.kind == "U"
    assert table.codes("name").tolist() == [2, -1, 0]
    assert np.shares_memory(table["pid"], given["pid"])
    assert len(table) == 3
    assert table.columns == ("track", "pid", "tid", "name", "process")
    assert "pid" in table and "nothing" not in table


def test_an_empty_table_decodes_to_an_empty_text_column() -> None:
    table = Table("tracks", {c: a[:0] for c, a in tracks().items()}, ())
    assert table["name"].shape == (0,) and table["name"].dtype.kind == "U"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pid": np.array([1, 2])}, "shape"),
        ({"pid": np.zeros((3, 1), dtype=np.int64)}, "shape"),
        ({"pid": np.array([1, 2, 3], dtype=np.int32)}, "dtype int32; it must be int64"),
        ({"pid": np.array([1.0, 2.0, 3.0])}, "dtype float64"),
        ({"name": np.array([0, 1, 3], dtype=np.int32)}, "codes from 0 to 3"),
        ({"name": np.array([0, 1, -2], dtype=np.int32)}, "codes from -2"),
        ({"surprise": np.array([1, 2, 3])}, "surprise"),
        ({"label.tier": np.array([0, 1, 2])}, "dtype int64; it must be int32"),
        ({"label.tier": np.array([0, 1, 9], dtype=np.int32)}, "codes"),
    ],
)
def test_columns_that_do_not_fit_the_schema_are_refused(
    changes: dict[str, np.ndarray], message: str
) -> None:
    with pytest.raises(TableError, match=message) as caught:
        Table("tracks", tracks(**changes), STRINGS)
    assert isinstance(caught.value, PertokenError)


def test_a_missing_column_is_named() -> None:
    columns = tracks()
    del columns["tid"]
    with pytest.raises(TableError, match="tid"):
        Table("tracks", columns, STRINGS)


def test_object_columns_are_refused_even_in_a_table_of_no_schema() -> None:
    with pytest.raises(TableError, match="Python objects"):
        Table("own", {"x": np.array([object()])}, ())


def test_a_label_column_is_coded_and_comes_last() -> None:
    profile = with_columns(synthetic_profile(), "requests", label__tier=["gold", ""])
    assert profile.requests.columns[-1] == "label.tier"
    assert profile.requests["label.tier"].tolist() == ["gold", ""]


def test_columns_cannot_be_written_to() -> None:
    table = Table("tracks", tracks(), STRINGS)
    for values in (table["pid"], table["name"], table.codes("name")):
        with pytest.raises(ValueError, match="read-only"):
            values[0] = values[1]
    with pytest.raises(TypeError):
        table["pid"] = np.zeros(3)  # type: ignore[index]


def test_asking_for_what_is_not_there_names_what_is() -> None:
    table = Table("tracks", tracks(), STRINGS)
    with pytest.raises(SelectionError, match=r"'nothing'.*track, pid, tid, name"):
        table["nothing"]
    with pytest.raises(SelectionError, match="no codes"):
        table.codes("pid")


def test_where_selects_by_mask_and_by_row_number() -> None:
    profile = synthetic_profile()
    decode = profile.steps.where(profile.steps["kind"] == "decode")
    assert set(decode["kind"].tolist()) == {"decode"}
    assert len(decode) == (profile.steps["kind"] == "decode").sum()
    assert profile.steps.where(np.array([3, 1]))["step"].tolist() == [3, 1]
    assert decode.strings == profile.steps.strings
    for wrong in (np.array([True]), np.array([99]), np.array(["a"]), np.zeros((1, 1), bool)):
        with pytest.raises(SelectionError):
            profile.steps.where(wrong)


def test_pandas_gets_categoricals_with_the_texts_that_occur() -> None:
    pandas = pytest.importorskip("pandas")
    profile = synthetic_profile(exotic_names=True, layers=len(EXOTIC_NAMES))
    frame = profile.spans.to_pandas()
    assert list(frame.columns) == list(profile.spans.columns)
    assert isinstance(frame["site"].dtype, pandas.CategoricalDtype)
    assert frame["site"].tolist() == profile.spans["site"].tolist()
    assert set(frame["category"].cat.categories) == {"module", "generate", "region"}
    assert frame["dur_ns"].tolist() == profile.spans["dur_ns"].tolist()


def test_pandas_and_arrow_give_one_category_for_both_ways_to_write_an_empty_string() -> None:
    pytest.importorskip("pandas")
    table = Table("tracks", tracks(name=np.array([1, -1, 0], dtype=np.int32)), STRINGS)
    frame = table.to_pandas()
    assert frame["name"].tolist() == ["", "", "decode"]
    assert len(frame["name"].cat.categories) == 2


def test_arrow_gets_dictionary_arrays_equal_to_the_decoded_columns() -> None:
    pyarrow = pytest.importorskip("pyarrow")
    profile = synthetic_profile(exotic_names=True, layers=len(EXOTIC_NAMES))
    arrow = profile.spans.to_arrow()
    assert pyarrow.types.is_dictionary(arrow.schema.field("site").type)
    for column in profile.spans.columns:
        assert arrow.column(column).to_pylist() == profile.spans[column].tolist()
    empty = synthetic_profile(requests=0).spans.to_arrow()
    assert empty.num_rows == 0


def test_arrow_takes_a_name_that_has_no_utf8() -> None:
    pytest.importorskip("pyarrow")
    table = Table("tracks", tracks(), ("\ud800", "b", "c"))
    assert table.to_arrow().column("name").to_pylist() == ["c", "", "\\ud800"]


@pytest.mark.parametrize(
    ("library", "method", "extra"),
    [("pandas", "to_pandas", "pandas"), ("pyarrow", "to_arrow", "arrow")],
)
def test_a_missing_library_is_an_error_that_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, library: str, method: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingDependencyError, match=rf"pip install 'pertoken\[{extra}\]'"):
        getattr(synthetic_profile().steps, method)()


def test_html_escapes_names_and_says_that_rows_are_missing() -> None:
    profile = synthetic_profile(exotic_names=True, layers=len(EXOTIC_NAMES))
    html = profile.spans._repr_html_()
    assert "<b>" not in html and "&lt;/script&gt;" in html
    assert f"{len(profile.spans)} rows, the first 20 shown" in html
    assert html.count("<tr>") == 21


def test_repr_is_short() -> None:
    profile = synthetic_profile()
    assert repr(profile.step_rows) == (
        "<Table step_rows: 16 rows of step, row, request, phase, query_len, context_len, committed>"
    )
    expected = "<Profile TinyForCausalLM: 2 requests, 16 steps, 16 tokens, 196 spans>"
    assert repr(profile) == expected
    assert "TinyForCausalLM" in profile._repr_html_()


def test_a_profile_of_no_columns_has_one_process_and_empty_tables_of_the_right_types() -> None:
    profile = Profile.from_columns({}, (), {}, {})
    assert list(profile.tables) == list(schema.TABLES)
    for name, columns in schema.TABLES.items():
        table = profile.tables[name]
        assert len(table) == (1 if name == "processes" else 0)
        for column in columns:
            values = table.codes(column.name) if column.coded else table[column.name]
            assert values.dtype == np.dtype(column.dtype)


def test_a_profile_refuses_tables_that_do_not_belong() -> None:
    profile = synthetic_profile()
    tables = dict(profile.tables)
    with pytest.raises(TableError, match="'surprise'"):
        Profile({**tables, "surprise": tables["steps"]}, {}, {})
    with pytest.raises(TableError, match="spans"):
        Profile({n: t for n, t in tables.items() if n != "spans"}, {}, {})
    with pytest.raises(TableError, match="given as"):
        Profile({**tables, "tokens": tables["spans"]}, {}, {})
    with pytest.raises(TableError, match="share one table of strings"):
        Profile({**tables, "steps": synthetic_profile(layers=5).steps}, {}, {})
    with pytest.raises(TableError, match="'surprise'"):
        Profile.from_columns({"surprise": {}}, (), {}, {})
    with pytest.raises(TableError, match="twice"):
        Profile.from_columns({}, ("a", "a"), {}, {})


def test_nothing_changes_a_profile() -> None:
    profile = synthetic_profile()
    with pytest.raises(AttributeError):
        profile.meta = {}  # type: ignore[misc]
    with pytest.raises(AttributeError):
        profile.surprise = 1
    with pytest.raises(AttributeError):
        del profile._meta
    with pytest.raises(TypeError):
        profile.tables["steps"] = profile.steps  # type: ignore[index]
    profile.meta["clock"]["source"] = "forged"
    profile.losses["reasons"].append("forged")
    assert profile.meta["clock"]["source"] == "tsc"
    assert profile.losses["reasons"] == []
    json.dumps(profile.meta), json.dumps(profile.losses)


def test_a_profile_keeps_no_tie_to_the_metadata_it_was_given() -> None:
    meta = {"clock": {"source": "tsc"}}
    profile = Profile.from_columns({}, (), meta, {})
    meta["clock"]["source"] = "forged"
    assert profile.meta == {"clock": {"source": "tsc"}}


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))]
)
def test_a_profile_can_be_copied_and_pickled(copied: object) -> None:
    profile = synthetic_profile()
    other = copied(profile)  # type: ignore[operator]
    before, after = columns_of(profile), columns_of(other)
    for name in before:
        for column in before[name]:
            np.testing.assert_array_equal(before[name][column], after[name][column])
    assert other.meta == profile.meta and other.requests.strings == profile.requests.strings


def test_the_result_side_imports_no_optional_library() -> None:
    code = (
        "import sys\n"
        "import pertoken.result, pertoken.storage, pertoken.summary\n"
        "bad = {'torch', 'pandas', 'pyarrow', 'rich', 'click'} & set(sys.modules)\n"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_made_up_profile_is_consistent() -> None:
    profile = synthetic_profile(requests=2, tokens=5, layers=2, rows=3, seed=4)
    spans, steps, tokens = profile.spans, profile.steps, profile.tokens
    ends = spans["start_ns"] + spans["dur_ns"]
    assert (spans["span"] == np.arange(len(spans))).all()
    for row in np.flatnonzero(spans["parent"] >= 0).tolist():
        parent = spans["parent"][row]
        assert spans["start_ns"][parent] <= spans["start_ns"][row] <= ends[row] <= ends[parent]
    inside = np.flatnonzero(spans["step"] >= 0)
    step_ends = steps["start_ns"] + steps["wall_ns"]
    assert (steps["start_ns"][spans["step"][inside]] <= spans["start_ns"][inside]).all()
    assert (step_ends[spans["step"][inside]] >= ends[inside]).all()
    assert steps["tokens_committed"].sum() == len(tokens) == 2 * 5 * 3
    assert (tokens["commit_ns"] == step_ends[tokens["step"]]).all()
    for step in range(len(steps)):
        gap = (spans["category"] == "generate") & (ends == steps["start_ns"][step])
        assert gap.sum() == 1
