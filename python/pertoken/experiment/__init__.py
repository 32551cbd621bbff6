"""Sequential A/B tests: two variants of anything, and a verdict that may be read at any time.

>>> from pertoken import experiment
>>> plan = experiment.Plan(metrics=["mean", "p99"], margin=0.05)
>>> result = experiment.compare(run_old, run_new, plan)
>>> print(result)

What is claimed, and how it is computed, is in docs/experiments.md.
"""

from __future__ import annotations

from pertoken.errors import ExperimentError
from pertoken.experiment.comparison import compare, looks
from pertoken.experiment.estimate import Estimate
from pertoken.experiment.observations import Measured
from pertoken.experiment.plan import Metric, Plan
from pertoken.experiment.result import Result

__all__ = [
    "Estimate",
    "ExperimentError",
    "Measured",
    "Metric",
    "Plan",
    "Result",
    "compare",
    "looks",
]
