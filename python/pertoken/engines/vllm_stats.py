"""What vLLM's front end measures, as totals: vLLM loads `FrontEndTotals` by its entry point.

Only vLLM imports this module. The front end is the process that clients talk to: no model is there,
but the times are those that a client sees.
"""

from __future__ import annotations

import atexit
import itertools
import json
import logging
import os
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vllm.v1.metrics.loggers import AggregateStatLoggerBase

from pertoken.autostart import say
from pertoken.autostart_options import SUFFIX, VARIABLE, AutostartOptions
from pertoken.errors import PertokenError
from pertoken.histogram import Histogram
from pertoken.process_files import script_name
from pertoken.quantity import duration_text, plural_text
from pertoken.totals import RequestTotals, Totals
from pertoken.whole_file import written_aside

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.metrics.stats import IterationStats, MultiModalCacheStats, SchedulerStats

logger = logging.getLogger("pertoken")

_MOST_VALUES = 4096  # that wait to be counted into a histogram
_FAILURES = frozenset({"ABORT", "ERROR"})
_numbers = itertools.count(1)  # of the front ends of this process that have written


class _Latencies:
    """A histogram of nanoseconds that takes seconds, many at a time."""

    def __init__(self) -> None:
        self._waiting: list[float] = []
        self._counted = Histogram()

    def extend(self, seconds: list[float]) -> None:
        self._waiting += seconds
        if len(self._waiting) >= _MOST_VALUES:
            self.read()

    def read(self) -> Histogram:
        values = [max(value, 0.0) * 1e9 for value in self._waiting]
        self._waiting = []
        self._counted = self._counted.merge(Histogram.from_values(values))
        return self._counted


@dataclass
class _Engine:
    """The requests of one engine."""

    finished: int = 0
    failed: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    duration: _Latencies = field(default_factory=_Latencies)
    ttft: _Latencies = field(default_factory=_Latencies)
    tpot: _Latencies = field(default_factory=_Latencies)
    itl: _Latencies = field(default_factory=_Latencies)

    def add(self, stats: IterationStats) -> None:
        self.tokens_out += stats.num_generation_tokens
        self.ttft.extend(stats.time_to_first_tokens_iter)
        self.itl.extend(stats.inter_token_latencies_iter)
        for request in stats.finished_requests:
            self.tokens_in += request.num_prompt_tokens
            if request.finish_reason.name in _FAILURES:
                self.failed += 1
                continue
            self.finished += 1
            self.duration.extend([request.e2e_latency])
            if request.num_generation_tokens > 1:
                self.tpot.extend([request.mean_time_per_output_token])

    def read(self) -> RequestTotals:
        return RequestTotals(
            started=self.finished + self.failed,
            finished=self.finished,
            failed=self.failed,
            tokens_in=self.tokens_in,
            tokens_out=self.tokens_out,
            duration_ns=self.duration.read(),
            ttft_ns=self.ttft.read(),
            tpot_ns=self.tpot.read(),
            itl_ns=self.itl.read(),
        )


class FrontEndTotals(AggregateStatLoggerBase):  # type: ignore[misc]
    """Counts what the front end sees of its requests, where ``PERTOKEN_PROFILE`` asks for it.

    They are written when the process ends, to ``<name of the profile>-frontend.json``, which
    `pertoken.Totals.from_dict` reads, and logged at the interval of the lines of status. Without
    ``PERTOKEN_PROFILE`` it does nothing.

    Args:
        vllm_config: unused; vLLM gives it.
        engine_indexes: of the engines that this front end serves.
    """

    def __init__(self, vllm_config: VllmConfig, engine_indexes: list[int]) -> None:
        text = os.environ.get(VARIABLE, "")
        is_asked = text not in ("", "0") and os.environ.get("PERTOKEN") != "0"
        self._engines: defaultdict[int, _Engine] = defaultdict(_Engine)
        self._options: AutostartOptions | None = None
        self._begun = self._logged = time.monotonic()
        if is_asked:
            try:
                self._options = AutostartOptions.parse(text).resolved()
            except PertokenError as error:
                logger.warning("pertoken: the front end is not recorded: %s", error)
                return
            atexit.register(self.write)

    def record(
        self,
        scheduler_stats: SchedulerStats | None,
        iteration_stats: IterationStats | None,
        mm_cache_stats: MultiModalCacheStats | None = None,
        engine_idx: int = 0,
    ) -> None:
        """Counts one iteration of one engine."""
        if self._options is not None and iteration_stats is not None:
            try:
                self._engines[engine_idx].add(iteration_stats)
            except Exception as error:
                logger.warning("pertoken: the front end is recorded no longer: %s", error)
                self._options = None

    def log(self) -> None:
        """Logs a line; vLLM calls it every few seconds."""
        now = time.monotonic()
        options = self._options
        if options is None or not 0 < options.log_interval <= now - self._logged:
            return
        self._logged = now
        requests = self.totals().all_requests
        ttft = requests.ttft_ns
        times = f", TTFT p99 {duration_text(ttft.quantile(0.99))}" if ttft.count else ""
        logger.info(
            "front end of vLLM: %s ended, %d of them early%s",
            plural_text(requests.started, "request"),
            requests.failed,
            times,
        )

    def log_engine_initialized(self) -> None:
        """Nothing: vLLM's own loggers say what there is to say."""

    def totals(self) -> Totals:
        """What was counted so far, by the label ``engine``."""
        return Totals(
            recordings=1,
            recorded_ns=round((time.monotonic() - self._begun) * 1e9),
            requests={
                (("engine", str(index)),): engine.read() for index, engine in self._engines.items()
            },
        )

    def write(self) -> None:
        """Writes the totals, if a request has ended. Never raises."""
        options, self._options = self._options, None
        totals = self.totals()
        if options is None or not totals.all_requests.started:
            return
        path = options.file(script_name(), os.getpid(), next(_numbers))
        path = path.with_name(f"{path.name.removesuffix(SUFFIX)}-frontend.json")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with written_aside(str(path), durable=False) as stream:
                stream.write(json.dumps(totals.to_dict()).encode())
            say(f"wrote {path} ({plural_text(totals.all_requests.started, 'request')})")
        except Exception as error:
            say(f"the totals of the front end are lost: {str(error) or type(error).__name__}")
