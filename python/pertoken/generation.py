"""Watches `generate()`: one request each, its boundaries, and what it really returned.

A wrapper stands in the class of the recorded model (in the instance, where that has a `generate`
of its own), so that copies and pickles of the model know nothing of it. What only `generate()`
can tell is noted here, once a call; what each step does is noted natively.
"""

from __future__ import annotations

import inspect
import itertools
import logging
import weakref
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from pertoken import _native, patch
from pertoken.engines import listeners, transformers_batching
from pertoken.engines.requests import EngineRequest
from pertoken.generate_call import GenerateCall, Prompt, positional_names
from pertoken.instrument import InstanceMethodCall
from pertoken.label_sets import LabelSets
from pertoken.patch import change_lock
from pertoken.request_run import RequestRun, current_run

logger = logging.getLogger("pertoken")

COMMIT_METHOD = "_update_model_kwargs_for_generation"


@dataclass
class Generation:
    """Sequences that grow together: one outermost `generate()`, or one request without it."""

    number: int
    request: int
    by_generate: bool = True
    by_rows: bool = False  # the sequence of one engine's request, which its rows name
    from_start: bool = True  # no step was missed
    commits_known: bool = True  # steps tell how many tokens they commit
    can_end_rows: bool = True  # some rows may end before others
    has_failed: bool = False
    is_delegated: bool = False  # to a model inside, whose own generation stands for it
    is_beam_search: bool = False
    # What was handed in: a step may have more rows, by beams or returned sequences, and its mask
    # may tell the tokens where they are -1.
    prompt: Prompt = field(default_factory=Prompt)
    row_lengths: list[int] | None = None  # tokens committed to each returned row, once known
    state: Any = None  # of the running call, or the native sequence of an engine's request
    first_commit_ticks: int = 0  # 0: nothing committed, or to be read from the steps
    running: bool = True

    @property
    def known_first_commit_ticks(self) -> int:
        """When it committed first, where the steps need not be asked; 0 while that is open."""
        if self.by_rows:
            return int(self.state.first_commit_ticks) if self.from_start else 0
        state = self.state  # gone from one moment to the next when the call ends
        is_known_now = state is None or self.is_beam_search
        return int((self if is_known_now else state).first_commit_ticks)


@dataclass
class RequestEntry:
    """One request as this recording saw it."""

    number: int
    start_ticks: int
    id: str = ""
    model_version: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    run: RequestRun | EngineRequest | None = None  # what opened it, while it is open
    sequence: Generation | None = None  # the one of an engine's request, while it is open
    end_ticks: int = 0
    error: str = ""


