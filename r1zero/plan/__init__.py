"""`train.py CONFIG --plan`: layout, memory, traffic and duration of a run on any number of ranks.

Needs no device, and imports none of torch, megatron and vLLM.
"""

from r1zero.plan.build import Plan, as_data, plan
from r1zero.plan.report import main, render

__all__ = ["Plan", "as_data", "main", "plan", "render"]
