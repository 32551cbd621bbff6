"""The tools that are compared, each set up as its documentation says for this use."""

from __future__ import annotations

import cProfile
import pstats
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, ClassVar

import torch
from viztracer import VizTracer

import pertoken
from decode_overhead import require_complete
from hooks import torch_profiler
from peer_hooks import HookLog, HookStatistics, NoOpHooks
from peer_tool import FileFormat, PeerTool

CHROME = FileFormat(".json")
# Enough for every call of the run; the default keeps the last million.
VIZTRACER_ENTRIES = 4_000_000


class Nothing(PeerTool):
    """No tool: what the run itself takes."""

    name = "nothing"
    configuration = "no tool"

    def start(self) -> None:
        return None

    def stop(self) -> None:
        return None


class Pertoken(PeerTool):
    files = (
        CHROME,
        FileFormat(".json.gz"),
        FileFormat(".pertoken", "`pertoken.load`", lambda path: len(pertoken.load(path).spans)),
    )
    modules: ClassVar[str]

    def __init__(self, model: torch.nn.Module, folder: Path) -> None:
        super().__init__(model, folder)
        self._recording = pertoken.profile(model, modules=self.modules)

    def start(self) -> None:
        self._recording.start()

    def stop(self) -> None:
        self._recording.stop()

    def settle(self) -> None:
        self._recording.recorder.drain()

    def write(self, path: Path) -> None:
        profile = self._recording.result()
        require_complete(self._recording)
        if path.suffix == ".pertoken":
            profile.save(path)
        else:
            profile.export_chrome_trace(path)

    def forget(self) -> None:
        self._recording.recorder.drain()


class PertokenAll(Pertoken):
    name = "pertoken all"
    configuration = '`pertoken.profile(model, modules="all")`: every call of every module'
    modules = "all"


class PertokenLayers(Pertoken):
    name = "pertoken layers"
    configuration = "`pertoken.profile(model)`: the root and its layers, the default"
    modules = "layers"


class TorchProfiler(PeerTool):
    name = "torch.profiler"
    configuration = "`torch.profiler.profile(activities=[ProfilerActivity.CPU])`: operators"
    files = (CHROME,)

    def start(self) -> None:
        self._profiler = torch_profiler()
        self._profiler.__enter__()

    def stop(self) -> None:
        self._profiler.__exit__(None, None, None)

    def write(self, path: Path) -> None:
        profiler: Any = self._profiler
        profiler.export_chrome_trace(str(path))

    def forget(self) -> None:
        del self._profiler


class RecordFunction(TorchProfiler):
    """Every forward inside a `record_function`, which sees the modules' names."""

    name = "record_function"
    configuration = (
        "each module's forward inside `with torch.profiler.record_function(name)`, and "
        "`torch.profiler` on as above: modules and operators"
    )

    def start(self) -> None:
        for name, module in self.model.named_modules():
            setattr(module, "forward", _named(name or "model", module.forward))  # noqa: B010
        super().start()

    def stop(self) -> None:
        super().stop()
        for module in self.model.modules():
            del module.forward


def _named(name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(forward)
    def named(*args: Any, **kwargs: Any) -> Any:
        with torch.profiler.record_function(name):
            return forward(*args, **kwargs)

    return named


class Viztracer(PeerTool):
    name = "viztracer"
    configuration = (
        "`VizTracer(dump_raw=True)`, which is what its command line does, with a buffer for the "
        "whole run: every call of Python and C"
    )
    files = (CHROME,)
    options: ClassVar[dict[str, Any]] = {}

    def __init__(self, model: torch.nn.Module, folder: Path) -> None:
        super().__init__(model, folder)
        self._tracer = VizTracer(
            tracer_entries=VIZTRACER_ENTRIES,
            verbose=0,
            dump_raw=True,
            register_global=False,
            **self.options,
        )

    def start(self) -> None:
        self._tracer.start()

    def stop(self) -> None:
        self._tracer.stop()

    def write(self, path: Path) -> None:
        self._tracer.save(str(path))

    def forget(self) -> None:
        self._tracer.clear()


class ViztracerPython(Viztracer):
    name = "viztracer, Python only"
    configuration = "the same with `ignore_c_function=True`, which it advises for less overhead"
    options: ClassVar[dict[str, Any]] = {"ignore_c_function": True}


class CProfile(PeerTool):
    name = "cProfile"
    configuration = "`cProfile.Profile()`: totals of every function, no single call"
    files = (FileFormat(".prof", "`pstats.Stats`", lambda path: _opened(path)),)

    def start(self) -> None:
        self._profile = cProfile.Profile()
        self._profile.enable()

    def stop(self) -> None:
        self._profile.disable()

    def write(self, path: Path) -> None:
        self._profile.dump_stats(path)


def _opened(path: Path) -> int:
    pstats.Stats(str(path))
    return 0


# The order of the page.
TOOLS: tuple[type[PeerTool], ...] = (
    PertokenLayers,
    PertokenAll,
    NoOpHooks,
    HookStatistics,
    HookLog,
    TorchProfiler,
    RecordFunction,
    Viztracer,
    ViztracerPython,
    CProfile,
)
