"""For engines that batch continuously: what an engine tells of its requests and steps.

>>> engine = Engine(model=model)
>>> engine.request_arrived("a", tokens_in=5)
>>> with engine.step([Row("a", "prefill", query_len=5, context_len=0)]) as step:
...     logits = model(...)
>>> step.committed({"a": 1})
>>> engine.request_finished("a")
"""

from __future__ import annotations

from pertoken.engines.engine import Engine, EngineStep, manual
from pertoken.engines.row import Row

__all__ = ["Engine", "EngineStep", "Row", "manual"]
