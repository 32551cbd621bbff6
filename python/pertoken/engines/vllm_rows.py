"""The rows of vLLM's steps, read from what its scheduler hands to its workers.

A `SchedulerOutput` tells a request whole only once, and later what has changed. So the lengths that
are needed again are kept by request, until it is told to have finished.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pertoken.engines.row import Row

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import CachedRequestData, NewRequestData, SchedulerOutput

_UNKNOWN = -1


class _Lengths:
    """What of one request is needed in later steps, in tokens.

    Attributes:
        prompt: its prompt.
        prefill: what has to be in the cache before it can go on: the prompt, and after a
            preemption also what had been generated.
    """

    __slots__ = ("prefill", "prompt")

    def __init__(self, prompt: int, prefill: int) -> None:
        self.prompt = prompt
        self.prefill = prefill


class VllmRows:
    """Follows one scheduler's requests through its steps.

    Args:
        context_is_exact: False where the scheduler runs ahead of the tokens and drafts are
            verified: it then counts drafts as accepted that may not be, so that the context of
            a row that has some is unknown.
    """

    def __init__(self, *, context_is_exact: bool) -> None:
        self._context_is_exact = context_is_exact
        self._lengths: dict[str, _Lengths] = {}

    def rows_of(self, output: SchedulerOutput) -> list[Row]:
        """The rows of a step, in the order in which they are scheduled.

        Their tokens are -1, to be told later, except in the chunks of a prompt before the last,
        which commit none.
        """
        begun = {data.req_id: self._begin(data) for data in output.scheduled_new_reqs}
        cached = output.scheduled_cached_reqs
        self._resume(cached)
        contexts = {**begun, **dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))}
        generated = dict(zip(cached.req_ids, cached.num_output_tokens, strict=True))
        drafts = output.scheduled_spec_decode_tokens
        rows = []
        for request, query_len in output.num_scheduled_tokens.items():
            context = contexts.get(request, _UNKNOWN)
            phase, committed = self._phase(
                request, context, query_len, generated.get(request, 0), bool(drafts.get(request))
            )
            if phase == "verify" and not self._context_is_exact:
                context = _UNKNOWN
            rows.append(Row(request, phase, query_len, context, committed))
        return rows

    def forget(self, request: str) -> None:
        """Lets go of a request that has finished."""
        self._lengths.pop(request, None)

    def prompt_of(self, request: str) -> int:
        """Tokens of its prompt; -1 where it was met in the middle."""
        lengths = self._lengths.get(request)
        return _UNKNOWN if lengths is None else lengths.prompt

    def _begin(self, data: NewRequestData) -> int:
        # One of vLLM's two model runners is told of a request anew when it was preempted.
        tokens = data.prefill_token_ids
        prefill = data.prompt_len if tokens is None else len(tokens)
        self._lengths[data.req_id] = _Lengths(data.prompt_len, prefill)
        context: int = data.num_computed_tokens
        return context

    def _resume(self, cached: CachedRequestData) -> None:
        if not cached.resumed_req_ids:
            return
        for request, generated in zip(cached.req_ids, cached.num_output_tokens, strict=True):
            lengths = self._lengths.get(request)
            if lengths is not None and request in cached.resumed_req_ids:
                lengths.prefill = lengths.prompt + generated

    def _phase(
        self, request: str, context: int, query_len: int, generated: int, has_drafts: bool
    ) -> tuple[str, int]:
        """The phase of a row, and what it commits where that is certain."""
        lengths = self._lengths.get(request)
        if lengths is None:  # met in the middle
            if not generated:
                return "prefill", _UNKNOWN
            return ("verify" if has_drafts else "decode" if query_len == 1 else "other"), _UNKNOWN
        if context < lengths.prefill:
            return "prefill", 0 if context + query_len < lengths.prefill else _UNKNOWN
        # Several tokens without drafts: it was preempted while nobody looked.
        return ("verify" if has_drafts else "decode" if query_len == 1 else "other"), _UNKNOWN
