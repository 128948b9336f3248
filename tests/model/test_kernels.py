"""Values and gradients of model/kernels/cpu.py, and of what of cuda.py runs on a CPU, against plain torch.
The kernels of the NPU are tested in tests/twin/test_kernels.py.

    python -m pytest tests/model/test_kernels.py
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from r1zero.config import MegatronGrid
from r1zero.model.kernels import cpu, cuda
from r1zero.model.kernels.choice import KERNELS, kernels_of
from tests.bench import device as bench
from tests.model import cases, kernel_cases
from tests.model.cases import grid
from tests.oracles.transformers_model import Oracle

CUDA = (
    *("norm", "norm of heads", "swiglu", "swiglu of three axes", "weighted swiglu", "rotary", "permutation"),
    *("experts", "experts without rows", "more experts than a list takes"),
)
ATTENTION = ("attention", "attention over shared prompts", "attention over many sequences")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CUDA)
def test_a_function_for_cuda_computes_what_plain_torch_does(name: str, dtype: torch.dtype) -> None:
    assert kernel_cases.compare(kernels_of("cuda"), name, "cpu", dtype).are_of_rounding(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["norm", "norm of heads", "swiglu", "swiglu of three axes", "rotary"])
def test_a_backward_pass_of_our_own_is_that_of_autograd(name: str, dtype: torch.dtype) -> None:
    assert kernel_cases.compare(kernels_of("cpu"), name, "cpu", dtype).are_of_rounding(dtype)


def test_the_log_names_the_module_of_each_function() -> None:
    said = kernels_of("npu").described()
    assert "attend from r1zero.model.kernels.npu" in said and "rms_norm from r1zero.model.kernels.npu" in said
    assert "grouped_linear from megatron-core" in kernels_of("cpu").described()


# model, ranks, grid
MODELS = {
    "Qwen2 over TP2": ("qwen2", 2, grid(tp=2)),
    "Qwen3-MoE": ("qwen3_moe", 1, grid()),
    "DeepSeek-V3 with YaRN": ("deepseek_yarn_half", 1, grid()),
    "DeepSeek-V3 over EP2": ("deepseek", 2, grid(ep=2)),
}


def parity_with_kernels_for_cuda(rank: int, oracle: Oracle, place: MegatronGrid) -> Any:
    copying = mock.patch.object(cuda, "_copy", side_effect=AssertionError("the weights of experts are copied"))
    with mock.patch.dict(KERNELS, cpu=kernels_of("cuda")), copying:
        return cases.parity(rank, oracle, place)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_with_the_functions_for_cuda_equals_transformers(ranks: Any, models: Any, name: str) -> None:
    """In fp32, in which attention is plain torch's."""
    model, size, place = MODELS[name]
    for found in ranks.run(parity_with_kernels_for_cuda, models(model), place, size=size):
        assert found["logits"] <= 1e-5 * found["scale"]
        assert max(found["gradients"].values()) <= 1e-4


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("order, copied", [((0, 1, 2), False), ((2, 1, 0), True), ((0, 2, 1), True), ((1,), False)])
def test_weights_of_experts_are_copied_only_if_they_do_not_follow_each_other(
    order: tuple[int, ...], copied: bool, transposed: bool
) -> None:
    """A weight and another one of each expert in a buffer, as of a trained model."""
    buffer = kernel_cases.values(3, 4 * 5 + 7)
    weights = [buffer[number, :20].view(4, 5) for number in order]
    found = cuda._stack([weight.t() if transposed else weight for weight in weights])
    assert torch.equal(found.transpose(1, 2) if transposed else found, torch.stack(weights))
    assert (found.untyped_storage().data_ptr() != buffer.untyped_storage().data_ptr()) == copied


def test_a_weights_gradient_for_cuda_is_added_in_fp32() -> None:
    """aten's function, which is compiled for CUDA only, is written out. It refuses what the one for CUDA refuses."""

    def addmm(self: Tensor, left: Tensor, right: Tensor, dtype: torch.dtype, *, out: Tensor, **factors: Any) -> Tensor:
        assert left.dtype == right.dtype == torch.bfloat16 and out.dtype == self.dtype == dtype == torch.float32
        assert not factors and self.data_ptr() == out.data_ptr()
        return out.copy_(self + left.float() @ right.float())

    x, gradient = (kernel_cases.values(37, width, seed=width).bfloat16() for width in (16, 24))
    total = kernel_cases.values(24, 16).float()
    expected = total + gradient.float().t() @ x.float()
    accumulate = kernels_of("cuda").accumulate
    assert accumulate
    with torch.library._scoped_library("aten", "IMPL") as library:
        library.impl("addmm.dtype_out", addmm, "CPU")
        accumulate(x, gradient, total)
    torch.testing.assert_close(total, expected)


@pytest.mark.parametrize("kind", KERNELS)
def test_a_weights_gradient_in_fp32_is_added_without_an_operator_of_the_device(kind: str) -> None:
    """The operators for CUDA and NPU, which are for 16-bit types, do not exist here."""
    x, gradient, total = (kernel_cases.values(*shape).float() for shape in ((37, 16), (37, 24), (24, 16)))
    expected = total + gradient.t() @ x
    accumulate = kernels_of(kind).accumulate
    assert accumulate
    accumulate(x, gradient, total)
    torch.testing.assert_close(total, expected)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.bfloat16, 2.0**-8)], ids=str)
