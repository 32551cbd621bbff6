"""A worker of vLLM without a GPU: runs a tiny model and samples by a script.

It is the only part of the engine that is made up; vLLM loads it by its name. It keeps its own books
of what each request has in the cache, and writes down what every step did.
"""

from __future__ import annotations

import pickle
import random
from dataclasses import dataclass
from typing import Any

import torch
from vllm.v1.executor.uniproc_executor import UniProcExecutor
from vllm.v1.kv_cache_interface import FullAttentionSpec
from vllm.v1.outputs import (
    EMPTY_MODEL_RUNNER_OUTPUT,
    AsyncModelRunnerOutput,
    DraftTokenIds,
    ModelRunnerOutput,
)
from vllm.v1.worker.worker_base import CompilationTimes, WorkerBase

from models import NextToken

BLOCK = 16
LOWEST, HIGHEST = 1, 30  # of the tokens that are sampled


@dataclass
class Script:
    """What the workers of a test do.

    Attributes:
        seed: of what is sampled.
        accepts: the share of drafts that are accepted.
        returns_later: whether outputs are handed out by `get_output`.
        fails_at: the step that raises, once.
        warms_up: whether the model is called before there are requests.
    """

    seed: int = 0
    accepts: float = 0.5
    returns_later: bool = False
    fails_at: int = -1
    warms_up: bool = True


script = Script()


@dataclass
class BookedRow:
    """One row of one step, by the worker's own books."""

    request: str
    query_len: int
    in_cache: int
    is_prefill: bool
    drafts: int
    sampled: int = 0


@dataclass
class Booked:
    """One request in the worker's cache."""

    prompt: int
    in_cache: int = 0
    generated: int = 0
    refill: int = 0  # up to where it works on tokens that are known

    @property
    def known(self) -> int:
        return self.prompt + self.generated


class LaterOutput(AsyncModelRunnerOutput):
    """Hands out what a device would still be busy with."""

    def __init__(self, output: ModelRunnerOutput) -> None:
        self._output = output

    def get_output(self) -> ModelRunnerOutput:
        return self._output

    def get_kv_connector_output(self) -> None:
        return None


class ScriptedWorker(WorkerBase):
    """See the module."""

    def init_device(self) -> None:
        self.device = torch.device("cpu")

    def load_model(self, *, load_dummy_weights: bool = False) -> None:
        self.model = NextToken().eval()
        self.books: dict[str, Booked] = {}
        self.steps: list[list[BookedRow]] = []
        self.drawn = random.Random(script.seed)
        self.drafts: DraftTokenIds | None = None

    def get_model(self) -> torch.nn.Module:
        return self.model

    def get_kv_cache_spec(self) -> dict[str, FullAttentionSpec]:
        return {
            "layer": FullAttentionSpec(
                block_size=BLOCK, num_kv_heads=2, head_size=32, dtype=torch.float32
            )
        }

    def get_supported_kv_cache_layouts(self) -> list[str]:
        return ["LBHNC"]

    def determine_available_memory(self) -> int:
        return 1 << 22

    def initialize_from_config(self, config: Any) -> None:
        pass

    def initialize_cache(self, *blocks: int) -> None:
        pass

    def compile_or_warm_up_model(self) -> CompilationTimes:
        if script.warms_up:
            with torch.inference_mode():
                self.model(torch.zeros(1, 4, dtype=torch.long))
        return CompilationTimes(0.0, 0.0)

    def get_supported_tasks(self) -> tuple[str, ...]:
        return ("generate",)

    def check_health(self) -> None:
        pass

    def take_draft_token_ids(self) -> DraftTokenIds | None:
        drafts, self.drafts = self.drafts, None
        return drafts

    @torch.inference_mode()
    def execute_model(self, output: Any) -> Any:
        for request in output.finished_req_ids:
            self.books.pop(request, None)
        if not output.total_num_scheduled_tokens:
            return EMPTY_MODEL_RUNNER_OUTPUT
        if len(self.steps) == script.fails_at:
            script.fails_at = -1
            raise ZeroDivisionError
        cached = output.scheduled_cached_reqs
        for new in output.scheduled_new_reqs:
            known = self.books.setdefault(new.req_id, Booked(len(new.prompt_token_ids)))
            known.in_cache, known.refill = new.num_computed_tokens, known.known
        for request, computed in zip(cached.req_ids, cached.num_computed_tokens, strict=True):
            if request in cached.resumed_req_ids:
                known = self.books[request]
                known.in_cache, known.refill = computed, known.known
        rows = []
        for request, query_len in output.num_scheduled_tokens.items():
            known = self.books[request]
            rows.append(
                BookedRow(
                    request,
                    query_len,
                    known.in_cache,
                    known.in_cache < known.refill,
                    len(output.scheduled_spec_decode_tokens.get(request, ())),
                )
            )
        self.steps.append(rows)
        self.model(torch.zeros(1, output.total_num_scheduled_tokens, dtype=torch.long))
        return None

    @torch.inference_mode()
    def sample_tokens(self, grammar_output: Any) -> Any:
        sampled = [self._sample(row) for row in self.steps[-1]]
        ids = [row.request for row in self.steps[-1]]
        count = 3 if self.speculative_config is not None else 0
        drafting = [name for name, tokens in zip(ids, sampled, strict=True) if tokens]
        self.drafts = DraftTokenIds(
            drafting, [[self._token() for _ in range(count)] for _ in drafting]
        )
        output = ModelRunnerOutput(
            req_ids=ids,
            req_id_to_index={name: index for index, name in enumerate(ids)},
            sampled_token_ids=sampled,
        )
        return LaterOutput(output) if script.returns_later else output

    def _token(self) -> int:
        return self.drawn.randint(LOWEST, HIGHEST)

    def _sample(self, row: BookedRow) -> list[int]:
        known = self.books[row.request]
        if known.in_cache + row.query_len < known.known:
            known.in_cache += row.query_len
            return []
        accepted = 0
        while accepted < row.drafts and self.drawn.random() < script.accepts:
            accepted += 1
        row.sampled = accepted + 1
        known.in_cache += row.query_len - (row.drafts - accepted)
        known.generated += row.sampled
        return [self._token() for _ in range(row.sampled)]


class SeparateExecutor(UniProcExecutor):
    """Gives its worker copies, as one in another process gets them."""

    def execute_model(self, scheduler_output: Any, non_block: bool = False) -> Any:
        copied = pickle.loads(pickle.dumps(scheduler_output))
        return super().execute_model(copied, non_block)
