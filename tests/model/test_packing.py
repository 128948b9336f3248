"""Attention over a pack against attention written out for each sequence alone.

python -m pytest tests/model/test_packing.py
"""

from unittest import mock

import pytest
import torch

from r1zero.model import packing

CPU = torch.device("cpu")


def written_out(q, k, v, scale, lengths):
    """Softmax over the keys up to each query, sequence by sequence, head by head."""
    out, start = [], 0
    for n in lengths:
        rows = slice(start, start + n)
        for_heads = []
        for h in range(q.shape[1]):
            g = h * k.shape[1] // q.shape[1]
            scores = (q[rows, h] @ k[rows, g].T * scale).masked_fill(torch.ones(n, n).triu(1).bool(), float("-inf"))
            for_heads.append(scores.softmax(-1) @ v[rows, g])
        out.append(torch.stack(for_heads, 1).flatten(1))
        start += n
    return torch.cat(out)


@pytest.mark.parametrize("dense_tokens", [0, 1000], ids=["fused", "products"])
@pytest.mark.parametrize("lengths, multiple", [([5, 5, 5], 1), ([3, 9, 1, 6], 1), ([4, 7], 4), ([1], 1)])
@pytest.mark.parametrize("heads, kv_heads, width", [(4, 2, 8), (4, 4, 5)])
def test_outputs_and_gradients_equal_attention_written_out(dense_tokens, lengths, multiple, heads, kv_heads, width):
    packed = packing.pack(lengths, multiple, CPU)
    tokens = len(packed.positions_T)
    assert tokens % multiple == 0 and tokens - sum(lengths) < multiple
    make = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(tokens, h, d, generator=make, dtype=torch.float64, requires_grad=True)
        for h, d in ((heads, 8), (kv_heads, 8), (kv_heads, width))
    )
    weights = torch.randn(tokens, heads * width, generator=make, dtype=torch.float64)
    found = []
    for run in (lambda: packing.attend(q, k, v, 0.3, packed), lambda: written_out(q, k, v, 0.3, packed.lengths)):
        with mock.patch.object(packing, "DENSE_TOKENS", dense_tokens):
            out = run()
        found.append([out, *torch.autograd.grad((out * weights).sum(), (q, k, v))])
    for a, b in zip(*found, strict=True):
        assert (a - b).abs().max() < 1e-6  # the weights of the sum are made in fp32


def test_positions_begin_anew_in_each_sequence():
    packed = packing.pack([3, 2], 4, CPU)
    assert packed.positions_T.tolist() == [0, 1, 2, 0, 1, 2, 3, 4]
    assert packed.cu_seqlens_q.tolist() == [0, 3, 8] and packed.max_seqlen_q == 5


@pytest.mark.parametrize("lengths, multiple", [([9, 5], 4), ([3, 9, 1, 6], 8), ([7], 4), ([8, 8], 8)])
def test_padding_is_no_sequence_of_its_own(lengths, multiple):
    """Attention works on the padded view, whose rows are as many as there are sequences."""
    packed = packing.pack(lengths, multiple, CPU)
    assert len(packed.lengths) == len(lengths) and packed.longest < max(lengths) + multiple


@pytest.mark.parametrize("dense_tokens", [0, 1000], ids=["fused", "products"])
def test_padding_changes_no_token_of_the_sequence_that_it_lengthens(dense_tokens):
    lengths, make = [9, 5], torch.Generator().manual_seed(0)
    packed, plain = packing.pack(lengths, 4, CPU), packing.pack(lengths, 1, CPU)
    q, k, v = (torch.randn(len(packed.positions_T), 2, 8, generator=make, dtype=torch.float64) for _ in range(3))
    with mock.patch.object(packing, "DENSE_TOKENS", dense_tokens):
        padded = packing.attend(q, k, v, 0.3, packed)[: sum(lengths)]
        alone = packing.attend(*(x[: sum(lengths)] for x in (q, k, v)), 0.3, plain)
    assert (padded - alone).abs().max() < 1e-6


@pytest.mark.parametrize("longest", [24, 200], ids=["products", "fused"])
def test_in_bfloat16_scores_that_a_key_bias_makes_large_keep_their_differences(longest):
    """Qwen2's key biases reach 145, so that scores of some hundreds differ by fractions: bfloat16 has steps of 1 to 2
    there. The error against fp64 must be that of rounding the weights and the output, whose relative step is 2^-8."""
    make = torch.Generator().manual_seed(0)
    packed = packing.pack([longest, longest - 3], 1, CPU)
    tokens = len(packed.positions_T)
    bias = 145.0 * torch.sign(torch.randn(2, 64, generator=make)) * (torch.rand(2, 64, generator=make) < 0.05)
    q, k, v = (torch.randn(tokens, h, 64, generator=make) for h in (14, 2, 2))
    q, k, v = (x.bfloat16() for x in (q, k + bias, v))
    exact = written_out(q.double(), k.double(), v.double(), 0.125, packed.lengths)
    error = (packing.attend(q, k, v, 0.125, packed).double() - exact).abs().mean()
    rounded = (exact.bfloat16().double() - exact).abs().mean()
    assert error < 3 * rounded
