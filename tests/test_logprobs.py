"""Logprobs and entropy over a vocabulary cut in two equal torch's log_softmax over the whole, with their gradients.

python -m pytest tests/test_logprobs.py
"""

import ctypes
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from r1zero import logprobs
from r1zero.batch import pack
from r1zero.config import Config, Grpo, Train
from r1zero.distributed import host
from r1zero.logprobs import OutputLayer, token_stats
from r1zero.model.kernels.choice import kernels_of
from r1zero.plan import memory
from tests.test_batch import make

T, H, V, TEMPERATURE = 9, 5, 12, 0.7
# The row of the last token of a shared prompt predicts the first token of several responses.
ROWS, TARGETS = torch.tensor([0, 3, 4, 3, 8]), torch.tensor([1, 7, 0, 2, 9])
WEIGHTS = torch.tensor([1.0, -2.0, 0.5, 1.5, 3.0])
NO_BONUS, BONUS = torch.zeros(5), torch.tensor([0.3, -1.0, 2.0, 0.5, 0.0])
FORBIDDEN = torch.tensor([i in (5, 10, 11) for i in range(V)])
SECOND_HALF = torch.arange(V) >= V // 2


def inputs():
    draw = torch.Generator().manual_seed(0)
    return torch.randn(T, H, generator=draw) * 3, torch.randn(V, H, generator=draw)


def cut_into_blocks(rank, parts, ids, *args):
    """As cut_in, with the logits of so many ids at a time."""
    with mock.patch.object(logprobs, "BLOCK_BYTES", len(ROWS) * 4 * ids):
        return cut_in(rank, parts, *args)


