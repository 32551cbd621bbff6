"""A made-up but consistent profile, for tests of everything that reads one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pertoken import schema
from pertoken.processes import own_process
from pertoken.result import Profile
from pertoken.strings import StringTable

EXOTIC_NAMES = (
    'quo"ted',
    "back\\slash",
    "emoji \U0001f680",
    "control \x01\x1f\x7f\n\r\t",
    "</script><b>&amp;'",
    "line\u2028separator",
)


class _Columns:
    """Rows gathered table by table, strings numbered as they come."""

    def __init__(self) -> None:
        self.strings: dict[str, int] = {}
        self.rows: dict[str, list[dict[str, Any]]] = {name: [] for name in schema.TABLES}

    def add(self, table: str, **values: Any) -> dict[str, Any]:
        for column in schema.TABLES[table]:
            if column.coded:
                values[column.name] = self.code(values[column.name])
        self.rows[table].append(values)
        return values

    def code(self, text: str) -> int:
        return self.strings.setdefault(text, len(self.strings)) if text else -1

    def arrays(self) -> dict[str, dict[str, Any]]:
        result = {}
        for name, columns in schema.TABLES.items():
            result[name] = {
                c.name: np.array([row[c.name] for row in self.rows[name]], dtype=c.dtype)
                for c in columns
            }
        return result


class _Thread:
    """One thread's time and the spans that are open on it."""

    def __init__(self, columns: _Columns, rng: np.random.Generator) -> None:
        self.columns = columns
        self.rng = rng
        self.now_ns = 1_000_000
        self.stack = [-1]

    def wait(self, low_ns: int, high_ns: int) -> None:
        self.now_ns += int(self.rng.integers(low_ns, high_ns))

    def open(self, site: str, category: str, step: int) -> dict[str, Any]:
        spans = self.columns.rows["spans"]
        span = self.columns.add(
            "spans",
            span=len(spans),
            parent=self.stack[-1],
            step=step,
            site=site,
            category=category,
            track=0,
            start_ns=self.now_ns,
            dur_ns=-1,
            device=-1,
        )
        self.stack.append(span["span"])
        return span

    def close(self, span: dict[str, Any]) -> None:
        self.stack.pop()
        span["dur_ns"] = self.now_ns - span["start_ns"]

    def leaf(self, site: str, category: str, step: int, low_ns: int, high_ns: int) -> None:
        span = self.open(site, category, step)
        self.wait(low_ns, high_ns)
        self.close(span)


