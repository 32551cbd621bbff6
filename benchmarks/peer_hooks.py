"""Two observability tools made of hooks, as teams write them for their own servers.

Neither is made slow: what can be looked up once is looked up when the hooks are made, and files are
written in batches.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import torch

from peer_tool import FileFormat, PeerTool

PreHook = Callable[[torch.nn.Module, Any], None]
Hook = Callable[[torch.nn.Module, Any, Any], None]


class HookTool(PeerTool):
    """A hook before and one after every module."""

    def __init__(self, model: torch.nn.Module, folder: Path) -> None:
        super().__init__(model, folder)
        self._handles: list[Any] = []
        # Threads that share a model must not end each other's calls.
        self._open = threading.local()

    def start(self) -> None:
        for name, module in self.model.named_modules():
            before, after = self.hooks(name, module)
            self._handles.append(module.register_forward_pre_hook(before))
            self._handles.append(module.register_forward_hook(after, always_call=True))

    def stop(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def hooks(self, name: str, module: torch.nn.Module) -> tuple[PreHook, Hook]:
        """What to call before and after one module."""
        raise NotImplementedError

    def started(self) -> list[int]:
        """When each open call of this thread began, the innermost last."""
        try:
            stack: list[int] = self._open.stack
        except AttributeError:
            stack = self._open.stack = []
        return stack


class NoOpHooks(HookTool):
    name = "hooks, no-op"
    configuration = "a forward pre-hook and a forward hook on every module that do nothing"

    def hooks(self, name: str, module: torch.nn.Module) -> tuple[PreHook, Hook]:
        def before(module: torch.nn.Module, args: Any) -> None:
            return None

        def after(module: torch.nn.Module, args: Any, output: Any) -> None:
            return None

        return before, after


class HookLog(HookTool):
    """A log line for every call, as JSON lines, written BATCH lines at a time."""

    name = "hooks, JSON log"
    configuration = (
        "hooks that time each call and keep a record with module, class, start, duration and "
        "shape of the output, written as JSON lines, 10,000 at a time"
    )
    files = (FileFormat(".jsonl", "the `json` module", lambda path: len(_lines(path))),)
    BATCH = 10_000

    def __init__(self, model: torch.nn.Module, folder: Path) -> None:
        super().__init__(model, folder)
        self._log = folder / "calls.jsonl"
        self._records: list[dict[str, Any]] = []

    def start(self) -> None:
        self._log.unlink(missing_ok=True)
        super().start()

    def stop(self) -> None:
        super().stop()
        self._flush()

    def write(self, path: Path) -> None:
        self._log.replace(path)

    def hooks(self, name: str, module: torch.nn.Module) -> tuple[PreHook, Hook]:
        records, kind, started = self._records, type(module).__name__, self.started

        def before(module: torch.nn.Module, args: Any) -> None:
            started().append(perf_counter_ns())

        def after(module: torch.nn.Module, args: Any, output: Any) -> None:
            end_ns = perf_counter_ns()
            start_ns = started().pop()
            records.append(
                {
                    "module": name,
                    "class": kind,
                    "start_ns": start_ns,
                    "dur_ns": end_ns - start_ns,
                    "shape": tuple(output.shape) if isinstance(output, torch.Tensor) else None,
                }
            )
            if len(records) >= self.BATCH:
                self._flush()

        return before, after

    def _flush(self) -> None:
        with self._log.open("a") as stream:
            stream.writelines(json.dumps(record) + "\n" for record in self._records)
        self._records.clear()


class ModuleStatistics:
    """Count, mean and variance by Welford's method, and the last durations for percentiles."""

    __slots__ = ("count", "last_ns", "mean_ns", "squares")

    def __init__(self) -> None:
        self.count = 0
        self.mean_ns = 0.0
        self.squares = 0.0
        self.last_ns: deque[int] = deque(maxlen=1000)

    def add(self, dur_ns: int) -> None:
        self.count += 1
        delta = dur_ns - self.mean_ns
        self.mean_ns += delta / self.count
        self.squares += delta * (dur_ns - self.mean_ns)
        self.last_ns.append(dur_ns)

    def as_dict(self) -> dict[str, float]:
        last = sorted(self.last_ns)
        return {
            "count": self.count,
            "mean_ns": self.mean_ns,
            "variance": self.squares / max(self.count - 1, 1),
            "p50_ns": last[len(last) // 2] if last else 0,
            "p99_ns": last[len(last) * 99 // 100] if last else 0,
        }


class HookStatistics(HookTool):
    """Statistics of every module, and no single call."""

    name = "hooks, statistics"
    configuration = (
        "hooks that time each call and keep count, mean and variance by Welford's method, and "
        "the last 1,000 durations, of each module; written as one JSON object"
    )
    files = (FileFormat(".json", "the `json` module", lambda path: _no_spans(path)),)

    def __init__(self, model: torch.nn.Module, folder: Path) -> None:
        super().__init__(model, folder)
        self._statistics: dict[str, ModuleStatistics] = {}

    def start(self) -> None:
        self._statistics.clear()
        super().start()

    def write(self, path: Path) -> None:
        path.write_text(
            json.dumps({name: of.as_dict() for name, of in self._statistics.items()}, indent=1)
        )

    def hooks(self, name: str, module: torch.nn.Module) -> tuple[PreHook, Hook]:
        add, started = self._statistics.setdefault(name, ModuleStatistics()).add, self.started

        def before(module: torch.nn.Module, args: Any) -> None:
            started().append(perf_counter_ns())

        def after(module: torch.nn.Module, args: Any, output: Any) -> None:
            add(perf_counter_ns() - started().pop())

        return before, after


def _lines(path: Path) -> list[Any]:
    with path.open() as stream:
        return [json.loads(line) for line in stream]


def _no_spans(path: Path) -> int:
    json.loads(path.read_text())
    return 0
