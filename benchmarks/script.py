"""A benchmark as a script: its options, its progress on the terminal, its result as JSON."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Takes the share that is done, from 0 to 1.
Advance = Callable[[float], None]
Measure = Callable[[bool, Advance], dict[str, Any]]

_ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def quiet_environment() -> dict[str, str]:
    """The environment that benchmarks run in: one thread, no network, recording not switched off.

    To be set before torch is imported.
    """
    environment = {**os.environ, **_ONE_THREAD}
    environment.pop("PERTOKEN", None)
    return environment


def run_script(name: str, measure: Measure) -> None:
    """Runs `measure(smoke, advance)` and writes what it returns to --output, or prints it."""
    parser = argparse.ArgumentParser(description=f"Measures: {name}.")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that it works")
    parser.add_argument("--output", type=Path, help="the JSON file to write; else it is printed")
    arguments = parser.parse_args()
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)
    text = json.dumps(rounded(_with_progress(name, measure, arguments)), indent=1)
    if arguments.output is None:
        print(text)
    else:
        arguments.output.write_text(text + "\n")


def part(advance: Advance, number: int, count: int) -> Advance:
    """The progress of part `number` of `count` parts of equal length."""
    return lambda share: advance((number + share) / count)


def rounded(value: Any) -> Any:
    """The same data with floats of six digits, which is more than any measurement has."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return value


def _with_progress(name: str, measure: Measure, arguments: argparse.Namespace) -> dict[str, Any]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    console = Console(stderr=arguments.output is None)
    # Drawn only when told to: a thread that redraws would disturb what is measured.
    with Progress(
        *columns,
        console=console,
        transient=True,
        auto_refresh=False,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task(name, total=1.0)

        def advance(share: float) -> None:
            progress.update(task, completed=share, refresh=True)

        return measure(arguments.smoke, advance)
