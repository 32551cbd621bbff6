"""`pertoken.span`: regions of the user's own, wherever they are opened."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest
import torch
from transformers import LogitsProcessor

import invariants
import pertoken
from models import NextToken, llama, prompt
from pertoken import Profile
from waiting import PATIENCE_S


def regions(profile: Profile) -> list[tuple[str, int]]:
    """(name, step) of the user's regions in the order in which they began."""
    spans = profile.spans.where(profile.spans["category"] == "region")
    order = spans["start_ns"].argsort(kind="stable")
    return list(zip(spans["site"][order].tolist(), spans["step"][order].tolist(), strict=True))


def parent_of(profile: Profile, site: str) -> list[str]:
    """Names of the spans that enclose the spans of a site, '' where none does."""
    spans = profile.spans
    names = dict(zip(spans["span"].tolist(), spans["site"].tolist(), strict=True))
    parents = spans["parent"][spans["site"] == site].tolist()
    return [names.get(parent, "") for parent in parents]


def test_regions_nest_and_enclose_the_steps_inside() -> None:
    model = NextToken().eval()
    recording = pertoken.profile(model)
    with torch.no_grad(), recording, pertoken.span("outer"):
        with pertoken.span("tokenize"):
            ids = prompt(1, 4)
        model(ids)
    profile = recording.result()
    invariants.check(profile)
    assert regions(profile) == [("outer", -1), ("tokenize", -1)]
    assert parent_of(profile, "outer") == [""]
    assert parent_of(profile, "tokenize") == ["outer"]
    assert parent_of(profile, "NextToken") == ["outer"]


def test_regions_inside_forward_belong_to_its_step() -> None:
    class WithRegion(NextToken):
        def forward(self, idx: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            with pertoken.span("lookup"):
                hidden = self.embedding(idx)
            return self.head(hidden)

    model = WithRegion().eval()
    recording = pertoken.profile(model)
    with torch.no_grad(), recording:
        model(prompt(1, 3))
        model(prompt(1, 3))
    profile = recording.result()
    invariants.check(profile)
    assert regions(profile) == [("lookup", 0), ("lookup", 1)]
    assert parent_of(profile, "lookup") == ["WithRegion"] * 2
    assert parent_of(profile, "embedding") == ["lookup"] * 2


def test_regions_between_the_steps_of_generate_lie_in_the_time_outside_forward() -> None:
    class Timed(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            with pertoken.span("my processor"):
                return scores + 0

    recording = pertoken.profile(llama())
    with recording:
        llama().generate(prompt(), max_new_tokens=3, logits_processor=[Timed()])
    profile = recording.result()
    invariants.check(profile)
    invariants.check_tiled(profile, "LlamaForCausalLM")
    assert parent_of(profile, "my processor") == ["generate: outside forward"] * 3


def test_as_a_decorator_every_call_is_a_region() -> None:
    @pertoken.span("work")
    def work(number: int, *, twice: bool = False) -> int:
        """Says what it does."""
        return number * (2 if twice else 1)

    assert work.__name__ == "work" and work.__doc__ == "Says what it does."
    assert work(3) == 3
    recording = pertoken.profile(NextToken())
    with recording:
        assert [work(1), work(2, twice=True)] == [1, 4]
    assert regions(recording.result()) == [("work", -1)] * 2


def test_a_recursive_function_gives_a_region_a_call_each_in_the_one_above() -> None:
    @pertoken.span("descend")
    def descend(depth: int) -> int:
        return 0 if depth == 0 else 1 + descend(depth - 1)

    recording = pertoken.profile(NextToken())
    with recording:
        assert descend(3) == 3
    profile = recording.result()
    invariants.check(profile)
    assert sorted(parent_of(profile, "descend")) == ["", "descend", "descend", "descend"]


def test_one_object_can_be_entered_inside_itself() -> None:
    region = pertoken.span("same")
    recording = pertoken.profile(NextToken())
    with recording, region, region:
        pass
    profile = recording.result()
    invariants.check(profile)
    assert sorted(parent_of(profile, "same")) == ["", "same"]


def test_coroutines_that_interleave_have_their_own_regions() -> None:
    model = NextToken().eval()

    @pertoken.span("serve")
    async def serve(rows: int) -> None:
        await asyncio.sleep(0)
        with pertoken.span(f"rows {rows}"), torch.no_grad():
            model(prompt(rows, 2))
        await asyncio.sleep(0)

    async def main() -> None:
        await asyncio.gather(serve(1), serve(2))

    recording = pertoken.profile(model)
    with recording:
        asyncio.run(main())
    profile = recording.result()
    invariants.check(profile)
    assert parent_of(profile, "rows 1") == ["serve"]
    assert parent_of(profile, "rows 2") == ["serve"]
    assert sorted(parent_of(profile, "NextToken")) == ["rows 1", "rows 2"]


def test_threads_have_tracks_of_their_own() -> None:
    region = pertoken.span("in thread")
    recording = pertoken.profile(NextToken())
    inside = threading.Barrier(2)

    def work() -> None:
        with region:
            inside.wait(PATIENCE_S)

    with recording, pertoken.span("main"):
        workers = [threading.Thread(target=work) for _ in range(2)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    profile = recording.result()
    invariants.check(profile)
    assert parent_of(profile, "in thread") == ["", ""]
    tracks = profile.spans["track"][profile.spans["site"] == "in thread"]
    tids = profile.tracks["tid"][tracks]
    assert sorted(tids.tolist()) == sorted(worker.native_id for worker in workers)


def test_a_region_is_closed_by_an_exception_which_passes() -> None:
    error = KeyError("mine")
    recording = pertoken.profile(NextToken())
    with recording:
        with pytest.raises(KeyError) as caught, pertoken.span("a"), pertoken.span("b"):
            raise error
        with pertoken.span("c"):
            pass
    assert caught.value is error
    profile = recording.result()
    invariants.check(profile)
    assert regions(profile) == [("a", -1), ("b", -1), ("c", -1)]
    assert parent_of(profile, "c") == [""]


def test_a_generator_may_hold_a_region_open_between_its_values() -> None:
    def values() -> Iterator[int]:
        with pertoken.span("generator"):
            yield 1
            yield 2

    recording = pertoken.profile(NextToken())
    with recording:
        assert sum(values()) == 3
        with pertoken.span("after"):
            pass
    profile = recording.result()
    invariants.check(profile)
    assert regions(profile) == [("generator", -1), ("after", -1)]
    assert parent_of(profile, "after") == [""]


def test_any_name_is_kept_as_it_is() -> None:
    names = ["", "naïve 模型", 'quote " and \\', "line\nbreak", "x" * 500]
    recording = pertoken.profile(NextToken())
    with recording:
        for name in names:
            with pertoken.span(name):
                pass
    assert [name for name, _ in regions(recording.result())] == names


def test_a_name_that_is_no_string_is_refused() -> None:
    with pytest.raises(TypeError):
        pertoken.span(3)  # type: ignore[arg-type]
