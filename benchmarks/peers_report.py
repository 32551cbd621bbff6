"""The section of the performance page on pertoken beside other tools, and its picture."""

from __future__ import annotations

from typing import Any

from bar_chart import Panel, Row, svg
from figure_text import ns_text, percent_text
from page_parts import Estimate, estimate_text, table

PICTURE = "performance-peers.svg"
NONE = "-"
OURS = "pertoken"
_FILE_COLUMNS = ("tool", "file", "spans", "bytes", "to write", "to open", "by")


def size_text(value: float) -> str:
    """Writes a number of bytes in the unit that suits it."""
    for unit, factor in (("MB", 1e6), ("kB", 1e3)):
        if abs(value) >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value:.0f} bytes"


def time_text(value: float) -> str:
    """Writes a duration of up to minutes."""
    return f"{value / 1e9:.3g} s" if value >= 1e9 else ns_text(value)


def section(peers: dict[str, Any]) -> str:
    """The section, from what `peers.py` measured."""
    tools: dict[str, dict[str, Any]] = peers["tools"]
    rows = [
        (
            "nothing again",
            estimate_text(peers["control"]["ratio"], percent_text),
            *(NONE for _ in range(6)),
        )
    ]
    tokens = peers["tokens"]
    rows += [(name, *_figures(tool, tokens)) for name, tool in tools.items()]
    columns = (
        "tool",
        "added to the step",
        "memory a token",
        "at its peak",
        "file a token",
        "to stop",
        "to write",
        "to open",
    )
    configurations = "\n".join(
        f"- **{name}**: {tool['configuration']}." for name, tool in tools.items()
    )
    return (
        "## Beside other tools\n\n"
        f"The same work for each: {peers['tokens']} tokens by `generate()`, in a process of its "
        f"own, {peers['repeats']} times\nin turns. What a tool adds to a step is measured apart "
        f"from that, all interleaved, in {peers['rounds']} rounds\nof "
        f"{peers['steps_a_block']} steps.\n\n"
        f"![What each tool adds to a decode step, and the file it writes]({PICTURE})\n\n"
        f"{table(columns, rows)}\n\n"
        "The tools do not see the same: some see modules, some operators, some every function.\n"
        "What each sees of a token, and all files that it writes:\n\n"
        f"{table(_FILE_COLUMNS, _files(tools, tokens))}"
        "\n\n"
        "*Memory* is what the process has grown by when the run ends, before it is stopped, less\n"
        f"what it grows by without a tool ({size_text(peers['nothing_growth_bytes'])} in all); "
        "buffers of a fixed size are part of it.\n*At its peak* is the most it grew until the "
        "first file was written. The first table has the\nfirst file of each tool, the second all. "
        "*To write* includes what a tool computes for it, such as\n`result()`.\n"
        f"{_opening(peers)}\n\n{configurations}"
    )


def picture(peers: dict[str, Any]) -> str:
    """The two figures that tell most, as SVG."""
    steps, files = [], []
    for name, tool in peers["tools"].items():
        ours = name.startswith(OURS)
        ratio = tool["step"]["ratio"]["median"]
        steps.append(Row(name, ratio - 1, percent_text(ratio), ours))
        first = _first_file(tool)
        if first is not None and _spans_a_token(first) != 0:
            size = first["bytes_a_token"]["median"]
            files.append(Row(name, size, size_text(size), ours))
    panels = [
        Panel("Time added to a decode step", steps),
        Panel("File a token, uncompressed", files),
    ]
    return svg(panels, "pertoken beside other tools")


def _figures(tool: dict[str, Any], tokens: int) -> tuple[str, ...]:
    """The columns of the first table after the name."""
    ratio = estimate_text(tool["step"]["ratio"], percent_text)
    memory = (_size(tool["memory_bytes_a_token"]), _size(tool["peak_bytes_a_token"]))
    stop = time_text(tool["stop_ns"]["median"])
    first = _first_file(tool)
    if first is None:
        return ratio, *memory, NONE, stop, NONE, NONE
    write = time_text(first["write_ns"]["median"])
    opened = _opened(first)[0]
    return ratio, *memory, _file_size(first, tokens), stop, write, opened


def _files(tools: dict[str, dict[str, Any]], tokens: int) -> list[tuple[str, ...]]:
    """The rows of the second table."""
    return [
        (
            name,
            f"`{suffix}`",
            _spans(file),
            _file_size(file, tokens),
            time_text(file["write_ns"]["median"]),
            *_opened(file),
        )
        for name, tool in tools.items()
        for suffix, file in tool["files"].items()
    ]


def _opened(file: dict[str, Any]) -> tuple[str, str]:
    """How long a file takes to open, and what opened it."""
    if "open_ns" in file:
        return time_text(file["open_ns"]["median"]), "Perfetto"
    if "read_ns" in file:
        return time_text(file["read_ns"]["median"]), str(file["reader"])
    return NONE, NONE


def _spans(file: dict[str, Any]) -> str:
    seen = _spans_a_token(file)
    if seen is None:
        return NONE
    return f"{seen:.0f}" if seen else "none: totals only"


def _spans_a_token(file: dict[str, Any]) -> float | None:
    seen: float | None = file.get("slices_a_token", file.get("spans_a_token"))
    return seen


def _file_size(file: dict[str, Any], tokens: int) -> str:
    """By the token; for totals, which do not grow with the run, of the whole file."""
    bytes_a_token = file["bytes_a_token"]["median"]
    if _spans_a_token(file) == 0:
        return f"{size_text(bytes_a_token * tokens)} in all"
    return size_text(bytes_a_token)


def _opening(peers: dict[str, Any]) -> str:
    if peers["opening_missing"] is not None:
        return f"No trace was opened in Perfetto: {peers['opening_missing']}."
    lost = {
        name: count
        for name, tool in peers["tools"].items()
        if (count := sum(file.get("complaints", 0) for file in tool["files"].values()))
    }
    complaints = "; ".join(f"{name}: {count}" for name, count in lost.items()) or "none"
    return (
        "*To open* is until Perfetto's trace processor, as its viewer runs it in a browser, has\n"
        "loaded the file and answered a first query; files that it does not read are opened by\n"
        f"what does. Events it reported as lost or wrong: {complaints}."
    )


def _first_file(tool: dict[str, Any]) -> dict[str, Any] | None:
    return next(iter(tool["files"].values()), None)


def _size(estimate: Estimate | None) -> str:
    return NONE if estimate is None else size_text(estimate["median"])
