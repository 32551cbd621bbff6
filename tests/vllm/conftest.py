"""Tests that need vLLM. They run in an environment of their own: `make vllm-tests`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ["VLLM_TARGET_DEVICE"] = "cpu"  # there is no GPU, nor need be
os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
os.environ["VLLM_NO_USAGE_STATS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

here = Path(__file__).parent
sys.path[:0] = [str(here), str(here.parent / "python")]
