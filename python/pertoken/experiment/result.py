"""The outcome of an experiment, with the plan that it followed; immutable and serialisable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from pertoken.errors import ExperimentError
from pertoken.experiment.confidence_sequence import MIN_PAIRS
from pertoken.experiment.estimate import Estimate
from pertoken.experiment.plan import Metric, Plan, Verdict, require_format
from pertoken.quantity import count_text, plural_text
from pertoken.summary_block import Block

if TYPE_CHECKING:
    import rich.console

FORMAT = "pertoken.experiment.result/1"

Ending = Literal["verdict", "max_pairs", "max_seconds", "end of data"]

_ENDINGS = {
    "verdict": "",
    "max_pairs": "ended at max_pairs",
    "max_seconds": "ended at max_seconds",
    "end of data": "ended with the data",
    None: "not ended",
}
_MORE = {
    "max_seconds": ": give it more time (max_seconds)",
    "end of data": ": give more values",
}


@dataclass(frozen=True)
class Result:
    """What an experiment has found so far. It holds at whichever look it was taken.

    Attributes:
        plan: what was fixed beforehand.
        names: what a and b are called.
        estimates: one for each metric, in the order of the plan.
        pairs: of blocks that were compared.
        block_length: calls in a block; a pair has two blocks of each variant.
        autocorrelation_time: of the calls in the pilot, in calls; None: not measured.
        seconds: since the experiment began, its pilot included.
        ending: why it ended: ``"verdict"``, ``"max_pairs"``, ``"max_seconds"`` or ``"end of
            data"``; None while it goes on.
        notes: what else must be known to read the numbers.
    """

    plan: Plan
    names: tuple[str, str]
    estimates: tuple[Estimate, ...]
    pairs: int
    block_length: int
    autocorrelation_time: float | None
    seconds: float
    ending: Ending | None
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """``"over"`` when a metric is over its margin, ``"under"`` when all are under theirs."""
        verdicts = {estimate.verdict for estimate in self.estimates}
        if "over" in verdicts:
            return "over"
        return "under" if verdicts == {"under"} else "undecided"

    @property
    def plan_hash(self) -> str:
        """The hash of the plan."""
        return self.plan.hash

    def __getitem__(self, metric: str) -> Estimate:
        """The estimate of a metric by its name.

        Args:
            metric: such as ``"mean"``; where its quantity has a name, ``"mean of latency_ns"``.

        Returns:
            What is known of it.

        Raises:
            KeyError: there is no such metric; the message lists those that there are.
        """
        for estimate in self.estimates:
            if estimate.metric.name == metric:
                return estimate
        names = ", ".join(estimate.metric.name for estimate in self.estimates)
        raise KeyError(f"no metric {metric}; this result has: {names}")

    def ended_by(self, ending: Ending | None) -> Result:
        """The same with why it ended."""
        return replace(self, ending=ending)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, fit for JSON, the plan and its hash included."""
        data: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            "format": FORMAT,
            **data,
            "plan": self.plan.to_dict(),
            "plan_hash": self.plan.hash,
            "verdict": self.verdict,
            "names": list(self.names),
            "estimates": [asdict(estimate) for estimate in self.estimates],
            "notes": list(self.notes),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Result:
        """The result that `to_dict` told of.

        Raises:
            ExperimentError: it is not a result of this version, or its plan is not the one whose
                hash it carries.
        """
        require_format(data, FORMAT, "result")
        try:
            plan = Plan.from_dict(data["plan"])
            if plan.hash != data["plan_hash"]:
                raise ExperimentError(
                    "the plan of this result is not the one that its hash was made from"
                )
            given = {field.name: data[field.name] for field in fields(cls)}
            first, second = given["names"]
            estimates = tuple(
                Estimate(**{**estimate, "metric": Metric(**estimate["metric"])})
                for estimate in given["estimates"]
            )
            result = cls(
                **{
                    **given,
                    "plan": plan,
                    "names": (first, second),
                    "estimates": estimates,
                    "notes": tuple(given["notes"]),
                }
            )
            verdict = data["verdict"]
        except ExperimentError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ExperimentError(f"not a result: it cannot be read ({error!r})") from error
        if [estimate.metric for estimate in estimates] != list(plan.metrics):
            raise ExperimentError("not a result: its metrics are not those of its plan")
        if result.ending is not None and result.ending not in get_args(Ending):
            raise ExperimentError(f"not a result: it ended by {result.ending!r}")
        if verdict != result.verdict:
            raise ExperimentError("not a result: its verdict does not follow from its estimates")
        return result

    @property
    def line(self) -> str:
        """One line for a person: verdict, intervals, and how they were obtained."""
        told = "; ".join(
            _estimate_text(estimate, self._interval_text(estimate), *self.names)
            for estimate in self.estimates
        )
        changed = [
            f"{estimate.metric.name} has changed meanwhile"
            for estimate in self.estimates
            if estimate.contradictory
        ]
        pairs = ", ".join([self._pairs_text(), *self._shortfall(), *changed])
        return f"{self.verdict.upper()}: {told}. {pairs}."

    @property
    def progress_line(self) -> str:
        """The intervals so far, in a few words."""
        told = ", ".join(
            f"{estimate.metric.of} {self._interval_text(estimate)}" for estimate in self.estimates
        )
        return f"{plural_text(self.pairs, 'pair')}: {told}"

    def __str__(self) -> str:
        """The summary for a person, without colour."""
        from pertoken.summary_text import blocks_text

        return blocks_text([self.block()])

    def __rich__(self) -> rich.console.RenderableType:
        """The same on a rich console."""
        from pertoken.summary_text import rich_group

        return rich_group([self.block()])

    def block(self) -> Block:
        """A title, a row for each metric, and what must be known beside it."""
        a, b = self.names
        confidence = _percent(1.0 - self.plan.alpha)
        lines = [
            f"change of {b} against {a}; all intervals hold together, at every look, "
            f"with {confidence}",
            self._pairs_text(),
            *self._shortfall(),
            *self._not_excluded(),
            *self.notes,
            *(
                f"{estimate.metric.name}: intervals of different times contradict each other; "
                "what was measured has changed meanwhile, and this is of the whole time"
                for estimate in self.estimates
                if estimate.contradictory
            ),
            f"plan {self.plan_hash[:16]}",
        ]
        rows = tuple(
            (
                estimate.metric.name,
                _change(estimate.change),
                "none yet" if self._is_early(estimate) else _interval(estimate),
                _percent(estimate.metric.margin),
                estimate.verdict,
            )
            for estimate in self.estimates
        )
        return Block(
            f"{a} and {b}: {_VERDICTS[self.verdict]}",
            tuple(lines),
            ("metric", "change", "interval", "margin", "verdict"),
            rows,
            frozenset({"change", "margin"}),
        )

    def _is_early(self, estimate: Estimate) -> bool:
        """Whether it has no interval because that of a mean takes more pairs."""
        return estimate.metric.level is None and self.pairs < MIN_PAIRS

    def _interval_text(self, estimate: Estimate) -> str:
        if self._is_early(estimate):
            return f"no interval before {MIN_PAIRS} pairs"
        return _interval(estimate)

    def _shortfall(self) -> tuple[str, ...]:
        """What to do where there are too few pairs for a mean; empty where there are enough."""
        if not any(map(self._is_early, self.estimates)):
            return ()
        advice = _MORE.get(self.ending or "", "")
        return (f"fewer than the {MIN_PAIRS} pairs that an interval of a mean takes{advice}",)

    def _not_excluded(self) -> tuple[str, ...]:
        """What a mean that is under its margin does not exclude: what may not have come up yet.

        An event that did not come in n calls may come in 3 of n (95 %, the rule of three), and is
        over a margin m if each adds more than m n / 3 of the mean. Nothing in the sample tells.
        """
        calls = 2 * self.block_length * self.pairs
        return tuple(
            f"{estimate.metric.name}: what {self.names[1]} does in fewer than 3 of "
            f"{count_text(calls)} calls may not have come up; it is over the margin if each adds "
            f"more than {_times(estimate.metric.margin * calls / 3.0)} the mean"
            for estimate in self.estimates
            if estimate.metric.level is None
            and estimate.verdict == "under"
            and estimate.metric.margin > 0.0
        )

    def _pairs_text(self) -> str:
        length = plural_text(self.block_length, "call")
        parts = [
            f"{plural_text(self.pairs, 'pair')} of 2 + 2 blocks of {length}",
            f"{self.seconds:.3g} s",
        ]
        if self.autocorrelation_time is not None:
            parts.append(f"autocorrelation time {self.autocorrelation_time:.2g} calls")
        if _ENDINGS[self.ending]:
            parts.append(_ENDINGS[self.ending])
        return ", ".join(parts)


