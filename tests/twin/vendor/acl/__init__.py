"""Stand-in for CANN's Python binding: what vllm-ascend's sleeping allocator asks of it."""
