"""Which modules of an unmodified program are recorded as its models, and what that leaves."""

from __future__ import annotations

import asyncio
import atexit
import copy
import gc
import inspect
import pickle
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.generation.utils import GenerationMixin

import invariants
import models
import pertoken
from odd_modules import Stack, numbers, seeded
from pertoken import _native, model_search, patch
from pertoken.autostart_options import AutostartOptions
from pertoken.model_search import ModelSearch
from pertoken.process_files import ProcessFiles
from residue import foreign_values
from waiting import PATIENCE_S

SLOT = "_compiled_call_impl"
METHODS = ("generate", model_search.MAKES_MANAGER)


class Search:
    """A search over the whole process, and what it leaves in the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = ProcessFiles(AutostartOptions(output=str(folder), modules="all").resolved())
        self.search = ModelSearch(self.files._options, self.files)
        self.search.watch_modules(nn.Module)
        self.search.watch_generate(GenerationMixin)

    def found(self) -> list[str]:
        return [recording.model_facts["class"] for recording in self.files._recordings]

    def profiles(self) -> list[Any]:
        """Of all models, in the order in which they were found."""
        self.files.write_all()
        paths = sorted(self.folder.glob("*.pertoken"), key=lambda path: path.stat().st_mtime_ns)
        return [pertoken.load(path) for path in paths]


@pytest.fixture
def search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Search]:
    monkeypatch.setattr(nn.Module, SLOT, None)
    methods = [getattr(GenerationMixin, name) for name in METHODS]
    made = Search(tmp_path / "out")
    try:
        yield made
    finally:
        for recording in made.files._recordings:
            recording.stop()
        atexit.unregister(made.files.write_all)
        for cls in (nn.Module, *GenerationMixin.__mro__):
            for name in ("compile", *METHODS):
                patch.take_out(cls, name, cls.__dict__.get(name))
        assert [getattr(GenerationMixin, name) for name in METHODS] == methods


def test_the_outermost_module_is_the_model_and_its_first_step_is_seen(search: Search) -> None:
    model = seeded(Stack).eval()
    for _ in range(3):
        model(numbers())
    assert search.found() == ["Stack"]
    (profile,) = search.profiles()
    invariants.check(profile)
    assert len(profile.steps) == 3
    assert profile.steps["step"].tolist() == [0, 1, 2]
    assert foreign_values(model) == [f"Module.{SLOT}", "Module.compile"]  # the search


def test_a_generate_is_a_request_from_the_first_on_and_its_encoder_is_no_model(
    search: Search,
) -> None:
    model = copy.deepcopy(models.t5())
    model.generate(models.prompt(), max_new_tokens=3)
    model.encoder(models.prompt())
    model.generate(models.prompt(), max_new_tokens=2)
    assert search.found() == ["T5ForConditionalGeneration"]
    (profile,) = search.profiles()
    invariants.check(profile)
    assert profile.requests["tokens_out"].tolist() == [3, 2]


def test_requests_of_a_manager_are_recorded_from_the_first_on(search: Search) -> None:
    stack = seeded(Stack).eval()
    stack(numbers())  # recorded before any model that is batched
    model = copy.deepcopy(models.llama())
    results = model.generate_batch(
        [[1, 2, 3], [4, 5, 6, 7], [8] * 9],
        GenerationConfig(max_new_tokens=6, do_sample=False, eos_token_id=-1, pad_token_id=0),
        continuous_batching_config=ContinuousBatchingConfig(
            page_size=4, num_blocks=64, max_batch_tokens=16
        ),
        progress_bar=False,
    )
    assert search.found() == ["Stack", "LlamaForCausalLM"]
    profile = search.profiles()[1]
    invariants.check(profile)
    assert sorted(profile.requests["id"].tolist()) == sorted(results)
    assert profile.requests["tokens_out"].tolist() == [6] * 3
    assert (profile.requests["ttft_ns"] > 0).all()
    assert (profile.tokens["position"] >= 0).all()
    assert profile.losses["reasons"] == []


def test_a_draft_model_has_a_recording_of_its_own(search: Search) -> None:
    main, draft = (copy.deepcopy(models.llama(seed=seed)) for seed in (0, 1))
    main.generate(models.prompt(), assistant_model=draft, max_new_tokens=6)
    first, second = search.profiles()
    assert first.requests["tokens_out"].tolist() == [6]
    assert "verify" in first.steps["kind"].tolist()
    assert len(second.requests) > 0 and "verify" not in second.steps["kind"].tolist()


def test_layers_losses_and_modules_of_a_known_model_are_no_models(search: Search) -> None:
    model = seeded(Stack).eval()
    nn.Linear(2, 2).eval()(torch.zeros(2))
    nn.CrossEntropyLoss().eval()(torch.zeros(1, 2), torch.zeros(1, dtype=torch.long))
    nn.Sequential(nn.ReLU()).eval()(torch.zeros(2))  # nothing to compute with
    assert search.found() == []
    model(numbers())
    for child in model.children():
        if not isinstance(child, nn.ModuleList):
            child(numbers())
    assert search.found() == ["Stack"]


def test_training_is_not_recorded_and_evaluation_of_the_same_model_is(search: Search) -> None:
    class Frozen(Stack):
        """Part of it stays in evaluation mode."""

    model = nn.Sequential(seeded(Frozen).eval(), nn.Linear(2, 2))
    model.train(True)
    model[0].eval()
    with torch.enable_grad():
        model(numbers())
    assert search.found() == []
    with torch.no_grad():
        model(numbers())
    assert search.found() == ["Sequential"]


def test_models_that_generate_have_places_that_others_cannot_take(search: Search) -> None:
    kept = [seeded(Stack).eval() for _ in range(6)]
    for model in kept:
        model(numbers())
    generating = [copy.deepcopy(models.llama()) for _ in range(3)]
    for model in generating:
        model.generate(models.prompt(), max_new_tokens=1)
    assert search.found() == ["Stack"] * model_search.MOST_PLAIN_MODELS + ["LlamaForCausalLM"] * 2
    assert dict(search.files._unrecorded) == {"Stack": 2, "LlamaForCausalLM": 1}
    with pertoken.profile(kept[-1]) as own:  # the program's own still finds a place
        kept[-1](numbers())
    assert len(own.result().steps) == 1


def test_a_model_that_the_program_drops_is_gone_at_once_and_its_profile_is_kept(
    search: Search,
) -> None:
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            model: Any = seeded(Stack).eval()
            model(numbers())
            gone = weakref.ref(model)
            del model
            assert gone() is None
    finally:
        gc.enable()
    assert len(search.search._recordings) == 1
    assert [len(profile.steps) for profile in search.profiles()] == [1, 1, 1]


def test_a_dropped_model_that_generates_is_gone_at_once(search: Search) -> None:
    model = copy.deepcopy(models.llama())
    model.generate(models.prompt(), max_new_tokens=2)
    gone = weakref.ref(model)
    gc.collect()
    gc.disable()
    try:
        del model
        assert gone() is None
    finally:
        gc.enable()
    assert [profile.requests["tokens_out"].tolist() for profile in search.profiles()] == [[2]]


def test_programs_that_make_models_all_the_time_do_not_fill_the_disk(
    search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_search, "MOST_FILES", 3)
    for _ in range(5):
        seeded(Stack).eval()(numbers())
    assert len(search.profiles()) == 3


def test_a_model_that_the_program_records_itself_is_left_to_it(search: Search) -> None:
    model = copy.deepcopy(models.llama())
    with pertoken.profile(model) as own:
        model.generate(models.prompt(), max_new_tokens=2)
        model(models.prompt())
    assert search.found() == []
    assert len(own.result().steps) == 3
    model(models.prompt())
    assert search.found() == ["LlamaForCausalLM"]


def test_copies_pickles_and_signatures_are_as_without_us(search: Search) -> None:
    model = copy.deepcopy(models.llama())
    signature = inspect.signature(GenerationMixin.generate)
    for _ in range(2):
        assert sorted(copy.deepcopy(model).__dict__) == sorted(copy.copy(model).__dict__)
        assert SLOT not in copy.deepcopy(model).__dict__
        assert b"pertoken" not in pickle.dumps(model)
        assert inspect.signature(type(model).generate) == signature
        model.generate(models.prompt(), max_new_tokens=1)
    assert SLOT in model.__dict__


def test_compiled_traced_and_scripted_models_work_without_a_break(search: Search) -> None:
    def build() -> Any:
        return seeded(Stack).eval()

    expected, inner = build()(numbers()), build()
    search.files._recordings.clear()
    works = {
        "torch.compile": torch.compile(build(), backend="eager", fullgraph=True),
        "a compiled function": torch.compile(lambda x: inner(x), backend="eager", fullgraph=True),
        "script": torch.jit.script(build()),
        "trace": torch.jit.trace(build(), numbers(), check_trace=False),
        "fx": torch.fx.symbolic_trace(build()),
        "export": torch.export.export(build(), (numbers(),)).module(),
    }
    assert search.found() == []  # while they were being made
    for work in works.values():
        assert torch.equal(work(numbers()), expected)
    assert "Stack" in search.found()


def test_a_module_that_compiled_itself_is_found_at_its_first_call(search: Search) -> None:
    model, blocks = seeded(Stack).eval(), seeded(Stack).eval()
    model.compile(backend="eager", fullgraph=True)
    compiled = model.__dict__[SLOT].inner
    for layer in blocks.layers:
        layer.compile(backend="eager", fullgraph=True)
    training = seeded(Stack).train()
    training.compile(backend="eager", fullgraph=True)
    for each in (model, blocks, training):
        for _ in range(2):
            each(numbers())
    assert search.found() == ["Stack", "Stack"]
    first, second = search.profiles()
    assert (len(first.steps), len(second.steps)) == (2, 2)
    assert model.__dict__[SLOT] is compiled
    for layer in blocks.layers:
        assert not isinstance(layer.__dict__[SLOT], _native.RootProbe)
    training.eval()(numbers())
    assert search.found() == ["Stack"]


class WhileItIsFound:
    """Has a second thread come to the change lock while a first makes the recording of a model.

    Args:
        second: what the second thread does.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, second: Callable[[], Any]) -> None:
        self._made, self._lock = model_search.Recording, patch.change_lock
        self._first, self._waits = threading.current_thread(), threading.Event()
        self.second = threading.Thread(target=second)
        monkeypatch.setattr(model_search, "Recording", self._make)
        monkeypatch.setattr(model_search, "change_lock", self)

    def _make(self, *args: Any, **kwargs: Any) -> Any:
        self.second.start()
        assert self._waits.wait(PATIENCE_S)
        return self._made(*args, **kwargs)

    def __enter__(self) -> None:
        if threading.current_thread() is not self._first:
            self._waits.set()
        self._lock.__enter__()

    def __exit__(self, *exc_info: object) -> None:
        self._lock.__exit__(*exc_info)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lock, name)


