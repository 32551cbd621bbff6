"""What a recording is given: refused at once, with what to give instead, where it cannot be."""

from __future__ import annotations

import numbers
import sys
import threading

from pertoken.autostart_options import MIN_MEMORY_BYTES
from pertoken.errors import SelectionError
from pertoken.number_argument import is_number


def check_arguments(model: object, memory_limit_bytes: object, log_interval_s: object) -> None:
    """Checks what has one form only.

    Args:
        model: must be a ``torch.nn.Module``.
        memory_limit_bytes: must be an integer that some trace fits into, below 2**63.
        log_interval_s: must be a time that a thread can wait for, in seconds, or None.

    Raises:
        SelectionError: one of them is not of its form.
    """
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(model, torch.nn.Module):
        raise SelectionError(_not_a_module(model))
    limit = memory_limit_bytes
    if not (is_number(limit, numbers.Integral) and MIN_MEMORY_BYTES <= limit <= sys.maxsize):
        raise SelectionError(
            f"memory_limit_bytes={memory_limit_bytes!r}: give at least {MIN_MEMORY_BYTES} and at "
            f"most {sys.maxsize}, as an integer"
        )
    if log_interval_s is None:
        return
    if not (is_number(log_interval_s) and 0 < log_interval_s <= threading.TIMEOUT_MAX):
        raise SelectionError(
            f"log_interval_s={log_interval_s!r}: give a positive number of seconds, or None"
        )


def _not_a_module(model: object) -> str:
    what = f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"
    advice = "to profile a pipeline, pass its .model"
    if isinstance(model, type):
        advice = "pass an instance of it"
    elif isinstance(model, str):
        advice = "load the model and pass that"
    elif callable(model) and not hasattr(model, "model"):
        advice = "to record during a function's calls, decorate it with @pertoken.profile(model)"
    return f"profile() takes a torch.nn.Module, not {what}; {advice}"
