"""A program that serves by vLLM, in its processes: front end, engine core and, by ``mp``, a worker.

    python async_server.py FOLDER uni mp

It serves three requests by an engine of each of the named executors. It knows nothing of pertoken:
vLLM loads the plugins, and the environment says what to record. Processes are forked, so that vLLM
is imported once. Prints the ids and the tokens of the requests, as JSON.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from vllm import SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.inputs import TokensPrompt
from vllm.v1.engine.async_llm import AsyncLLM

import scripted_worker
from scripted_worker import Script
from vllm_engine import CONFIG, SETTINGS

PROMPT_TOKENS = 20
TOKENS = {"a": 5, "b": 6, "c": 7}


async def serve(engine: AsyncLLM, name: str) -> int:
    """Serves one request; how many tokens came."""
    settings = SamplingParams(max_tokens=TOKENS[name], ignore_eos=True, detokenize=False)
    prompt = TokensPrompt(prompt_token_ids=[1] * PROMPT_TOKENS)
    count = 0
    async for output in engine.generate(prompt, settings, name):
        count = len(output.outputs[0].token_ids)
    return count


def terminate_again(pids: list[int], is_over: threading.Event) -> None:
    """Sends SIGTERM again to engines that have not heeded the first.

    Python runs a handler once the main thread comes back to it. A signal that comes right before
    that thread sleeps in a lock, as the thread of an idle engine does, does not wake it.
    """
    while not is_over.wait(10):
        for pid in pids:
            if has_handler(pid, signal.SIGTERM):  # vLLM removes it where it begins to shut down
                os.kill(pid, signal.SIGTERM)


def has_handler(pid: int, number: int) -> bool:
    """Whether a process lives and catches a signal."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return False
    fields = dict(line.split(":", 1) for line in lines)
    return not fields["State"].strip().startswith("Z") and bool(
        int(fields["SigCgt"], 16) >> (number - 1) & 1
    )


async def serve_all(config: Any) -> dict[str, int]:
    """Serves all requests by an engine of this configuration."""
    engine = AsyncLLM.from_vllm_config(config)
    try:
        counts = await asyncio.gather(*(serve(engine, name) for name in TOKENS))
    finally:
        is_over = threading.Event()
        engines = [
            child.pid for child in multiprocessing.active_children() if child.pid is not None
        ]
        threading.Thread(target=terminate_again, args=(engines, is_over), daemon=True).start()
        engine.shutdown(timeout=200)
        is_over.set()
    return dict(zip(TOKENS, counts, strict=True))


def main(folder: Path, executors: list[str]) -> None:
    """Serves by one engine after the other."""
    scripted_worker.script = Script(warms_up=False)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    served = {}
    for executor in executors:
        settings = {**SETTINGS, "distributed_executor_backend": executor}
        config = AsyncEngineArgs(model=str(folder), **settings).create_engine_config()
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"  # without a GPU vLLM sets spawn
        served[executor] = asyncio.run(serve_all(config))
    print(json.dumps(served))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
