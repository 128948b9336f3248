"""Plain torch: runs on every device, and is the reference for their kernels."""

import torch
from torch import Tensor

from r1zero.model.kernels.interface import Kernels
from r1zero.model.packing import attend


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """RMSNorm, computed in fp32 and scaled in the activations' own type, as Hugging Face and vLLM do.

    Zhang and Sennrich, arXiv 1910.07467.
    """
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)).to(x.dtype)


def swiglu(x: Tensor) -> Tensor:
    """SwiGLU. Shazeer, arXiv 2002.05202."""
    gate, up = x.chunk(2, -1)
    return torch.nn.functional.silu(gate) * up


KERNELS = Kernels(rms_norm=rms_norm, swiglu=swiglu, attend=attend)
