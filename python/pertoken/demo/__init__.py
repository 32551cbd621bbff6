"""A tiny language model that ships with the package, and a run of it to look at."""

from __future__ import annotations
