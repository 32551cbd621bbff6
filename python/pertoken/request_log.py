"""The requests of a recording and the generations in them: what belongs to no single step."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

from pertoken import _native
from pertoken.engines.requests import EngineRequest
from pertoken.generate_call import Prompt
from pertoken.label_sets import LabelSets
from pertoken.patch import change_lock
from pertoken.request_run import RequestRun, current_run
from pertoken.spool_notes import SpoolNotes

_FEW_REQUESTS = 256


@dataclass
class Generation:
    """Sequences that grow together: one outermost `generate()`, or one request without it."""

    number: int
    request: int
    by_generate: bool = True
    by_rows: bool = False  # the sequence of one engine's request, which its rows name
    from_start: bool = True  # no step was missed
    commits_known: bool = True  # steps tell how many tokens they commit
    can_end_rows: bool = True  # some rows may end before others
    has_failed: bool = False
    is_delegated: bool = False  # to a model inside, whose own generation stands for it
    is_beam_search: bool = False
    # What was handed in: a step may have more rows, by beams or returned sequences, and its mask
    # may tell the tokens where they are -1.
    prompt: Prompt = field(default_factory=Prompt)
    row_lengths: list[int] | None = None  # tokens committed to each returned row, once known
    state: Any = None  # of the running call, or the native sequence of an engine's request
    first_commit_ticks: int = 0  # 0: nothing committed, or to be read from the steps
    running: bool = True
    end_ticks: int = 0  # of the call; 0 while it runs, and where there is none

    def is_over_before(self, ticks: int) -> bool:
        """Whether the call had returned by then, and with it all steps had ended."""
        return 0 < self.end_ticks < ticks

    @property
    def known_first_commit_ticks(self) -> int:
        """When it committed first, where the steps need not be asked; 0 while that is open."""
        if self.by_rows:
            is_told = self.from_start and self.state is not None  # else its first row is not
            return int(self.state.first_commit_ticks) if is_told else 0
        state = self.state  # gone from one moment to the next when the call ends
        is_known_now = state is None or self.is_beam_search
        return int((self if is_known_now else state).first_commit_ticks)


@dataclass
class RequestEntry:
    """One request as this recording saw it."""

    number: int
    start_ticks: int
    id: str = ""
    model_version: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    run: RequestRun | EngineRequest | None = None  # what opened it, while it is open
    sequence: Generation | None = None  # the one of an engine's request, while it is open
    end_ticks: int = 0
    error: str = ""


class RequestLog:
    """The requests and generations of a recording, oldest first, within a limit.

    The native store holds the steps; this holds what belongs to a whole request. Requests go with
    their steps: those that ended before the oldest step that is held began. Besides, of those
    that ended no more than `limit` are held, and of those that never end, twice as many.

    Args:
        limit: how many requests to hold.
        recorder: the native recorder; its totals are told of every beginning and end.
    """

    def __init__(self, limit: int, recorder: Any) -> None:
        self.limit = limit
        self.label_sets = LabelSets()
        self._recorder = recorder
        self._forget_at = min(limit, _FEW_REQUESTS)
        self.evicted = 0
        self.unknown: dict[str, None] = {}  # sentences, each once
        self.requests: dict[int, RequestEntry] = {}
        self.generations: dict[int, Generation] = {}
        self._next_request = itertools.count()
        self._next_generation = itertools.count()
        self._of_run: dict[int, RequestEntry] = {}  # by identity; the entry keeps it alive
        self.notes: SpoolNotes | None = None  # where all of this is spooled, too

    def open_request(self, run: RequestRun | EngineRequest | None) -> RequestEntry:
        """A new request, or the one that this run of the user's or an engine's has opened already.

        Without a run it is a `generate()`, which ends it itself.
        """
        with change_lock:
            if run is not None and id(run) in self._of_run:
                return self._of_run[id(run)]
            number = next(self._next_request)
            if run is None:
                entry = RequestEntry(number, _native.now_ticks())
            else:
                entry = RequestEntry(
                    number, run.start_ticks, run.id, run.model_version, dict(run.labels), run
                )
                self._of_run[id(run)] = entry
            self.restore_request(entry)
            if self.notes is not None:
                self.notes.request(entry)
            self._forget_now_and_then()
            return entry

    def restore_request(self, entry: RequestEntry) -> None:
        """Takes in a request that has its number already, and has the totals count it."""
        self.requests[entry.number] = entry
        label_set = self.label_sets.number(entry.model_version, entry.labels)
        self._recorder.begin_request(_narrow(entry.number), label_set, entry.start_ticks)

    def open_generation(self, entry: RequestEntry, **traits: Any) -> Generation:
        """A new generation of a request.

        Args:
            entry: the request.
            traits: what is known of the generation, by the names of its attributes.
        """
        with change_lock:
            generation = Generation(next(self._next_generation), entry.number, **traits)
            if generation.by_rows:
                entry.sequence = generation
            self._forget_now_and_then()
        self.restore_generation(generation)
        if self.notes is not None:
            self.notes.generation(generation, has_ended=False)
        return generation

    def restore_generation(self, generation: Generation) -> None:
        """Takes in a generation that has its number already, and has the totals count it."""
        self.generations[generation.number] = generation
        prompt = generation.prompt
        self._recorder.begin_generation(
            generation=_narrow(generation.number),
            request=_narrow(generation.request),
            by_generate=generation.by_generate,
            by_rows=generation.by_rows,
            can_end_rows=generation.can_end_rows,
            is_beam_search=generation.is_beam_search,
            prompt=(prompt.rows, prompt.length, prompt.tokens),
        )

    def end_generation(self, generation: Generation) -> None:
        """Has the totals count a generation, of which all is known by now."""
        row_lengths, commits_known = generation.row_lengths, generation.commits_known
        if generation.by_rows:
            sequence = generation.state  # None: no row of it could be told
            is_whole = generation.from_start and sequence is not None
            commits_known = is_whole and not sequence.tokens_unknown
            row_lengths = [sequence.tokens] if commits_known else None
        self._recorder.end_generation(
            generation=_narrow(generation.number),
            first_commit_ticks=generation.known_first_commit_ticks,
            has_failed=generation.has_failed,
            is_delegated=generation.is_delegated,
            commits_known=commits_known,
            row_lengths=row_lengths,
        )
        if self.notes is not None:
            self.notes.generation(generation, has_ended=True)

    def end_request(self, entry: RequestEntry, end_ticks: int, error: str) -> None:
        """Notes the end of a request."""
        if entry.sequence is not None:
            entry.sequence.has_failed = error != ""
            self.end_generation(entry.sequence)
        entry.end_ticks, entry.error, entry.run, entry.sequence = end_ticks, error, None, None
        self._recorder.end_request(_narrow(entry.number), end_ticks, error != "")
        if self.notes is not None:
            self.notes.request(entry)

    def delegate(self, state: Any) -> RequestEntry:
        """The request of a running `generate()` that has another model generate for it.

        What runs no steps of its own is not a generation: the inner one describes them all.
        """
        with change_lock:
            outer = self.generations.get(state.generation)
            if outer is None or outer.request not in self.requests:  # let go, though it runs
                return self.open_request(current_run())
            outer.is_delegated = not state.steps
            if self.notes is not None:
                self.notes.generation(outer, has_ended=False)
            return self.requests[outer.request]

    def held(self) -> tuple[list[RequestEntry], dict[int, Generation]]:
        """What is held now, with the ends of the user's contexts brought up to date."""
        with change_lock:
            self._forget()
            generations = self.generations.items()
            return list(self.requests.values()), {
                number: generation
                for number, generation in generations
                if not generation.is_delegated
            }

    @property
    def begun_before(self) -> int:
        """How many requests of engines may have been given tokens before they were recorded."""
        with change_lock:
            held = [g.request for g in self.generations.values() if not g.from_start]
        return len(set(held))

    @property
    def has_unknown_commits(self) -> bool:
        """Whether some `generate()` ran whose steps do not tell how much they commit."""
        return any(
            generation.by_generate and not generation.commits_known
            for generation in self.held()[1].values()
        )

    def note_unknown(self, sentence: str) -> None:
        """Notes a sentence for `losses["reasons"]`, once."""
        if sentence not in self.unknown:
            self.unknown[sentence] = None
            if self.notes is not None:
                self.notes.unknown(sentence)

    def close_request(self, run: RequestRun | EngineRequest) -> None:
        """Notes the end of a run that has ended; one that was not met is passed over."""
        with change_lock:
            entry = self._of_run.pop(id(run), None)
            if entry is not None:
                self.end_request(entry, run.end_ticks, run.error)

    def close_ended_runs(self) -> None:
        """Notes the ends of the user's contexts, which say nothing themselves."""
        with change_lock:
            for entry in list(self._of_run.values()):
                if entry.run is not None and entry.run.end_ticks:
                    self.close_request(entry.run)

    def _forget_now_and_then(self) -> None:
        """So seldom that looking at all costs little for each."""
        if max(len(self.requests), len(self.generations)) < self._forget_at:
            return
        self._forget()
        held = max(len(self.requests), len(self.generations))
        self._forget_at = max(
            min(self.limit, max(_FEW_REQUESTS, 2 * held)), held + max(1, self.limit // 10)
        )

    def _forget(self) -> None:
        self.close_ended_runs()
        oldest = self._recorder.oldest_step_ticks()
        over = [n for n, held in self.generations.items() if held.is_over_before(oldest)]
        self._drop_generations(over)
        in_use = {held.request for held in self.generations.values() if held.by_generate}
        gone = [
            number
            for number, entry in self.requests.items()
            if 0 < entry.end_ticks < oldest and number not in in_use
        ]
        self._drop_requests(gone)
        ended = [number for number, entry in self.requests.items() if entry.end_ticks]
        if len(ended) > self.limit:  # however many are open: those are not what is looked for
            self._drop_requests(ended[: len(ended) - self.limit * 9 // 10])
        self._drop_requests(list(self.requests)[: -2 * self.limit])
        self._drop_generations(
            [
                n
                for n in list(self.generations)[: -2 * self.limit]
                if not self.generations[n].running
            ]
        )

    def _drop_requests(self, numbers: list[int]) -> None:
        for number in numbers:
            run = self.requests.pop(number).run
            self._of_run.pop(id(run), None)
        self.evicted += len(numbers)
        dropped = set(numbers)
        self._drop_generations([n for n, g in self.generations.items() if g.request in dropped])

    def _drop_generations(self, numbers: list[int]) -> None:
        for number in numbers:
            del self.generations[number]


def _narrow(number: int) -> int:
    """A number as the native side counts, which holds what is open only."""
    return number & 0xFFFFFFFF
