"""Generation by vLLM inside the training process, with one adapter per device (cpu, cuda, npu)."""
