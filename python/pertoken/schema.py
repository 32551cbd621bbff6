"""The tables of a profile: which columns each has, their types, units and absent values.

Read by whatever builds, checks, saves or documents a `Profile`. Times are int64 nanoseconds since
the profile's origin. A *coded* column holds int32 codes into the profile's one string table; code
-1 decodes to the empty string. Absent integers are -1.
"""

from __future__ import annotations

from dataclasses import dataclass

FORMAT_VERSION = 1

STEP_KINDS = ("prefill", "decode", "verify", "draft", "mixed", "other")
SPAN_CATEGORIES = ("module", "region", "generate")
LABEL_PREFIX = "label."


@dataclass(frozen=True)
class Column:
    """One column: its numpy dtype, whether it holds string codes, and what it means."""

    name: str
    dtype: str
    meaning: str
    coded: bool = False


def _coded(name: str, meaning: str) -> Column:
    return Column(name, "int32", meaning, coded=True)


TABLES: dict[str, tuple[Column, ...]] = {
    "requests": (
        Column("request", "int64", "id of the request, stable"),
        _coded("id", "the caller's own id, empty when none was given"),
        _coded("model_version", "the caller's model version, empty when none was given"),
        Column("start_ns", "int64", "entry of generate() or of pertoken.request()"),
        Column("end_ns", "int64", "its exit; -1 while it runs"),
        Column("ttft_ns", "int64", "from the entry to the first commit; -1 if nothing was"),
        Column("rows", "int64", "sequences it returned or is running; -1 unknown"),
        Column("tokens_in", "int64", "prompt tokens over all rows, padding excluded; -1 unknown"),
        Column("tokens_out", "int64", "tokens committed over all rows; -1 unknown"),
        _coded("error", "type of the exception that ended it, empty when none did"),
    ),
    "steps": (
        Column("step", "int64", "number of the step in the recording, stable"),
        Column("request", "int64", "the request it served; -1 when none or several"),
        _coded("kind", "prefill, decode, verify, draft, mixed or other"),
        Column("start_ns", "int64", "entry of the root's forward"),
        Column("wall_ns", "int64", "its duration on the host; -1 while it runs"),
        Column("gpu_ns", "int64", "its duration on the device; -1 when not measured"),
        Column("rows", "int64", "rows of the batch; -1 unknown"),
        Column("tokens_in", "int64", "positions fed to the model, padding included; -1 unknown"),
        Column("tokens_committed", "int64", "tokens committed at its end, all rows; -1 unknown"),
        Column("context_len", "int64", "longest row's valid tokens before the step; -1 unknown"),
        _coded("detail", "what was recorded inside it: root, layers, all or custom"),
        Column("sample_weight", "float64", "1 / the probability that it was recorded"),
        Column("thread", "int32", "the track it ran on (see tracks)"),
        _coded("error", "'exception' when the forward raised, else empty"),
    ),
    "step_rows": (
        Column("step", "int64", "the step"),
        Column("row", "int32", "the row in the step's batch"),
        Column("request", "int64", "the request of this row; -1 none"),
        _coded("phase", "what the row did in the step, in the words of steps.kind"),
        Column("query_len", "int64", "valid tokens fed for this row, padding excluded; -1 unknown"),
        Column("context_len", "int64", "valid tokens of this row before the step; -1 unknown"),
        Column("committed", "int64", "tokens committed to this row at the step's end; -1 unknown"),
    ),
    "tokens": (
        Column("step", "int64", "the step that produced it"),
        Column("row", "int32", "the row (of the returned batch, for a beam search)"),
        Column("request", "int64", "the request; -1 none"),
        Column("position", "int64", "its index among the tokens of its sequence, from 0"),
        Column("commit_ns", "int64", "when it was committed: the end of the step"),
        Column("itl_ns", "int64", "since the commit before it in its sequence; -1 for the first"),
    ),
    "spans": (
        Column("span", "int64", "id of the span, stable"),
        Column("parent", "int64", "the span that encloses it; -1 none"),
        Column("step", "int64", "the step it ran in; -1 outside any"),
        _coded("site", "module name, or the name of the region"),
        _coded("category", "module, region (user) or generate (inside generate, outside forward)"),
        Column("track", "int32", "the thread it ran on (see tracks)"),
        Column("start_ns", "int64", "when it began"),
        Column("dur_ns", "int64", "how long it took"),
        Column("device", "int32", "-1 the host, else the index of the GPU"),
    ),
    "tracks": (
        Column("track", "int32", "number of the track"),
        Column("pid", "int64", "process id"),
        Column("tid", "int64", "the system's thread id"),
        _coded("name", "name of the thread"),
    ),
}