def synthetic_profile(
    requests: int = 2,
    tokens: int = 8,
    layers: int = 3,
    seed: int = 0,
    *,
    rows: int = 1,
    exotic_names: bool = False,
    root_span: bool = False,
    regions: bool = True,
    slow: Mapping[tuple[int, str], int] | None = None,
    meta: Mapping[str, Any] | None = None,
    losses: Mapping[str, Any] | None = None,
) -> Profile:
    """Build a profile of `requests` calls of generate(), one after the other on one thread.

    Each commits `tokens` tokens to each of `rows` sequences: a prefill step, then decode steps.
    Every step holds spans for the embedding, `layers` layers with two children each, and the head;
    a span of category 'generate' (step -1) fills the time between two steps. Spans nest, times only
    grow, and tokens, step_rows and steps agree.

    Args:
        requests: how many requests.
        tokens: tokens committed to each sequence, at least 1.
        layers: layers of the model.
        seed: of the random durations.
        rows: sequences of each request.
        exotic_names: name the layers by `EXOTIC_NAMES` (quotes, control characters, emoji).
        root_span: give the root module a span of its own, with an empty site.
        regions: enclose each request in a user region named 'answer' (step -1).
        slow: nanoseconds to add inside a site's own time, by (step, site).
        meta: replaces or adds keys of meta.
        losses: replaces or adds keys of losses.
    """
    columns = _Columns()
    for text in ("host.example", "cpu", "boot"):  # of the table of processes
        columns.code(text)
    thread = _Thread(columns, np.random.default_rng(seed))
    columns.add("tracks", track=0, pid=4242, tid=4243, name="MainThread", process=0)
    names = [f"model.layers.{i}" for i in range(layers)]
    if exotic_names:
        names = [f"model.{EXOTIC_NAMES[i % len(EXOTIC_NAMES)]}.{i}" for i in range(layers)]
    extra = dict(slow or {})
    prompt = 5

    for request in range(requests):
        thread.wait(100_000, 200_000)
        region = thread.open("answer", "region", -1) if regions else None
        start_ns = thread.now_ns
        ttft_ns = -1
        previous_ns: int | None = None
        thread.leaf("generate", "generate", -1, 20_000, 30_000)
        for index in range(tokens):
            step = len(columns.rows["steps"])
            kind = "prefill" if index == 0 else "decode"
            fed = prompt if index == 0 else 1
            context = 0 if index == 0 else prompt + index - 1
            step_start_ns = thread.now_ns
            _forward(thread, step, names, kind, root_span, extra)
            commit_ns = thread.now_ns
            columns.add(
                "steps",
                step=step,
                request=request,
                kind=kind,
                start_ns=step_start_ns,
                wall_ns=commit_ns - step_start_ns,
                gpu_ns=-1,
                launch_lag_ns=-1,
                gpu_idle_ns=-1,
                rows=rows,
                tokens_in=fed * rows,
                tokens_committed=rows,
                context_len=context,
                detail="layers",
                sample_weight=1.0,
                thread=0,
                observe_ns=0,
                error="",
                process=0,
            )
            ttft_ns = commit_ns - start_ns if index == 0 else ttft_ns
            for site in names:
                _observe(columns, step, site)
            for row in range(rows):
                columns.add(
                    "step_rows",
                    step=step,
                    row=row,
                    request=request,
                    phase=kind,
                    query_len=fed,
                    context_len=context,
                    committed=1,
                )
                columns.add(
                    "tokens",
                    step=step,
                    row=row,
                    request=request,
                    position=index,
                    commit_ns=commit_ns,
                    itl_ns=-1 if previous_ns is None else commit_ns - previous_ns,
                    top1_prob=0.5,
                    margin=0.25,
                    entropy=1.5,
                    logprob=-0.75,
                    logits_weight=1.0,
                )
            previous_ns = commit_ns
            gap = thread.open("generate", "generate", -1)
            thread.wait(20_000, 30_000)
            thread.now_ns += extra.get((step + 1, "generate"), 0)
            thread.close(gap)
        columns.add(
            "requests",
            request=request,
            id=f"request-{request}",
            model_version="",
            start_ns=start_ns,
            end_ns=thread.now_ns,
            ttft_ns=ttft_ns,
            rows=rows,
            tokens_in=prompt * rows,
            tokens_out=tokens * rows,
            output_len=tokens,
            error="",
            process=0,
        )
        if region is not None:
            thread.close(region)

    meta = {**synthetic_meta(thread.now_ns), **(meta or {})}
    losses = {**synthetic_losses(), **(losses or {})}
    strings = StringTable(columns.strings)
    arrays = {**columns.arrays(), "processes": own_process(meta, losses, strings)}
    return Profile.from_columns(arrays, strings.strings, meta, losses)


def _observe(columns: _Columns, step: int, site: str) -> None:
    observation = len(columns.rows["activations"])
    for sign, index, count in ((1, -3, 4), (1, 2, 1), (-1, 0, 2)):
        columns.add(
            "activation_buckets", observation=observation, sign=sign, index=index, count=count
        )
    columns.add(
        "activations",
        observation=observation,
        step=step,
        row=-1,
        site=site,
        dtype="float32",
        scale=3,
        count=8,
        zeros=1,
        nans=0,
        pos_infs=0,
        neg_infs=0,
        min=-1.05,
        max=1.25,
        sum=2.5,
        sum_sq=7.0,
        weight=1.0 if step == 0 else 16.0,
    )


