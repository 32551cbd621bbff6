"""Profiles a process whose program knows nothing of it: `PERTOKEN_PROFILE` and `pertoken run`.

`start()` is called while the interpreter starts, before the program runs. It imports next to
nothing: what records is imported when the program has imported torch.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from types import ModuleType
from typing import TYPE_CHECKING

from pertoken.after_import import after_import
from pertoken.autostart_options import VARIABLE, AutostartOptions
from pertoken.errors import PertokenError

if TYPE_CHECKING:
    from pertoken.model_search import ModelSearch

_VLLM_WORKER = "vllm.v1.worker.worker_base"

_search: ModelSearch | None = None
_options: AutostartOptions | None = None
_was_called = False


def start() -> None:
    """Starts looking for models to record, as `PERTOKEN_PROFILE` says; the second call is nothing.

    Never raises: what is wrong becomes one line on stderr, and the program runs unprofiled.
    """
    global _options, _was_called
    text = os.environ.get(VARIABLE, "")
    if _was_called or text in ("", "0") or os.environ.get("PERTOKEN") == "0":
        return
    _was_called = True  # an environment may name the folder of the `.pth` file twice
    try:
        _options = AutostartOptions.parse(text).resolved()
        os.environ[VARIABLE] = _options.for_children().text()
        if _options.summary:  # asked for by a person, who waits for an answer
            atexit.register(_say_that_nothing_ran, os.getpid())  # first, so that it runs last
        after_import("torch.nn.modules.module", _torch_is_there)
        after_import("transformers.generation.utils", _transformers_is_there)
    except (PertokenError, OSError, ValueError) as error:
        say(f"{VARIABLE} is not usable, so nothing is profiled: {error}")


def start_in_vllm() -> None:
    """The same, as vLLM's plugin: each of its processes calls it before it loads anything."""
    start()
    if _options is not None:
        after_import(_VLLM_WORKER, _worker_is_there)
    adapter = sys.modules.get("pertoken.engines.vllm_worker")
    if adapter is not None:  # something is recorded since before vLLM was imported, perhaps
        adapter.look_again()


def say(text: str) -> None:
    """Writes a line for a person to stderr, where there is one."""
    with suppress(AttributeError, OSError, ValueError):
        # In one piece: processes that end together share the terminal.
        sys.stderr.write(f"pertoken: {' '.join(text.split())}\n")
        sys.stderr.flush()


def _say_that_nothing_ran(pid: int) -> None:
    if os.getpid() == pid and (_search is None or not _search.has_told):
        say("no model was called in this process, so there is no profile of it")


def _torch_is_there(module: ModuleType) -> None:
    _watch(lambda search: search.watch_modules(module.Module))


def _transformers_is_there(module: ModuleType) -> None:
    _watch(lambda search: search.watch_generate(module.GenerationMixin))


def _worker_is_there(module: ModuleType) -> None:
    _watch(lambda search: search.watch_workers(module.WorkerWrapperBase))


def _watch(begin: Callable[[ModelSearch], None]) -> None:
    """Runs inside the program's own import, which goes on whatever happens here."""
    global _search
    try:
        if _search is None and _options is not None:
            from pertoken.model_search import ModelSearch
            from pertoken.process_files import ProcessFiles

            _search = ModelSearch(_options, ProcessFiles(_options))
        if _search is not None:
            begin(_search)
    except Exception as error:
        say(f"models cannot be looked for: {type(error).__name__}: {error}")
