"""Tasks and generators that take turns on one thread have spans and requests of their own."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

import invariants
import models
import pertoken
from invariants import parent_sites
from odd_modules import Stack, numbers, seeded
from residue import foreign_values


def test_tasks_do_not_see_each_others_spans_and_requests() -> None:
    model = seeded(Stack)

    async def serve(index: int) -> None:
        with pertoken.request(id=index):
            for turn in range(3):
                with pertoken.span(f"task {index}"):
                    await asyncio.sleep(0.001 * ((index + turn) % 3))
                    model(numbers())
                    await asyncio.sleep(0)

    async def serve_all() -> None:
        await asyncio.gather(*(serve(index) for index in range(5)))

    with pertoken.profile(model, modules="root") as recording:
        asyncio.run(serve_all())
    profile = recording.result()
    invariants.check(profile)
    steps = profile.steps
    assert Counter(parent_sites(profile)) == Counter(
        {("Stack", f"task {i}"): 3 for i in range(5)} | {(f"task {i}", ""): 3 for i in range(5)}
    )
    ids = dict(
        zip(profile.requests["request"].tolist(), profile.requests["id"].tolist(), strict=True)
    )
    step_requests = {
        step: ids[request]
        for step, request in zip(steps["step"].tolist(), steps["request"].tolist(), strict=True)
    }
    spans = profile.spans
    parents = dict(zip(spans["span"].tolist(), spans["site"].tolist(), strict=True))
    for step, parent in zip(spans["step"].tolist(), spans["parent"].tolist(), strict=True):
        if step >= 0:
            assert parents[parent] == f"task {step_requests[step]}"


def test_worker_threads_of_tasks_carry_their_request_but_no_foreign_span() -> None:
    model = models.llama()

    async def serve(index: int) -> Any:
        with pertoken.request(id=index), pertoken.span(f"serve {index}"):
            ids = models.prompt(1, 4 + index)
            return await asyncio.to_thread(model.generate, ids, max_new_tokens=3)

    async def serve_all() -> Any:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2))
        return await asyncio.gather(*(serve(index) for index in range(6)))

    with pertoken.profile(model, modules="root") as recording:
        results = asyncio.run(serve_all())
    for index, ids in enumerate(results):
        assert torch.equal(ids, model.generate(models.prompt(1, 4 + index), max_new_tokens=3))
    profile = recording.result()
    invariants.check(profile)
    invariants.check_sequences(profile)
    requests = sorted(
        zip(profile.requests["id"].tolist(), profile.requests["tokens_in"].tolist(), strict=True)
    )
    assert requests == [(str(index), 4 + index) for index in range(6)]
    assert profile.steps["kind"].tolist().count("prefill") == 6
    outermost = profile.spans["site"][profile.spans["parent"] == -1]
    assert Counter(outermost.tolist()) == {"generate": 6} | {f"serve {i}": 1 for i in range(6)}


def test_a_task_that_outlives_the_span_and_the_step_it_began_in_is_no_part_of_them() -> None:
    model = seeded(Stack)

    async def later(event: asyncio.Event) -> None:
        await event.wait()
        with pertoken.span("late"):
            model(numbers())
        model(numbers())

    async def run() -> None:
        event = asyncio.Event()
        with pertoken.request(id="early"), pertoken.span("early"), pertoken.step("decode", rows=1):
            task = asyncio.create_task(later(event))
            await asyncio.sleep(0)
            model(numbers())
        event.set()
        await task

    with pertoken.profile(model, modules="root") as recording:
        asyncio.run(run())
    profile = recording.result()
    invariants.check(profile)
    assert parent_sites(profile) == [
        ("Stack", "early"),
        ("early", ""),
        ("Stack", "late"),
        ("late", ""),
        ("Stack", ""),
    ]
    assert profile.steps["kind"].tolist() == ["decode", "other", "other"]
    assert profile.steps["request"].tolist() == [0, -1, -1]


def stream(model: Any, name: str, count: int) -> Iterator[Any]:
    with pertoken.span(name):
        for _ in range(count):
            yield model(numbers())


def test_generators_close_their_spans_in_any_order() -> None:
    model = seeded(Stack)
    with pertoken.profile(model, modules="root") as recording:
        first, second = stream(model, "first", 2), stream(model, "second", 3)
        for generator in (first, second, first, second):
            next(generator)
        assert list(first) == []
        with pertoken.span("third"):
            assert len(list(second)) == 1
            model(numbers())
        model(numbers())
    profile = recording.result()
    invariants.check(profile)
    assert Counter(profile.spans["site"].tolist()) == {
        "Stack": 7,
        "first": 1,
        "second": 1,
        "third": 1,
    }
    assert ("Stack", "third") in parent_sites(profile)
    assert parent_sites(profile)[-1] == ("Stack", "")


def test_generators_begun_inside_a_forward_and_ended_outside_leave_no_span_open() -> None:
    class Leaving(Stack):
        def forward(self, x: Any) -> Any:
            self.generator = stream(self.head, "begun inside", 2)
            return next(self.generator)

    model = seeded(Leaving)
    with pertoken.profile(model, modules="all") as recording:
        model(numbers())
        assert len(list(model.generator)) == 1
        model.layers[0](numbers())
    profile = recording.result()
    assert len(profile.steps) == 1
    assert parent_sites(profile)[-1] == ("layers.0", "")


def test_asynchronous_generators_and_decorated_coroutines() -> None:
    model = seeded(Stack)

    @pertoken.span("turn")
    async def turn() -> Any:
        await asyncio.sleep(0)
        return model(numbers())

    async def turns(count: int) -> AsyncIterator[Any]:
        with pertoken.span("turns"):
            for _ in range(count):
                yield await turn()

    @pertoken.profile(model, modules="root")
    async def run() -> int:
        return sum([1 async for _ in turns(3)])

    assert asyncio.run(run()) == 3
    assert foreign_values(model) == []
