"""Which modules of a model a recording sees."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeAlias

from pertoken.errors import SelectionError

if TYPE_CHECKING:
    import torch

ModulePredicate = Callable[[str, Any], bool]
ModuleSelection: TypeAlias = str | Iterable[str] | ModulePredicate

_ATTENTION = re.compile(r"att(entio)?n|mixer|mamba|ssm|recurrent|temporal_block", re.IGNORECASE)
_FEED_FORWARD = re.compile(
    r"mlp|ffn?$|feed_?forward|moe|experts$|intermediate|^output$|channel_mix|dense_?relu",
    re.IGNORECASE,
)
_PART_CLASS = re.compile(r"Attention|Mixer|MLP|FFN|FeedForward|LayerFF$|MoE|Moe")
_HEAD = re.compile(r"(^|\.)(lm_head|embed_out|output|head|score|classifier|cls|proj_out)$")


def select_modules(
    model: torch.nn.Module, modules: ModuleSelection
) -> tuple[dict[str, torch.nn.Module], str]:
    """The modules that `modules` names, by their full name, without the root, and what was meant.

    Returns:
        A dict from name to module, each module once, and one of ``root``, ``layers``, ``all`` and
        ``custom``.

    Raises:
        SelectionError: `modules` is not of a known form, or a pattern matches no module.
    """
    named = {name: module for name, module in model.named_modules() if name}
    if isinstance(modules, str):
        if modules == "root":
            return {}, "root"
        if modules == "all":
            return named, "all"
        if modules == "layers":
            return _layers(model, named), "layers"
        return _matching(named, [modules]), "custom"
    if callable(modules):
        return {name: module for name, module in named.items() if modules(name, module)}, "custom"
    if isinstance(modules, Iterable):
        patterns = list(modules)
        if patterns and all(isinstance(pattern, str) for pattern in patterns):
            return _matching(named, patterns), "custom"
    raise SelectionError(
        f"modules={modules!r}: give 'root', 'layers', 'all', a glob pattern such as "
        "'model.layers.*.mlp', a list of patterns, or a predicate f(name, module) -> bool"
    )


def _matching(named: dict[str, Any], patterns: list[str]) -> dict[str, Any]:
    chosen: dict[str, Any] = {}
    for pattern in patterns:
        found = {
            name: module for name, module in named.items() if fnmatch.fnmatchcase(name, pattern)
        }
        if not found:
            examples = ", ".join(list(named)[:4]) or "none, the model has no submodules"
            raise SelectionError(
                f"modules={pattern!r} matches no module; the model's names are: {examples}, ..."
            )
        chosen |= found
    return {name: module for name, module in named.items() if name in chosen}


def _layers(model: torch.nn.Module, named: dict[str, Any]) -> dict[str, Any]:
    """Each repeated block, its attention and feed-forward children, embeddings and the head.

    A model without repeated blocks gives its direct children.
    """
    import torch

    blocks = _repeated_blocks(named)
    if not blocks:
        return {name: module for name, module in named.items() if "." not in name}
    chosen = set(blocks)
    for name in blocks:
        chosen |= _parts_of_block(name, named)
    get_head = getattr(model, "get_output_embeddings", None)
    head = get_head() if callable(get_head) else None
    for name, module in named.items():
        if any(name.startswith(block + ".") for block in blocks):
            continue
        class_name = type(module).__name__
        if isinstance(module, torch.nn.Embedding) or class_name.endswith("Embeddings"):
            chosen.add(name)
        if module is head or (head is None and _HEAD.search(name)):
            chosen.add(name)
    return {name: module for name, module in named.items() if name in chosen}


def _repeated_blocks(named: dict[str, Any]) -> list[str]:
    """The children of the outermost containers that repeat one kind of block."""
    import torch

    blocks: list[str] = []
    for name, module in named.items():
        if any(name.startswith(block + ".") for block in blocks):
            continue
        children = dict(module.named_children())
        if isinstance(module, torch.nn.ModuleList):
            repeats = any(any(child.children()) for child in children.values())
        elif isinstance(module, torch.nn.Sequential):
            kinds = {type(child) for child in children.values()}
            repeats = (
                len(children) > 1
                and len(kinds) == 1
                and all(any(child.children()) for child in children.values())
            )
        else:
            repeats = False
        if repeats:
            blocks += [f"{name}.{child}" for child in children if f"{name}.{child}" in named]
    return blocks


def _parts_of_block(block: str, named: dict[str, Any]) -> set[str]:
    """The topmost attention and feed-forward modules inside a block."""
    parts: set[str] = set()
    for name, module in named.items():
        if not name.startswith(block + ".") or any(name.startswith(part + ".") for part in parts):
            continue
        last = name.rpartition(".")[2]
        class_name = type(module).__name__
        if "norm" in last.lower() or "norm" in class_name.lower():
            continue
        by_name = _ATTENTION.search(last) or _FEED_FORWARD.search(last)
        by_class = any(module.children()) and _PART_CLASS.search(class_name)
        if by_name or by_class:
            parts.add(name)
    return parts
