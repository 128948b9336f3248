"""torch's and megatron-core's fused functions. No GPU was available: only their signatures and what of them runs on a
CPU were tested."""

import torch
from megatron.core.fusions.fused_bias_swiglu import bias_swiglu_impl
from torch import Tensor

from r1zero.model.kernels.interface import Kernels


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Rounds once, after the scale; the reference rounds before it as well."""
    return torch.nn.functional.rms_norm(x, weight.shape, weight, epsilon)


def swiglu(x: Tensor) -> Tensor:
    """megatron-core's function, which torch.compile fuses; it takes two or three axes."""
    return bias_swiglu_impl(x, None)


def grouped_linear(rows: Tensor, weights: list[Tensor], counts: Tensor) -> Tensor:
    """torch's function takes the weights as one tensor, so they are copied."""
    ends = counts.to(rows.device).cumsum(0).to(torch.int32)
    return torch.nn.functional.grouped_mm(rows, torch.stack(weights).transpose(1, 2), offs=ends)


KERNELS = Kernels(rms_norm=rms_norm, swiglu=swiglu, grouped_linear=grouped_linear, shared_expert_overlap=True)
