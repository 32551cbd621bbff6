"""A recording and a region as decorators of functions of every kind."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import inspect
import weakref
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import torch

import invariants
import pertoken
from models import NextToken, prompt
from pertoken import Profile, Recording
from test_span_scope import parent_of, regions


class Value:
    """Something that a weak reference can point to."""


class Failure(Exception):
    """The same."""


@pytest.fixture
def model() -> NextToken:
    return NextToken().eval()


def run(model: NextToken) -> None:
    with torch.no_grad():
        model(prompt(1, 2))


def names(profile: Profile) -> list[str]:
    invariants.check(profile)
    return [name for name, _ in regions(profile)]


def test_a_recording_runs_from_a_generators_first_value_to_its_end(model: NextToken) -> None:
    recording = pertoken.profile(model)

    @recording
    def stream(count: int) -> Iterator[int]:
        """Says what it does."""
        for number in range(count):
            run(model)
            yield number

    assert inspect.isgeneratorfunction(stream)
    assert stream.__name__ == "stream" and stream.__doc__ == "Says what it does."
    values = stream(2)
    run(model)
    assert not recording.is_recording
    assert next(values) == 0 and recording.is_recording
    run(model)  # what the caller does meanwhile is recorded, too
    assert list(values) == [1]
    assert not recording.is_recording
    run(model)
    assert len(recording.result().steps) == 3


def test_a_recording_ends_when_its_generator_is_closed_or_dropped(model: NextToken) -> None:
    recording = pertoken.profile(model)

    @recording
    def stream() -> Iterator[int]:
        yield 1
        yield 2

    values = stream()
    next(values)
    values.close()  # type: ignore[attr-defined]
    assert not recording.is_recording
    values = stream()
    next(values)
    assert recording.is_recording
    del values
    gc.collect()
    assert not recording.is_recording


def test_a_recording_runs_while_an_async_generator_does(model: NextToken) -> None:
    recording = pertoken.profile(model)

    @recording
    async def stream() -> AsyncIterator[int]:
        for number in range(3):
            run(model)
            yield number

    async def main() -> list[int]:
        first = stream()
        assert await anext(first) == 0 and recording.is_recording
        await first.aclose()  # type: ignore[attr-defined]
        assert not recording.is_recording
        return [number async for number in stream()]

    assert inspect.isasyncgenfunction(stream)
    assert asyncio.run(main()) == [0, 1, 2]
    assert not recording.is_recording
    assert len(recording.result().steps) == 4


def test_a_region_is_each_stretch_of_a_generator_and_not_what_its_caller_does(
    model: NextToken,
) -> None:
    @pertoken.span("stream")
    def stream() -> Iterator[int]:
        with pertoken.span("inside"):
            pass
        yield 1
        yield 2

    with pertoken.profile(model) as recording:
        values = stream()
        with pertoken.span("before"):
            pass
        for _ in values:
            with pertoken.span("caller"):
                pass
    profile = recording.result()
    assert names(profile) == ["before", "stream", "inside", "caller", "stream", "caller", "stream"]
    assert parent_of(profile, "inside") == ["stream"]
    assert parent_of(profile, "caller") == ["", ""]


def test_a_region_is_each_stretch_of_an_async_generator(model: NextToken) -> None:
    @pertoken.span("stream")
    async def stream(name: str) -> AsyncIterator[int]:
        for number in range(2):
            await asyncio.sleep(0)
            with pertoken.span(name):
                pass
            yield number

    async def use(name: str) -> None:
        async for _ in stream(name):
            with pertoken.span(f"caller of {name}"):
                await asyncio.sleep(0)

    async def main() -> None:
        await asyncio.gather(use("a"), use("b"))

    with pertoken.profile(model) as recording:
        asyncio.run(main())
    profile = recording.result()
    assert names(profile).count("stream") == 2 * 3
    for name in ("a", "b"):
        assert parent_of(profile, name) == ["stream"] * 2
        assert parent_of(profile, f"caller of {name}") == [""] * 2


@pytest.fixture(params=["recording", "region"])
def decorator(request: pytest.FixtureRequest, model: NextToken) -> Any:
    return pertoken.profile(model) if request.param == "recording" else pertoken.span("stream")


def test_what_is_sent_thrown_and_returned_reaches_the_generator(decorator: Any) -> None:
    log: list[Any] = []

    @decorator
    def stream() -> Any:
        try:
            log.append((yield 1))
            try:
                yield 2
            except KeyError as error:
                log.append(error)
            yield 3
            return "returned"
        finally:
            log.append("end")

    values, error = stream(), KeyError("mine")
    assert next(values) == 1
    assert values.send("sent") == 2
    assert values.throw(error) == 3
    with pytest.raises(StopIteration) as stopped:
        next(values)
    assert stopped.value.value == "returned"
    assert log == ["sent", error, "end"]
    values = stream()
    next(values)
    with pytest.raises(LookupError):
        values.throw(LookupError)
    values = stream()
    next(values)
    values.close()
    assert log[3:] == ["end", "end"]
    assert not isinstance(decorator, Recording) or not decorator.is_recording


def test_what_is_sent_and_thrown_reaches_the_async_generator(decorator: Any) -> None:
    log: list[Any] = []

    @decorator
    async def stream() -> Any:
        try:
            log.append((yield 1))
            try:
                yield 2
            except KeyError as error:
                log.append(error)
            yield 3
        finally:
            await asyncio.sleep(0)
            log.append("end")

    error = KeyError("mine")

    async def main() -> None:
        values = stream()
        assert await values.asend(None) == 1
        assert await values.asend("sent") == 2
        assert await values.athrow(error) == 3
        with pytest.raises(StopAsyncIteration):
            await anext(values)
        values = stream()
        await anext(values)
        await values.aclose()

    asyncio.run(main())
    assert log == ["sent", error, "end", "end"]
    assert not isinstance(decorator, Recording) or not decorator.is_recording


def test_what_a_generator_gives_and_raises_is_not_kept(decorator: Any) -> None:
    held: list[weakref.ref[Any]] = []

    @decorator
    def stream() -> Iterator[Any]:
        value = Value()
        held.append(weakref.ref(value))
        yield value
        del value
        yield None
        error = Failure("gone with its frames")
        held.append(weakref.ref(error))
        try:
            raise error
        finally:
            del error

    gc.collect()
    gc.disable()
    try:
        values = stream()
        next(values)
        next(values)
        assert held[0]() is None
        with pytest.raises(Failure, match="its frames"):
            next(values)
        del values
        values = stream()
        next(values)
        thrown = Failure("thrown in")
        held.append(weakref.ref(thrown))
        with contextlib.suppress(Failure):
            values.throw(thrown)  # type: ignore[attr-defined]
        del values, thrown
        assert held[-1]() is None
    finally:
        gc.enable()


class AsyncServer:
    """Its call is a coroutine function."""

    def __init__(self, model: NextToken) -> None:
        self.model = model

    async def __call__(self) -> str:
        await asyncio.sleep(0)
        run(self.model)
        return "served"


class InheritedServer(AsyncServer):
    """Its call is that of its base."""


class Streams:
    """Its call is a generator function."""

    def __init__(self, model: NextToken) -> None:
        self.model = model

    def __call__(self) -> Iterator[str]:
        run(self.model)
        yield "served"


def test_objects_are_decorated_by_what_their_call_is(model: NextToken) -> None:
    recording = pertoken.profile(model)
    inherited = InheritedServer(model)
    for function in (AsyncServer(model), inherited, functools.partial(inherited)):
        decorated: Any = recording(pertoken.span("serve")(function))
        assert asyncio.run(decorated()) == "served"
    streams: Any = recording(pertoken.span("serve")(Streams(model)))
    assert list(streams()) == ["served"]
    profile = recording.result()
    assert names(profile) == ["serve"] * 5
    assert parent_of(profile, "NextToken") == ["serve"] * 4