def test_a_generate_that_began_while_another_found_its_model_is_a_request(
    search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = copy.deepcopy(models.llama())
    found = WhileItIsFound(monkeypatch, lambda: model.generate(models.prompt(), max_new_tokens=3))
    model.generate(models.prompt(), max_new_tokens=2)
    found.second.join(PATIENCE_S)
    (profile,) = search.profiles()
    invariants.check(profile)
    assert sorted(profile.requests["tokens_out"].tolist()) == [2, 3]
    assert profile.steps["kind"].tolist().count("prefill") == 2


def test_a_call_that_began_while_another_found_its_model_is_a_step(
    search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = seeded(Stack).eval()
    found = WhileItIsFound(monkeypatch, lambda: model(numbers()))
    model(numbers())
    found.second.join(PATIENCE_S)
    (profile,) = search.profiles()
    assert len(profile.steps) == 2


def test_a_generate_that_was_looked_up_before_its_model_was_found_is_a_request(
    search: Search,
) -> None:
    model = copy.deepcopy(models.llama())
    generate = model.generate
    for count in (1, 2, 3):
        generate(models.prompt(), max_new_tokens=count)
    model.generate(models.prompt(), max_new_tokens=4)

    async def main() -> None:
        calls = (asyncio.to_thread(generate, models.prompt(), max_new_tokens=5) for _ in range(3))
        await asyncio.gather(*calls)

    asyncio.run(main())
    (profile,) = search.profiles()
    invariants.check(profile)
    assert profile.requests["tokens_out"].tolist() == [1, 2, 3, 4, 5, 5, 5]
    assert profile.steps["kind"].tolist().count("prefill") == 7


def test_first_generates_of_many_threads_are_all_requests(search: Search) -> None:
    model = copy.deepcopy(models.llama())

    async def main() -> None:
        calls = (
            asyncio.to_thread(model.generate, models.prompt(), max_new_tokens=3) for _ in range(4)
        )
        await asyncio.gather(*calls)

    asyncio.run(main())
    (profile,) = search.profiles()
    invariants.check(profile)
    assert profile.requests["tokens_out"].tolist() == [3] * 4


def test_calls_of_many_threads_find_a_model_once(search: Search) -> None:
    model = seeded(Stack).eval()
    threads = [threading.Thread(target=model, args=(numbers(),)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    model(numbers())
    (profile,) = search.profiles()
    assert search.files._written == 1
    assert 1 <= len(profile.steps) <= 9


def test_the_models_exception_passes_through_untouched(search: Search) -> None:
    class Raising(Stack):
        def forward(self, x: Any) -> Any:
            raise KeyError("its own")

    model = seeded(Raising).eval()
    for _ in range(2):
        with pytest.raises(KeyError, match="its own") as raised:
            model(numbers())
        files = {entry.path.name for entry in raised.traceback}
        assert "model_search.py" not in files
    (profile,) = search.profiles()
    assert profile.steps["error"].tolist() == ["exception"] * 2


def test_a_fault_of_ours_does_not_reach_the_program(
    search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_search, "Recording", lambda *args, **kwargs: 1 / 0)
    model = seeded(Stack).eval()
    model(numbers())
    model(numbers())
    assert list(search.files._unrecorded.elements()) == ["Stack (division by zero)"]


def test_a_module_that_cannot_be_looked_at_is_passed_over_once(search: Search) -> None:
    class Odd(Stack):
        """A proxy, whose parameters are somewhere else."""

        def parameters(self, recurse: bool = True) -> Any:
            raise ConnectionError("far away")

    model = seeded(Odd).eval()
    for _ in range(3):
        model(numbers())
    assert list(search.files._unrecorded.elements()) == ["Odd (far away)"]


def test_the_slot_reads_as_none_inside_a_call_and_of_the_class(search: Search) -> None:
    seen = []

    class Asking(Stack):
        def forward(self, x: Any) -> Any:
            seen.append([child._compiled_call_impl for child in self.children()])
            return super().forward(x)

    model = seeded(Asking).train(True)
    model(numbers())
    assert seen and set(map(type, seen[0])) == {type(None)}
    assert nn.Module._compiled_call_impl is None
    assert isinstance(nn.Module.__dict__[SLOT], _native.RootSearch)
