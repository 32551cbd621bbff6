"""Watches `generate()`: one request each, its boundaries, and what it really returned.

A wrapper stands in the class of the recorded model (in the instance, where that has a `generate`
of its own), so that copies and pickles of the model know nothing of it. What only `generate()`
can tell is noted here, once a call; what each step does is noted natively.
"""

from __future__ import annotations

import inspect
import logging
import weakref
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from functools import partial
from typing import Any

from pertoken import _native, patch
from pertoken.engines import listeners, transformers_batching, vllm_worker
from pertoken.engines.requests import EngineRequest
from pertoken.generate_call import GenerateCall, Prompt, positional_names
from pertoken.instrument import InstanceMethodCall
from pertoken.request_log import RequestLog
from pertoken.request_run import current_run

logger = logging.getLogger("pertoken")

COMMIT_METHOD = "_update_model_kwargs_for_generation"


class GenerateWatch:
    """The wrappers of one recording round `generate()`, of the root and of inner roots."""

    def __init__(
        self, recorder: Any, log: RequestLog, on_fault: Callable[[str, Exception], None]
    ) -> None:
        self.generation_var: ContextVar[Any] = ContextVar("pertoken_generation")
        self._recorder = recorder
        self._log = log
        self._on_fault = on_fault
        self._installed: list[tuple[Callable[[], Any], str, Callable[[], Any]]] = []
        self._models: set[int] = set()  # by identity
        self._counting_commits: set[type] = set()
        self._names: dict[type, tuple[str, ...]] = {}  # of the positional parameters of generate
        self._begun_ticks = 0
        self._is_listening = False

    def install(self, models: Iterable[Any]) -> None:
        """Wraps `generate` and the method that it calls once for every step that commits."""
        models = list(models)
        self._models.update(id(model) for model in models)
        self._begun_ticks = _native.now_ticks()
        self._listen()
        for model in models:
            if callable(getattr(model, "generate", None)):
                self._install(model)

    def _listen(self) -> None:
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
        vllm_worker.install()
        self._is_listening = True

    def _install(self, model: Any) -> None:
        cls = type(model)
        if "generate" in model.__dict__:
            self._put(
                model,
                "generate",
                lambda inner: InstanceMethodCall(
                    inner, partial(self._before_instance, patch.weakly(model)), self._after
                ),
            )
        elif any(owner() is cls and name == "generate" for owner, name, _ in self._installed):
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
        wrapper = patch.put(owner, name, base, make)
        self._installed.append((patch.weakly(owner), name, patch.weakly(wrapper)))

    def pause(self) -> None:
        """Sees no `generate()` and no engine until `go_on`; the model's wrappers stay.

        A class that changes would cost the model's next steps more than the wrappers do.
        """
        if not self._is_listening:
            return
        self._is_listening = False
        listeners.discard(self)
        transformers_batching.remove(self._models)
        vllm_worker.remove()
        _native.set_request_hooks(self._recorder, None, None, ())

    def go_on(self) -> None:
        """Sees them again."""
        if not self._is_listening:
            self._listen()

    def remove(self) -> None:
        """Takes the wrappers out again."""
        self.pause()
        for owner, name, wrapper in reversed(self._installed):
            if owner() is not None:
                patch.take_out(owner(), name, wrapper())
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
        self._log.note_unknown(reason)

    def fault(self, where: str, error: Exception) -> None:
        """Counts what went wrong in an engine's adapter."""
        self._on_fault(where, error)

    def open_running(self, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> Any:
        """Opens a `generate()` that was called before the wrappers were in.

        Args:
            args: of the call, the model first.
            kwargs: of the call.

        Returns:
            What `close_running` takes; None when there is nothing to close.
        """
        return self._before(args, kwargs)

    def close_running(self, opened: Any, result: Any, error: type[BaseException] | None) -> None:
        """Closes it, with what it returned or the type of what it raised."""
        self._after(opened, result, error)

    def _before_instance(self, model: Callable[[], Any], args: tuple[Any, ...], kwargs: Any) -> Any:
        return self._before((model(), *args), kwargs)

    def _before(self, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> Any:
        if not (args and self._is_listening and id(args[0]) in self._models):
            return None
        if not self._recorder.active:
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
            self._recorder,
            number,
            depth,
            not call.has_cache,
            id(model),
            call.is_chunked,
            call.is_beam_search,
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
        state.leave(None if error is not None else getattr(result, "sequences", result))
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
                generation.end_ticks = _native.now_ticks()


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
