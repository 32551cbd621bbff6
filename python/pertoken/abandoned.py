"""The end of recordings that nobody has stopped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pertoken.patch import change_lock

if TYPE_CHECKING:
    from pertoken.dumps import Dumps
    from pertoken.generation import GenerateWatch
    from pertoken.graph_captures import GraphCaptures
    from pertoken.instrument import Instrumentation
    from pertoken.observing import Observing
    from pertoken.spool_folder import SpoolFolder
    from pertoken.status import StatusLog


def abandon(
    instrumentation: Instrumentation,
    watch: GenerateWatch,
    captures: GraphCaptures,
    recorder: Any,
    status_log: list[StatusLog],
    observing: Observing,
    spool: SpoolFolder | None,
    dumps: Dumps | None,
) -> None:
    """Stops what a recording that is gone, or the end of the process, has left running.

    The garbage collector may call it anywhere, so it waits for no other thread.

    Args:
        instrumentation: the wrappers in the model.
        watch: the wrappers round ``generate()``.
        captures: what sees graphs being captured.
        recorder: the native recorder.
        status_log: the log of the status, where one runs.
        observing: the observations.
        spool: where it was spooled to.
        dumps: its triggers.
    """
    recorder.stop()
    observing.stop()
    if spool is not None:
        spool.leave()
    if dumps is not None:
        dumps.end(None)
    for log in status_log:
        log.end()

    def remove() -> None:
        instrumentation.remove()
        watch.remove()
        captures.remove()

    change_lock.run_outside(remove)
