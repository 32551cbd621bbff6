"""Totals as plain data, and back. Reading trusts nothing: it may come from another process."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import partial
from typing import Any, TypeVar

import numpy as np

from pertoken.errors import HistogramError, TotalsError
from pertoken.histogram import Histogram, from_parts
from pertoken.histogram_exchange import Buckets, HistogramParts
from pertoken.schema import SIGNALS, SPAN_CATEGORIES, STEP_KINDS
from pertoken.totals import (
    OUTSIDE,
    ActivationTotals,
    RequestTotals,
    SignalKey,
    SignalTotals,
    SiteKey,
    SiteTotals,
    StepTotals,
    Totals,
)

T = TypeVar("T")
K = TypeVar("K", SiteKey, SignalKey)

_KNOWN: dict[type, dict[str, tuple[str, ...]]] = {
    SiteKey: {"kind": (*STEP_KINDS, OUTSIDE), "category": (*SPAN_CATEGORIES, "")},
    SignalKey: {"kind": STEP_KINDS, "signal": SIGNALS},
}

# What totals of older versions do not have.
_ADDED_LATER: dict[str, Any] = {"activations": [], "logits": []}
_LARGEST_COUNT = (1 << 64) - 1
_LARGEST_OFFSET = 1 << 30
_MOMENTS = ("sum", "sum_sq", "min", "max")
_NOT_FINITE = ("nans", "pos_infs", "neg_infs")
_NO_REST: dict[str, Any] = {
    **dict.fromkeys(_NOT_FINITE, 0),
    "negative_offset": 0,
    "negative_bucket_counts": [],
}


def totals_to_dict(totals: Totals) -> dict[str, Any]:
    """Plain data for JSON; see `Totals.to_dict`."""
    return {
        "recordings": totals.recordings,
        "recorded_ns": totals.recorded_ns,
        "steps": {kind: _fields_of(steps) for kind, steps in totals.steps.items()},
        "sites": _entries_of(totals.sites),
        "activations": _entries_of(totals.activations),
        "logits": _entries_of(totals.logits),
        "requests": [
            {"labels": dict(labels), **_fields_of(requests)}
            for labels, requests in totals.requests.items()
        ],
        "losses": dict(totals.losses),
    }


def totals_from_dict(data: object) -> Totals:
    """Totals from plain data; see `Totals.from_dict`."""
    if isinstance(data, Mapping):
        data = {**_ADDED_LATER, **data}
    content = _mapping(data, "totals", tuple(field.name for field in fields(Totals)))
    requests = {}
    for entry in _list(content["requests"], "requests"):
        names, values = _split(entry, "an entry of requests", ("labels",))
        labels = _mapping(names["labels"], "requests.labels")
        label_set = tuple(
            sorted((_text(name, "labels"), _text(labels[name], "labels")) for name in labels)
        )
        requests[label_set] = _object_of(RequestTotals, values, "requests")
    return Totals(
        recordings=_count(content["recordings"], "recordings"),
        recorded_ns=_count(content["recorded_ns"], "recorded_ns"),
        steps=_by_kind(content["steps"], "steps", _step_totals),
        sites=_by_key(content["sites"], "sites", SiteKey, SiteTotals),
        activations=_by_key(content["activations"], "activations", SiteKey, ActivationTotals),
        logits=_by_key(content["logits"], "logits", SignalKey, SignalTotals),
        requests=requests,
        losses={
            _text(name, "losses"): _count(count, "losses")
            for name, count in _mapping(content["losses"], "losses").items()
        },
    )


def _entries_of(totals: Mapping[Any, Any]) -> list[dict[str, Any]]:
    return [{**key._asdict(), **_fields_of(own)} for key, own in totals.items()]


def _by_key(data: object, label: str, key_type: type[K], cls: type[T]) -> dict[K, T]:
    entries: dict[K, T] = {}
    for entry in _list(data, label):
        names, values = _split(entry, f"an entry of {label}", key_type._fields)
        key = key_type(*(_text(names[name], f"{label}.{name}") for name in key_type._fields))
        if not all(getattr(key, name) in known for name, known in _KNOWN[key_type].items()):
            raise TotalsError(f"{label} of totals are of an unknown kind: {str(key)[:200]}")
        entries[key] = _object_of(cls, values, label)
    return entries


def _step_totals(data: object) -> StepTotals:
    """Before format version 3 nothing was sampled."""
    if isinstance(data, Mapping) and "begun" in data and "detailed" not in data:
        data = {**data, "detailed": data["begun"]}
    return _object_of(StepTotals, data, "steps")


def _fields_of(value: Any) -> dict[str, Any]:
    return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}


def _plain(value: Any) -> Any:
    if isinstance(value, Histogram):
        return _histogram_to_dict(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, float) and math.isnan(value):
        return None
    return value


def _histogram_to_dict(histogram: Histogram) -> dict[str, Any]:
    """Durations are neither negative nor infinite, so that what is of these is mostly not there."""
    offset, counts = histogram.positive
    below, negative = histogram.negative
    rest: dict[str, Any] = {name: n for name in _NOT_FINITE if (n := getattr(histogram, name))}
    if len(negative):
        rest |= {"negative_offset": below, "negative_bucket_counts": negative.tolist()}
    if not histogram.count and not rest:
        return {}
    moments = {name: getattr(histogram, name) for name in _MOMENTS}
    return {
        "scale": histogram.scale,
        "zeros": histogram.zeros,
        "offset": offset,
        "bucket_counts": counts.tolist(),
        **rest,
        **{name: None if math.isnan(value) else value for name, value in moments.items()},
    }


def _histogram_from_dict(data: object, label: str) -> Histogram:
    if data == {}:
        return Histogram()
    if isinstance(data, Mapping):
        data = {**_NO_REST, **data}
    content = _mapping(
        data, label, ("scale", "zeros", "offset", "bucket_counts", *_NO_REST, *_MOMENTS)
    )
    parts = HistogramParts(
        scale=_integer(content["scale"], label, _LARGEST_OFFSET),
        positive=_buckets(content["offset"], content["bucket_counts"], label),
        negative=_buckets(content["negative_offset"], content["negative_bucket_counts"], label),
        zeros=_count(content["zeros"], label),
        nans=_count(content["nans"], label),
        pos_infs=_count(content["pos_infs"], label),
        neg_infs=_count(content["neg_infs"], label),
        **{name: _moment(content[name], label) for name in _MOMENTS},
    )
    try:
        return from_parts(parts)
    except HistogramError as error:
        raise TotalsError(f"{label} of totals holds an impossible histogram: {error}") from error


def _buckets(offset: object, counts: object, label: str) -> Buckets:
    numbers = [_count(count, label) for count in _list(counts, label)]
    return Buckets(_integer(offset, label, _LARGEST_OFFSET), np.array(numbers, np.uint64))


def _moment(value: object, label: str) -> float:
    if value is None:
        return math.nan
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TotalsError(f"{label} of totals holds {str(value)[:80]!r} where a number belongs")
    return float(value)


def _object_of(cls: type[T], data: object, label: str) -> T:
    declared = {field.name: field.type for field in fields(cls)}  # type: ignore[arg-type]
    content = _mapping(data, label, tuple(declared))
    values: dict[str, Any] = {}
    for name, kind in declared.items():
        where = f"{label}.{name}"
        if kind == "int":
            values[name] = _count(content[name], where)
        elif kind == "float":
            values[name] = _moment(content[name], where)
        elif kind == "Histogram":
            values[name] = _histogram_from_dict(content[name], where)
        else:
            values[name] = _by_kind(
                content[name], where, partial(_histogram_from_dict, label=where)
            )
    return cls(**values)


def _by_kind(data: object, label: str, read: Callable[[Any], T]) -> dict[str, T]:
    content = _mapping(data, label)
    unknown = [kind for kind in content if kind not in STEP_KINDS]
    if unknown:
        raise TotalsError(f"{label} of totals has the unknown kind {str(unknown[0])[:80]!r}")
    return {kind: read(value) for kind, value in content.items()}


def _split(
    data: object, label: str, names: tuple[str, ...]
) -> tuple[dict[str, Any], dict[str, Any]]:
    content = dict(_mapping(data, label))
    if any(name not in content for name in names):
        raise TotalsError(f"{label} of totals lacks {', '.join(names)}")
    return {name: content.pop(name) for name in names}, content


def _mapping(data: object, label: str, keys: tuple[str, ...] | None = None) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise TotalsError(f"{label} is not a mapping; give what Totals.to_dict() returned")
    if keys is not None and set(data) != set(keys):
        raise TotalsError(
            f"{label} must have the keys {', '.join(keys)}; give what Totals.to_dict() returned"
        )
    return data


def _list(data: object, label: str) -> list[Any]:
    if not isinstance(data, list):
        raise TotalsError(f"{label} of totals is not a list; give what Totals.to_dict() returned")
    return data


def _text(value: object, label: str) -> str:
    if not isinstance(value, str):
        raise TotalsError(f"{label} of totals holds {str(value)[:80]!r} where a text belongs")
    return value


def _integer(value: object, label: str, largest: int = _LARGEST_COUNT) -> int:
    if type(value) is not int or abs(value) > largest:
        raise TotalsError(f"{label} of totals holds {str(value)[:80]!r} where an integer belongs")
    return value


def _count(value: object, label: str) -> int:
    number = _integer(value, label)
    if number < 0:
        raise TotalsError(f"{label} of totals holds the negative count {number}")
    return number
