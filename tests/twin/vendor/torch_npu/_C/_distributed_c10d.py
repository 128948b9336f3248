"""torch_npu._C._distributed_c10d."""

from torch_npu.distributed import ProcessGroupHCCL  # noqa: F401
