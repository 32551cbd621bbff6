"""Watches `generate()`: one request each, its boundaries, and what it really returned.

A wrapper stands in the class of the recorded model (in the instance, where that has a `generate`
of its own), so that copies and pickles of the model know nothing of it. What only `generate()`
can tell is noted here, once a call; what each step does is noted natively.
"""

from __future__ import annotations

import inspect
import itertools
import logging
import threading
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from pertoken import _native, patch
from pertoken.instrument import CACHE_ARGUMENTS
from pertoken.scopes import request

logger = logging.getLogger("pertoken")

COMMIT_METHOD = "_update_model_kwargs_for_generation"


@dataclass
class Generation:
    """Sequences that grow together: one outermost `generate()`, or one request without it."""

    number: int
    request: int
    by_generate: bool = True
    commits_known: bool = True  # steps tell how many tokens they commit
    is_beam_search: bool = False
    prompt_rows: int = -1  # rows handed in; a step may have more, by beams or returned sequences
    prompt_len: int = -1
    prompt_tokens: int = -1  # over these rows, padding excluded; -1: look at the first step
    row_lengths: list[int] | None = None  # tokens committed to each returned row, once known
    state: Any = None  # of the running call
    first_commit_ticks: int = 0  # 0: nothing committed, or to be read from the steps
    running: bool = True


@dataclass
class RequestEntry:
    """One request as this recording saw it."""

    number: int
    start_ticks: int
    id: str = ""
    model_version: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    scope: request | None = None  # the user's own context, while it is open
    end_ticks: int = 0
    error: str = ""


class RequestLog:
    """The requests and generations of a recording, oldest first, within a limit.

    The native store holds the steps; this holds what belongs to a whole request, and forgets
    requests that ended once `limit` of them are held.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.evicted = 0
        self.requests: dict[int, RequestEntry] = {}
        self.generations: dict[int, Generation] = {}
        self._next_request = itertools.count()
        self._next_generation = itertools.count()
        self._lock = threading.Lock()
        self._of_scope: dict[int, RequestEntry] = {}

    def open_request(self, scope: request | None, start_ticks: int) -> RequestEntry:
        """A new request, or the one that this entry of the user's context has opened already."""
        with self._lock:
            if scope is not None:
                known = self._of_scope.get(id(scope))
                if known is not None and known.start_ticks == scope.start_ticks:
                    return known
            entry = RequestEntry(next(self._next_request), start_ticks)
            if scope is not None:
                self._close_scope(id(scope))
                entry.start_ticks = scope.start_ticks
                entry.id, entry.model_version = scope.id, scope.model_version
                entry.labels = dict(scope.labels)
                entry.scope = scope
                self._of_scope[id(scope)] = entry
            self.requests[entry.number] = entry
            if len(self.requests) > self.limit:
                self._evict()
            return entry

    def open_generation(self, entry: RequestEntry) -> Generation:
        """A new generation of a request."""
        with self._lock:
            generation = Generation(next(self._next_generation), entry.number)
            self.generations[generation.number] = generation
            return generation

    def held(self) -> tuple[list[RequestEntry], dict[int, Generation]]:
        """What is held now, with the ends of the user's contexts brought up to date."""
        with self._lock:
            self._close_ended_scopes()
            return list(self.requests.values()), dict(self.generations)

    def _close_ended_scopes(self) -> None:
        for key, entry in list(self._of_scope.items()):
            scope = entry.scope
            if scope is None or scope.end_ticks or scope.start_ticks != entry.start_ticks:
                self._close_scope(key)

    def _close_scope(self, key: int) -> None:
        entry = self._of_scope.pop(key, None)
        if entry is None or entry.scope is None:
            return
        if entry.scope.start_ticks == entry.start_ticks:
            entry.end_ticks, entry.error = entry.scope.end_ticks, entry.scope.error
        entry.scope = None

    def _evict(self) -> None:
        self._close_ended_scopes()
        surplus = len(self.requests) - self.limit * 9 // 10
        gone = [number for number, entry in self.requests.items() if entry.end_ticks][:surplus]
        for number in gone:
            del self.requests[number]
        self.evicted += len(gone)
        dropped = set(gone)
        for number in [n for n, g in self.generations.items() if g.request in dropped]:
            del self.generations[number]