def _forward(
    thread: _Thread,
    step: int,
    names: list[str],
    kind: str,
    root_span: bool,
    extra: Mapping[tuple[int, str], int],
) -> None:
    scale = 4 if kind == "prefill" else 1

    def leaf(site: str, low_ns: int, high_ns: int) -> None:
        added_ns = extra.get((step, site), 0)
        thread.leaf(site, "module", step, low_ns * scale + added_ns, high_ns * scale + added_ns)

    root = thread.open("", "module", step) if root_span else None
    thread.wait(1_000, 3_000)
    leaf("model.embed_tokens", 3_000, 5_000)
    for name in names:
        layer = thread.open(name, "module", step)
        thread.wait(500, 1_500)
        leaf(f"{name}.self_attn", 30_000, 50_000)
        leaf(f"{name}.mlp", 40_000, 60_000)
        thread.now_ns += extra.get((step, name), 0)
        thread.close(layer)
    leaf("lm_head", 10_000, 20_000)
    thread.wait(500, 1_500)
    if root is not None:
        thread.close(root)


def synthetic_meta(duration_ns: int = 1_000_000) -> dict[str, Any]:
    """Make the metadata of a made-up recording."""
    return {
        "format_version": schema.FORMAT_VERSION,
        "pertoken_version": "0.1.0",
        "host": "host.example",
        "pid": 4242,
        "rank": None,
        "local_rank": None,
        "world_size": None,
        "device": "cpu",
        "command": "python serve.py",
        "python": "3.11.0",
        "torch": "2.13.0",
        "transformers": None,
        "platform": "Linux-x86_64",
        "boot_origin_ns": 123_000_000_000,
        "unix_origin_ns": 1_700_000_000_000_000_000,
        "duration_ns": duration_ns,
        "clock": {
            "source": "tsc",
            "ticks_per_second": 2.1e9,
            "error_bound_ns": 40,
            "boot_id": "0b0d7a5e-0000-4000-8000-000000000000",
            "synchronized": [],
        },
        "model": {"class": "TinyForCausalLM", "parameters": 1_234_567, "modules": 59},
        "modules": "layers",
        "build": {"compiler": "g++ 12"},
        "cost": {"span_ns": 60},
    }


def synthetic_losses() -> dict[str, Any]:
    """Make the losses of a recording that lost nothing."""
    return {
        "records_dropped": 0,
        "spans_evicted": 0,
        "steps_evicted": 0,
        "requests_evicted": 0,
        "observations_evicted": 0,
        "observations_skipped": {},
        "clock_error_ns": 40,
        "faults": {},
        "inlined_modules": [],
        "reasons": [],
    }


def columns_of(profile: Profile) -> dict[str, dict[str, Any]]:
    """Copy a profile's columns, coded ones as codes; ready to change and build again."""
    return {
        name: {c: np.array(t.codes(c) if c in t.coded else t[c]) for c in t.columns}
        for name, t in profile.tables.items()
    }


def with_columns(profile: Profile, table: str, **replaced: Any) -> Profile:
    """Build the profile again with some columns of one table replaced.

    Values may be lists; those of coded columns may be texts. Labels are given as ``label__name``.
    """
    columns = columns_of(profile)
    strings = list(profile.requests.strings)
    for key, values in replaced.items():
        column = key.replace("label__", "label.")
        coded = column in profile.tables[table].coded or column.startswith("label.")
        if coded and len(values) and isinstance(values[0], str):
            for text in values:
                if text and text not in strings:
                    strings.append(text)
            values = [strings.index(text) if text else -1 for text in values]
        dtype = "int32" if coded else columns[table][column].dtype
        columns[table][column] = np.array(values, dtype=dtype)
    return Profile.from_columns(columns, strings, profile.meta, profile.losses)
