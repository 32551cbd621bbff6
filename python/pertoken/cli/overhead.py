"""`pertoken overhead`: proves whether recording a model stays within a budget here."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pertoken.cli.arguments import FiniteRange, text_of
from pertoken.errors import MissingDependencyError, PertokenError, SelectionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pertoken.experiment.plan import Plan
    from pertoken.experiment.result import Result

EXIT_CODES = {"under": 0, "over": 3, "undecided": 4}
INTERRUPTED = 130
REFRESH_INTERVAL_S = 0.5
PILOT_CALLS = 64


def _share(value: str) -> float:
    """A share above 0, written as ``1%`` or ``0.01``."""
    text = value.strip()
    try:
        share = float(text.removesuffix("%")) / (100.0 if text.endswith("%") else 1.0)
    except ValueError:
        share = math.nan
    if not (math.isfinite(share) and share > 0.0):
        raise click.BadParameter(f"{text!r} is not a share above 0, such as 1% or 0.01")
    return share


def _share_up_to(most: float) -> Callable[[click.Context, click.Parameter, str | None], Any]:
    """A callback for shares of which the largest is `most`."""

    def check(ctx: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
        share = None if value is None else _share(value)
        if share is not None and share > most:
            raise click.BadParameter(f"{value!r} is above {most * 100:.3g} %, the most it can be")
        return share

    return check


def _budget(ctx: click.Context, parameter: click.Parameter, value: str) -> float:
    """A share below 1: who writes ``1`` means 1 %, and any cost would be under 100 %."""
    share = _share(value)
    if share >= 1.0:
        raise click.BadParameter(
            f"{value!r} is {share * 100:.3g} % of the time: give a share below 1, such as 0.01 or "
            "1%; 0.01 is 1 %"
        )
    return share


@click.command()
@click.option(
    "--model",
    "name",
    help="Folder or name of a causal language model of transformers; none: the demo's.",
)
@click.option(
    "--modules",
    default="layers",
    show_default=True,
    callback=text_of,
    help="Which modules get spans: root, layers, all, or a glob pattern.",
)
@click.option(
    "--budget",
    callback=_budget,
    default="1%",
    show_default=True,
    help="Margin of the mean, a share below 1: 0.01 is 1%.",
)
@click.option(
    "--sampled", is_flag=True, help="Record within that budget, as profile(budget=) does."
)
@click.option(
    "--p99",
    callback=_share_up_to(3.0),
    help="Test the p99 of decode steps, too, at this margin, 300% at most.",
)
@click.option(
    "--alpha",
    callback=_share_up_to(0.5),
    default="5%",
    show_default=True,
    help="Probability of an error, 50% at most.",
)
@click.option(
    "--tokens",
    type=click.IntRange(min=2),
    default=32,
    show_default=True,
    help="Tokens to generate in a call; with the prompt they must fit the model's context.",
)
@click.option(
    "--prompt-tokens", type=click.IntRange(min=1), default=16, show_default=True, help="Of a call."
)
@click.option(
    "--max-seconds",
    type=FiniteRange(min=0, min_open=True),
    default=600,
    show_default=True,
    help="When to end undecided.",
)
@click.option(
    "--max-pairs",
    type=click.IntRange(min=100),
    default=20_000,
    show_default=True,
    help="The same, in pairs of blocks.",
)
@click.option(
    "--block-length",
    type=click.IntRange(min=1),
    help="Calls in a block; chosen from the autocorrelation unless given.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Of the order of blocks.")
@click.option(
    "--threads", type=click.IntRange(min=1), default=1, show_default=True, help="For torch."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def command(
    name: str | None,
    modules: str,
    sampled: bool,
    tokens: int,
    prompt_tokens: int,
    threads: int,
    as_json: bool,
    **planned: Any,
) -> None:
    """Test whether recording a model costs more than a budget, on this machine.

    Text is generated again and again in one process, with the recording on and off in random
    order, until it can be told on which side of the budget the cost is.

    Exit codes: 0 under the budget, 3 over it, 4 undecided when time or pairs ran out; 1 for an
    error, 2 for wrong usage, 130 when interrupted, with what is known by then.
    """
    if os.environ.get("PERTOKEN") == "0":
        raise PertokenError("PERTOKEN=0 switches recording off: unset it to measure its cost")
    plan = _plan(**planned)
    model = _load(name, threads)
    _check_modules(model, modules)
    _check_length(model, prompt_tokens, tokens)
    from pertoken.overhead_measurement import overhead_looks
    from pertoken.timed_generate import TimedGenerate

    run = TimedGenerate(model, prompt_tokens, tokens)
    looks = overhead_looks(
        model,
        run,
        modules=modules,
        plan=plan,
        recording_budget=planned["budget"] if sampled else None,
    )
    result, interrupted = _last_look(looks)
    if result is None:
        raise KeyboardInterrupt
    if as_json:
        click.echo(json.dumps(result.to_dict(), indent=2, allow_nan=False))
    else:
        _show(result)
    if interrupted:
        click.echo("pertoken: interrupted", err=True)
    raise SystemExit(INTERRUPTED if interrupted else EXIT_CODES[result.verdict])


def _plan(
    budget: float,
    p99: float | None,
    alpha: float,
    max_seconds: float,
    max_pairs: int,
    block_length: int | None,
    seed: int,
) -> Plan:
    from pertoken.experiment.plan import Metric, Plan
    from pertoken.timed_generate import GENERATE_NS, STEP_NS

    metrics = [Metric("mean", budget, GENERATE_NS)]
    if p99 is not None:
        metrics.append(Metric("p99", p99, STEP_NS))
    return Plan(
        metrics,
        alpha=alpha,
        block_length=block_length,
        pilot_calls=PILOT_CALLS,
        max_pairs=max_pairs,
        max_seconds=max_seconds,
        seed=seed,
    )


def _load(name: str | None, threads: int) -> Any:
    if name is None:
        # transformers reads this when it is imported; the demo's model is on disk.
        os.environ["HF_HUB_OFFLINE"] = "1"
    click.echo("loading torch, transformers and the model ...", err=True)
    try:
        import torch
        import transformers
    except ImportError as error:
        raise MissingDependencyError(
            f"this needs torch and transformers ({error}): pip install 'pertoken[demo]'"
        ) from error
    torch.set_num_threads(threads)
    if name is None:
        from pertoken.demo.model import load_model

        return load_model()
    try:
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(name)
    except (OSError, ValueError) as error:
        where = "the folder" if Path(name).exists() else "the name, and that there is a network"
        raise PertokenError(f"cannot load the model {name!r}: check {where}; {error}") from error
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(device).eval()


def _check_modules(model: Any, modules: str) -> None:
    from pertoken.selection import select_modules

    try:
        select_modules(model, modules)
    except SelectionError as error:
        raise click.UsageError(str(error)) from error


def _check_length(model: Any, prompt_tokens: int, tokens: int) -> None:
    """Refuses what is longer than the context: it would mean nothing, and take no end."""
    config = getattr(model.config, "text_config", model.config)
    context = getattr(config, "max_position_embeddings", None)
    if isinstance(context, int) and prompt_tokens + tokens > context:
        raise click.UsageError(
            f"a prompt of {prompt_tokens} tokens and {tokens} more do not fit the model's context "
            f"of {context}: --prompt-tokens and --tokens can be {context} together"
        )


def _last_look(looks: Iterator[Result]) -> tuple[Result | None, bool]:
    """The last result, and whether a person has ended it."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    # Drawn between pairs only: a thread that redraws would disturb what is measured.
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(20),
        TimeElapsedColumn(),
        console=console,
        auto_refresh=False,
        transient=True,
        disable=not console.is_terminal,
    )
    if not console.is_terminal:
        click.echo("comparing ...", err=True)
    last: Result | None = None
    with progress:
        task = progress.add_task("measuring the pilot", total=1.0)
        progress.refresh()
        drawn_at = -math.inf
        try:
            for look in looks:
                last = look
                if time.monotonic() - drawn_at >= REFRESH_INTERVAL_S:
                    done = max(look.pairs / look.plan.max_pairs, _time_share(look))
                    progress.update(
                        task, completed=done, description=look.progress_line, refresh=True
                    )
                    drawn_at = time.monotonic()
        except KeyboardInterrupt:
            return last, True
    return last, False


def _time_share(look: Result) -> float:
    limit_s = look.plan.max_seconds
    return 0.0 if limit_s is None else min(1.0, look.seconds / limit_s)


def _show(result: Result) -> None:
    from pertoken.cli.terminal import show_blocks

    show_blocks([result.block()])
    click.echo(result.line)