class GenerateWatch:
    """The wrappers of one recording round one model's `generate()`."""

    def __init__(
        self, model: Any, recorder: Any, log: RequestLog, on_fault: Callable[[str, Exception], None]
    ) -> None:
        self.model = model
        self.generation_var: ContextVar[Any] = ContextVar("pertoken_generation")
        self._recorder = recorder
        self._log = log
        self._on_fault = on_fault
        self._installed: list[tuple[Any, str, Any]] = []
        self._counts_commits = False

    def install(self) -> None:
        """Wraps `generate` and the method that it calls once for every step that commits."""
        if not callable(getattr(self.model, "generate", None)):
            return
        cls = type(self.model)
        if "generate" in self.model.__dict__:
            self._put(
                self.model,
                "generate",
                lambda inner: _native.MethodCall(
                    inner, partial(self._before_instance, self.model), self._after
                ),
            )
        elif inspect.isfunction(_plain(inspect.getattr_static(cls, "generate", None))):
            self._put(
                cls, "generate", lambda inner: _native.MethodCall(inner, self._before, self._after)
            )
        if inspect.isfunction(_plain(inspect.getattr_static(cls, COMMIT_METHOD, None))):
            self._counts_commits = True
            self._put(
                cls,
                COMMIT_METHOD,
                lambda inner: _native.CommitCall(inner, self.generation_var),
            )

    def _put(self, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
        base = inspect.getattr_static(owner, name)
        self._installed.append((owner, name, patch.put(owner, name, base, make)))

    def remove(self) -> None:
        """Takes the wrappers out again."""
        for owner, name, wrapper in reversed(self._installed):
            patch.take_out(owner, name, wrapper)
        self._installed.clear()

    def request_generation(self, scope: request) -> int:
        """The number that stands for a request in which no `generate()` runs."""
        generation = self._log.open_generation(self._log.open_request(scope, scope.start_ticks))
        generation.by_generate = False
        return generation.number

    def _before_instance(self, model: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
        return self._before((model, *args), kwargs)

    def _before(self, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> Any:
        if not args or args[0] is not self.model or not self._recorder.active:
            return None
        try:
            return self._open(args[1:], kwargs or {})
        except Exception as error:
            self._on_fault("generate", error)
            return None

    def _open(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        outer = self.generation_var.get(None)
        fresh = all(kwargs.get(name) is None for name in CACHE_ARGUMENTS)
        entry = generation = None
        if outer is None:
            now = _native.now_ticks()
            scope = _native.current_request()
            entry = self._log.open_request(scope, now)
            generation = self._log.open_generation(entry)
            generation.is_beam_search = (_setting(self.model, kwargs, "num_beams") or 1) > 1
            generation.commits_known = self._counts_commits
            _describe_prompt(generation, self.model, args, kwargs)
            number, depth = generation.number, 0
        else:
            number, depth = outer.generation, outer.depth + 1
        state = _native.GenerationState(self._recorder, number, depth, fresh)
        if generation is not None:
            generation.state = state
        token = self.generation_var.set(state)
        state.enter()
        eos = _setting(self.model, kwargs, "eos_token_id")
        has_ids = bool(args) or kwargs.get("inputs", kwargs.get("input_ids")) is not None
        return state, token, entry, generation, eos, has_ids

    def _after(self, opened: Any, result: Any, error: type[BaseException] | None) -> None:
        state, token, entry, generation, eos, has_ids = opened
        state.leave()
        try:
            self.generation_var.reset(token)
            if generation is None:
                return
            generation.first_commit_ticks = (
                state.last_end_ticks if generation.is_beam_search else state.first_commit_ticks
            )
            if error is None:
                generation.row_lengths = _row_lengths(
                    result, state, eos, has_ids, generation.is_beam_search
                )
            if entry.scope is None:
                entry.error = "" if error is None else error.__name__
                entry.end_ticks = _native.now_ticks()
        except Exception as fault:
            self._on_fault("generate", fault)
        finally:
            if generation is not None:
                generation.running, generation.state = False, None


def _plain(attribute: Any) -> Any:
    """The function below wrappers of other recordings."""
    while isinstance(attribute, (_native.MethodCall, _native.CommitCall)):
        attribute = attribute.inner
    return attribute


def _setting(model: Any, kwargs: Mapping[str, Any], name: str) -> Any:
    """What `generate()` will use for a setting: argument, given config, the model's config."""
    if kwargs.get(name) is not None:
        return kwargs[name]
    for config in (kwargs.get("generation_config"), getattr(model, "generation_config", None)):
        value = getattr(config, name, None)
        if value is not None:
            return value
    return None


def _describe_prompt(
    generation: Generation, model: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> None:
    """Notes the prompt's size, as far as shapes and what lies in host memory tell."""
    ids = args[0] if args else None
    for name in ("inputs", "input_ids", "inputs_embeds"):
        ids = kwargs.get(name) if ids is None else ids
    shape = tuple(getattr(ids, "shape", ()))
    if ids is None or len(shape) < 2:
        return
    generation.prompt_rows, generation.prompt_len = int(shape[0]), int(shape[1])
    mask = kwargs.get("attention_mask")
    if mask is not None:
        if getattr(mask, "is_cpu", False) and tuple(mask.shape) == shape[:2]:
            generation.prompt_tokens = int((mask != 0).sum())
        return
    # Without a mask generate() makes one of the padding token. A decoder's first step shows it;
    # an encoder's is not seen, so the same is counted here.
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False) and len(shape) == 2:
        pad = _setting(model, kwargs, "pad_token_id")
        if pad is None:
            generation.prompt_tokens = int(shape[0] * shape[1])
        elif getattr(ids, "is_cpu", False):
            generation.prompt_tokens = int((ids != pad).sum())


def _row_lengths(
    result: Any, state: Any, eos: Any, has_ids: bool, is_beam_search: bool
) -> list[int] | None:
    """How many tokens each returned row was given: up to and with its first end-of-sequence.

    The ids are complete when `generate()` returns, having waited for them itself at every step.
    """
    ids = getattr(result, "sequences", result)
    if len(getattr(ids, "shape", ())) != 2 or state.commits == 0:
        return None
    columns = int(ids.shape[1])
    if is_beam_search:
        prompt = state.prompt_len if has_ids else 0
    else:
        prompt = columns - state.tokens
    if not 0 <= prompt <= columns:
        return None
    length = columns - prompt
    if eos is None or (ids.shape[0] == 1 and not is_beam_search):
        return [length] * int(ids.shape[0])
    ends = {int(token) for token in (eos if hasattr(eos, "__iter__") else [eos])}
    rows = ids[:, prompt:].tolist()
    return [
        next((index + 1 for index, token in enumerate(row) if token in ends), length)
        for row in rows
    ]
