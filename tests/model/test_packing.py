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


# Sequences of the pack, and how many tokens each continues: a prompt of 3 with three responses, one of 1 with a short
# and a long one, a sample alone, and a prompt whose second response is the last of the pack and gets the padding.
SHARING = ([([7, 1, 9], [0, 3, 3]), ([2, 1, 12], [0, 1, 1]), ([5], [0]), ([4, 6, 2, 2], [0, 0, 5, 5])], [1, 4])


def apart(lengths, shared):
    """For each token of the sequences on their own, its token in the pack."""
    tokens, ends, start, origin = [], [], 0, 0
    for own, before in zip(lengths, shared, strict=True):
        origin = origin if before else start
        tokens += [*range(origin, origin + before), *range(start, start + own)]
        ends.append((len(tokens) - own, len(tokens)))
        start += own
    return torch.tensor(tokens), [i for first, last in ends for i in range(first, last)]


@pytest.mark.parametrize("dense_tokens", [0, 9, 1000], ids=["fused", "both", "products"])
@pytest.mark.parametrize("multiple", SHARING[1])
@pytest.mark.parametrize("lengths, shared", SHARING[0])
@pytest.mark.parametrize("heads, kv_heads, width", [(4, 2, 8), (4, 4, 5)])
def test_sequences_that_continue_shared_tokens_attend_as_if_they_had_them_alone(
    dense_tokens, lengths, shared, multiple, heads, kv_heads, width
):
    packed = packing.pack(lengths, multiple, CPU, shared)
    tokens, own = apart(packed.lengths, shared)
    make = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(len(packed.positions_T), h, d, generator=make, dtype=torch.float64, requires_grad=True)
        for h, d in ((heads, 8), (kv_heads, 8), (kv_heads, width))
    )
    weights = torch.randn(len(packed.positions_T), heads * width, generator=make, dtype=torch.float64)
    found = []
    for run in (
        lambda: packing.attend(q, k, v, 0.3, packed),
        lambda: written_out(q[tokens], k[tokens], v[tokens], 0.3, packed.attended)[own],
    ):
        with mock.patch.object(packing, "DENSE_TOKENS", dense_tokens):
            out = run()
        found.append([out, *torch.autograd.grad((out * weights).sum(), (q, k, v))])
    for a, b in zip(*found, strict=True):
        assert (a - b).abs().max() < 1e-6  # the weights of the sum are made in fp32
    alone = torch.cat([torch.arange(n) for n in packed.attended])
    assert packed.positions_T.tolist() == alone[own].tolist()


def test_a_pack_with_shared_tokens_is_described_as_kernels_for_ragged_sequences_expect_it():
    packed = packing.pack([7, 1, 9], 4, CPU, [0, 3, 3])
    assert packed.cu_seqlens_q.tolist() == [0, 7, 8, 20] and packed.cu_seqlens_kv.tolist() == [0, 7, 11, 26]
    assert (packed.max_seqlen_q, packed.max_seqlen_kv, packed.longest) == (12, 15, 15)


def test_views_hold_sequences_of_similar_length_once_tokens_are_shared():
    lengths, shared = [10, 40, 41, 9, 11, 45, 52], [0, 4, 4, 4, 4, 0, 3]
    packed = packing.pack(lengths, 1, CPU, shared)
    assert packed.views == [(1, 10), (2, 15), (4, 55)]
    assert [packed.attended[n] for n in packed.order] == [10, 13, 15, 44, 45, 45, 55]


@pytest.mark.parametrize("longest", [24, 150, 200], ids=["products", "fused in fp32", "fused"])
def test_in_bfloat16_the_gradient_of_a_shared_token_is_rounded_once(longest):
    """64 responses to one prompt: sums in bfloat16 would lose about 64 / 2 * 2^-9 of the prompt's gradient."""
    make = torch.Generator().manual_seed(0)
    lengths, shared = [longest] + [longest - 8] * 63, [0] + [8] * 63
    packed = packing.pack(lengths, 1, CPU, shared)
    rows = [torch.randn(sum(lengths), 2, 16, generator=make).bfloat16() for _ in range(3)]
    found = []
    for kind in (torch.bfloat16, torch.float64):
        q, k, v = (x.to(kind).requires_grad_() for x in rows)
        with mock.patch.object(packing, "DENSE_TOKENS", 128):
            out = packing.attend(q, k, v, 0.25, packed)
        found.append(torch.autograd.grad(out.sum(), v)[0][:8].double())
    error, scale = (found[0] - found[1]).abs().max(), found[1].abs().max()
    assert error <= 2**-8 * scale


@pytest.mark.parametrize(
    ("dtype", "length", "widened"),
    [
        (torch.bfloat16, 150, True),
        (torch.bfloat16, 300, False),
        (torch.float16, 300, True),
        (torch.float32, 150, False),
        (torch.float64, 150, False),
    ],
)
def test_attention_in_16_bits_is_computed_in_fp32_where_that_is_faster(dtype, length, widened):
    make = torch.Generator().manual_seed(0)
    packed = packing.pack([length, length - 3], 1, CPU)
    rows = [torch.randn(2 * length - 3, h, 8, generator=make).to(dtype) for h in (4, 2, 2)]
    found, asked = [], []
    attention = torch.nn.functional.scaled_dot_product_attention
    for kind in (dtype, torch.float64):
        q, k, v = (x.to(kind).requires_grad_() for x in rows)
        with mock.patch.object(
            torch.nn.functional,
            "scaled_dot_product_attention",
            lambda q, *others, **more: (asked.append(q.dtype), attention(q, *others, **more))[1],
        ):
            out = packing.attend(q, k, v, 0.35, packed)
        assert out.dtype == kind
        found.append([out.double(), *(g.double() for g in torch.autograd.grad(out.sum(), (q, k, v)))])
    assert asked == [torch.float32 if widened else dtype, torch.float64]
    for ours, exact in zip(*found, strict=True):
        assert (ours - exact).norm() <= 4 * torch.finfo(dtype).eps * exact.norm()


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


@pytest.mark.parametrize("longest", [24, 150, 200], ids=["products", "fused in fp32", "fused"])
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
