"""The native core. Internal: what users may rely on is in `pertoken` itself."""

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, final

import numpy as np
from numpy.typing import NDArray
from typing_extensions import disjoint_base

DETAIL_ALL: int
DETAIL_LAYERS: int
FLOAT_FORMATS: dict[str, int]
MAX_HISTOGRAM_SCALE: int
MAX_LABEL_SETS: int
MAX_RECORDERS: int
MIN_HISTOGRAM_SCALE: int

def bucket_upper_bound(index: int, scale: int) -> float: ...
def build_info() -> dict[str, Any]: ...
def clock_info() -> dict[str, Any]: ...
def clock_source() -> str: ...
def is_recording() -> bool: ...
def set_request_hooks(
    recorder: Recorder,
    running: Callable[[], int] | None,
    row: Callable[[Any], RowSequence] | None,
    models: tuple[int, ...],
    /,
) -> None: ...
def cache_length(cache: object) -> int: ...
def fit_clock(samples: NDArray[np.int64], nominal_ns_per_tick: float = ...) -> ClockMap: ...
def histogram_of_gpu_tensor(
    device: int,
    stream: int,
    address: int,
    format: int,
    shape: tuple[int, ...],
    strides_bytes: tuple[int, ...],
    scale: int,
) -> ExpHistogram: ...
def instruction_sets() -> tuple[str, ...]: ...
def add_compiled_layer(
    recorder: Recorder, kind: int, address: int, site: int, span_detail: int, device: int
) -> None: ...
def enter_layer(order: Any, hidden: Any, parameter: Any, kind: int, /) -> None: ...
def leave_layer(order: Any, hidden: Any, parameter: Any, kind: int, /) -> None: ...
def remove_compiled_layers(recorder: Recorder) -> None: ...
def logit_stats(
    address: int,
    format: int,
    shape: tuple[int, ...],
    strides_bytes: tuple[int, ...],
    instructions: str = ...,
) -> tuple[float, float, float, float]: ...
def intern_module(name: str) -> int: ...
def intern_region(name: str) -> int: ...
def learn_exchange_table(tensor_type: type, parameter_type: type) -> None: ...
def learn_torch(
    tensor_type: type,
    parameter_type: type,
    formats: dict[Any, int],
    strided: object,
    get_tracing_state: object,
) -> None: ...
def intern_site(category: int, name: str) -> int: ...
def now_ticks() -> int: ...
def set_known_cache(
    cache_function: Callable[..., Any], layer_function: Callable[..., Any]
) -> None: ...
def unix_time_ns() -> int: ...
def write_chrome_trace(
    *,
    tables: Mapping[str, Mapping[str, NDArray[Any]]],
    counters: Mapping[str, Mapping[str, NDArray[Any]]],
    strings: Sequence[str],
    header_json: str,
    processes: Sequence[tuple[int, str]],
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

class ExpHistogram:
    def __init__(self, scale: int) -> None: ...
    @staticmethod
    def from_parts(
        *,
        scale: int,
        positive_offset: int,
        positive: NDArray[np.uint64],
        negative_offset: int,
        negative: NDArray[np.uint64],
        zeros: int,
        nans: int,
        pos_infs: int,
        neg_infs: int,
        sum: float,
        sum_sq: float,
        min: float,
        max: float,
    ) -> ExpHistogram: ...
    @staticmethod
    def of_tensor(
        address: int,
        format: int,
        shape: tuple[int, ...],
        strides_bytes: tuple[int, ...],
        scale: int,
        instructions: str = ...,
    ) -> ExpHistogram: ...
    def merged(self, other: ExpHistogram) -> ExpHistogram: ...
    def downscaled(self, scale: int) -> ExpHistogram: ...
    def quantile(self, q: float) -> float: ...
    def equals(self, other: ExpHistogram) -> bool: ...
    @property
    def scale(self) -> int: ...
    @property
    def count(self) -> int: ...
    @property
    def zeros(self) -> int: ...
    @property
    def nans(self) -> int: ...
    @property
    def pos_infs(self) -> int: ...
    @property
    def neg_infs(self) -> int: ...
    @property
    def sum(self) -> float: ...
    @property
    def sum_sq(self) -> float: ...
    @property
    def min(self) -> float: ...
    @property
    def max(self) -> float: ...
    @property
    def positive(self) -> tuple[int, NDArray[np.uint64]]: ...
    @property
    def negative(self) -> tuple[int, NDArray[np.uint64]]: ...

class Recorder:
    def __init__(
        self,
        store_limit_bytes: int,
        ring_capacity: int,
        keep_ns: int = ...,
        observe_every: int = ...,
        observe_seed: int = ...,
    ) -> None: ...
    def start(self) -> None: ...
    def stop(self) -> None: ...
    def drain(self) -> None: ...
    def sample(
        self,
        *,
        budget: float,
        costs_ns: tuple[float, float, float, float, float],
        levels: Sequence[tuple[int, float]],
        observed: tuple[float, float, bool],
        logits: tuple[float, float] | None,
        seed: int,
    ) -> None: ...
    def sampling(self) -> dict[str, Any] | None: ...
    def let_step_aside(self, slot: str, call: SpanCall, of_model: bool = True) -> None: ...
    def put_wrappers_back(self) -> int: ...
    def take_wrappers_out(self) -> int: ...
    def read_logits(
        self,
        every: int,
        seed: int,
        read_elsewhere: Callable[..., Any],
        current_stream: Callable[[int], int] | None,
        skip: Callable[[str], None],
    ) -> None: ...
    def prepare_logits(self, device: int) -> None: ...
    def totals(self) -> dict[str, Any]: ...
    def begin_request(self, request: int, label_set: int, start_ticks: int) -> None: ...
    def begin_generation(
        self,
        *,
        generation: int,
        request: int,
        by_generate: bool,
        by_rows: bool,
        can_end_rows: bool,
        is_beam_search: bool,
        prompt: tuple[int, int, int],
    ) -> None: ...
    def end_generation(
        self,
        *,
        generation: int,
        first_commit_ticks: int,
        has_failed: bool,
        is_delegated: bool,
        commits_known: bool,
        row_lengths: Sequence[int] | None,
    ) -> None: ...
    def end_request(self, request: int, end_ticks: int, has_failed: bool) -> None: ...
    def status(self) -> dict[str, Any]: ...
    def begin_capture(self) -> None: ...
    def end_capture(self) -> int: ...
    def abandon_captures(self) -> None: ...
    def time_devices(self, current_stream: Callable[[int], int], devices: Sequence[int]) -> str: ...
    def snapshot(self, origin_ticks: int, marks: NDArray[np.uint64]) -> dict[str, Any]: ...
    @property
    def active(self) -> bool: ...
    @property
    def first_step(self) -> int: ...
    @property
    def store_bytes(self) -> int: ...
    @property
    def drain_cpu_ns(self) -> int: ...
    def oldest_step_ticks(self) -> int: ...
    def arm_triggers(
        self,
        *,
        fixed_ns: Sequence[int],
        learned: Sequence[tuple[int, float, float, int]],
        nans: bool,
        infinities: bool,
    ) -> None: ...
    def disarm_triggers(self) -> None: ...
    def fire_trigger(self, signal: int) -> None: ...
    def wait_for_trigger(self, timeout_s: float) -> list[dict[str, Any]]: ...
    def spool_into(self, folder: str, segment_bytes: int, segments: int) -> None: ...
    def spool_note(self, scope: int, key: int, json: str) -> None: ...
    def replay_clock(self, samples: NDArray[np.int64]) -> None: ...
    def replay_from(self, first_step: int) -> None: ...
    def replay_round(self) -> None: ...
    def replay(
        self,
        *,
        track: int,
        tid: int,
        thread_name: str,
        last_step: int,
        last_seq: int,
        goes_on: bool,
        records: bytes,
    ) -> bool: ...
    def replay_losses(
        self,
        records_dropped: int,
        recording_faults: int,
        collector_faults: int,
        observations_dropped: int,
    ) -> None: ...
    def replay_observation(self, frame: bytes, site: int) -> bool: ...

def replace_driver(table: Any | None) -> None: ...

class Observer:
    def __init__(
        self,
        *,
        recorder: Recorder,
        read_elsewhere: object,
        current_stream: Callable[[int], int] | None,
        skip: object,
        choose: object,
        by_row: bool,
    ) -> None: ...
    def prepare(self, device: int) -> None: ...
    def end_capture(self) -> int: ...
    def observe(self, site: int, value: object) -> None: ...

def hold_wrappers() -> None: ...
def release_wrappers() -> None: ...

@disjoint_base
class SpanCall:
    inner: Any
    __wrapped__: Any
    site: int
    def __init__(
        self,
        inner: Callable[..., Any],
        recorder: Recorder,
        site: int,
        span_detail: int = ...,
        observer: Observer | None = ...,
        /,
    ) -> None: ...
    def __call__(self, /, *args: Any, **kwargs: Any) -> Any: ...

@disjoint_base
class DeviceSpanCall(SpanCall):
    device: int
    def __init__(
        self,
        inner: Callable[..., Any],
        recorder: Recorder,
        site: int,
        detail: int,
        observer: Observer | None,
        device: int,
        /,
    ) -> None: ...

@final
class GraphReplayCall(SpanCall):
    def __init__(
        self,
        inner: Callable[..., Any],
        recorder: Recorder,
        name: str,
        graphs: dict[int, int],
        observer: Observer,
        observed: dict[int, int],
        /,
    ) -> None: ...
    def __get__(self, instance: Any, owner: type | None = ..., /) -> Any: ...

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
        span_detail: int = ...,
        observer: Observer | None = ...,
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
class WeakMethod:
    def __init__(self, function: Callable[..., Any], instance: object, /) -> None: ...
    def __call__(self, /, *args: Any, **kwargs: Any) -> Any: ...

@final
class RootSearch:
    def __init__(self, consider: Callable[[Any], Any], decided: dict[int, Any], /) -> None: ...
    def __call__(self, /, *args: Any, **kwargs: Any) -> Any: ...
    def __get__(self, instance: Any, owner: Any = ..., /) -> Any: ...

@final
class RootProbe:
    inner: Any
    __wrapped__: Any
    def __init__(self, inner: Any, consider: Callable[[], Any], /) -> None: ...
    def __call__(self, /, *args: Any, **kwargs: Any) -> Any: ...

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
        has_beams: bool = ...,
        /,
    ) -> None: ...
    def enter(self) -> None: ...
    def leave(self, returned: object, /) -> None: ...

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
        told: Sequence[tuple[str | int | None, str, int, int, int]] = ...,
        requests: Mapping[str | int, RowRequest] = ...,
        model: int = 0,
        awaits_commits: bool = False,
        /,
    ) -> None: ...
    def commit(self, counts: Sequence[int], chosen: Sequence[Sequence[int]] = ..., /) -> None: ...
    def keeps_logits(self) -> bool: ...
    def forget_logits(self) -> None: ...
    def __enter__(self) -> Any: ...
    def __exit__(self, *exc_info: Any) -> None: ...

@disjoint_base
class RequestRegion:
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...
    def __enter__(self) -> Any: ...
    def __exit__(self, *exc_info: Any) -> None: ...
