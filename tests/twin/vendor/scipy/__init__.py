"""Of scipy what vllm-ascend computes with while it is imported; the rest is absent (twin_absent)."""

__version__ = "1.17.1"
