"""The functions of a device's kernels and those of plain torch, on the same values."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from r1zero.logprobs import OutputLayer, token_stats
from r1zero.model import packing
from r1zero.model.kernels.choice import kernels_of
from r1zero.model.kernels.interface import Kernels

CPU = kernels_of("cpu")


@dataclass(frozen=True)
class Case:
    ours: Callable[..., Tensor]
    plain: Callable[..., Tensor]
    learned: list[Tensor]
    """Arguments with a gradient, fp64."""
    others: tuple[Any, ...] = ()


def values(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def plain_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)).to(x.dtype)


def plain_swiglu(x: Tensor) -> Tensor:
    gate, up = x.chunk(2, -1)
    return torch.nn.functional.silu(gate) * up


def norm(kernels: Kernels, rows: int = 37, width: int = 48) -> Case:
    return Case(kernels.rms_norm, plain_norm, [values(rows, width), 1 + values(width, seed=1, scale=0.2)], (1e-6,))


def norm_of_heads(kernels: Kernels) -> Case:
    return Case(kernels.rms_norm, plain_norm, [values(37, 3, 24), 1 + values(24, seed=1, scale=0.2)], (1e-5,))


def swiglu(kernels: Kernels, *axes: int, rows: int = 37, width: int = 24) -> Case:
    return Case(kernels.swiglu, plain_swiglu, [values(rows, *axes, 2 * width)])


def weighted_swiglu(kernels: Kernels, rows: int = 37, width: int = 24) -> Case:
    ours = kernels.weighted_swiglu
    assert ours

    def plain(x: Tensor, weights: Tensor) -> Tensor:
        return plain_swiglu(x) * weights

    return Case(ours, plain, [values(rows, 2 * width), values(rows, 1, seed=1).sigmoid()])


def attention(kernels: Kernels, heads: tuple[int, int, int, int], lengths: list[int], shared: list[int]) -> Case:
    """heads: query heads, key heads, width of a query, width of a value. The pack is padded to a multiple of 4."""
    h, g, d, e = heads
    tokens = -(-sum(lengths) // 4) * 4

    def of(attend: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda q, k, v: attend(q, k, v, 0.1, packing.pack(lengths, 4, q.device, shared))

    return Case(of(kernels.attend), of(CPU.attend), [values(tokens, *x, seed=x[1]) for x in ((h, d), (g, d), (g, e))])


def rotary(kernels: Kernels, rows: int = 37, heads: int = 4, width: int = 16) -> Case:
    from megatron.core.models.common.embeddings.rope_utils import _rotate_half

    half = torch.arange(rows)[:, None] * 10000.0 ** (-torch.arange(width // 2, dtype=torch.float64) / (width // 2))
    angles = torch.cat((half, half), -1)[:, None]
    assert kernels.rotate

    def plain(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        return x * cosines + _rotate_half(x, False) * sines

    return Case(kernels.rotate, plain, [values(rows, heads, width)], (angles.cos(), angles.sin()))


def experts(kernels: Kernels, counts: list[int], width: int = 16, inner: int = 24) -> Case:
    """counts: rows of each expert. They are on the host, where megatron-core's dispatcher leaves them."""
    linear = kernels.grouped_linear
    assert linear

    def ours(rows: Tensor, *weights: Tensor) -> Tensor:
        return linear(rows, list(weights), torch.tensor(counts))

    def plain(rows: Tensor, *weights: Tensor) -> Tensor:
        return torch.cat([part @ weight.t() for part, weight in zip(rows.split(counts), weights, strict=True)])

    weights = [values(inner, width, seed=1 + e) for e in range(len(counts))]
    return Case(ours, plain, [values(sum(counts), width), *weights])


def permutation(kernels: Kernels, rows: int = 37, width: int = 16, experts: int = 8) -> Case:
    """Three experts for each token."""
    from megatron.core.transformer.moe import moe_utils

    assert kernels.permute and kernels.unpermute
    pairs = ((kernels.permute, kernels.unpermute), (moe_utils.permute, moe_utils.unpermute))
    routes = torch.rand(rows, experts, generator=torch.Generator().manual_seed(3)).argsort(1) < 3
    ours, plain = (partial(_there_and_back, *pair, routes) for pair in pairs)
    return Case(ours, plain, [values(rows, width), values(rows, experts, seed=2)])