_VERDICTS = {"under": "under the margin", "over": "over the margin", "undecided": "undecided"}


def _estimate_text(estimate: Estimate, interval: str, a: str, b: str) -> str:
    change = estimate.change
    if change is None:
        told = f"{estimate.metric.name} of {b} against {a} not known"
    else:
        direction = "above" if change >= 0 else "below"
        told = f"{estimate.metric.name} of {b} {_percent(abs(change))} {direction} {a}"
    margin = _percent(estimate.metric.margin)
    return f"{told} ({interval}; margin {margin}: {estimate.verdict})"


def _interval(estimate: Estimate) -> str:
    if estimate.low is None and estimate.high is None:
        return "anything"
    if estimate.low is None:
        return f"at most {_change(estimate.high)}"
    if estimate.high is None:
        return f"at least {_change(estimate.low)}"
    return f"{_change(estimate.low)} to {_change(estimate.high)}"


def _change(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{'+' if value >= 0 else '-'}{_percent(abs(value))}"


def _percent(value: float) -> str:
    share = value * 100.0
    if abs(share) >= 1000.0:
        return f"{count_text(round(share))} %"
    return f"{share:.3g} %"


def _times(value: float) -> str:
    return f"{count_text(round(value)) if value >= 10.0 else format(value, '.2g')} times"
