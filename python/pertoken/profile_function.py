"""`pertoken.profile`: what a user asks for, as a `Recording`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pertoken.device_timing import DeviceChoice
from pertoken.observing import Observed, OutputChoice
from pertoken.recording import Recording
from pertoken.selection import ModuleSelection
from pertoken.triggers import Trigger

if TYPE_CHECKING:
    import torch


def profile(
    model: torch.nn.Module,
    *,
    modules: ModuleSelection = "layers",
    budget: float | None = None,
    memory_limit_bytes: int = 256 << 20,
    log_interval_s: float | None = None,
    device: DeviceChoice = "auto",
    activations: ModuleSelection | None = None,
    activation_every: int = 16,
    activation_rows: bool = False,
    activation_output: OutputChoice | None = None,
    logits: bool = False,
    logits_every: int = 1,
    keep: str | int | None = None,
    triggers: Sequence[Trigger] = (),
    dump_folder: str | os.PathLike[str] = "pertoken-dumps",
    dumps_per_hour: int = 6,
    spool: str | os.PathLike[str] | None = None,
    compiled_layers: bool = False,
) -> Recording:
    """Records every step of a model, as a context manager or as a decorator.

    Args:
        model: any ``torch.nn.Module``; what ``torch.compile(module)`` returns counts as the module.
        modules: which modules get spans, besides the model itself: ``"root"`` none, ``"layers"``
            each repeated block with its attention and feed-forward parts, the embeddings and the
            head, ``"all"`` every one; or a glob pattern over module names, a list of patterns, or
            a predicate ``f(name, module) -> bool``.
        budget: what recording may cost, as a share of the time of the steps, such as 0.01. Every
            step is timed; which of them have spans of modules, are observed, and have their logits
            read, is sampled, so that the cost stays within it. `steps.sample_weight`,
            `activations.weight` and `tokens.logits_weight` hold the weights. None: every step has
            spans.
        memory_limit_bytes: how much the trace may hold; past it the oldest steps go, whole, and
            are counted in ``losses``. Totals since the start are not affected.
        log_interval_s: how often to log the line of `Recording.status()`, through the logger
            ``pertoken`` at INFO, in seconds; None: never.
        device: whether the time on the GPU is measured, too: ``"auto"`` where the model is on CUDA
            devices and the driver is there, ``"cuda"`` as well, or it is an error, ``"off"`` never.
        activations: the modules whose outputs are counted into histograms: ``"layers"``, patterns
            or a predicate, as of `modules`, or ``"root"``, what the model itself gives. They get
            spans, too. None: none.
        activation_every: of the steps of each kind, the first is observed, and then one of so many,
            at a random place among them; 1: every step. With a budget: one of so many at most.
        activation_rows: whether each row is observed by itself, and so belongs to one request.
        activation_output: what is observed of an output that is more than a tensor: a position, the
            name of a field, or ``f(output) -> tensor``; None: the first floating-point tensor.
        logits: whether each committed token gets the probability of the most probable token, its
            margin over the second, the entropy, and the log-probability of the token itself, where
            that is seen. No ids are kept.
        logits_every: in so many steps of a kind logits are read once, as of `activation_every`;
            with a budget once at most.
        keep: hold the last seconds, ``"5s"``, within `memory_limit_bytes`; or so many bytes,
            ``"64MB"``, in the place of `memory_limit_bytes`. None: as much as fits.
        triggers: of `pertoken.triggers`: when one fires, what is held is written to a file, from a
            thread of pertoken's, and the recording goes on. The end of the process waits for what
            has fired to be written, at most ten seconds.
        dump_folder: where these files go; made when the recording starts with a trigger.
        dumps_per_hour: how many there may be in any hour.
        spool: a folder where what is recorded is also left in files, so that `recover` finds it
            when the process was killed; made when it is not there, and shared by recordings and
            processes. None: nowhere.
        compiled_layers: whether selected modules get spans where the compiler inlines them, too: in
            all that ``torch.compile`` makes while this recording runs, so begin before the first
            call. What was compiled without is not compiled anew.

    Raises:
        SelectionError: `model` is not a module, `modules` or `activations` selects nothing, or an
            argument is not of its form, or out of its range.
    """
    return Recording(
        model,
        modules=modules,
        budget=budget,
        memory_limit_bytes=memory_limit_bytes,
        log_interval_s=log_interval_s,
        device=device,
        observed=Observed(
            activations, activation_every, activation_rows, activation_output, logits, logits_every
        ),
        keep=keep,
        triggers=triggers,
        dump_folder=dump_folder,
        dumps_per_hour=dumps_per_hour,
        spool=spool,
        compiled_layers=compiled_layers,
    )
