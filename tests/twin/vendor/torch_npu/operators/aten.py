"""torch's own operators of which an NPU knows more types than a CPU."""

import torch
from torch import Tensor

from torch_npu.device import operators

_library = torch.library.Library("aten", "IMPL")


def _histc(self: Tensor, bins: int = 100, min: float = 0, max: float = 0) -> Tensor:
    """Of integers too, whose counts are of their type (vllm_ascend/ops/fused_moe/token_dispatcher.py counts int32)."""
    return torch.histc(operators.on_cpu(self).float(), bins, min, max).to(self.device, self.dtype)


_library.impl("histc", _histc, "PrivateUse1")
