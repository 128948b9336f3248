"""Logprobs with their sums over blocks: their accuracy, what they depend on, and the passes over memory.

python -m pytest tests/rollout/test_distribution.py
"""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from r1zero.rollout import distribution
from r1zero.rollout.distribution import BLOCK, block_sums, kept_sums, normalise, weight_sums

NONE = torch.zeros(0, dtype=torch.long)


def logits(rows: int, vocabulary: int, scale: float = 3.0, seed: int = 0) -> Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * scale + 20


def exact(logits_RV: Tensor, temperature: float = 1.0, forbidden: Tensor = NONE) -> Tensor:
    """In double precision, but for the division."""
    return (logits_RV.float() / temperature).double().index_fill_(1, forbidden, -torch.inf).log_softmax(-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocabulary", [1, 5, BLOCK, BLOCK + 1, 1000, 129_280, 151_936])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_those_of_the_tempered_and_masked_logits(vocabulary, temperature, dtype):
    given = logits(3, vocabulary).to(dtype)
    forbidden = torch.tensor([1, vocabulary - 1]) if vocabulary > 2 else NONE
    expected = exact(given, temperature, forbidden)
    found = normalise(given.clone(), temperature, forbidden)
    assert found.dtype == torch.float32
    assert (found[:, forbidden] == -torch.inf).all()
    finite = expected > -torch.inf
    rounding = 1e-6 + 2 * 2**-24 * expected[finite].abs()
    assert ((found.double() - expected)[finite].abs() < rounding).all()
    assert (found <= 0).all(), "Draw relies on it that no logprob is above 0"


@pytest.mark.parametrize("scale, limit", [(0.1, 1e-6), (3.0, 6e-7), (12.0, 4e-7)])
def test_no_row_of_a_large_vocabulary_is_shifted(scale, limit):
    """By the error of the likeliest id. A plain sum of 151,936 weights in fp32 is wrong by 1.6e-5, and the logarithm of
    the sum with the maximum added to it, as torch's logsumexp returns it, by as much as it is rounded."""
    given = logits(16, 151_936, scale)
    expected = exact(given).amax(1)
    assert (normalise(given.clone(), 1.0, NONE).amax(1) - expected).abs().max() < limit
    assert ((given - given.logsumexp(1, keepdim=True)).amax(1) - expected).abs().max() > limit
    if scale == 3:
        assert (given.log_softmax(1).amax(1) - expected).abs().max() > 5e-6


def test_fp32_logits_are_replaced_and_others_are_left():
    given = logits(3, 100)
    assert normalise(given, 1.0, NONE) is given
    short = logits(3, 100).bfloat16()
    before = short.clone()
    assert torch.equal(normalise(short, 0.7, NONE), normalise(before.float(), 0.7, NONE))
    assert torch.equal(short, before)


def test_logits_that_are_columns_of_a_wider_tensor_are_normalised_alike():
    """vLLM cuts off the padding of the vocabulary."""
    wide, plain = logits(5, 1024), logits(5, 1024)[:, :1000].clone()
    found = normalise(wide[:, :1000], 1.0, NONE)
    assert torch.equal(found, normalise(plain, 1.0, NONE))
    assert torch.equal(kept_sums(found), kept_sums(plain))
    assert torch.equal(wide[:, 1000:], logits(5, 1024)[:, 1000:])


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocabulary", [48, 1000, 151_936])
def test_a_row_does_not_depend_on_the_others_nor_on_their_number(vocabulary, dtype, threads, request):
    request.addfinalizer(lambda before=torch.get_num_threads(): torch.set_num_threads(before))
    rows = 17
    given = logits(rows, vocabulary).to(dtype)
    together = normalise(given.clone(), 0.9, NONE)
    torch.set_num_threads(threads)
    for size in (1, 2, 5):
        for begin in range(0, rows - size + 1, size):
            part = normalise(given[begin : begin + size].clone(), 0.9, NONE)
            assert torch.equal(part, together[begin : begin + size])
            assert torch.equal(kept_sums(part), kept_sums(together)[begin : begin + size])


def test_the_sums_belong_to_the_tensor_and_to_no_other():
    """Not to one with the same memory either, whose rows may be others."""
    found = normalise(logits(6, 1000), 1.0, NONE)
    assert kept_sums(found) is not None
    assert kept_sums(found.to(torch.float32)) is not None, "as vLLM's sampler passes it on"
    for other in (found.clone(), found[:6], found[:3], found.view(6, 1000), found[torch.arange(6)], found.half()):
        assert kept_sums(other) is None


@pytest.mark.parametrize("vocabulary", [40, BLOCK, 130, 5000])
def test_sums_are_those_of_the_weights_of_each_block(vocabulary):
    given = logits(7, vocabulary)
    weights = (given.double() - given.double().amax(1, keepdim=True)).exp()
    expected = torch.stack([part.sum(1) for part in weights.split(BLOCK, 1)], 1)
    assert torch.allclose(weight_sums(given).double(), expected, rtol=1e-6, atol=0)
    assert torch.allclose(block_sums(weights), expected, rtol=1e-12, atol=0)
    assert torch.allclose(kept_sums(normalise(given.clone(), 1.0, NONE)).double(), expected, rtol=1e-6, atol=0)


class Passes(TorchDispatchMode):
    """Counts the operators that read or write as many numbers as the logits have, and the largest new tensor."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.names, self.largest = size, Counter[str](), 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        given = [tensor for tensor in args if isinstance(tensor, Tensor)]
        results = [tensor for tensor in (made if isinstance(made, tuple) else (made,)) if isinstance(tensor, Tensor)]
        known = {tensor.untyped_storage().data_ptr() for tensor in given}
        for tensor in results:
            if tensor.untyped_storage().data_ptr() not in known:
                self.largest = max(self.largest, tensor.numel())
        if not function.is_view and any(tensor.numel() >= self.size for tensor in (*given, *results)):
            self.names[function.overloadpacket.__name__] += 1
        return made


@pytest.mark.parametrize("forbidden", [NONE, torch.tensor([3])])
def test_the_logits_need_no_second_tensor_of_their_size_and_a_chunk_is_passed_over_four_times(monkeypatch, forbidden):
    """The maximum; its subtraction; exp; the block sums; the subtraction of the logarithm."""
    given = logits(64, 1280)
    monkeypatch.setitem(distribution.CHUNK_BYTES, "cpu", 8 * 4 * 1280)
    with Passes(8 * 1280) as passes:
        normalise(given, 1.0, forbidden)
    assert passes.largest == 8 * 1280
    assert passes.names.pop("empty", 1) == 1
    assert passes.names.pop("index_fill_", 0) == 8 * len(forbidden)
    assert passes.names == {"amax": 8, "sub_": 16, "exp": 8, "sum": 8}


def test_a_forward_pass_without_rows_has_no_logprobs():
    assert normalise(torch.zeros(0, 100), 1.0, NONE).shape == (0, 100)
