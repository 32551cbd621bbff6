"""Totals as plain data for JSON. Reading trusts nothing: it may come from a file or a network."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import fields
from math import isnan, nan
from typing import Any, TypeVar

from pertoken import histogram_exchange
from pertoken.errors import FileFormatError, HistogramError
from pertoken.histogram import Histogram, from_parts
from pertoken.totals import LabelSet, Part, RequestTotals, SiteKey, SiteTotals, StepTotals, Totals

VERSION = 1

_KEYS = frozenset({"version", "steps", "sites", "requests", "losses", "meta"})
_LARGEST = 2**63 - 1

P = TypeVar("P", bound=Part)
T = TypeVar("T")


def dump(totals: Totals) -> dict[str, Any]:
    """Plain data, ready for JSON, of totals."""
    return {
        "version": VERSION,
        "steps": {kind: _part_data(steps) for kind, steps in totals.steps.items()},
        "sites": [{**key._asdict(), **_part_data(site)} for key, site in totals.sites.items()],
        "requests": [
            {"labels": dict(labels), **_part_data(requests)}
            for labels, requests in totals.requests.items()
        ],
        "losses": dict(totals.losses),
        "meta": totals.meta,
    }


def parse(data: object) -> Totals:
    """Totals of plain data.

    Raises:
        FileFormatError: they are not what `dump` writes.
    """
    try:
        return _parsed(data)
    except (HistogramError, RecursionError, _Problem) as problem:
        raise FileFormatError(
            f"these are not totals of pertoken ({problem}): give what Totals.to_dict() gave"
        ) from problem


class _Problem(ValueError):
    """What is wrong with data that are to be totals."""


def _parsed(data: object) -> Totals:
    content = _mapping(data, "the totals")
    version = content.get("version")
    if type(version) is not int or version < 1:
        raise _Problem("no version")
    if version > VERSION:
        raise _Problem(f"version {version} is of a later pertoken; upgrade to read it")
    if set(content) != _KEYS:
        raise _Problem(f"the keys are not {', '.join(sorted(_KEYS))}")
    steps = _mapping(content["steps"], "steps")
    sites = [_mapping(entry, "a site") for entry in _list(content["sites"], "sites")]
    requests = [_mapping(entry, "a request") for entry in _list(content["requests"], "requests")]
    meta = _mapping(content["meta"], "meta")
    processes = _list(meta.get("processes"), "meta.processes")
    return Totals(
        {_text(kind): _part(StepTotals, entry) for kind, entry in steps.items()},
        _unique((_site_key(entry), _part(SiteTotals, entry, SiteKey._fields)) for entry in sites),
        _unique((_labels(entry), _part(RequestTotals, entry, ("labels",))) for entry in requests),
        {
            _text(reason): _count(count)
            for reason, count in _mapping(content["losses"], "losses").items()
        },
        [_plain(_mapping(process, "a process")) for process in processes],
    )


def _part_data(part: Part) -> dict[str, Any]:
    return {own.name: _value_data(getattr(part, own.name)) for own in fields(part)}


def _value_data(value: Any) -> Any:
    if isinstance(value, Histogram):
        return {**value.to_otel(), "sum_sq": None if isnan(value.sum_sq) else value.sum_sq}
    if isinstance(value, Mapping):
        return {kind: _value_data(histogram) for kind, histogram in sorted(value.items())}
    return value


def _part(of: type[P], data: object, keys: tuple[str, ...] = ()) -> P:
    entry = _mapping(data, f"a {of.__name__}")
    read: dict[str, Callable[[Any], Any]] = {"int": _count, "Histogram": _histogram}
    declared = {own.name: read.get(str(own.type), _histograms) for own in fields(of)}
    if set(entry) != {*declared, *keys}:
        raise _Problem(f"the keys of a {of.__name__} are not {', '.join((*keys, *declared))}")
    return of(**{name: parse_value(entry[name]) for name, parse_value in declared.items()})


def _histogram(data: object) -> Histogram:
    point = _mapping(data, "a histogram")
    sum_sq = point.get("sum_sq")
    if sum_sq is None:
        sum_sq = nan
    elif type(sum_sq) is not float:
        raise _Problem("the sum_sq of a histogram is no number")
    return from_parts(histogram_exchange.from_otel(point)._replace(sum_sq=sum_sq))


def _histograms(data: object) -> dict[str, Histogram]:
    return {_text(kind): _histogram(entry) for kind, entry in _mapping(data, "step_ns").items()}


def _site_key(entry: Mapping[str, Any]) -> SiteKey:
    return SiteKey(*(_text(entry.get(name)) for name in SiteKey._fields))


def _labels(entry: Mapping[str, Any]) -> LabelSet:
    labels = _mapping(entry.get("labels"), "labels")
    return tuple(sorted((_text(name), _text(value)) for name, value in labels.items()))


def _unique(entries: Any) -> dict[Any, Any]:
    result: dict[Any, Any] = {}
    for key, value in entries:
        if key in result:
            raise _Problem("an entry is there twice")
        result[key] = value
    return result


def _mapping(value: object, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise _Problem(f"{what} is no mapping")
    return value


def _list(value: object, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise _Problem(f"{what} is no list")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise _Problem("a name is no text")
    return value


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value <= _LARGEST:
        raise _Problem("a count is no whole number from 0 to 2**63 - 1")
    return value


def _plain(value: Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        json.dumps(value, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise _Problem(f"a process is described by what is not JSON: {error}") from None
    for key in ("host", "pid", "unix_origin_ns"):
        if not isinstance(value.get(key), (str, int, type(None))):
            raise _Problem(f"the {key} of a process is neither text nor number")
    return value
