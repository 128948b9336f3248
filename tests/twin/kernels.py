"""The kernels of model/kernels/npu.py and those of the CPU on the same values, on one rank of the twin."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from r1zero.model.kernels import choice
from tests.twin import trainers
from tests.twin.project import MegatronGrid, Oracle

CPU, NPU = choice.kernels_of("cpu"), choice.kernels_of("npu")


@dataclass(frozen=True)
class Compared:
    """Largest absolute differences to the same function in fp64, of results and gradients, divided by the largest
    number."""

    ours: float
    plain: float
    """Of the CPU's function in the same type."""
    calls: dict[str, int]
    """Of the vendor's operators."""


def values(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def angles(tokens: int, width: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines (T, 1, d), both halves equal."""
    half = torch.arange(tokens)[:, None] * 10000.0 ** (-torch.arange(width // 2, dtype=torch.float64) / (width // 2))
    both = torch.cat((half, half), -1)[:, None]
    return both.cos(), both.sin()


def rotate_plainly(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    from megatron.core.models.common.embeddings.rope_utils import _rotate_half

    return x * cosines + _rotate_half(x, False) * sines


@dataclass(frozen=True)
class Case:
    ours: Callable[..., Tensor]
    plain: Callable[..., Tensor]
    learned: list[Tensor]
    """Arguments with a gradient, fp64."""
    others: tuple[Any, ...] = ()


def cases() -> dict[str, Case]:
    norm = [values(37, 48), 1 + values(48, seed=1, scale=0.2)]
    heads = [values(37, 3, 24), 1 + values(24, seed=1, scale=0.2)]
    return {
        "norm": Case(NPU.rms_norm, CPU.rms_norm, norm, (1e-6,)),
        "norm of heads": Case(NPU.rms_norm, CPU.rms_norm, heads, (1e-5,)),
        "swiglu": Case(NPU.swiglu, CPU.swiglu, [values(37, 2 * 24)]),
        "swiglu of three axes": Case(NPU.swiglu, CPU.swiglu, [values(37, 1, 2 * 24)]),
        "rotary": Case(NPU.rotate, rotate_plainly, [values(37, 4, 16)], angles(37, 16)),
    }


def compare(rank: int, name: str, dtype: torch.dtype) -> Compared:
    import torch_npu

    case = cases()[name]
    before = torch_npu.operators.CALLS.copy()
    exact, plain, ours = (
        _run(function, case, device, kind)
        for function, device, kind in (
            (case.plain, "cpu", torch.float64),
            (case.plain, "cpu", dtype),
            (case.ours, "npu", dtype),
        )
    )
    return Compared(_error(ours, exact), _error(plain, exact), dict(torch_npu.operators.CALLS - before))


def _run(function: Callable[..., Tensor], case: Case, device: str, dtype: torch.dtype) -> list[Tensor]:
    """The result and the gradients of its sum, weighted by fixed numbers."""
    moved = [x.to(dtype).to(device).requires_grad_() for x in case.learned]
    others = [x.to(dtype).to(device) if isinstance(x, Tensor) else x for x in case.others]
    out = function(*moved, *others)
    assert out.dtype == dtype
    weights = values(*out.shape, seed=9).to(dtype).to(device)
    return [x.detach().cpu().double() for x in (out, *torch.autograd.grad(out, moved, weights))]


def _error(found: list[Tensor], exact: list[Tensor]) -> float:
    return max(float((f - e).abs().max() / e.abs().max()) for f, e in zip(found, exact, strict=True))


def gradients(
    rank: int, oracle: Oracle, place: MegatronGrid, without: tuple[str, ...] = ()
) -> tuple[trainers.Gradients, dict[str, int]]:
    """Of a model with this device's kernels but for those named, and how often it called the vendor's operators."""
    import torch_npu

    before = torch_npu.operators.CALLS.copy()
    with mock.patch.dict(choice.KERNELS, npu=replace(NPU, **dict.fromkeys(without))):
        found = trainers.gradients(rank, oracle, place, 1)
    return found, dict(torch_npu.operators.CALLS - before)
