"""Logprobs and entropy over a vocabulary cut in two equal torch's log_softmax over the whole, with their gradient."""

import torch
import torch.distributed as dist

from r1zero.logprobs import token_stats

T, V, TEMPERATURE = 9, 12, 0.7
DEVICES, TARGETS, WEIGHTS = torch.tensor([0, 3, 4, 8]), torch.tensor([1, 7, 0, 9]), torch.tensor([1.0, -2.0, 0.5, 3.0])
FORBIDDEN = torch.tensor([i in (5, 10, 11) for i in range(V)])


def logits():
    return torch.randn(T, V, generator=torch.Generator().manual_seed(0)) * 5


def cut_in(rank, parts):
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
    (got.logprobs_R * WEIGHTS).sum().backward()
    return got.logprobs_R.detach(), got.entropy_R, mine.grad


def oracle():
    whole = logits().requires_grad_()
    logp = (whole / TEMPERATURE).masked_fill(FORBIDDEN, -1e30).log_softmax(1)[DEVICES]
    chosen = logp.gather(1, TARGETS[:, None])[:, 0]
    (chosen * WEIGHTS).sum().backward()
    return chosen.detach(), -(logp.exp() * logp).sum(1).detach(), whole.grad


def check(results):
    logprobs, entropy, grad = oracle()
    for got_logprobs, got_entropy, _ in results:
        torch.testing.assert_close(got_logprobs, logprobs, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(got_entropy, entropy, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.cat([g for _, _, g in results], 1), grad, atol=1e-5, rtol=1e-5)


def test_one_rank():
    check([cut_in(0, 1)])


def test_two_tensor_parallel_ranks(ranks):
    check(ranks.run(cut_in, 2, size=2))
