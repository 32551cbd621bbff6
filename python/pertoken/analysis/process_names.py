"""Names of the processes of a profile that tell them apart.

One process may have made several recordings, of one model or of several. Each is a row of the table
`processes`, with the same host, process id and rank.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pertoken.processes import names_of_processes

if TYPE_CHECKING:
    from pertoken.result import Profile


def distinct_names_of(profile: Profile) -> list[str]:
    """Name the processes of a profile, in order, each differently; see `distinct_names`."""
    names = names_of_processes(profile)
    if len(set(names)) == len(names):
        return names
    metas = profile.meta.get("processes")
    if not isinstance(metas, list) or len(metas) != len(names):
        metas = [{}] * len(names)
    return distinct_names(names, metas)


def distinct_names(names: Sequence[str], metas: Sequence[Mapping[str, Any]]) -> list[str]:
    """Add the process's number to names that are equal, and the model's class where those differ.

    ``process (host, pid 17)`` becomes ``process (host, pid 17, number 0, LlamaForCausalLM)``.

    Args:
        names: of the processes, in order, as `process_name` gives them.
        metas: the metadata of each process's own recording.
    """
    alike: dict[str, list[int]] = defaultdict(list)
    for number, name in enumerate(names):
        alike[name].append(number)
    result = list(names)
    for name, numbers in alike.items():
        if len(numbers) == 1:
            continue
        classes = [_model_class(metas[number]) for number in numbers]
        differ = len(set(classes)) > 1
        for number, model_class in zip(numbers, classes, strict=True):
            told = f"number {number}"
            if differ and model_class:
                told += f", {model_class}"
            result[number] = f"{name.removesuffix(')')}, {told})"
    return result


def _model_class(meta: object) -> str:
    model = meta.get("model") if isinstance(meta, Mapping) else None
    name = model.get("class") if isinstance(model, Mapping) else None
    return str(name or "")
