"""What waits for a module to be imported: several may wait for one."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

from pertoken.after_import import after_import


def test_all_that_wait_for_a_module_are_called_once_and_the_finder_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "awaited_here.py").write_text("value = 1\n")
    before = list(sys.meta_path)
    called: list[tuple[str, int]] = []

    def first(module: ModuleType) -> None:
        called.append(("first", module.value))

    def second(module: ModuleType) -> None:
        called.append(("second", module.value))

    for action in (first, second, first):
        after_import("awaited_here", action)
    assert len(sys.meta_path) == len(before) + 1
    importlib.import_module("awaited_here")
    assert called == [("first", 1), ("second", 1)]
    assert sys.meta_path == before
    after_import("awaited_here", second)
    assert called[2:] == [("second", 1)]
    del sys.modules["awaited_here"]