class RequestLog:
    """The requests and generations of a recording, oldest first, within a limit.

    The native store holds the steps; this holds what belongs to a whole request, and forgets
    requests that ended once `limit` of them are held.
    """

    def __init__(self, limit: int, recorder: Any) -> None:
        self.limit = limit
        self.evicted = 0
        self.label_sets = LabelSets()
        self._recorder = recorder  # whose totals count every request, when it ends
        self.unknown: dict[str, None] = {}  # sentences, each once
        self.requests: dict[int, RequestEntry] = {}
        self.generations: dict[int, Generation] = {}
        self._next_request = itertools.count()
        self._next_generation = itertools.count()
        self._of_run: dict[int, RequestEntry] = {}  # by identity; the entry keeps it alive

    def open_request(self, run: RequestRun | EngineRequest | None) -> RequestEntry:
        """A new request, or the one that this run of the user's or an engine's has opened already.

        Without a run it is a `generate()`, which ends it itself.
        """
        with change_lock:
            if run is not None and id(run) in self._of_run:
                return self._of_run[id(run)]
            number = next(self._next_request)
            if run is None:
                entry = RequestEntry(number, _native.now_ticks())
            else:
                entry = RequestEntry(
                    number, run.start_ticks, run.id, run.model_version, dict(run.labels), run
                )
                self._of_run[id(run)] = entry
            self.requests[entry.number] = entry
            label_set = self.label_sets.number(entry.model_version, entry.labels)
            self._recorder.begin_request(_narrow(entry.number), label_set, entry.start_ticks)
            if len(self.requests) > self.limit:
                self._evict()
            return entry

    def open_generation(self, entry: RequestEntry, **traits: Any) -> Generation:
        """A new generation of a request.

        Args:
            entry: the request.
            traits: what is known of the generation, by the names of its attributes.
        """
        with change_lock:
            generation = Generation(next(self._next_generation), entry.number, **traits)
            self.generations[generation.number] = generation
            if generation.by_rows:
                entry.sequence = generation
        prompt = generation.prompt
        self._recorder.begin_generation(
            generation=_narrow(generation.number),
            request=_narrow(entry.number),
            by_generate=generation.by_generate,
            by_rows=generation.by_rows,
            can_end_rows=generation.can_end_rows,
            is_beam_search=generation.is_beam_search,
            prompt=(prompt.rows, prompt.length, prompt.tokens),
        )
        return generation

    def end_generation(self, generation: Generation) -> None:
        """Has the totals count a generation, of which all is known by now."""
        row_lengths, commits_known = generation.row_lengths, generation.commits_known
        if generation.by_rows:
            commits_known = generation.from_start and not generation.state.tokens_unknown
            row_lengths = [generation.state.tokens] if commits_known else None
        self._recorder.end_generation(
            generation=_narrow(generation.number),
            first_commit_ticks=generation.known_first_commit_ticks,
            has_failed=generation.has_failed,
            is_delegated=generation.is_delegated,
            commits_known=commits_known,
            row_lengths=row_lengths,
        )

    def end_request(self, entry: RequestEntry, end_ticks: int, error: str) -> None:
        """Notes the end of a request."""
        if entry.sequence is not None:
            entry.sequence.has_failed = error != ""
            self.end_generation(entry.sequence)
        entry.end_ticks, entry.error, entry.run, entry.sequence = end_ticks, error, None, None
        self._recorder.end_request(_narrow(entry.number), end_ticks, error != "")

    def delegate(self, state: Any) -> RequestEntry:
        """The request of a running `generate()` that has another model generate for it.

        What runs no steps of its own is not a generation: the inner one describes them all.
        """
        with change_lock:
            outer = self.generations[state.generation]
            outer.is_delegated = not state.steps
            return self.requests[outer.request]

    def held(self) -> tuple[list[RequestEntry], dict[int, Generation]]:
        """What is held now, with the ends of the user's contexts brought up to date."""
        with change_lock:
            self.close_ended_runs()
            generations = self.generations.items()
            return list(self.requests.values()), {
                number: generation
                for number, generation in generations
                if not generation.is_delegated
            }

    @property
    def begun_before(self) -> int:
        """How many requests of engines may have been given tokens before they were recorded."""
        with change_lock:
            held = [g.request for g in self.generations.values() if not g.from_start]
        return len(set(held))

    def close_request(self, run: RequestRun | EngineRequest) -> None:
        """Notes the end of a run that has ended; one that was not met is passed over."""
        with change_lock:
            entry = self._of_run.pop(id(run), None)
            if entry is not None:
                self.end_request(entry, run.end_ticks, run.error)

    def close_ended_runs(self) -> None:
        """Notes the ends of the user's contexts, which say nothing themselves."""
        with change_lock:
            for entry in list(self._of_run.values()):
                if entry.run is not None and entry.run.end_ticks:
                    self.close_request(entry.run)

    def _evict(self) -> None:
        self.close_ended_runs()
        surplus = len(self.requests) - self.limit * 9 // 10
        gone = [number for number, entry in self.requests.items() if entry.end_ticks][:surplus]
        for number in gone:
            del self.requests[number]
        self.evicted += len(gone)
        dropped = set(gone)
        for number in [n for n, g in self.generations.items() if g.request in dropped]:
            del self.generations[number]


