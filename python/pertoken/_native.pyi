"""The native core. Internal: what users may rely on is in `pertoken` itself."""

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, final

import numpy as np
from numpy.typing import NDArray
from typing_extensions import disjoint_base

MAX_RECORDERS: int

def build_info() -> dict[str, Any]: ...
def clock_info() -> dict[str, Any]: ...
def is_recording() -> bool: ...
def set_request_hooks(
    recorder: Recorder,
    running: Callable[[], int] | None,
    row: Callable[[Any], RowSequence] | None,
    models: tuple[int, ...],
    /,
) -> None: ...
def fit_clock(samples: NDArray[np.int64], nominal_ns_per_tick: float = ...) -> ClockMap: ...
def intern_module(name: str) -> int: ...
def now_ticks() -> int: ...
def site_names() -> list[tuple[int, str]]: ...
def unix_time_ns() -> int: ...
def write_chrome_trace(
    *,
    tables: Mapping[str, Mapping[str, NDArray[Any]]],
    strings: Sequence[str],
    header_json: str,
    pid: int,
    process_name: str,
    root_name: str,
    target: object,
) -> None: ...

class ClockMap:
    def to_ns(self, ticks: NDArray[np.uint64]) -> NDArray[np.int64]: ...
    def extend(self, samples: NDArray[np.int64], from_ticks: int) -> ClockMap: ...
    def trim(self, oldest_ticks: int) -> ClockMap: ...
    @property
    def error_bound_ns(self) -> int: ...
    @property
    def rate_error(self) -> float: ...
    @property
    def ticks_per_second(self) -> float: ...
    @property
    def segments(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def largest_step_ns(self) -> int: ...

class Recorder:
    def __init__(self, store_limit_bytes: int, ring_capacity: int) -> None: ...
    def start(self) -> None: ...
    def stop(self) -> None: ...
    def drain(self) -> None: ...
    def totals(self) -> dict[str, Any]: ...
    def snapshot(self, origin_ticks: int, marks: NDArray[np.uint64]) -> dict[str, Any]: ...
    @property
    def active(self) -> bool: ...
    @property
    def first_step(self) -> int: ...
    @property
    def store_bytes(self) -> int: ...

@disjoint_base
class SpanCall:
    inner: Any
    __wrapped__: Any
    site: int
    def __init__(self, inner: Callable[..., Any], recorder: Recorder, site: int, /) -> None: ...
    def __call__(self, /, *args: Any, **kwargs: Any) -> Any: ...

@disjoint_base
class RootCall:
    inner: Any
    __wrapped__: Any
    site: int
    def __init__(
        self,
        inner: Callable[..., Any],
        recorder: Recorder,
        site: int,
        generation_var: ContextVar[Any],
        places: list[tuple[int, str, int]],
        takes_first_positional: bool,
        is_span_when_nested: bool = True,
        only_generate_of: int = 0,
        /,
    ) -> None: ...
    def __call__(self, /, *args: Any, **kwargs: Any) -> Any: ...

@disjoint_base
class MethodCall:
    inner: Any
    __wrapped__: Any
    def __init__(
        self, inner: Any, before: Callable[..., Any], after: Callable[..., Any], /
    ) -> None: ...
    def __call__(self, /, *args: Any, **kwargs: Any) -> Any: ...
    def __get__(self, instance: Any, owner: Any = ..., /) -> Any: ...

@final
class CommitCall:
    inner: Any
    __wrapped__: Any
    def __init__(self, inner: Any, generation_var: ContextVar[Any], /) -> None: ...
    def __call__(self, /, *args: Any, **kwargs: Any) -> Any: ...
    def __get__(self, instance: Any, owner: Any = ..., /) -> Any: ...

@final
class GenerationState:
    generation: int
    depth: int
    steps: int
    commits: int
    model: int
    tokens: int
    tokens_unknown: bool
    prompt_len: int
    last_end_ticks: int
    first_commit_ticks: int
    region_start_ticks: int
    def __init__(
        self,
        recorder: Recorder,
        generation: int,
        depth: int,
        fresh_cache: bool,
        model: int,
        is_chunked: bool,
        /,
    ) -> None: ...
    def enter(self) -> None: ...
    def leave(self) -> None: ...

@disjoint_base
class Region:
    def __init__(self, name: str) -> None: ...
    def __enter__(self) -> Any: ...
    def __exit__(self, *exc_info: Any) -> None: ...

@disjoint_base
class RowRequest:
    def __init__(self) -> None: ...
    def number(self, recorder: Recorder, /) -> None: ...

@final
class RowSequence:
    generation: int
    tokens: int
    tokens_unknown: bool
    first_commit_ticks: int
    def __init__(self, recorder: Recorder, generation: int, /) -> None: ...

@disjoint_base
class StepRegion:
    def __init__(
        self,
        kind: int,
        rows: int,
        tokens_committed: int,
        told: Sequence[tuple[str | None, str, int, int, int]] = ...,
        requests: Mapping[str, RowRequest] = ...,
        model: int = 0,
        awaits_commits: bool = False,
        /,
    ) -> None: ...
    def commit(self, counts: Sequence[int], /) -> None: ...
    def __enter__(self) -> Any: ...
    def __exit__(self, *exc_info: Any) -> None: ...

@disjoint_base
class RequestRegion:
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...
    def __enter__(self) -> Any: ...
    def __exit__(self, *exc_info: Any) -> None: ...
