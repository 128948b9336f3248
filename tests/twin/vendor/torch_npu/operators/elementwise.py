"""Norms, activations and rotary positions.

Read in op-plugin's docs/zh/custom_APIs/torch_npu/torch_npu-<operator>.md; `_npu_rotary_embedding` of ATB and
`npu_add_rms_norm_bias` of vllm-ascend have no page: read from their callers (vllm_ascend/ops/rotary_embedding.py,
layernorm.py) and the models' own formulas."""

import torch
from torch import Tensor

from torch_npu.operators.registry import refuse, stand_in


@stand_in("npu")
def npu_rms_norm(self: Tensor, gamma: Tensor, epsilon: float = 1e-6) -> tuple[Tensor, Tensor]:
    """In fp32 over gamma's axes; also 1 / rms."""
    wide = self.float()
    axes = tuple(range(self.dim() - gamma.dim(), self.dim()))
    reciprocal = torch.rsqrt(wide.square().mean(axes, keepdim=True) + epsilon)
    return (wide * reciprocal * gamma.float()).to(self.dtype), reciprocal


@stand_in("npu")
def npu_add_rms_norm(x1: Tensor, x2: Tensor, gamma: Tensor, epsilon: float = 1e-6) -> tuple[Tensor, Tensor, Tensor]:
    """The norm of a sum, 1 / rms, and the sum."""
    total = x1 + x2
    normed, reciprocal = npu_rms_norm(total, gamma, epsilon)
    return normed, reciprocal, total


@stand_in("_C_ascend")
def npu_add_rms_norm_bias(
    x1: Tensor, x2: Tensor, gamma: Tensor, beta: Tensor | None = None, epsilon: float = 1e-6
) -> tuple[Tensor, Tensor, Tensor]:
    normed, reciprocal, total = npu_add_rms_norm(x1, x2, gamma, epsilon)
    return (normed if beta is None else normed + beta), reciprocal, total


@stand_in("npu")
def npu_swiglu(self: Tensor, dim: int = -1) -> Tensor:
    gate, up = self.chunk(2, dim)
    return torch.nn.functional.silu(gate) * up


def rotate(x: Tensor, cos: Tensor, sin: Tensor, mode: str = "half") -> Tensor:
    """x cos + r(x) sin in fp32. half: r swaps the halves of the last axis; interleave: its neighbours; one of each pair
    negated."""
    if mode == "half":
        first, second = x.chunk(2, -1)
        turned = torch.cat((-second, first), -1)
    else:
        turned = torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)
    return (x.float() * cos.float() + turned.float() * sin.float()).to(x.dtype)


@stand_in("npu")
def npu_rotary_mul(
    self: Tensor, r1: Tensor, r2: Tensor, rotary_mode: str = "half", rotate_matrix: Tensor | None = None
) -> Tensor:
    """The page's limits: (T, N, D) or four axes, an even width below 896, and factors in [-1, 1]."""
    refuse("npu_rotary_mul", rotate=rotate_matrix)
    if self.dim() not in (3, 4) or self.shape[-1] % 2 or self.shape[-1] >= 896 or self.dtype != r1.dtype:
        raise RuntimeError(
            f"npu_rotary_mul was given {self.dtype} {tuple(self.shape)} and {r1.dtype} {tuple(r1.shape)}"
        )
    if max(float(r1.abs().max()), float(r2.abs().max())) > 1:
        raise RuntimeError("npu_rotary_mul takes cosines and sines in [-1, 1]")
    return rotate(self, r1, r2, rotary_mode)


@stand_in("npu")
def npu_interleave_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Even elements go to the first half, odd ones to the second; then as in "half". The kernel knows a width of 64
    alone."""
    if not x.shape[-1] == cos.shape[-1] == sin.shape[-1] == 64:
        raise RuntimeError(
            f"npu_interleave_rope takes 64 elements, and was given {x.shape[-1]}, {cos.shape[-1]}, {sin.shape[-1]}"
        )
    return rotate(torch.cat((x[..., ::2], x[..., 1::2]), -1), cos, sin)


@stand_in("atb")
def _npu_rotary_embedding(
    positions: Tensor, query: Tensor, key: Tensor, head_size: int, cos_sin_cache: Tensor, is_neox_style: bool
) -> None:
    """In place, the first elements of each head; cos_sin_cache (positions, width): cosines, then sines, of half the
    width each."""
    cos, sin = cos_sin_cache[positions.flatten()].chunk(2, -1)
    spread = (lambda x: torch.cat((x, x), -1)) if is_neox_style else (lambda x: x.repeat_interleave(2, -1))
    for tensor in (query, key):
        part = tensor.view(len(cos), -1, head_size)[..., : 2 * cos.shape[-1]]
        part.copy_(rotate(part, spread(cos)[:, None], spread(sin)[:, None], "half" if is_neox_style else "interleave"))
