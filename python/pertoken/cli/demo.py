"""`pertoken demo`: a tiny model that ships with the package, profiled while it writes text."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

import pertoken
from pertoken.cli.terminal import show
from pertoken.demo.generation import demo_requests, run_requests, warm_up
from pertoken.demo.model import CONTEXT_LENGTH, encode, load_model
from pertoken.errors import PertokenError

if TYPE_CHECKING:
    from pertoken.demo.generation import Generated, TextRequest
    from pertoken.recording import Recording
    from pertoken.result import Profile

REFRESH_INTERVAL_S = 0.2


@click.command()
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("pertoken-demo"),
    show_default=True,
    help="Folder for trace.json and demo.pertoken; those of an earlier run are replaced.",
)
@click.option(
    "--tokens",
    type=click.IntRange(min=2),
    default=128,
    show_default=True,
    help="Tokens to generate for each prompt.",
)
@click.option(
    "--prompt", default="Return the ", show_default=True, help="How the first text begins."
)
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Threads for torch; one is fastest for a model this small.",
)
def command(output: Path, tokens: int, prompt: str, threads: int) -> None:
    """Generate text with a tiny language model and profile every token.

    The model ships with the package, so no network is needed. It learned English from Python's
    own documentation and makes up the rest.
    """
    requests = demo_requests(prompt)
    _check(requests, tokens)
    output.mkdir(parents=True, exist_ok=True)
    model = _ready_model(threads)
    profile, written = _profiled_run(model, pertoken.profile(model), requests, tokens)
    trace, saved = output / "trace.json", output / "demo.pertoken"
    profile.export_chrome_trace(trace)
    profile.save(saved)
    _print_texts(written)
    show(profile.summary())
    click.echo(f"\nwrote {trace}: open it at https://ui.perfetto.dev (Open trace file)")
    click.echo("  or in Chrome at chrome://tracing (Load)")
    click.echo(f"wrote {saved}: read it again with pertoken summary {saved}")


def _check(requests: list[TextRequest], tokens: int) -> None:
    if os.environ.get("PERTOKEN") == "0":
        raise PertokenError("PERTOKEN=0 switches recording off: unset it to run the demo")
    lengths = [len(encode(prompt)) for request in requests for prompt in request.prompts]
    if min(lengths) == 0:
        raise click.UsageError("--prompt must not be empty")
    if max(lengths) + tokens > CONTEXT_LENGTH:
        raise click.UsageError(
            f"the longest prompt has {max(lengths)} characters and the model's context is "
            f"{CONTEXT_LENGTH}: --tokens can be {CONTEXT_LENGTH - max(lengths)} at most"
        )


def _ready_model(threads: int) -> Any:
    # transformers reads this when it is imported; the model is on disk, so nothing may be fetched.
    os.environ["HF_HUB_OFFLINE"] = "1"
    console = Console(stderr=True)
    text = "loading torch, transformers and the model ..."
    if not console.is_terminal:
        click.echo(text, err=True)
    with console.status(text):
        model = load_model()
        import torch

        torch.set_num_threads(threads)
        warm_up(model)
    return model


def _profiled_run(
    model: Any, recording: Recording, requests: list[TextRequest], tokens: int
) -> tuple[Profile, list[Generated]]:
    total = tokens * sum(len(request.prompts) for request in requests)
    console = Console(stderr=True)
    if not console.is_terminal:
        click.echo(f"generating {total} tokens ...", err=True)
    # A refresh in a thread of its own would take the interpreter's lock inside some token's time:
    # the bar is drawn between tokens instead, and rarely.
    progress = Progress(
        TextColumn("generating"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("tokens"),
        console=console,
        auto_refresh=False,
        transient=True,
        disable=not console.is_terminal,
    )
    with progress:
        task = progress.add_task("generating", total=total)
        done, drawn_at = 0, time.monotonic()

        def on_tokens(count: int) -> None:
            nonlocal done, drawn_at
            done += count
            if time.monotonic() - drawn_at >= REFRESH_INTERVAL_S:
                progress.update(task, completed=done, refresh=True)
                drawn_at = time.monotonic()

        with recording:
            written = run_requests(model, requests, tokens, on_tokens)
        return recording.result(), written


def _print_texts(written: list[Generated]) -> None:
    for generated in written:
        click.echo(f"request {generated.request.id}")
        for prompt, text in zip(generated.request.prompts, generated.texts, strict=True):
            on_one_line = text.replace("\n", " ").rstrip()
            click.echo(f"  {click.style(prompt, bold=True)}{on_one_line}")
    click.echo()
