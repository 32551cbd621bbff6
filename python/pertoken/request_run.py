"""The running entries of `pertoken.request`, in the order in which they enclose each other."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pertoken.scopes import request


@dataclass(eq=False)
class RequestRun:
    """One entry of a `request`, from its beginning to its end."""

    request: request
    outer: RequestRun | None
    start_ticks: int
    end_ticks: int = 0  # 0 while it runs
    error: str = ""

    @property
    def id(self) -> str:
        """The caller's own id."""
        return self.request.id

    @property
    def model_version(self) -> str:
        """The version of the model that serves it."""
        return self.request.model_version

    @property
    def labels(self) -> dict[str, str]:
        """Further labels."""
        return self.request.labels


run_var: ContextVar[RequestRun | None] = ContextVar("pertoken_request")


def current_run() -> RequestRun | None:
    """The innermost request round the running code; tasks may outlive the one they began in."""
    run = run_var.get(None)
    while run is not None and run.end_ticks:
        run = run.outer
    return run