def cut_in(rank, parts, bonus_R=NO_BONUS, forbidden=FORBIDDEN, targets=TARGETS, main_grad=False, accumulate=None):
    """Logprobs, entropy, and the gradients of the hidden states and of this rank's part of the weight."""
    part = slice(rank * (V // parts), (rank + 1) * (V // parts))
    hidden, weight = inputs()
    hidden, weight = hidden.requires_grad_(), weight[part].clone().requires_grad_()
    if main_grad:
        weight.main_grad = torch.ones_like(weight)
    group = dist.group.WORLD if parts > 1 else None
    layer = OutputLayer(weight, forbidden[part], TEMPERATURE, group, accumulate=accumulate)
    got = token_stats(hidden, ROWS, targets, layer)
    ((got.logprobs_R * WEIGHTS).sum() + (got.entropy_R * bonus_R).sum()).backward()
    of_weight = weight.main_grad - 1 if main_grad else weight.grad
    assert not main_grad or weight.grad is None
    return got.logprobs_R.detach(), got.entropy_R.detach(), hidden.grad, of_weight


def oracle(bonus_R, forbidden, targets):
    hidden, weight = inputs()
    hidden, weight = hidden.requires_grad_(), weight.requires_grad_()
    logits = (hidden @ weight.T)[ROWS] / TEMPERATURE
    logp = logits.masked_fill(forbidden, -1e30).log_softmax(1)
    chosen = logp.gather(1, targets[:, None])[:, 0]
    entropy = -(logp.exp() * logp).sum(1)
    ((chosen * WEIGHTS).sum() + (entropy * bonus_R).sum()).backward()
    return chosen.detach(), entropy.detach(), hidden.grad, weight.grad


def check(results, bonus_R=NO_BONUS, forbidden=FORBIDDEN, targets=TARGETS):
    expected = oracle(bonus_R, forbidden, targets)
    for got_logprobs, got_entropy, *_ in results:
        torch.testing.assert_close(got_logprobs, expected[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(got_entropy, expected[1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sum(h for _, _, h, _ in results), expected[2], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.cat([w for *_, w in results]), expected[3], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kept_bytes", [0, 1 << 20])
@pytest.mark.parametrize("rows", [1, 3, 5])
@pytest.mark.parametrize("ids", [1, 5, V])
@pytest.mark.parametrize(
    "way", [{}, {"main_grad": True}, {"main_grad": True, "accumulate": kernels_of("cpu").accumulate}]
)
def test_any_rows_and_ids_at_a_time_with_logits_kept_or_computed_again(monkeypatch, rows, ids, kept_bytes, way):
    monkeypatch.setattr(logprobs, "ROWS", rows)
    monkeypatch.setattr(logprobs, "BLOCK_BYTES", rows * ids * 4)
    monkeypatch.setattr(logprobs, "KEPT_BYTES", kept_bytes)
    check([cut_in(0, 1, BONUS, **way)], BONUS)


def test_all_ids_of_a_block_may_be_forbidden(monkeypatch):
    monkeypatch.setattr(logprobs, "BLOCK_BYTES", len(ROWS) * 4 * (V // 4))
    forbidden = FORBIDDEN | (torch.arange(V) < V // 4)
    targets = torch.where(TARGETS < V // 4, 6, TARGETS)
    check([cut_in(0, 1, BONUS, forbidden, targets)], BONUS, forbidden, targets)


@pytest.mark.parametrize("forbidden", [FORBIDDEN, torch.zeros(V, dtype=torch.bool)])
def test_what_torch_compiles_for_cuda(monkeypatch, forbidden):
    """The functions as they are traced, without the compilation of the trace."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    check([cut_in(0, 1, BONUS, forbidden)], BONUS, forbidden)


def test_two_tensor_parallel_ranks_add_their_parts_of_the_weights_gradient(ranks):
    cut = ranks.run(cut_in, 2, BONUS, FORBIDDEN, TARGETS, True, kernels_of("cpu").accumulate, size=2)
    check(cut, BONUS)


@pytest.mark.parametrize("reports", [False, True])
@pytest.mark.parametrize("rows", [2, 5])
def test_in_bfloat16_the_kernel_adds_what_is_added_without_it(monkeypatch, rows, reports):
    """The products are rounded alike. With `reports` autograd gets zeros, for a weight whose sum has the gradient."""
    monkeypatch.setattr(logprobs, "ROWS", rows)
    sums = []
    for accumulate in (None, kernels_of("cpu").accumulate):
        hidden, weight = (x.bfloat16().requires_grad_() for x in inputs())
        weight.main_grad = torch.ones(V, H)
        layer = OutputLayer(weight, FORBIDDEN, TEMPERATURE, None, reports, accumulate)
        (token_stats(hidden, ROWS, TARGETS, layer).logprobs_R * WEIGHTS).sum().backward()
        assert (weight.grad is not None and not weight.grad.any()) if reports else weight.grad is None
        sums.append(weight.main_grad)
    assert torch.equal(*sums) and (sums[0] != 1).any()


@pytest.mark.parametrize("reports", [False, True])
def test_a_micro_batch_without_response_tokens_leaves_the_weights_gradient_as_it_is(reports):
    """A rank with fewer micro-batches than the others computes such ones. A vendor's operator need not know matrices
    without rows, so it is not called."""

    def accumulate(inputs, gradient, total):
        raise AssertionError(f"called with {len(inputs)} rows")

    micro_batch = pack(make([(2, [3])]), torch.tensor([], dtype=torch.long))
    hidden, weight = (x.bfloat16().requires_grad_() for x in inputs())
    weight.main_grad = torch.ones(V, H)
    layer = OutputLayer(weight, FORBIDDEN, TEMPERATURE, None, reports, accumulate)
    got = token_stats(hidden[: len(micro_batch.tokens)], micro_batch.rows, micro_batch.targets, layer)
    assert got.logprobs_R.shape == got.entropy_R.shape == (0,)
    (got.logprobs_R.sum() + got.entropy_R.sum()).backward()
    assert (weight.main_grad == 1).all() and not hidden.grad.any()
    assert (weight.grad is not None) == reports  # tells megatron-core that the weight is ready


def highest_growth(rank, tokens, width, vocabulary, dtype, entropy_coef):
    """Bytes of resident memory that forward and backward take at most beyond the inputs and the weight's gradient."""
    ctypes.CDLL(None).mallopt(host.M_MMAP_THRESHOLD, 1 << 20)  # freed tensors are given back at once
    hidden_TH = torch.zeros(tokens, width, dtype=dtype).normal_().requires_grad_()
    weight_VH, main_grad = (torch.zeros(vocabulary, width, dtype=kind).normal_() for kind in (dtype, torch.float32))
    every = torch.arange(tokens)

    def resident(name):
        return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) * 1024

    def use(ids, rows):
        weight = weight_VH[:ids].detach().requires_grad_()
        weight.main_grad = main_grad[:ids]
        layer = OutputLayer(
            weight, torch.zeros(ids, dtype=torch.bool), 1.0, None, accumulate=kernels_of("cpu").accumulate
        )
        got = token_stats(hidden_TH, every[:rows], every[:rows], layer)
        (got.logprobs_R.sum() + entropy_coef * got.entropy_R.sum() if entropy_coef else got.logprobs_R.sum()).backward()

    use(4096, 1024)  # loads the code, and allocates what libraries keep
    with mock.patch.object(host, "available_memory", return_value=0):
        host.give_back_memory("cpu")  # what was freed before
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # forget the highest so far
    before = resident("VmRSS")
    use(vocabulary, tokens)
    return resident("VmHWM") - before


def check_memory(ranks, tokens, width, vocabulary, dtype, entropy_coef):
    inputs = SimpleNamespace(
        cfg=Config(train=Train(micro_batch_tokens=tokens), grpo=Grpo(entropy_coef=entropy_coef)),
        on_cpu=True,
        itemsize=dtype.itemsize,
        routes=SimpleNamespace(shape=SimpleNamespace(hidden_size=width)),
    )
    planned = memory._head_bytes(inputs, vocabulary, training=True)
    (grown,) = ranks.run(highest_growth, tokens, width, vocabulary, dtype, entropy_coef, size=1)
    print(f"{dtype}, entropy_coef {entropy_coef}: {grown / 1e6:.1f} MB measured, {planned / 1e6:.1f} MB planned")
    assert 0.85 < planned / grown < 1.1


@pytest.mark.parametrize("entropy_coef", [0.0, 0.01])
@pytest.mark.parametrize("tokens, vocabulary", [(4096, 32768), (8192, 32768), (2048, 65536)])
def test_memory_is_that_of_a_few_blocks_however_many_rows_and_ids_there_are(ranks, tokens, vocabulary, entropy_coef):
    """As the plan says. The logits of 1,024 rows in fp32 alone would take 16 or 32 blocks."""
    check_memory(ranks, tokens, 16, vocabulary, torch.float32, entropy_coef)


@pytest.mark.long
@pytest.mark.parametrize("entropy_coef", [0.0, 0.01])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_memory_with_the_vocabulary_of_qwen_is_what_the_plan_says(ranks, dtype, entropy_coef):
    """All logits of 4,096 rows in fp32 would take 2.5 GB, and their gradient as much again."""
    check_memory(ranks, 4096, 64, 151_936, dtype, entropy_coef)


@pytest.mark.parametrize("bonus_R", [NO_BONUS, BONUS])
def test_one_rank(bonus_R):
    check([cut_in(0, 1, bonus_R)], bonus_R)


@pytest.mark.parametrize("ids", [V, 4])
@pytest.mark.parametrize("forbidden, targets", [(FORBIDDEN, TARGETS), (SECOND_HALF, TARGETS % (V // 2))])
def test_two_tensor_parallel_ranks(ranks, forbidden, targets, ids):
    """Also if no id of the second part stands for a token, as with a vocabulary that is padded for the division."""
    check(ranks.run(cut_into_blocks, 2, ids, BONUS, forbidden, targets, size=2), BONUS, forbidden, targets)
