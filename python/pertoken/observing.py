"""What a recording observes besides times: which sites' outputs, at which rate, and what it skips.

`observe()` hands a value to every recording that runs.
"""

from __future__ import annotations

import operator
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any, TypeAlias

from pertoken import _native, seeds
from pertoken.device_timing import current_stream_function, devices_of
from pertoken.errors import SelectionError, UnsupportedTensorError
from pertoken.selection import ModuleSelection, lasting_selection, select_modules
from pertoken.tensor_memory import TensorMemory, memory_of

if TYPE_CHECKING:
    import torch

OutputChoice: TypeAlias = int | str | Callable[[Any], Any]

MAX_EVERY = 1 << 20
# What such a forward puts out are hidden states, which would be taken for logits.
COMPUTED_ELSEWHERE = "the model computes them outside of its forward, as those of vLLM do"
_MOST_REASONS = 32
_MOST_CHARACTERS = 200

# By an identity of their own. Changed under the GIL, in one step each.
_running: dict[int, Any] = {}


class Skipped(Counter[str]):
    """Counts observations that were not made, by reason; shared with the native side."""

    def skip(self, reason: str) -> None:
        """Counts one."""
        reason = reason[:_MOST_CHARACTERS]
        if reason not in self and len(self) >= _MOST_REASONS:
            reason = "other reasons"
        self[reason] += 1

    def skip_logits(self, reason: str) -> None:
        """Counts a step whose logits were not read."""
        self.skip(f"logits: {reason}")

    def read(self, value: object, skip: Callable[[str], None] | None = None) -> TensorMemory | None:
        """Where the values of what is no plain tensor lie; None, counted, where nobody can tell."""
        skip = skip or self.skip
        try:
            return memory_of(value)
        except UnsupportedTensorError as error:
            skip(str(error).partition(";")[0])
        except Exception as error:
            skip(f"a {type(value).__name__} cannot be read: {type(error).__name__}")
        return None


def _check_every(name: str, every: object) -> None:
    if type(every) is not int or not 1 <= every <= MAX_EVERY:
        raise SelectionError(
            f"{name}={every!r}: give an integer from 1, which observes every step, to {MAX_EVERY}"
        )


@dataclass(frozen=True)
class Observed:
    """What is to be observed.

    Args:
        activations: which modules' outputs; None: none, but what `observe()` is given.
        every: of so many steps of a kind, one.
        by_row: whether each row of a batch is an observation of its own.
        output: which part of an output; None: its first floating-point tensor.
        logits: whether logits are read.
        logits_every: of so many steps of a kind, in one.

    Raises:
        SelectionError: `every` or `logits_every` is out of its range, or `by_row` or `logits` is
            no truth value.
    """

    activations: ModuleSelection | None = None
    every: int = 16
    by_row: bool = False
    output: OutputChoice | None = None
    logits: bool = False
    logits_every: int = 1

    def __post_init__(self) -> None:
        _check_every("activation_every", self.every)
        _check_every("logits_every", self.logits_every)
        if type(self.by_row) is not bool:
            raise SelectionError(
                f"activation_rows={self.by_row!r}: give True, and each row is observed by itself, "
                "or False"
            )
        if type(self.logits) is not bool:
            raise SelectionError(
                f"logits={self.logits!r}: give True or False; logits_every sets the rate"
            )


NOTHING_OBSERVED = Observed()


class Observing:
    """The observations of one recording.

    Args:
        recorder: the native recorder, which chooses the steps.
        observed: what is to be observed.
        root: the model, which may have logits or not.

    Attributes:
        skipped: what was not observed, by reason.
        observer: the native side.
        has_sites: whether outputs of modules are observed.
    """

    def __init__(
        self, recorder: Any, observed: Observed, root: torch.nn.Module | None = None
    ) -> None:
        self.skipped = Skipped()
        activations, output = observed.activations, observed.output
        if activations is not None:
            activations = lasting_selection(activations, argument="activations")
        self._activations = activations
        self.has_sites = activations is not None
        _learn_torch()
        self.observer = _native.Observer(
            recorder=recorder,
            read_elsewhere=self.skipped.read,
            current_stream=current_stream_function(),
            skip=self.skipped.skip,
            choose=None if output is None else _chooser(output),
            by_row=observed.by_row,
        )
        has_logits = observed.logits and not callable(getattr(root, "compute_logits", None))
        if observed.logits and not has_logits:
            self.skipped.skip_logits(COMPUTED_ELSEWHERE)
        if has_logits:
            skip = self.skipped.skip_logits
            recorder.read_logits(
                every=observed.logits_every,
                seed=seeds.new_seed(),
                read_elsewhere=partial(self.skipped.read, skip=skip),
                current_stream=current_stream_function(),
                skip=skip,
            )
        self._logits_of = recorder if has_logits else None

    def select(self, root: torch.nn.Module) -> dict[str, torch.nn.Module]:
        """The observed modules by name, "" the root.

        Raises:
            SelectionError: as of `select_modules`.
        """
        if self._activations is None:
            return {}
        if self._activations == "root":
            return {"": root}
        return select_modules(root, self._activations, argument="activations")[0]

    def start(self, root: torch.nn.Module) -> None:
        """Takes part in what `observe()` is given; sets up the GPUs where sites may put out."""
        if self._activations is not None:
            for device in devices_of(root):
                self.observer.prepare(device)
        if self._logits_of is not None:
            for device in devices_of(root):
                self._logits_of.prepare_logits(device)
        _running[id(self.observer)] = self.observer

    def stop(self) -> None:
        """Takes no part any longer."""
        _running.pop(id(self.observer), None)


def observe(name: str, tensor: object) -> None:
    """Counts the values of a tensor, under a name, in every recording that runs.

    Inside a step, it is observed when the step is, at the recording's `activation_every` or as its
    budget allows; outside of steps one of `activation_every` calls is. It appears in
    `Profile.activations` with the name as its site. What cannot be read is counted in ``losses``;
    nothing is ever raised for it. It does nothing where nothing is recorded.

    Args:
        name: the site's name.
        tensor: floating-point values of any shape: a tensor of torch, an array of numpy or CuPy,
            or anything with DLPack. What lies on an NVIDIA GPU is counted there, on the current
            stream, without a wait; it may be overwritten on that stream right after.

    Raises:
        SelectionError: the name is no text, empty, or has no form in UTF-8.
    """
    given: Any = name
    if not isinstance(given, str) or not given or not (given.isascii() or _is_unicode(given)):
        raise SelectionError(
            f"observe({name!r}, ...): give the name of a site, a text that is not empty and has no "
            "lone surrogates"
        )
    if not _running:
        return
    site = _native.intern_region(name)
    for observer in tuple(_running.values()):
        observer.observe(site, tensor)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _chooser(output: Any) -> Callable[[Any], Any]:
    if callable(output):
        chosen: Callable[[Any], Any] = output
        return chosen
    if isinstance(output, str):
        return lambda found: found[output] if isinstance(found, dict) else getattr(found, output)
    if type(output) is int:
        return operator.itemgetter(output)
    raise SelectionError(
        f"activation_output={output!r}: give the position in a tuple, the name of a field, or a "
        "function f(output) -> tensor"
    )


@cache
def _learn_torch() -> None:
    torch = sys.modules["torch"]
    formats = {
        getattr(torch, name): number
        for name, number in _native.FLOAT_FORMATS.items()
        if hasattr(torch, name)
    }
    _native.learn_torch(
        torch.Tensor, torch.nn.Parameter, formats, torch.strided, torch._C._get_tracing_state
    )
