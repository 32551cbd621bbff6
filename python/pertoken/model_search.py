"""Finds the models of a program that knows nothing of pertoken, and records each.

A model is what the program calls from outside any other module: the outermost module whose call
runs, or one whose `generate` is called, or that is to be batched continuously. It is found at its
first call, before that proceeds, or when a worker of vLLM has loaded it.
"""

from __future__ import annotations

import logging
import os
import sys
import weakref
from functools import partial
from typing import Any

from pertoken import _native, patch
from pertoken.autostart_options import AutostartOptions
from pertoken.instrument import CALL_SLOT, unwrap_compiled
from pertoken.patch import change_lock
from pertoken.process_files import ProcessFiles
from pertoken.recording import Recording

logger = logging.getLogger("pertoken")

# Of the recordings that can run at once, some are left to the program itself, and some of the rest
# to models that generate: heads and encoders that are called by themselves must not take them all.
MOST_MODELS = _native.MAX_RECORDERS - 2
MOST_PLAIN_MODELS = 4
# A program that makes its models anew all the time would fill the disk with files.
MOST_FILES = 64

MAKES_MANAGER = "init_continuous_batching"  # what transformers makes every manager with
MAKES_CACHE = "initialize_from_config"  # what each worker of vLLM does once its model is loaded


class ModelSearch:
    """Looks at every outermost call of a module, until it is decided what the module is.

    Args:
        options: how to record what is found.
        files: what writes it in the end.
    """

    def __init__(self, options: AutostartOptions, files: ProcessFiles) -> None:
        self._options = options
        self._files = files
        # By id, those that need not be looked at again: recorded ones with all that is in them,
        # and what is no model. The native side reads the keys.
        self._decided: dict[int, weakref.ref[Any]] = {}
        self._recordings: list[Recording] = []  # that run
        # The lock is there by now, so that its handlers run round ours.
        os.register_at_fork(after_in_child=self._start_afresh)

    @property
    def has_told(self) -> bool:
        """Whether something was said of a model at the end of the process."""
        return self._files.has_told

    def watch_modules(self, module_class: Any) -> None:
        """Looks at calls from now on.

        Args:
            module_class: ``torch.nn.Module``.
        """
        if CALL_SLOT not in module_class.__dict__:
            logger.warning("pertoken: this torch has no call slot; only generate() is looked at")
            return
        setattr(module_class, CALL_SLOT, _native.RootSearch(self._consider, self._decided))
        patch.put(
            module_class,
            "compile",
            module_class.__dict__["compile"],
            lambda below: _native.MethodCall(below, _before_compile, self._after_compile),
        )

    def watch_generate(self, mixin: Any) -> None:
        """Looks at calls of transformers' `generate` from now on: encoders run before the model.

        Args:
            mixin: ``transformers.GenerationMixin``.
        """
        patch.put(
            mixin,
            "generate",
            mixin.__dict__["generate"],
            lambda below: _native.MethodCall(below, self._before_generate, _after_generate),
        )
        # A manager's requests are added before its model is called, and from other threads.
        owner = next((cls for cls in mixin.__mro__ if MAKES_MANAGER in cls.__dict__), None)
        if owner is not None:
            patch.put(
                owner,
                MAKES_MANAGER,
                owner.__dict__[MAKES_MANAGER],
                lambda below: _native.MethodCall(below, self._before_manager, _nothing_after),
            )

    def watch_workers(self, wrapper_class: Any) -> None:
        """Looks at workers of vLLM from now on: not all of them call their model before they serve.

        Args:
            wrapper_class: ``vllm.v1.worker.worker_base.WorkerWrapperBase``.
        """
        method = wrapper_class.__dict__.get(MAKES_CACHE)
        if callable(method):
            patch.put(
                wrapper_class,
                MAKES_CACHE,
                method,
                lambda below: _native.MethodCall(below, self._before_cache, _nothing_after),
            )

    def _consider(self, module: Any) -> Any:
        """What to call instead of the module's own call: the wrapper of a new recording, or None.

        Called outside any call of a module, on the program's thread.
        """
        with change_lock:
            try:
                if id(module) in self._decided:  # by a thread that was quicker
                    held = module.__dict__.get(CALL_SLOT)
                    return held if isinstance(held, _native.RootCall) else None
                if not _counts_now(module):
                    return None
                if not _is_model(module):
                    self._decide(module)
                    return None
                self._record(module, generates=callable(getattr(module, "generate", None)))
            except Exception as error:  # once, and not at each of its calls
                self._files.note_unrecorded(f"{type(module).__name__} ({error})")
                self._decide(module)
            return module.__dict__.get(CALL_SLOT)

    def _after_compile(self, module: Any, result: Any, error: Any) -> None:
        """What ``module.compile()`` has put into the module's slot hides it from the search."""
        held = module.__dict__.get(CALL_SLOT)
        if held is None or id(module) in self._decided or isinstance(held, _native.RootProbe):
            return
        consider = partial(self._consider_compiled, weakref.ref(module))
        patch.put(module, CALL_SLOT, held, lambda inner: _native.RootProbe(inner, consider))

    def _consider_compiled(self, ref: weakref.ref[Any]) -> Any:
        """As `_consider`; None also while it is not decided what the module is."""
        module = ref()
        found = None if module is None else self._consider(module)
        return None if isinstance(found, _native.RootProbe) else found

    def _before_generate(self, args: tuple[Any, ...], kwargs: Any) -> Any:
        recording = self._record_generating(args)
        if recording is None:
            return None
        watch = recording.generate_watch
        running = watch.generation_var.get(None)
        if running is not None and running.model == id(args[0]):
            return None  # it came through the recording's own wrapper
        # The method was looked up before that was in: by this first call, or by another that began
        # meanwhile, or whose caller has kept the method.
        opened = watch.open_running(args, kwargs)
        return None if opened is None else (watch, opened)

    def _before_manager(self, args: tuple[Any, ...], kwargs: Any) -> None:
        self._record_generating(args)

    def _before_cache(self, args: tuple[Any, ...], kwargs: Any) -> None:
        self._record_generating((args[0].worker.get_model(),))

    def _record_generating(self, args: tuple[Any, ...]) -> Recording | None:
        """The recording of a model that generates, made now if there is none; or None."""
        if not args:
            return None
        model = args[0]
        if id(model) not in self._decided:
            with change_lock:
                if id(model) not in self._decided:  # nor by a thread that was quicker
                    if isinstance(model.__dict__.get(CALL_SLOT), _native.RootCall):
                        return None  # the program records it by itself
                    return self._record(model, generates=True)
        key = id(model)
        return next((r for r in self._recordings if r.generate_watch.records(key)), None)

    def _record(self, model: Any, generates: bool) -> Recording | None:
        self._recordings = [recording for recording in self._recordings if recording.is_recording]
        root = unwrap_compiled(model)
        limit = MOST_MODELS if generates else MOST_PLAIN_MODELS
        if len(self._recordings) >= limit or self._files.models >= MOST_FILES:
            self._files.note_unrecorded(type(root).__name__)
            self._decide_all(model)
            return None
        self._files.write_ended()
        try:
            recording = Recording(
                model,
                modules=self._options.modules,
                memory_limit_bytes=self._options.memory_limit,
                log_interval_s=self._options.log_interval or None,
                spool=self._options.spool or None,
                holds_model=False,
            )
            recording.start()
        except Exception as error:
            self._files.note_unrecorded(f"{type(root).__name__} ({error})")
            self._decide_all(model)
            return None
        self._recordings.append(recording)
        self._files.add(recording)
        self._decide_all(model)
        # The program may drop the model; what was recorded of it is kept.
        ending = weakref.finalize(root, change_lock.run_outside, recording.stop)
        ending.atexit = False
        return recording

    def _decide_all(self, model: Any) -> None:
        for module in model.modules():
            self._decide(module)

    def _decide(self, module: Any) -> None:
        key = id(module)
        self._decided[key] = weakref.ref(module, partial(_forget, self._decided, key))
        below = module.__dict__.get(CALL_SLOT)
        while below is not None and not isinstance(below, _native.RootProbe):
            below = getattr(below, "inner", None)
        if below is not None:
            patch.take_out(module, CALL_SLOT, below)

    def _start_afresh(self) -> None:
        """In a forked child: what the parent found is found again, and recorded anew."""
        try:
            for recording in self._recordings:
                recording.stop()
            self._recordings = []
            self._decided.clear()
            self._files.start_afresh()
        except Exception as error:
            logger.warning("pertoken: a forked process is not profiled: %s", error)