class GenerateWatch:
    """The wrappers of one recording round `generate()`, of the root and of inner roots."""

    def __init__(
        self, recorder: Any, log: RequestLog, on_fault: Callable[[str, Exception], None]
    ) -> None:
        self.generation_var: ContextVar[Any] = ContextVar("pertoken_generation")
        self._recorder = recorder
        self._log = log
        self._on_fault = on_fault
        self._installed: list[tuple[Any, str, Any]] = []
        self._models: set[int] = set()  # by identity
        self._counting_commits: set[type] = set()
        self._names: dict[type, tuple[str, ...]] = {}  # of the positional parameters of generate
        self._begun_ticks = 0

    def install(self, models: Iterable[Any]) -> None:
        """Wraps `generate` and the method that it calls once for every step that commits."""
        models = list(models)
        self._models.update(id(model) for model in models)
        self._begun_ticks = _native.now_ticks()
        # The native side holds them outside the garbage collector's sight.
        watch = weakref.ref(self)
        _native.set_request_hooks(
            self._recorder,
            partial(_number_request, watch),
            partial(_number_row, watch),
            tuple(self._models),
        )
        listeners.add(self)
        transformers_batching.install(self._models)
        for model in models:
            if callable(getattr(model, "generate", None)):
                self._install(model)

    def _install(self, model: Any) -> None:
        cls = type(model)
        if "generate" in model.__dict__:
            self._put(
                model,
                "generate",
                lambda inner: InstanceMethodCall(
                    inner, partial(self._before_instance, model), self._after
                ),
            )
        elif (cls, "generate") in [place[:2] for place in self._installed]:
            pass
        elif inspect.isfunction(_plain(inspect.getattr_static(cls, "generate", None))):
            self._put(
                cls, "generate", lambda inner: _native.MethodCall(inner, self._before, self._after)
            )
        if cls in self._counting_commits:
            return
        if inspect.isfunction(_plain(inspect.getattr_static(cls, COMMIT_METHOD, None))):
            self._counting_commits.add(cls)
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
        listeners.discard(self)
        transformers_batching.remove(self._models)
        _native.set_request_hooks(self._recorder, None, None, ())
        for owner, name, wrapper in reversed(self._installed):
            patch.take_out(owner, name, wrapper)
        self._installed.clear()
        self._models.clear()
        self._counting_commits.clear()
        self._names.clear()

    def number_request(self) -> int:
        """The number that stands for the running request, in which no `generate()` runs."""
        entry = self._log.open_request(current_run())
        return self._log.open_generation(entry, by_generate=False).number

    def number_row(self, request: EngineRequest) -> Any:
        """The sequence that stands for an engine's request from now on."""
        generation = self._log.open_generation(
            self._log.open_request(request),
            by_generate=False,
            by_rows=True,
            from_start=request.whole_since_ticks > self._begun_ticks,
            prompt=Prompt(tokens=request.tokens_in),
        )
        generation.state = _native.RowSequence(self._recorder, generation.number)
        return generation.state

    def records(self, model: int) -> bool:
        """Whether the model of this identity is recorded."""
        return model in self._models

    def request_arrived(self, request: EngineRequest) -> None:
        """Opens the request of an engine before its first step."""
        request.number(self._recorder)

    def request_finished(self, request: EngineRequest) -> None:
        """Closes the request of an engine."""
        self._log.close_request(request)

    def unknown(self, reason: str) -> None:
        """Notes what cannot be known of an engine."""
        self._log.unknown[reason] = None

    def fault(self, where: str, error: Exception) -> None:
        """Counts what went wrong in an engine's adapter."""
        self._on_fault(where, error)

    def _before_instance(self, model: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
        return self._before((model, *args), kwargs)

    def _before(self, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> Any:
        if not args or id(args[0]) not in self._models or not self._recorder.active:
            return None
        try:
            return self._open(args[0], args[1:], kwargs or {})
        except Exception as error:
            self._on_fault("generate", error)
            return None

    def _open(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = GenerateCall(model, self._names_of(model), args, kwargs)
        outer = self.generation_var.get(None)
        entry = generation = None
        if outer is not None and outer.model == id(model) and (outer.depth or call.is_draft):
            number, depth = outer.generation, outer.depth + 1
        else:
            if outer is None:
                entry = self._log.open_request(current_run())
            else:  # it generates for the one round it
                entry = self._log.delegate(outer)
            generation = self._log.open_generation(
                entry,
                is_beam_search=call.is_beam_search,
                can_end_rows=call.can_end_rows,
                commits_known=type(model) in self._counting_commits,
                prompt=call.prompt(),
            )
            number, depth = generation.number, 0
        state = _native.GenerationState(
            self._recorder, number, depth, not call.has_cache, id(model), call.is_chunked
        )
        if generation is not None:
            generation.state = state
        token = self.generation_var.set(state)
        state.enter()
        return call, state, token, entry if outer is None else None, generation

    def _names_of(self, model: Any) -> tuple[str, ...]:
        cls = type(model)
        if cls not in self._names:
            self._names[cls] = positional_names(
                _plain(inspect.getattr_static(cls, "generate", None))
            )
        return self._names[cls]

    def _after(self, opened: Any, result: Any, error: type[BaseException] | None) -> None:
        call, state, token, entry, generation = opened
        state.leave()
        try:
            self.generation_var.reset(token)
            if generation is None:
                return
            generation.first_commit_ticks = (
                state.last_end_ticks if generation.is_beam_search else state.first_commit_ticks
            )
            generation.has_failed = error is not None
            generation.commits_known &= not state.tokens_unknown
            if error is None:
                generation.row_lengths = call.row_lengths(result, state)
            self._log.end_generation(generation)
            if entry is not None and entry.run is None:
                ended = "" if error is None else error.__name__
                self._log.end_request(entry, _native.now_ticks(), ended)
        except Exception as fault:
            self._on_fault("generate", fault)
        finally:
            if generation is not None:
                generation.running, generation.state = False, None


def _narrow(number: int) -> int:
    """A number as the native side counts, which holds what is open only."""
    return number & 0xFFFFFFFF


def _number_request(watch: weakref.ref[GenerateWatch]) -> int:
    alive = watch()
    return -1 if alive is None else alive.number_request()


def _number_row(watch: weakref.ref[GenerateWatch], request: EngineRequest) -> Any:
    alive = watch()
    return None if alive is None else alive.number_row(request)


def inner_roots(root: Any) -> dict[str, Any]:
    """The topmost submodules that generate by themselves, by name.

    A wrapper's own forward may never run: its `generate()` calls that of the model inside.
    """
    found: dict[str, Any] = {}
    for name, module in root.named_modules():
        if module is root or any(name.startswith(above + ".") for above in found):
            continue
        own = module.__dict__.get("generate")
        if own is None:
            own = _plain(inspect.getattr_static(type(module), "generate", None))
        can_generate = getattr(module, "can_generate", None)
        if callable(own) and (not callable(can_generate) or can_generate()):
            found[name] = module
    return found


def _plain(attribute: Any) -> Any:
    """The function below wrappers of other recordings."""
    while isinstance(attribute, (_native.MethodCall, _native.CommitCall)):
        attribute = attribute.inner
    return attribute
