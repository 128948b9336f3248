"""Plain torch: runs on every device.

Norm, SwiGLU and rotary positions have backward passes of their own. Autograd's need two to three times as many passes
over the activations, and one more tensor for each.
"""

from typing import Any

import torch
from torch import Tensor

from r1zero.model.kernels.interface import Kernels, extend_to_fp32
from r1zero.model.packing import attend

ADDED_OUTPUTS = 1024
"""Number of a layer's outputs whose weight gradients are computed and added together."""


def _wide(x: Tensor) -> Tensor:
    """Returns x as (rows, width), in fp32 if its type is narrower."""
    return x.flatten(0, -2).to(torch.promote_types(x.dtype, torch.float32))


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        wide = _wide(x)
        mean_square = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.shape[-1])
        scale = mean_square.add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (wide * scale).to(x.dtype).mul_(weight).view(x.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        wide, wide_grad = _wide(x), _wide(grad)
        wide_weight = weight.to(wide.dtype)
        product = wide_grad * wide
        # d scale / d x = -scale^3 x / width
        shrink = (product @ wide_weight)[:, None] * scale.pow(3).div_(-x.shape[-1])
        grad_weight = (scale.T @ product)[0]
        grad_x = torch.mul(wide_grad, wide_weight, out=product).mul_(scale).addcmul_(wide, shrink)
        return grad_x.to(x.dtype).view(x.shape), grad_weight.to(weight.dtype), None


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """RMSNorm, computed in fp32 and scaled in the activations' own type, as Hugging Face and vLLM do.

    Zhang and Sennrich, arXiv 1910.07467.
    """
    return _RmsNorm.apply(x, weight, epsilon)


class _SwiGlu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        gate, up = x.chunk(2, -1)
        gated = torch.nn.functional.silu(gate)
        ctx.save_for_backward(x, gated)
        return gated * up

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        x, gated = ctx.saved_tensors
        gate, up = x.chunk(2, -1)
        grad_x = torch.empty_like(x)
        grad_gate, grad_up = grad_x.chunk(2, -1)
        torch.mul(grad, gated, out=grad_up)
        torch.mul(grad, up, out=grad_gate)
        torch.ops.aten.silu_backward.grad_input(grad_gate, gate, grad_input=grad_gate)
        return grad_x


def swiglu(x: Tensor) -> Tensor:
    """SwiGLU. Shazeer, arXiv 2002.05202."""
    return _SwiGlu.apply(x)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        ctx.save_for_backward(cosines, sines)
        return _turn(x, cosines, *sines.chunk(2, -1))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cosines, sines = ctx.saved_tensors
        first, second = sines.chunk(2, -1)
        return _turn(grad, cosines, -second, -first), None, None


def _turn(x: Tensor, cosines: Tensor, first_sines: Tensor, second_sines: Tensor) -> Tensor:
    """Returns x * cosines + r(x) * sines, where r swaps the halves of the last axis and negates the new first half."""
    half = x.shape[-1] // 2
    if x.dtype == torch.float32:  # half as long as below; in 16 bits torch is slow on the short rows of a half
        out = torch.empty_like(x)
        torch.mul(x[..., :half], cosines[..., :half], out=out[..., :half]).addcmul_(
            x[..., half:], first_sines, value=-1
        )
        torch.mul(x[..., half:], cosines[..., half:], out=out[..., half:]).addcmul_(x[..., :half], second_sines)
        return out
    return (x * cosines).addcmul_(x.roll(half, -1), torch.cat((-first_sines, second_sines), -1))


def rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotary positions. Su et al., arXiv 2104.09864."""
    return _Rotate.apply(x, cosines, sines)


@extend_to_fp32
def add_weight_gradient(inputs: Tensor, gradient: Tensor, total: Tensor) -> None:
    """On a CPU torch has no product of 16-bit matrices in fp32, so it is rounded before it is added.

    Few outputs are computed at a time, so that their part is still in the cache then. Torch's addition of 16 bits to
    fp32 would first copy the whole product to fp32 in memory.
    """
    for part, of_part in zip(total.split(ADDED_OUTPUTS), gradient.split(ADDED_OUTPUTS, 1), strict=True):
        part.add_(of_part.t() @ inputs)


KERNELS = Kernels(rms_norm=rms_norm, swiglu=swiglu, attend=attend, rotate=rotate, accumulate=add_weight_gradient)
