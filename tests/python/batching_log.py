"""What transformers' continuous batching really did, written down apart from pertoken.

Which requests a step had and in what state they were comes from the scheduler, lengths from the
``cu_seq_lens_q`` and ``position_ids`` that the forward was given, commits from the tokens that are
handed out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from transformers.generation.continuous_batching import requests, scheduler


@dataclass
class LoggedRow:
    """One row of one forward."""

    request: str
    phase: str
    context_len: int
    query_len: int = -1
    committed: int = 0


@dataclass
class BatchingLog:
    """The forwards of a run, and the tokens of each request."""

    steps: list[list[LoggedRow]] = field(default_factory=list)
    scheduled: list[LoggedRow] = field(default_factory=list)
    tokens: dict[str, int] = field(default_factory=dict)

    def before_forward(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        """Takes the lengths of the rows from what the model is given."""
        bounds = kwargs["cu_seq_lens_q"].tolist()
        positions = kwargs["position_ids"][0].tolist()
        assert len(bounds) == len(self.scheduled) + 1
        for row, begin, end in zip(self.scheduled, bounds, bounds[1:], strict=False):
            row.query_len = end - begin
            assert row.query_len == 0 or row.context_len == positions[begin]
        self.steps.append(self.scheduled)

    def rows(self) -> list[tuple[int, int, str, str, int, int, int]]:
        """All rows: step, row, request, phase, lengths, tokens."""
        return [
            (step, at, row.request, row.phase, row.query_len, row.context_len, row.committed)
            for step, rows in enumerate(self.steps)
            for at, row in enumerate(rows)
        ]

    def kinds(self) -> list[str]:
        """The kind of each step."""
        phases = [{row.phase for row in rows} for rows in self.steps]
        return [names.pop() if len(names) == 1 else "mixed" for names in phases]


@contextmanager
def logged(model: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[BatchingLog]:
    """Writes down what every manager of a model does inside."""
    log = BatchingLog()
    complete = requests.RequestState.update_and_check_completion

    def schedule(original: Any) -> Any:
        def schedule_batch(self: Any, *args: Any) -> Any:
            was_decoding = {
                name: state.status.name == "DECODING"
                for name, state in self.active_requests.items()
            }
            result = original(self, *args)
            log.scheduled = [
                LoggedRow(
                    future.state.request_id,
                    "decode" if was_decoding.get(future.state.request_id) else "prefill",
                    future.state.position_offset,
                )
                for future in result[0] or ()
            ]
            return result

        return schedule_batch

    def update(self: Any, *args: Any) -> Any:
        before = len(self.generated_tokens)
        result = complete(self, *args)
        count = len(self.generated_tokens) - before
        (row,) = [row for row in log.steps[-1] if row.request == self.request_id]
        row.committed += count
        log.tokens[self.request_id] = log.tokens.get(self.request_id, 0) + count
        return result

    with monkeypatch.context() as patched:
        for cls in (scheduler.FIFOScheduler, scheduler.PrefillFirstScheduler):
            patched.setattr(cls, "schedule_batch", schedule(cls.schedule_batch))
        patched.setattr(requests.RequestState, "update_and_check_completion", update)
        hook = model.register_forward_pre_hook(log.before_forward, with_kwargs=True)
        try:
            yield log
        finally:
            hook.remove()
