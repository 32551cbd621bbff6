"""What an experiment will measure and decide, fixed before the first value is seen."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from pertoken.errors import ExperimentError
from pertoken.experiment.confidence_sequence import MIN_PAIRS
from pertoken.number_argument import is_number

FORMAT = "pertoken.experiment.plan/1"
FEWEST_CALLS = 16  # of a pilot
VALUE = "value"  # the quantity of measurements that are one number each

_QUANTILE = re.compile(r"p(\d{1,2}(?:\.\d+)?)")
_LARGEST_MARGIN = 3.0  # ratios are bet against up to four

Verdict = Literal["under", "over", "undecided"]


@dataclass(frozen=True)
class Metric:
    """What of two variants is compared, and by how much b may be above a.

    Attributes:
        of: ``"mean"``, or a quantile from ``"p50"`` to below ``"p100"``, such as ``"p99"`` or
            ``"p99.9"``.
        margin: relative: 0.01 asks whether b is more than 1 % above a.
        quantity: which of several quantities of a measurement; ``"value"`` is the only one of
            measurements that are one number.
    """

    of: str
    margin: float
    quantity: str = VALUE

    def __post_init__(self) -> None:
        """Checks what can be checked without measuring."""
        if self.level is None and self.of != "mean":
            raise ExperimentError(f"metric {self.of!r}: give 'mean' or a quantile such as 'p99'")
        if self.level is not None and not 0.5 <= self.level < 1.0:
            raise ExperimentError(f"metric {self.of!r}: give a quantile from p50 to below p100")
        if not is_number(self.margin) or not -0.75 <= self.margin <= _LARGEST_MARGIN:
            raise ExperimentError(
                f"margin={self.margin!r} of {self.of!r}: give a share from -0.75 to 3; 0.01 is 1 %"
            )
        if not _is_name(self.quantity):
            raise ExperimentError(f"quantity={self.quantity!r}: give the name of a quantity")
        object.__setattr__(self, "margin", float(self.margin))

    @property
    def level(self) -> float | None:
        """The level of the quantile, such as 0.99; None of a mean."""
        found = _QUANTILE.fullmatch(str(self.of))
        return None if found is None else float(found[1]) / 100.0

    @property
    def name(self) -> str:
        """The metric in words: ``mean``, or ``mean of latency_ns``."""
        return self.of if self.quantity == VALUE else f"{self.of} of {self.quantity}"


@dataclass(frozen=True, init=False)
class Plan:
    """An experiment before it is run; immutable, and known by its `hash`.

    Attributes:
        metrics: what is compared. They share alpha: each gets an equal part.
        alpha: probability that any interval ever misses its truth, at whichever look.
        block_length: calls of one variant in a row, two such runs a pair; None: chosen from the
            autocorrelation of the pilot.
        pilot_calls: calls of each variant before the experiment, to choose the length of blocks
            and the thresholds of quantiles; more where a quantile needs more, fewer where they
            would take an eighth of `max_seconds`. They are not used again. There is no pilot when
            `block_length` is given and no quantile asked for.
        warm_up_calls: calls of each variant before those, which are thrown away.
        expected_pairs: the pair at which intervals are to be the narrowest.
        max_pairs: the experiment ends there at the latest.
        max_seconds: the time after which no further pair begins, the pilot included; None: none.
        seed: of the random order of the blocks.
    """

    metrics: tuple[Metric, ...]
    alpha: float
    block_length: int | None
    pilot_calls: int
    warm_up_calls: int
    expected_pairs: int
    max_pairs: int
    max_seconds: float | None
    seed: int

    def __init__(
        self,
        metrics: Sequence[Metric | str] = ("mean",),
        margin: float = 0.01,
        alpha: float = 0.05,
        *,
        block_length: int | None = None,
        pilot_calls: int = 256,
        warm_up_calls: int = 8,
        expected_pairs: int = 1000,
        max_pairs: int = 20_000,
        max_seconds: float | None = 600.0,
        seed: int = 0,
    ) -> None:
        """Takes the fields; metrics may be names such as ``"p99"``, which then have `margin`.

        Raises:
            ExperimentError: a field is not of its form or out of its range.
        """
        made = _metrics(metrics, margin)
        if not is_number(alpha) or not 0.0 < alpha <= 0.5:
            raise ExperimentError(f"alpha={alpha!r}: give a probability above 0, 0.5 at most")
        if max_seconds is not None and (not is_number(max_seconds) or max_seconds <= 0):
            raise ExperimentError(f"max_seconds={max_seconds!r}: give a positive number, or None")
        if block_length is not None:
            _require_count("block_length", block_length, 1)
        _require_count("pilot_calls", pilot_calls, FEWEST_CALLS)
        _require_count("warm_up_calls", warm_up_calls, 0)
        _require_count("expected_pairs", expected_pairs, MIN_PAIRS)
        _require_count("max_pairs", max_pairs, MIN_PAIRS)
        _require_count("seed", seed, 0)
        values = {
            "metrics": made,
            "alpha": float(alpha),
            "block_length": block_length,
            "pilot_calls": pilot_calls,
            "warm_up_calls": warm_up_calls,
            "expected_pairs": expected_pairs,
            "max_pairs": max_pairs,
            "max_seconds": None if max_seconds is None else float(max_seconds),
            "seed": seed,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def alpha_each(self) -> float:
        """The part of alpha that each metric has."""
        return self.alpha / len(self.metrics)

    @property
    def hash(self) -> str:
        """SHA-256 over all fields, as 64 hexadecimal digits."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Plain data, fit for JSON."""
        data: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        data["metrics"] = [
            {"of": metric.of, "margin": metric.margin, "quantity": metric.quantity}
            for metric in self.metrics
        ]
        return {"format": FORMAT, **data}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """The plan that `to_dict` told of.

        Raises:
            ExperimentError: it is not a plan of this version.
        """
        require_format(data, FORMAT, "plan")
        given = {key: value for key, value in data.items() if key != "format"}
        if set(given) != {field.name for field in fields(cls)}:
            raise ExperimentError("not a plan of this version: fields are missing or unknown")
        try:
            given["metrics"] = [Metric(**metric) for metric in given["metrics"]]
        except TypeError as error:
            raise ExperimentError(f"not a plan: its metrics cannot be read ({error})") from error
        return cls(**given)


