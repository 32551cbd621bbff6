"""The ranks of a tensor-parallel model, as the tests of many processes start it.

Records the model twice, without and with a rank that is slow in one module, and measures clocks,
the real ones and planted ones.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

import pertoken
from pertoken import clock_sync
from waiting import PATIENCE_S

WIDTH = 8
STEPS = 40
EVERYBODY_S = 0.008
PLANTED_S = 0.05
SLOW_RANK = 2
SLOW_SITE = "blocks.1.up"
PLANTED_BOOT = "another boot"
PLANTED_OFFSET_NS = -7_000_000_000


class ColumnParallel(nn.Module):
    """Its own columns of a linear map, after a rest whose length a test sets."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.rest_s = EVERYBODY_S

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(self.rest_s)
        return self.linear(x)


class RowParallel(nn.Module):
    """Its own rows of a linear map, added up over all ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.linear(x)
        dist.all_reduce(x)
        return x


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = ColumnParallel()
        self.down = RowParallel()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(x)))


class Parallel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block(), Block()])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = torch.tanh(block(x))
        return x


def record(model: nn.Module, early_steps: int) -> pertoken.Recording:
    """Records steps between barriers; `early_steps` of them are not recorded."""
    recording = pertoken.profile(model, modules="all")
    pertoken.synchronize_clocks()
    with torch.no_grad():
        for _ in range(early_steps):
            model(torch.ones(1, WIDTH))
        with recording:
            for _ in range(STEPS - early_steps):
                model(torch.ones(1, WIDTH))
            for _ in range(5):
                with pertoken.span("barrier"):
                    dist.barrier()
    pertoken.synchronize_clocks()
    return recording


def planted_clocks(rank: int) -> dict[str, object]:
    """What ranks 2 and 3 measure when they pretend to be another host, with another clock."""
    own = "this boot" if rank < 2 else PLANTED_BOOT

    def boot_ns() -> int:
        shown = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        return shown if rank < 2 else shown - PLANTED_OFFSET_NS

    return clock_sync.exchange(dist, None, own, boot_ns).as_dict()


def main(folder: Path, rank: int, world_size: int) -> None:
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=PATIENCE_S),
    )
    torch.manual_seed(0)
    model = Parallel()
    with torch.no_grad():
        model(torch.ones(1, WIDTH))
    even = record(model, early_steps=0)
    if rank == SLOW_RANK:
        model.get_submodule(SLOW_SITE).rest_s = EVERYBODY_S + PLANTED_S
    # The last rank begins later, so that its steps have other numbers.
    uneven = record(model, early_steps=3 if rank == world_size - 1 else 0)
    (folder / f"clock-{rank}.json").write_text(json.dumps(planted_clocks(rank)))
    dist.destroy_process_group()
    even.result().save(folder / f"even-{rank}.pertoken")
    uneven.result().save(folder / f"uneven-{rank}.pertoken")


def run_all(folder: Path, world_size: int) -> int:
    """Runs every rank in a fork of this process, so that torch is loaded once; how many failed."""
    ranks = []
    for rank in range(world_size):
        process = os.fork()
        if process:
            ranks.append(process)
            continue
        os.environ["LOCAL_RANK"] = str(rank)
        try:
            main(folder, rank, world_size)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)
    return sum(os.waitpid(process, 0)[1] != 0 for process in ranks)


if __name__ == "__main__":
    sys.exit(run_all(Path(sys.argv[1]), int(sys.argv[2])))
