"""Which modules of a model a recording sees."""

from __future__ import annotations

import difflib
import fnmatch
import inspect
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeAlias

from pertoken.errors import SelectionError

if TYPE_CHECKING:
    import torch

ModulePredicate = Callable[[str, Any], bool]
ModuleSelection: TypeAlias = str | Iterable[str] | ModulePredicate

_WORDS = ("root", "layers", "all")
_ATTENTION = re.compile(r"att(entio)?n|mixer|mamba|ssm|recurrent|temporal_block", re.IGNORECASE)
_FEED_FORWARD = re.compile(
    r"mlp|ffn?$|feed_?forward|moe|experts$|intermediate|^output$|channel_mix|dense_?relu"
    r"|^(fc|lin|linear)_?\d$",
    re.IGNORECASE,
)
_PART_CLASS = re.compile(r"Attention|Mixer|MLP|FFN|FeedForward|LayerFF$|MoE|Moe")
_HEAD = re.compile(r"(^|\.)(lm_head|embed_out|output|head|score|classifier|cls|proj_out)$")


def select_modules(
    model: torch.nn.Module, modules: ModuleSelection, argument: str = "modules"
) -> tuple[dict[str, torch.nn.Module], str]:
    """The modules that `modules` names, by their full name, without the root, and what was meant.

    Containers such as ``ModuleList`` are never called, and so never selected. `argument` is what
    the selection is called where it was given.

    Returns:
        A dict from name to module, each module once under its first name, and one of ``root``,
        ``layers``, ``all`` and ``custom``.

    Raises:
        SelectionError: `modules` is not of a known form, or a pattern or predicate selects no
            module.
    """
    named = {name: module for name, module in model.named_modules() if name}
    if isinstance(modules, str):
        if modules == "root":
            return {}, "root"
        if modules == "all":
            return {name: module for name, module in named.items() if has_forward(module)}, "all"
        if modules == "layers":
            chosen = _layers(model, named)
            return {name: named[name] for name in named if name in chosen}, "layers"
        return _matching(model, named, [modules], argument), "custom"
    import torch

    # A class and a module can be called, too.
    if callable(modules) and not isinstance(modules, (type, torch.nn.Module)):
        picked = {name: module for name, module in named.items() if modules(name, module)}
        if not any(map(has_forward, picked.values())):
            raise SelectionError(
                f"the predicate selects none of the {len(named)} modules; for the model alone "
                f"give {argument}='root'"
            )
        return {name: module for name, module in picked.items() if has_forward(module)}, "custom"
    if isinstance(modules, Iterable):
        patterns = list(modules)
        if patterns and all(isinstance(pattern, str) for pattern in patterns):
            return _matching(model, named, patterns, argument), "custom"
    raise _of_unknown_form(modules, argument)


def _of_unknown_form(modules: object, argument: str) -> SelectionError:
    return SelectionError(
        f"{argument}={modules!r}: give 'root', 'layers', 'all', a glob pattern such as "
        "'model.layers.*.mlp', a list of patterns, or a predicate f(name, module) -> bool"
    )


def lasting_selection(modules: ModuleSelection, argument: str = "modules") -> ModuleSelection:
    """The same selection, of which patterns can be read again and again, also from a generator.

    Args:
        modules: as `select_modules` takes it.
        argument: what it is called where it was given.

    Raises:
        SelectionError: it cannot be iterated over although it looks as if, as a tensor that is one
            number.
    """
    if isinstance(modules, str) or not isinstance(modules, Iterable):
        return modules
    try:
        patterns = iter(modules)
    except TypeError:
        raise _of_unknown_form(modules, argument) from None
    return list(patterns)


def layer_names(model: torch.nn.Module, modules: dict[str, torch.nn.Module]) -> frozenset[str]:
    """Those of the modules that ``"layers"`` would select, too.

    Args:
        model: the root.
        modules: by name, as `select_modules` gave them.
    """
    named = {name: module for name, module in model.named_modules() if name}
    return frozenset(_layers(model, named) & modules.keys())


def has_forward(module: torch.nn.Module) -> bool:
    """Whether a module can be called; containers cannot."""
    import torch

    if "forward" in module.__dict__:
        return True
    own = inspect.getattr_static(type(module), "forward", None)
    return own is not torch.nn.Module.forward


def _matching(
    model: torch.nn.Module, named: dict[str, Any], patterns: list[str], argument: str
) -> dict[str, Any]:
    """Those of which some name matches some pattern: a shared module has several names."""
    names = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
    chosen: set[int] = set()
    for pattern in patterns:
        found = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
        called = [name for name in found if has_forward(model.get_submodule(name))]
        if found and not called:
            raise SelectionError(
                f"{argument}={pattern!r} matches only containers, which are never called "
                f"themselves; for what is in them give '{found[0]}.*'"
            )
        if not found:
            examples = ", ".join(list(named)[:4]) or "none, the model has no submodules"
            meant = difflib.get_close_matches(pattern.lower(), _WORDS, n=1)
            hint = f"; did you mean {meant[0]!r}?" if meant else ""
            raise SelectionError(
                f"{argument}={pattern!r} matches no module{hint}; the model's names are: "
                f"{examples}, ..."
            )
        chosen |= {id(model.get_submodule(name)) for name in called}
    return {name: module for name, module in named.items() if id(module) in chosen}


def _layers(model: torch.nn.Module, named: dict[str, Any]) -> set[str]:
    """Each repeated block, its attention and feed-forward children, embeddings and the head.

    A model without repeated blocks gives its direct children.
    """
    import torch

    blocks = _repeated_blocks({"": model, **named})
    if not blocks:
        return {name for name, module in named.items() if "." not in name and has_forward(module)}
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
    return {name for name in chosen if has_forward(named[name])}


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
            names = [f"{name}.{child}" if name else child for child in children]
            blocks += [block for block in names if block in named]
    return blocks


def _parts_of_block(block: str, named: dict[str, Any]) -> set[str]:
    """The topmost attention and feed-forward modules inside a block."""
    parts: set[str] = set()
    for name, module in named.items():
        if not name.startswith(block + ".") or any(name.startswith(part + ".") for part in parts):
            continue
        last = name.rpartition(".")[2]
        class_name = type(module).__name__
        if any(word in f"{last} {class_name}".lower() for word in ("norm", "dropout")):
            continue
        by_name = _ATTENTION.search(last) or _FEED_FORWARD.search(last)
        by_class = any(module.children()) and _PART_CLASS.search(class_name)
        if (by_name or by_class) and has_forward(module):
            parts.add(name)
    return parts
