"""An NPU for tests: torch_npu's names on a device "npu" whose memory is the host's. See tests/twin/README.md."""

from types import SimpleNamespace
from typing import Any

import torch
import torchair.core._concrete_graph
import torchair.fx_summary
import torchair.npu_fx_compiler  # noqa: F401  the vendor's package brings its graph compiler; these are of twin_absent

import torch_npu._C._distributed_c10d
import torch_npu.profiler  # noqa: F401
from torch_npu import device as _device  # noqa: F401  the device exists from here on
from torch_npu import distributed as _distributed  # noqa: F401
from torch_npu import npu  # noqa: F401
from torch_npu import operators as _operators

__version__ = "2.10.0.post4"
unsupported_dtype = [torch.quint8, torch.quint4x2, torch.quint2x4, torch.qint32, torch.qint8]

_operators.define("npu")
_operators.define("atb")
atb = SimpleNamespace(npu_paged_cache_load=torch.ops.atb.npu_paged_cache_load.out)


def __getattr__(name: str) -> Any:
    """Operators are functions of the package."""
    for space in ("npu", "atb"):
        if name in _operators.registry.names(space):
            return getattr(getattr(torch.ops, space), name)
    raise AttributeError(f"module 'torch_npu' has no attribute {name!r}")
