"""Starts the profiling of a process, and then runs the `sitecustomize` that this one hides.

`pertoken run` puts this folder on PYTHONPATH only where the package is not installed. It leaves
``sys.path`` of the process as it would be otherwise.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec


def _run_hidden() -> None:
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != here]
    spec = PathFinder.find_spec("sitecustomize", sys.path)
    if spec is None or spec.loader is None:
        return
    module = sys.modules["sitecustomize"] = module_from_spec(spec)
    spec.loader.exec_module(module)


if __name__ == "sitecustomize":
    try:
        from pertoken.autostart import start

        start()
    finally:  # another interpreter than ours may not be able to import it
        _run_hidden()
