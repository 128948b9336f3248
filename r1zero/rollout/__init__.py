"""Generation by vLLM in this process, and what vLLM needs for it on CPU."""
