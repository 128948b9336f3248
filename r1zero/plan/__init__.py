"""`train.py CONFIG --plan`: layout, memory, bytes and time of a run on any number of ranks; no device, no torch, no
megatron, no vLLM."""

from r1zero.plan.build import Plan, as_data, plan
from r1zero.plan.report import main, render

__all__ = ["Plan", "as_data", "main", "plan", "render"]
