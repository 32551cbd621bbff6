"""Makes the performance page of the newest committed results.

``python benchmarks/report.py`` writes docs/performance.md and its picture. Every figure on them
comes from the file of results; a test compares the two.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import activation_report
import budget_report
import compiled_report
import gpu_report
import logit_report
import long_run_report
import peers_report
import tensor_report
import totals_report
from bars import Results, verdicts
from figure_text import bytes_text, factor_text, ns_text, percent_text, rate_text
from page_parts import Estimate, bars_table, estimate_text, table

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "performance.md"
PICTURE = PAGE.with_name(peers_report.PICTURE)

_WAYS = {
    "generate": "Through `generate()`, as users run it",
    "by_hand": "In a loop by hand round the forward, where nothing else is part of the step",
}
_OPERATIONS = {
    "clock_read": "bare clock read",
    "push": "push of a record with its timestamp",
    "push_live": "the same, a consumer draining every 50 us",
    "push_contended": "the same, a consumer that never rests",
    "span": "all that the wrapper does round a call: two timestamps, number, push",
    "drain_record": "collector: one record into the store and the aggregates",
    "histogram": "one duration into an exponential histogram",
}
_CALLS = {
    "child": "call of a child module inside a step",
    "root": "step of the root inside `generate()`",
    "root_with_commit": "the same with the note of what it commits",
}
_WRITERS = {
    "pertoken_json": "pertoken, `.json`",
    "torch_json": "torch.profiler, `.json`",
    "pertoken_gzip": "pertoken, `.json.gz`",
}


def newest_results(folder: Path = RESULTS) -> Path:
    """The file of the whole run that finished last.

    Raises:
        FileNotFoundError: there is none.
    """
    files = sorted(folder.glob("*.json"), key=lambda path: str(_load(path)["finished"]))
    if not files:
        raise FileNotFoundError(f"no results in {folder}; run benchmarks/run.py")
    return files[-1]


def newest_gpu_results(folder: Path = RESULTS / "gpu") -> Results | None:
    """The run on a GPU that finished last; None where there is none."""
    found = [_load(path) for path in folder.glob("*.json")]
    return max(found, key=lambda results: str(results["finished"]), default=None)


def render(results: Results, source: str, gpu: Results | None = None) -> str:
    """The page as markdown, from results and the name of the file that holds them.

    What the run did not measure is left out. `gpu` is what a run on a GPU gave.
    """
    parts = results["benchmarks"]
    sections = [_head(source), _bars(results), _machine(results)]
    for names, section in _SECTIONS:
        if all(name in parts for name in names):
            sections.append(section(*(parts[name] for name in names)))
    if gpu is not None:
        sections.append(gpu_report.section(gpu))
    sections.append(_limits())
    return "\n\n".join(sections) + "\n"


def _head(source: str) -> str:
    return (
        "# Performance\n\n"
        f"Made by `benchmarks/report.py` from `benchmarks/results/{source}`; not edited by hand.\n"
        "`make bench` measures anew and writes this page. Figures are medians; what stands in\n"
        "brackets is the 95 % interval of the median."
    )


def _bars(results: Results) -> str:
    return (
        "## Bars\n\n"
        + bars_table(verdicts(results))
        + "\n\nThe median decides. Where the control of the same run misses the limit as well, the "
        'outcome is\n"noise", whatever was measured.'
    )


def _machine(results: Results) -> str:
    machine = results["machine"]
    virtual = ", a virtual machine" if machine["virtual"] else ""
    rows = [
        (
            "processor",
            f"{machine['cpu']} (family {machine['cpu_family']}, "
            f"model {machine['cpu_model_number']}), {machine['cores']} cores{virtual}",
        ),
        ("memory", f"{machine['memory_bytes'] / 2**30:.0f} GiB"),
        ("system", f"{machine['os']}, {machine['kernel']}, {machine['libc']}"),
        ("Python", f"{machine['python']}, numpy {machine['numpy']}"),
        ("torch", f"{machine['torch']}, transformers {machine['transformers']}, one thread"),
        ("pertoken", f"{machine['pertoken']}, {machine['compiler']}, {machine['build_type']}"),
        (
            "clock",
            f"{machine['clock_source']}, {machine['clock_ticks_per_second'] / 1e9:.3f} GHz",
        ),
        (
            "run",
            f"{results['finished'][:10]}, {results['duration_s'] / 60:.0f} min, "
            f"load {results['load_before']:.1f} before it, "
            f"{results['stolen_share'] * 100:.1f} % of the time given to other machines",
        ),
    ]
    renewed = [f"{name} ({when[:16]})" for name, when in results.get("renewed", {}).items()]
    if renewed:
        rows.append(("measured again since", ", ".join(renewed)))
    return "## Machine\n\n" + table(("", ""), rows)


def _method(decode: dict[str, Any]) -> str:
    return (
        "## Method\n\n"
        "What is compared is interleaved, in random order. One torch thread; no garbage\n"
        "collection in what is timed. Medians are quoted, their intervals by order statistics.\n"
        '"nothing again" is compared as if it were something: its distance from 0 is the noise.\n\n'
        "In the decode a recording and nothing take turns of "
        f"{decode['turn_steps']} steps within one text.\n"
        "The first step of a turn pays for the switch and does not count; a turn of each makes a\n"
        "pair. The wrappers in the modules leave and enter outside what is timed. Those round\n"
        "`generate()` and its commits stay, and hand calls on: what the note of a commit costs\n"
        "stands under [One call](#one-call). What the drain thread takes of a processor, though\n"
        "of another one, counts as if each recorded step had waited for its part.\n\n"
        "Elsewhere a round holds a block of each variant, and each block is compared with the\n"
        "mean of the two that do nothing in its own round. A block warms up before its first\n"
        "timed step; starting and stopping a recording is not timed. What the drain thread has to\n"
        "do for a block is done at its end, in the model's thread, and is part of the steps. The\n"
        "mean step of a block counts.\n\n"
        f"The model of the decode is a Llama of 4 layers x 256, {decode['modules']} modules and\n"
        f"{decode['parameters'] / 1e6:.1f} M parameters, with random weights, at batch 1: "
        "as small a\nstep, and so as large a relative overhead, as anybody is likely to meet. "
        f"{decode['texts']} texts\nof {decode['pairs_a_text']} pairs for each variant."
    )


def _decode(decode: dict[str, Any]) -> str:
    text = "## A decode step"
    for way, title in _WAYS.items():
        result = decode["ways"][way]
        calls = result["calls_a_step"]
        rows = []
        for name, variant in result["variants"].items():
            added = {key: value / calls for key, value in variant["added_ns"].items()}
            rows.append(
                (
                    name,
                    ns_text(variant["step_ns"]["median"]),
                    estimate_text(variant["ratio"], percent_text),
                    estimate_text(variant["added_in_step_ns"], ns_text),
                    ns_text(variant["drained_ns"]["median"]),
                    ns_text(added["median"]),
                )
            )
        columns = (
            "variant",
            "step",
            "added to the step, all in",
            "of it in the step itself",
            "drained behind it",
            f"a module call ({calls} a step)",
        )
        text += f"\n\n### {title}\n\n" + table(columns, rows)
    return (
        f"{text}\n\n"
        '"A module call" divides what is added, all in, by the module calls of a step, recorded\n'
        "or not."
    )


def _calls(cost: dict[str, Any], instructions: dict[str, Any]) -> str:
    rows = []
    for name, title in _CALLS.items():
        bare, wrapped = cost[name]["nothing"], cost[name]["pertoken"]
        rows.append(
            (
                title,
                ns_text(bare["step_ns"]["median"]),
                ns_text(wrapped["step_ns"]["median"]),
                estimate_text(wrapped["added_ns"], ns_text),
            )
        )
    text = (
        "## One call\n\n"
        "Modules that compute nothing, called in a row, so that caches are hot; bare and wrapped\n"
        "interleaved.\n\n" + table(("call", "bare", "wrapped", "added"), rows)
    )
    if "missing" in instructions:
        return f"{text}\n\nInstructions were not counted: {instructions['missing']}."
    return (
        f"{text}\n\n"
        "Instructions that the wrapper adds to a call, by valgrind: "
        f"{instructions['added_by_wrapper']:.0f} while recording,\n"
        f"{instructions['added_by_inactive_wrapper']:.0f} when the recording has stopped and a "
        "caller still holds the wrapper."
    )


def _native(native: dict[str, Any]) -> str:
    rows = [
        (
            _OPERATIONS[name],
            estimate_text(operation["ns"], ns_text),
            estimate_text(operation["ratio"], factor_text),
        )
        for name, operation in native["operations"].items()
    ]
    rate = estimate_text(native["drained_records_a_second"], rate_text)
    return (
        "## The native core\n\n"
        + table(("operation", "time", "against the clock read"), rows)
        + f"\n\nThe collector takes in records at {rate}. Pushes refused in the run: "
        f"{native['dropped']}."
    )


def _store(store: dict[str, Any], stop: dict[str, Any]) -> str:
    grown = store["process_growth_bytes"] / store["spans"]
    rows = [
        (
            f"store, {store['spans']:,} spans of {store['steps']:,} steps",
            f"{bytes_text(store['bytes_a_span'])} a span, steps included",
        ),
        ("growth of the process meanwhile", f"{bytes_text(grown)} a span, with the ring"),
        (f"`stop()` after {stop['spans']:,} spans", _with_worst(stop["stop_ns"])),
        ("`result()` after it, draining included", _with_worst(stop["result_ns"])),
    ]
    return "## A million spans\n\n" + table(("what", "measured"), rows)


def _export(export: dict[str, Any]) -> str:
    rows = []
    for name, title in _WRITERS.items():
        writer = export["writers"][name]
        rows.append(
            (
                title,
                f"{writer['events']:,}",
                f"{writer['file_bytes'] / 1e6:.0f} MB",
                estimate_text(writer["events_a_second"], rate_text),
            )
        )
    growth = export["peak_growth_bytes"]
    if None in growth.values():
        memory = "The memory of an export could not be measured here."
    else:
        memory = (
            f"The process's peak memory rises by {growth['small'] / 1e6:.1f} MB while\n"
            f"{export['spans']['small']:,} spans are exported, and by another "
            f"{growth['large'] / 1e6:.1f} MB for {export['spans']['large']:,}."
        )
    return (
        "## Chrome export\n\n"
        + table(("writer", "events", "file", "events a second"), rows)
        + "\n\nEvents a second of pertoken's `.json`, to those of torch.profiler's in the same "
        f"turn: {estimate_text(export['times_torch'], factor_text)}.\n{memory}"
    )


def _micro(micro: dict[str, Any]) -> str:
    rows = [
        (
            benchmark["group"],
            name,
            f"{ns_text(benchmark['median_ns'])} "
            f"({ns_text(benchmark['q1_ns'])} to {ns_text(benchmark['q3_ns'])})",
        )
        for name, benchmark in micro.items()
    ]
    return (
        "## Public operations\n\n"
        "By pytest-benchmark, one after the other, not interleaved; in brackets the quartiles.\n\n"
        + table(("group", "operation", "time"), rows)
    )


def _limits() -> str:
    return (
        "## What these figures do not say\n\n"
        "- They are of one machine and one run; on another processor they are others.\n"
        "- The decode is on the CPU, with one torch thread. With several, steps vary by far more\n"
        "  than what is to be measured.\n"
        '- An overhead below the distance of "nothing again" from 0 is not told from none.\n'
        "- The collector's thread may run on another core than the model. Where there is none,\n"
        "  its time for each record (see the native core) is the model's.\n"
        "- The store was below its limit in all but the collector's own benchmark and the long\n"
        "  runs: evicting old steps is not part of the decode.\n"
        "- The two exports write different events: pertoken's are module calls and steps,\n"
        "  torch.profiler's are operators, with longer arguments."
    )


def _with_worst(estimate: Estimate) -> str:
    count = int(estimate["count"])
    return f"{ns_text(estimate['median'])}, at worst {ns_text(estimate['worst'])} of {count}"


# What of the results each section of the page is made of, in the order of the page.
_SECTIONS: tuple[tuple[tuple[str, ...], Callable[..., str]], ...] = (
    (("decode_overhead",), _method),
    (("decode_overhead",), _decode),
    (("peers",), peers_report.section),
    (("call_cost", "instruction_counts"), _calls),
    (("native_micro",), _native),
    (("store_memory", "stop_latency"), _store),
    (("long_run",), long_run_report.section),
    (("compiled_layers",), compiled_report.section),
    (("totals_snapshot",), totals_report.section),
    (("tensor_stats",), tensor_report.section),
    (("activations",), activation_report.section),
    (("logit_pass",), logit_report.section),
    (("sampler_budget",), budget_report.section),
    (("export_speed",), _export),
    (("micro",), _micro),
)


def _load(path: Path) -> Results:
    results: Results = json.loads(path.read_text())
    return results


def main() -> None:
    """Writes the page, and the picture on it."""
    source = newest_results()
    results = _load(source)
    PAGE.write_text(render(results, source.name, newest_gpu_results()))
    peers = results["benchmarks"].get("peers")
    if peers is None:
        PICTURE.unlink(missing_ok=True)
    else:
        PICTURE.write_text(peers_report.picture(peers))
    print(f"Written: {PAGE}, from {source.name}")


if __name__ == "__main__":
    main()
