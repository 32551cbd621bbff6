"""One recorded `generate()` together with what tests compare the recording with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import StoppingCriteriaList

import invariants
import pertoken
from forward_log import Forward, ForwardLog, LengthLog, PieceLog
from pertoken import Profile


@dataclass
class GenerateRun:
    """What generate returned, what was recorded, and what happened."""

    result: Any
    profile: Profile
    forwards: list[Forward]
    grown: list[int]  # tokens that each turn of generate's loop added to the sequences

    @property
    def sequences(self) -> Tensor:
        """The returned ids (rows, length)."""
        return getattr(self.result, "sequences", self.result)

    def steps(self, *columns: str) -> list[tuple[Any, ...]]:
        """These columns of the steps, a tuple a step."""
        return list(zip(*(self.profile.steps[name].tolist() for name in columns), strict=True))

    def rows(self, column: str) -> list[list[int]]:
        """A column of ``step_rows``, a list a step."""
        table = self.profile.step_rows
        return [
            table[column][table["step"] == step].tolist()
            for step in self.profile.steps["step"].tolist()
        ]


def run_generate(
    model: Any, *args: Any, prompt_len: int, modules: Any = "layers", **kwargs: Any
) -> GenerateRun:
    """Calls ``model.generate`` recorded, watched by other means, and checks the invariants."""
    turns: LengthLog | PieceLog
    if kwargs.get("num_beams", 1) > 1 or any(getattr(arg, "num_beams", None) for arg in args):
        turns = LengthLog(prompt_len)  # beams cannot be streamed
        kwargs["stopping_criteria"] = StoppingCriteriaList([turns])
    else:
        turns = kwargs["streamer"] = PieceLog()
    recording = pertoken.profile(model, modules=modules)
    with ForwardLog(model) as log, recording:
        result = model.generate(*args, **kwargs)
    profile = recording.result()
    invariants.check(profile)
    invariants.check_tiled(profile, type(model).__name__)
    return GenerateRun(result, profile, log.forwards, turns.grown)