def _metrics(given: Sequence[Metric | str], margin: float) -> tuple[Metric, ...]:
    if not _is_list(given):
        raise ExperimentError("metrics: give a list of one or more, such as ['mean', 'p99']")
    made = tuple(one if isinstance(one, Metric) else Metric(one, margin) for one in given)
    if len({(metric.level, metric.quantity) for metric in made}) < len(made):
        raise ExperimentError("metrics: one is given twice; each may stand there once")
    return made


def checked_plan(plan: Plan | None) -> Plan:
    """The plan; that of no arguments for None.

    Args:
        plan: as given.

    Returns:
        A plan that can be followed.

    Raises:
        ExperimentError: it is neither.
    """
    given: object = plan
    if given is None:
        return Plan()
    if not isinstance(given, Plan):
        raise ExperimentError(
            "plan: give a pertoken.experiment.Plan, such as Plan(margin=0.01), "
            f"not {type(given).__name__}"
        )
    return given


def require_format(data: object, written: str, noun: str) -> None:
    """Raises `ExperimentError` when `data` is not a mapping that says it is of this format."""
    if not isinstance(data, Mapping) or data.get("format") != written:
        raise ExperimentError(f"not a {noun}: its 'format' is not {written!r}")


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0


def _is_name(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _require_count(name: str, value: object, least: int) -> None:
    if not is_number(value, int) or value < least:
        raise ExperimentError(f"{name}={value!r}: give an integer, {least} at least")
