"""What torch's compiler has done so far, and how it is made to forget that."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch._dynamo
from torch._dynamo.utils import clear_compilation_metrics, counters, get_compilation_metrics


def forget_compiled() -> None:
    """Drops what was compiled, and the counts of it."""
    torch._dynamo.reset()
    counters.clear()
    clear_compilation_metrics()


@contextmanager
def fresh_compiler() -> Iterator[None]:
    """No code and no counts of other tests, and room for every shape of a generate."""
    forget_compiled()
    with torch._dynamo.config.patch(recompile_limit=64), torch.no_grad():
        yield
    torch._dynamo.reset()


@contextmanager
def tensor_operator(name: str, run: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """`torch.ops.pertoken_test.NAME`, from a tensor to one like it, that no compiler looks into."""
    library = torch.library.Library("pertoken_test", "DEF")
    library.define(f"{name}(Tensor x) -> Tensor")
    library.impl(name, run, "CPU")
    library.impl(name, torch.empty_like, "Meta")
    yield
    library._destroy()


def compiler_counts() -> dict[str, Any]:
    """Graphs, calls and breaks so far, and the frames with a graph: what, how often compiled, why.

    A frame without a graph is no doing of the model: a finalizer of something that died while the
    compiler was looking is one too, and whether one does is chance.
    """
    counts: dict[str, Any] = {
        name: dict(counters[name]) for name in ("stats", "graph_break", "unimplemented")
    }
    counts["frames"] = [
        (frame.co_name, frame.co_firstlineno, frame.cache_size, frame.graph_op_count)
        for frame in get_compilation_metrics()
        if frame.graph_op_count or frame.fail_type
    ]
    return counts


def compilations() -> dict[str, Any]:
    """The same without how many operations the graphs have."""
    counts = compiler_counts()
    counts["stats"].pop("calls_captured", None)
    counts["frames"] = [frame[:3] for frame in counts["frames"]]
    return counts