def test_a_weights_gradient_on_a_cpu_is_added_in_fp32_for_some_outputs_at_a_time(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, tolerance: float
) -> None:
    """The sum is larger than the product by more than bfloat16 can hold, so that a sum in bfloat16 would lose it."""
    monkeypatch.setattr(cpu, "ADDED_OUTPUTS", 7)
    x, gradient = (kernel_cases.values(37, width, seed=width).to(dtype) for width in (16, 24))
    total = torch.full((24, 16), 4096.0)
    product = gradient.double().t() @ x.double()
    cpu.add_weight_gradient(x, gradient, total)
    assert (total.double() - 4096 - product).abs().max() < tolerance * product.abs().max() + 4096 * 2.0**-23


class Ragged:
    """Ragged attention in fp32 whose causal mask ends at the last query and the last key of a sequence."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, ends_q: Tensor, ends_k: Tensor, scale: float):
        self.q, self.k, self.v, self.scale, self.repeat = q, k, v, scale, q.shape[1] // k.shape[1]
        self.spans = list(zip(pairwise(ends_q.tolist()), pairwise(ends_k.tolist()), strict=True))

    def weights(self, i: int) -> tuple[Tensor, ...]:
        """Of sequence i: queries, keys and values in fp32, one key head for each query head; weights (h, Q, K)."""
        (a, b), (c, d) = self.spans[i]
        q, k, v = self.q[a:b].float(), *(x[c:d].float().repeat_interleave(self.repeat, 1) for x in (self.k, self.v))
        hidden = torch.ones(b - a, d - c, dtype=torch.bool).triu(1 + d - c - (b - a))
        scores = torch.einsum("qhd,khd->hqk", q, k) * self.scale
        return q, k, v, scores.masked_fill(hidden, -torch.inf).softmax(-1)

    def forward(self) -> Tensor:
        parts = map(self.weights, range(len(self.spans)))
        return torch.cat([torch.einsum("hqk,khd->qhd", p, v) for _, _, v, p in parts]).to(self.q.dtype)

    def backward(self, grad: Tensor) -> tuple[Tensor, ...]:
        found: tuple[list[Tensor], ...] = ([], [], [])
        for i, ((a, b), _) in enumerate(self.spans):
            q, k, v, p = self.weights(i)
            grad_out = grad[a:b].float()
            grad_p = torch.einsum("qhd,khd->hqk", grad_out, v)
            grad_scores = p * (grad_p - (grad_p * p).sum(-1, keepdim=True)) * self.scale
            found[0].append(torch.einsum("hqk,khd->qhd", grad_scores, k))
            found[1].append(torch.einsum("hqk,qhd->khd", grad_scores, q).unflatten(1, (-1, self.repeat)).sum(2))
            found[2].append(torch.einsum("hqk,qhd->khd", p, grad_out).unflatten(1, (-1, self.repeat)).sum(2))
        return tuple(torch.cat(rows).to(self.q.dtype) for rows in found)


@pytest.fixture
def flash_attention() -> Iterator[list[str]]:
    """aten's FlashAttention, which is compiled for CUDA only, written out for the CPU, where torch's own code calls it.
    Yields the names of the calls."""
    calls: list[str] = []

    def forward(q: Tensor, k: Tensor, v: Tensor, *given: Any, scale: float, **window: Any) -> tuple[Tensor, ...]:
        ends_q, ends_k, max_q, max_k, dropout, is_causal, _ = given
        assert is_causal and not dropout and (window["window_size_left"], window["window_size_right"]) == (-1, 0)
        assert q.shape[2] == k.shape[2] == v.shape[2] and q.shape[2] % 8 == 0 and q.dtype == torch.bfloat16
        assert (max_q, max_k) == (int(ends_q.diff().max()), int(ends_k.diff().max()))
        assert ends_q.dtype == ends_k.dtype == torch.int32
        calls.append("forward")
        out, nothing = Ragged(q, k, v, ends_q, ends_k, scale).forward(), torch.empty(0)
        return out, torch.empty(q.shape[1], len(q)), torch.zeros(2, dtype=torch.int64), nothing, nothing

    def backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *given: Any, scale: float, **window: Any) -> Any:
        calls.append("backward")
        return Ragged(q, k, v, *given[2:4], scale).backward(grad)

    with torch.library._scoped_library("aten", "IMPL") as library:
        library.impl("_flash_attention_forward", forward, "CPU")
        library.impl("_flash_attention_backward", backward, "CPU")
        yield calls


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_for_cuda_is_flash_attention_in_16_bits(flash_attention: list[str], name: str) -> None:
    errors = kernel_cases.compare(kernels_of("cuda"), name, "cpu", torch.bfloat16)
    assert errors.are_of_rounding(torch.bfloat16), errors
    assert flash_attention == ["forward", "backward"]


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_for_cuda_is_that_of_plain_torch_in_fp32(name: str) -> None:
    assert kernel_cases.compare(kernels_of("cuda"), name, "cpu", torch.float32).are_of_rounding(torch.float32)


@pytest.mark.parametrize("wrong", [False, True])
def test_the_check_of_a_device_names_a_kernel_that_is_wrong(monkeypatch: Any, capsys: Any, wrong: bool) -> None:
    """On a CPU, with the kernels for CUDA that run there. The wrong norm has another epsilon."""
    kernels = kernels_of("cuda")
    right = kernels.rms_norm
    if wrong:
        kernels = replace(kernels, rms_norm=lambda x, weight, epsilon: right(x, weight, 1e-3))
    monkeypatch.setitem(KERNELS, "cuda", kernels)
    monkeypatch.setattr(bench, "ROUNDS", 1)
    monkeypatch.setattr(bench, "WARM_UP", 0)
    assert bench.main(["--device", "cpu", "--kernels", "cuda", "--small"]) == wrong
    printed = capsys.readouterr().out
    assert ("larger than" in printed) == wrong and "permutation" in printed and "attention" not in printed
