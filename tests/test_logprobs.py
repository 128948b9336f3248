"""Logprobs and entropy over a vocabulary cut in two equal torch's log_softmax over the whole, with their gradient."""

import pytest
import torch
import torch.distributed as dist

from r1zero import logprobs
from r1zero.logprobs import token_stats

T, V, TEMPERATURE = 9, 12, 0.7
DEVICES, TARGETS, WEIGHTS = torch.tensor([0, 3, 4, 8]), torch.tensor([1, 7, 0, 9]), torch.tensor([1.0, -2.0, 0.5, 3.0])
NO_BONUS, BONUS = torch.zeros(4), torch.tensor([0.3, -1.0, 2.0, 0.0])
FORBIDDEN = torch.tensor([i in (5, 10, 11) for i in range(V)])


def logits():
    return torch.randn(T, V, generator=torch.Generator().manual_seed(0)) * 5


def cut_in(rank, parts, bonus_R=NO_BONUS):
    width = V // parts
    part = slice(rank * width, (rank + 1) * width)
    mine = logits()[:, part].clone().requires_grad_()
    got = token_stats(
        mine,
        DEVICES,
        TARGETS,
        temperature=TEMPERATURE,
        forbidden_V=FORBIDDEN[part],
        group=dist.group.WORLD if parts > 1 else None,
    )
    ((got.logprobs_R * WEIGHTS).sum() + (got.entropy_R * bonus_R).sum()).backward()
    return got.logprobs_R.detach(), got.entropy_R.detach(), mine.grad


def oracle(bonus_R):
    whole = logits().requires_grad_()
    logp = (whole / TEMPERATURE).masked_fill(FORBIDDEN, -1e30).log_softmax(1)[DEVICES]
    chosen = logp.gather(1, TARGETS[:, None])[:, 0]
    entropy = -(logp.exp() * logp).sum(1)
    ((chosen * WEIGHTS).sum() + (entropy * bonus_R).sum()).backward()
    return chosen.detach(), entropy.detach(), whole.grad


def check(results, bonus_R=NO_BONUS):
    logprobs, entropy, grad = oracle(bonus_R)
    for got_logprobs, got_entropy, _ in results:
        torch.testing.assert_close(got_logprobs, logprobs, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(got_entropy, entropy, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.cat([g for _, _, g in results], 1), grad, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rows", [1, 3, 4])
def test_any_number_of_rows_at_a_time(monkeypatch, rows):
    monkeypatch.setattr(logprobs, "ROWS", rows)
    check([cut_in(0, 1, BONUS)], BONUS)


REPEATED = torch.tensor([3, 0, 3, 4, 3, 0])


@pytest.mark.parametrize("rows", [1, 2, 6])
def test_a_row_that_predicts_several_targets_gets_the_sum_of_their_gradients(monkeypatch, rows):
    monkeypatch.setattr(logprobs, "ROWS", rows)
    targets, weights, bonus = (torch.tensor(x) for x in ([1, 7, 0, 9, 1, 2], [1.0, -2, 0.5, 3, 2, -1], [0.3] * 6))
    found = []
    for whole in (logits().requires_grad_(), logits().requires_grad_()):
        if not found:
            got = token_stats(whole, REPEATED, targets, temperature=TEMPERATURE, forbidden_V=FORBIDDEN, group=None)
        else:
            logp_RV = (whole / TEMPERATURE).masked_fill(FORBIDDEN, -1e30).log_softmax(1)[REPEATED]
            got = logp_RV.gather(1, targets[:, None])[:, 0], -(logp_RV.exp() * logp_RV).sum(1)
        ((got[0] * weights).sum() + (got[1] * bonus).sum()).backward()
        found.append((*got, whole.grad))
    for ours, exact in zip(*found, strict=True):
        torch.testing.assert_close(ours, exact, atol=1e-5, rtol=1e-5)


def highest_growth(rank, tokens, vocabulary):
    """Bytes of resident memory that forward and backward take at most beyond the logits."""
    logits_TV = torch.zeros(tokens, vocabulary).normal_().requires_grad_()

    def resident(name):
        return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) * 1024

    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # forget the highest so far
    before = resident("VmRSS")
    every = torch.arange(tokens)
    forbidden_V = torch.zeros(vocabulary, dtype=torch.bool)
    got = token_stats(logits_TV, every, every, temperature=1.0, forbidden_V=forbidden_V, group=None)
    got.logprobs_R.sum().backward()
    return resident("VmHWM") - before


def test_memory_is_that_of_the_gradient_and_of_one_chunk(ranks):
    tokens, vocabulary = 4096, 8192
    (grown,) = ranks.run(highest_growth, tokens, vocabulary, size=1)
    gradient, chunk = 4 * tokens * vocabulary, 8 * logprobs.ROWS * vocabulary
    assert gradient < grown < 1.15 * (gradient + chunk)


@pytest.mark.parametrize("bonus_R", [NO_BONUS, BONUS])
def test_one_rank(bonus_R):
    check([cut_in(0, 1, bonus_R)], bonus_R)


def test_two_tensor_parallel_ranks(ranks):
    check(ranks.run(cut_in, 2, BONUS, size=2), BONUS)
