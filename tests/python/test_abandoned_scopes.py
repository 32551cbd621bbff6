"""Scopes of generators that nobody runs to their end: dropped while they are in use, or many."""

from __future__ import annotations

import contextvars
import subprocess
import sys
import textwrap

import pytest

import invariants
import pertoken
from odd_modules import Stack, seeded
from waiting import PATIENCE_S

# What lies where a freed scope lay is not to change: `drop()` drops the stream that holds a step
# open, and fills what it leaves with bytes that count themselves.
BEGINNING = """
    import contextvars, gc
    import torch, pertoken
    torch.set_num_threads(1)
    stream, victims = None, []
    def held_open():
        with pertoken.request("r"), pertoken.step("decode", rows=1):
            yield
    def begin():
        global stream
        stream = held_open()
        next(stream)
    def scope_bytes():
        values = contextvars.copy_context().values()
        return max(type(value).__basicsize__ for value in values if type(value).__name__ == "Scope")
    def drop():
        global stream
        if stream is not None:
            size = scope_bytes() - bytes.__basicsize__
            stream = None
            victims.extend(b"\\xff" * (size - (number & 7)) for number in range(2000))
    class Inner(torch.nn.Module):
        def forward(self, x):
            return x
    class Outer(torch.nn.Module):
        drops = True
        def __init__(self):
            super().__init__()
            self.inner = Inner()
        def forward(self, x):
            if self.drops:
                drop()
            return self.inner(x)
    model, x = Outer().eval(), torch.zeros(2, 3)
"""
END = """
    assert [victim for victim in victims if victim.strip(b"\\xff")] == []
    print("end")
"""
IN_USE = {
    "in its forward": """
        with pertoken.profile(model):
            begin()
            model(x)
        assert len(victims) == 2000
    """,
    "while one of its values is read": """
        class Value:
            def __array__(self, *args, **kwargs):
                drop()
                raise ValueError
        model.drops = False
        with pertoken.profile(model, activation_every=1):
            begin()
            model(x)
            pertoken.observe("hand", Value())
        assert len(victims) == 2000
    """,
    "while an input is looked at": """
        class Input:
            @property
            def shape(self):
                drop()
                return (1, 1)
        with pertoken.profile(model):
            begin()
            model(Input())
        assert len(victims) == 2000
    """,
    "while its request is numbered": """
        class Cycle:
            pass
        gc.collect()
        gc.freeze()  # what is there already is not looked at again
        with pertoken.profile(model):
            for number in range(80):
                begin()
                cycle = Cycle()
                cycle.self, cycle.stream = cycle, stream
                stream = cycle = None
                gc.set_threshold(1 + number % 40)
                model(x)
                gc.set_threshold(100_000)
                gc.collect()
    """,
}


def run_script(*parts: str) -> None:
    script = "".join(map(textwrap.dedent, parts))
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "ignore", "-c", script],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")


@pytest.mark.parametrize("moment", IN_USE)
def test_a_stream_is_dropped_while_its_step_is_in_use(moment: str) -> None:
    run_script(BEGINNING, IN_USE[moment], END)


def test_streams_that_are_open_at_once_go_together_however_many() -> None:
    run_script("""
        import threading
        import pertoken
        def stream():
            with pertoken.span("reply"):
                yield
        kept = []
        threading.stack_size(1 << 18)
        def open_all():
            kept.extend(stream() for _ in range(20_000))
            for one in kept:
                next(one)
        thread = threading.Thread(target=open_all)
        thread.start()
        thread.join()
        print("end", flush=True)
    """, "    import os\n    os._exit(0)\n")  # fmt: skip


def test_spans_of_contexts_that_part_keep_their_parents() -> None:
    """A step stands between two spans, and its context alone sees that the outer one is closed."""
    spans = {name: pertoken.span(name) for name in ("outermost", "outer", "inner", "late")}
    step = pertoken.step("decode", rows=1)
    with pertoken.profile(seeded(Stack), modules="root") as recording:
        spans["outermost"].__enter__()
        spans["outer"].__enter__()
        round_step = contextvars.copy_context()
        round_step.run(step.__enter__)
        inside = round_step.copy()
        inside.run(spans["inner"].__enter__)
        spans["outer"].__exit__(None, None, None)
        round_step.run(spans["late"].__enter__)
        round_step.run(spans["late"].__exit__, None, None, None)
        inside.run(spans["inner"].__exit__, None, None, None)
        round_step.run(step.__exit__, None, None, None)
        spans["outermost"].__exit__(None, None, None)
    profile = recording.result()
    invariants.check_spans(profile)
    names = dict(zip(profile.spans["span"].tolist(), profile.spans["site"].tolist(), strict=True))
    parents = zip(profile.spans["site"].tolist(), profile.spans["parent"].tolist(), strict=True)
    assert {site: names.get(parent, "") for site, parent in parents} == {
        "outermost": "",
        "outer": "outermost",
        "inner": "outermost",
        "late": "outermost",
    }