def _forget(decided: dict[int, Any], key: int, ref: Any) -> None:
    decided.pop(key, None)


def _before_compile(args: tuple[Any, ...], kwargs: Any) -> Any:
    return args[0] if args else None


def _after_generate(token: Any, result: Any, error: Any) -> None:
    watch, opened = token
    watch.close_running(opened, result, error)


def _nothing_after(token: Any, result: Any, error: Any) -> None:
    """What counts is that the model is recorded before its manager, or its cache, is made."""


def _is_model(module: Any) -> bool:
    """Whether it has modules inside and something to compute with: not a layer, nor a loss."""
    has_children = next(iter(module.children()), None) is not None
    if not has_children:
        return False
    state = next(module.parameters(), None)
    return state is not None or next(module.buffers(), None) is not None


def _counts_now(module: Any) -> bool:
    """Whether this call is inference: not a training step, nor a compiler that traces."""
    torch = sys.modules["torch"]
    if module.training and torch.is_grad_enabled():
        return False
    if getattr(module, "_is_replica", False):  # of DataParallel, made anew for each call
        return False
    tracing = sys.modules.get("torch.fx._symbolic_trace")
    return not (
        torch.jit.is_tracing()
        or torch.compiler.is_compiling()
        or getattr(tracing, "_is_fx_tracing_flag", False)  # its function would log a warning
    )
