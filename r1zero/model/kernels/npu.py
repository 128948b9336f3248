"""torch_npu's fused operators, whose derivatives torch_npu registers (classes Npu...Backward0 of libtorch_npu.so).

torch.ops.npu exists once torch_npu is imported (distributed/device.py). Limits are those that the operators' pages in
Ascend's op-plugin repository state (docs/zh/custom_APIs/torch_npu) for Atlas A2 and A3.
"""

import torch
from torch import Tensor

from r1zero.model.kernels.interface import Kernels


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Rounds once, after the scale; the reference rounds before it as well."""
    return torch.ops.npu.npu_rms_norm(x, weight, epsilon)[0]


def swiglu(x: Tensor) -> Tensor:
    return torch.ops.npu.npu_swiglu(x, -1)


def rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """The operator takes values in [-1, 1] as cosines and sines, and a width that is even and below 896."""
    return torch.ops.npu.npu_rotary_mul(x, cosines, sines, "half")


KERNELS = Kernels(rms_norm=rms_norm, swiglu=swiglu, rotate=rotate)
