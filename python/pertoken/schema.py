"""The tables of a profile: which columns each has, their types, units and absent values.

Read by whatever builds, checks, saves or documents a `Profile`. Times are int64 nanoseconds since
the profile's origin. A *coded* column holds int32 codes into the profile's one string table; code
-1 decodes to the empty string. Absent integers are -1.

What a merge needs to know of a column stands here, too: whether it holds ids, and of what, and
whether it holds moments or durations. A column that says nothing is merged as it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

FORMAT_VERSION = 3

STEP_KINDS = ("prefill", "decode", "verify", "draft", "mixed", "other")
SIGNALS = ("top1_prob", "margin", "entropy", "logprob")  # what logits say of a token
SPAN_CATEGORIES = ("module", "region", "generate")
CLOCK_BASES = ("boot", "synchronized", "unix")
LABEL_PREFIX = "label."
# In a merged profile, the bits of an id that are the process's own; those above are its number.
ID_BITS = 44


@dataclass(frozen=True)
class Column:
    """One column: its numpy dtype, whether it holds string codes, and what it means.

    `ids_of` names what the column's integers are ids of: request, step, span, observation, track or
    process.
    `moment` marks a time on the profile's axis. `begins_at` and `ends_at` mark a duration and name
    the moment of the same row at which it begins or ends; a duration with neither was measured by
    another clock. `optional` says that -1 stands for an absent moment. `since` is the format
    version that brought the column, `before` the value that it has in files of older ones.
    """

    name: str
    dtype: str
    meaning: str
    coded: bool = False
    ids_of: str = ""
    moment: bool = False
    optional: bool = False
    begins_at: str = ""
    ends_at: str = ""
    since: int = 1
    before: float = -1


def _coded(name: str, meaning: str, since: int = 1) -> Column:
    return Column(name, "int32", meaning, coded=True, since=since)


def _id(name: str, of: str, meaning: str, since: int = 1) -> Column:
    return Column(name, "int64", meaning, ids_of=of, since=since)


def _track(name: str, meaning: str) -> Column:
    return Column(name, "int32", meaning, ids_of="track")


def _moment(name: str, meaning: str, *, optional: bool = False) -> Column:
    return Column(name, "int64", meaning, moment=True, optional=optional)


def _signal(name: str, meaning: str) -> Column:
    return Column(name, "float32", meaning, since=3, before=math.nan)


def _process() -> Column:
    return Column(
        "process",
        "int32",
        "the process that recorded it (see processes)",
        ids_of="process",
        since=2,
        before=0,
    )


TABLES: dict[str, tuple[Column, ...]] = {
    "requests": (
        _id("request", "request", "id of the request, stable"),
        _coded("id", "the caller's own id, empty when none was given"),
        _coded("model_version", "the caller's model version, empty when none was given"),
        _moment("start_ns", "entry of generate() or of pertoken.request()"),
        _moment("end_ns", "its exit; -1 while it runs", optional=True),
        Column(
            "ttft_ns",
            "int64",
            "from the entry to the first commit; -1 if nothing was",
            begins_at="start_ns",
        ),
        Column("rows", "int64", "sequences it returned or is running; -1 unknown"),
        Column("tokens_in", "int64", "prompt tokens over all rows, padding excluded; -1 unknown"),
        Column("tokens_out", "int64", "tokens committed over all rows; -1 unknown"),
        Column(
            "output_len",
            "int64",
            "tokens committed to its longest row, those of several generate() one after the other; "
            "-1 unknown, or of a beam search",
            since=2,
        ),
        _coded("error", "type of the exception that ended it, empty when none did"),
        _process(),
    ),
    "steps": (
        _id("step", "step", "number of the step in the recording, stable"),
        _id("request", "request", "the request it served; -1 when none or several"),
        _coded("kind", "prefill, decode, verify, draft, mixed or other"),
        _moment("start_ns", "entry of the root's forward"),
        Column(
            "wall_ns",
            "int64",
            "its duration on the host; -1 while it runs",
            begins_at="start_ns",
        ),
        Column("gpu_ns", "int64", "its duration on the device; -1 when not measured"),
        Column(
            "launch_lag_ns",
            "int64",
            "from its start on the host until the device came to it; -1 when not measured",
            begins_at="start_ns",
            since=3,
        ),
        Column(
            "gpu_idle_ns",
            "int64",
            "of gpu_ns, at most so much the device waited for the host; -1 when not measured",
            since=3,
        ),
        Column("rows", "int64", "rows of the batch; -1 unknown"),
        Column("tokens_in", "int64", "positions fed to the model, padding included; -1 unknown"),
        Column("tokens_committed", "int64", "tokens committed at its end, all rows; -1 unknown"),
        Column("context_len", "int64", "longest row's valid tokens before the step; -1 unknown"),
        _coded("detail", "what was recorded inside it: root, layers, all or custom"),
        Column(
            "sample_weight",
            "float64",
            "1 / the probability of its detail, the weight of its spans; 0 without detail",
        ),
        _track("thread", "the track it ran on (see tracks)"),
        Column(
            "observe_ns",
            "int64",
            "of its wall_ns, what observing took; 0 of most",
            since=3,
            before=0,
        ),
        _coded("error", "'exception' when the forward raised, else empty"),
        _process(),
    ),
    "step_rows": (
        _id("step", "step", "the step"),
        Column("row", "int32", "the row in the step's batch"),
        _id("request", "request", "the request of this row; -1 none"),
        _coded("phase", "what the row did in the step, in the words of steps.kind"),
        Column("query_len", "int64", "valid tokens fed for this row, padding excluded; -1 unknown"),
        Column("context_len", "int64", "valid tokens of this row before the step; -1 unknown"),
        Column("committed", "int64", "tokens committed to this row at the step's end; -1 unknown"),
    ),
    "tokens": (
        _id("step", "step", "the step that produced it"),
        Column("row", "int32", "the row (of the returned batch, for a beam search)"),
        _id("request", "request", "the request; -1 none"),
        Column("position", "int64", "its index among the tokens of its sequence, from 0"),
        _moment("commit_ns", "when it was committed: the end of the step"),
        Column(
            "itl_ns",
            "int64",
            "since the commit before it in its sequence; -1 for the first",
            ends_at="commit_ns",
        ),
        _signal("top1_prob", "probability of the most probable token; NaN where it was not read"),
        _signal("margin", "top1_prob, less the probability of the second; NaN likewise"),
        _signal("entropy", "of the distribution of the token, in nats; NaN likewise"),
        _signal("logprob", "natural log of its own probability; NaN likewise, or unknown"),
        _signal(
            "logits_weight",
            "1 / the probability that its step's logits were read; NaN where they were not",
        ),
    ),
    "spans": (
        _id("span", "span", "id of the span, stable"),
        _id("parent", "span", "the span that encloses it; -1 none"),
        _id("step", "step", "the step it ran in; -1 outside any"),
        _coded("site", "module name, or the name of the region"),
        _coded("category", "module, region (user) or generate (inside generate, outside forward)"),
        _track("track", "the thread it ran on, or the stream of a device (see tracks)"),
        _moment("start_ns", "when it began"),
        Column("dur_ns", "int64", "how long it took", begins_at="start_ns"),
        Column("device", "int32", "-1 the host, else the index of the GPU"),
    ),
    "activations": (
        _id("observation", "observation", "id of the observation, stable", since=3),
        _id("step", "step", "the step it was made in; -1 outside any", since=3),
        Column("row", "int32", "the row of the step's batch; -1 all rows", since=3),
        _coded("site", "module name, or the name given to observe()", since=3),
        _coded("dtype", "what the values were: float32, bfloat16, ...", since=3),
        Column("scale", "int32", "of its buckets: base = 2^(2^-scale)", since=3),
        Column("count", "int64", "finite values, zeros included", since=3),
        Column("zeros", "int64", "values equal to 0", since=3),
        Column("nans", "int64", "values that are not a number", since=3),
        Column("pos_infs", "int64", "values of plus infinity", since=3),
        Column("neg_infs", "int64", "values of minus infinity", since=3),
        Column("min", "float64", "the least finite value; NaN of none", since=3),
        Column("max", "float64", "the greatest finite value; NaN of none", since=3),
        Column("sum", "float64", "sum of the finite values", since=3),
        Column("sum_sq", "float64", "sum of their squares", since=3),
        Column("weight", "float64", "1 / the probability that its step was observed", since=3),
    ),
    "activation_buckets": (
        _id("observation", "observation", "the observation", since=3),
        Column("sign", "int32", "1: of values above 0; -1: below", since=3),
        Column("index", "int32", "i: sizes in (base^i, base^(i+1)]", since=3),
        Column("count", "int64", "values in it, at least 1", since=3),
    ),
    "tracks": (
        _track("track", "number of the track"),
        Column("pid", "int64", "process id"),
        Column("tid", "int64", "of a thread the system's, of a stream the driver's, or see name"),
        _coded("name", "of the thread or stream; `graph branch n`: tid is 2^32 + n"),
        _process(),
    ),
    "processes": (
        Column("process", "int32", "number of the process", ids_of="process", since=2),
        _coded("host", "name of its host", since=2),
        Column("pid", "int64", "process id", since=2),
        Column("rank", "int64", "its rank in the process group; -1 unknown", since=2),
        Column("local_rank", "int64", "its rank among those of its host; -1 unknown", since=2),
        Column("world_size", "int64", "ranks in the process group; -1 unknown", since=2),
        _coded("device", "device of its model's first parameter", since=2),
        Column("start_ns", "int64", "when its recording began", moment=True, since=2),
        Column("end_ns", "int64", "when it stopped, or its result was taken", moment=True, since=2),
        _coded(
            "clock_basis", "what joins its clock to the axis: boot, synchronized, unix", since=2
        ),
        Column(
            "clock_offset_ns", "int64", "added to its boot clock to give that of the axis", since=2
        ),
        Column("clock_drift", "float64", "its times were stretched by 1 + this", since=2),
        Column("clock_error_ns", "int64", "bound of its times' error; -1 unknown", since=2),
    ),
}


def tables_of(format_version: int) -> dict[str, tuple[Column, ...]]:
    """The tables and columns of files of a format version: those that were there by then."""
    columns = {
        name: tuple(column for column in declared if column.since <= format_version)
        for name, declared in TABLES.items()
    }
    return {name: present for name, present in columns.items() if present}
