"""What megatron-core needs of MindSpeed's adaptor to run on an NPU at all, where R1ZERO_MINDSPEED names no checkout.

The real one is core_r0.16.0 at e4772499 (features_manager/megatron_basic); tests that are about it need it.
"""

import torch
from torch_npu.contrib import transfer_to_npu  # noqa: F401  its import is its effect

_type = torch.Tensor.type


def _named_as_cuda(tensor: torch.Tensor, *args: object, **kwargs: object) -> object:
    """megatron-core's optimizer sorts tensors by the name of their type and knows torch.cuda.* only."""
    found = _type(tensor, *args, **kwargs)
    return found.replace("npu", "cuda") if isinstance(found, str) else found


torch.Tensor.type = _named_as_cuda
torch.cuda.get_device_capability = lambda device=None: (9, 0)

from megatron.core.transformer.moe import moe_utils

moe_utils.te_general_gemm = getattr(
    moe_utils, "te_general_gemm", None
)  # the router asks for it; defined only with transformer-engine
