"""R1-Zero as one MPI or torchrun job: megatron-core trains and vLLM generates in the same processes."""