def _there_and_back(
    permute: Callable[..., Any], unpermute: Callable[..., Tensor], routes: Tensor, x: Tensor, probs: Tensor
) -> Tensor:
    """Tokens to their experts, where each row is changed by its place and weighted, and back; and the rows."""
    routes = routes.to(x.device)
    rows, chosen, order = permute(x, routes, probs, num_out_tokens=3 * len(x))
    scale = torch.linspace(0.5, 2.0, len(rows)).to(rows).unsqueeze(1)
    weighted = (rows * scale * chosen.unsqueeze(1)).to(x.dtype)
    back = unpermute(weighted, order, restore_shape=x.shape, probs=None, routing_map=routes)
    return torch.cat((back, weighted))


def log_probabilities(kernels: Kernels, rows: int = 37, width: int = 16, vocabulary: int = 96) -> Case:
    """The same module on all devices; on CUDA it is compiled."""
    every = torch.arange(rows)

    def ours(hidden: Tensor, weight: Tensor) -> Tensor:
        none = torch.zeros(vocabulary, dtype=torch.bool, device=hidden.device)
        at, targets = (x.to(hidden.device) for x in (every, every % vocabulary))
        found = token_stats(hidden, at, targets, OutputLayer(weight, none, 0.7, None))
        return (found.logprobs_R + found.entropy_R).to(hidden.dtype)

    def plain(hidden: Tensor, weight: Tensor) -> Tensor:
        logits = (hidden @ weight.t()).to(torch.promote_types(hidden.dtype, torch.float32))
        found = (logits / 0.7).log_softmax(1)
        chosen = found.gather(1, (every % vocabulary).to(hidden.device)[:, None])[:, 0]
        return (chosen - (found.exp() * found).sum(1)).to(hidden.dtype)

    return Case(ours, plain, [values(rows, width), values(vocabulary, width, seed=1, scale=width**-0.5)])


CASES: dict[str, Callable[[Kernels], Case]] = {
    "norm": norm,
    "norm of heads": norm_of_heads,
    "swiglu": swiglu,
    "swiglu of three axes": lambda kernels: swiglu(kernels, 1),
    "weighted swiglu": weighted_swiglu,
    "attention": partial(attention, heads=(4, 2, 16, 16), lengths=[5, 9, 1, 7], shared=[0, 0, 0, 0]),
    "attention over shared prompts": partial(
        attention, heads=(3, 3, 24, 16), lengths=[7, 1, 9, 5, 2, 1], shared=[0, 3, 3, 0, 0, 1]
    ),
    "attention over many sequences": partial(attention, heads=(1, 1, 8, 8), lengths=[1, 2] * 520, shared=[0, 1] * 520),
    "rotary": rotary,
    "experts": partial(experts, counts=[5, 0, 11, 7]),
    "experts without rows": partial(experts, counts=[0, 0]),
    "more experts than a list takes": partial(experts, counts=[1] * 130),
    "permutation": permutation,
    "log-probabilities": log_probabilities,
}


@dataclass(frozen=True)
class Errors:
    """Largest relative error, in the Euclidean norm, of a result or gradient; the exact ones are in fp64."""

    ours: float
    plain: float
    """Of plain torch on the CPU in the same type."""

    def are_of_rounding(self, dtype: torch.dtype) -> bool:
        """In 16-bit types they may differ by how often a result is rounded on its way."""
        return self.ours < 1e-6 if dtype == torch.float32 else self.ours <= 2 * self.plain


def compare(kernels: Kernels, name: str, device: str, dtype: torch.dtype) -> Errors:
    case = CASES[name](kernels)
    exact = run(case.plain, case, "cpu", torch.float64)
    plain, ours = run(case.plain, case, "cpu", dtype), run(case.ours, case, device, dtype)
    return Errors(_error(ours, exact), _error(plain, exact))


def run(function: Callable[..., Tensor], case: Case, device: str, dtype: torch.dtype) -> list[Tensor]:
    """The result, and the gradients of its sum weighted by fixed numbers."""
    moved, others = on_device(case, device, dtype)
    out = function(*moved, *others)
    assert out.dtype == dtype
    weights = values(*out.shape, seed=9).to(dtype).to(device)
    return [x.detach().cpu().double() for x in (out, *torch.autograd.grad(out, moved, weights))]


def on_device(case: Case, device: str, dtype: torch.dtype) -> tuple[list[Tensor], list[Any]]:
    """The arguments with a gradient, and the others."""
    moved = [x.to(dtype).to(device).requires_grad_() for x in case.learned]
    return moved, [x.to(dtype).to(device) if isinstance(x, Tensor) else x for x in case.others]


def _error(found: list[Tensor], exact: list[Tensor]) -> float:
    return max(float((f - e).norm() / e.norm().clamp_min(1e-12)) for f, e in zip(found, exact, strict=True))
