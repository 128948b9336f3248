"""The backend "hccl": gloo on the device's memory (tests/twin/device/kernels.h), and the names by which operators find
a group."""

from typing import Any

import torch
import torch._C._distributed_c10d as c10d
import torch.distributed as dist


class Options:
    """What `pg_options` of a group are, as torch_npu's binding has them."""

    def __init__(self) -> None:
        self.hccl_config: dict[str, Any] = {}
        self.global_ranks_in_group: list[int] = []
        self._timeout: Any = None
        self.group_id = ""


class ProcessGroupHCCL(c10d.ProcessGroupGloo):
    Options = Options

    def get_hccl_comm_name(self, rank: int, init_comm: bool = True) -> str:
        return self.name


GROUPS: dict[str, ProcessGroupHCCL] = {}
"""By name. They are kept alive: who asks a group for its backend must get this class's object."""


def _make(options: Any, backend_options: Any = None) -> ProcessGroupHCCL:
    made = ProcessGroupHCCL(options.store, options.group_rank, options.group_size, timeout=options.timeout)
    made.name = f"hccl_{len(GROUPS)}"
    made.given_options = backend_options
    GROUPS[made.name] = made
    return made


dist.Backend.register_backend("hccl", _make, extended_api=True, devices=["npu"])


def exchange(group: ProcessGroupHCCL, rows: torch.Tensor, sent: list[int], received: list[int]) -> torch.Tensor:
    """All-to-all of rows of the host: `sent[r]` of them to rank r, `received[r]` from it. For operators with a
    collective inside."""
    out = rows.new_empty((sum(received), *rows.shape[1:]))
    group.alltoall_base(out, rows.contiguous(), received, sent, c10d.AllToAllOptions()).wait()
    return out


def is_hccl_available() -> bool:
    return True


dist.is_hccl_available = is_hccl_available
