"""Logprobs and gradients with prompts that are computed once per group, against each response with its own prompt.

python -m pytest tests/test_policy.py
"""

from dataclasses import replace
from functools import partial
from unittest import mock

import pytest
import torch

from r1zero import config
from tests import fast
from tests.model import cases
from tests.model.cases import grid
from tests.model.test_parity import FAMILIES

# Prompt length, and the lengths of the responses to it. A response of one token has no row of its own, and with the
# longest prompt attention is not written as products.
GROUPS = [(9, (5, 1, 12)), (1, (3, 8)), (6, (4,)), (125, (20, 3, 9)), (7, (1, 1))]
VOCABULARY = 128
LAYOUTS = {
    "one": (1, grid()),
    "tp2": (2, grid(tp=2)),
    "pp2": (2, grid(pp=2)),
    "tp2 ep2": (2, grid(tp=2, ep=2)),
    "ep2": (2, grid(ep=2)),  # two data-parallel ranks
    "tp2 pp2": (4, grid(tp=2, pp=2)),
    "dp4": (4, grid()),
}
# name, layout, tokens of a micro-batch: with 165 a group is divided
CASES = (
    [(name, "one", 4096) for name in FAMILIES]
    + [(name, layout, 165) for name in ("qwen2_tied", "deepseek") for layout in LAYOUTS if "ep" not in layout]
    + [("deepseek", layout, 165) for layout in ("ep2", "tp2 ep2")]
)


def samples(shared: bool):
    from r1zero.batch import Batch

    make = torch.Generator().manual_seed(0)
    rows = [(group, prompt, response) for group, (prompt, responses) in enumerate(GROUPS) for response in responses]
    prompts = [torch.randint(0, VOCABULARY, (prompt,), generator=make) for prompt, _ in GROUPS]
    responses = [torch.randint(0, VOCABULARY, (response,), generator=make) for *_, response in rows]
    count, tokens = len(rows), sum(response for *_, response in rows)
    ids_B = torch.arange(count)
    return Batch(
        ids_B=ids_B,
        groups_B=torch.tensor([group for group, *_ in rows]) if shared else ids_B,
        prompt_lengths_B=torch.tensor([prompt for _, prompt, _ in rows]),
        response_lengths_B=torch.tensor([response for *_, response in rows]),
        tokens_T=torch.cat(
            [t for (group, *_), response in zip(rows, responses, strict=True) for t in (prompts[group], response)]
        ),
        advantages_B=torch.randn(count, generator=make),
        scored_B=(ids_B != 1).float(),
        rollout_logprobs_R=-5 + torch.randn(tokens, generator=make),
        ref_logprobs_R=-5 + torch.randn(tokens, generator=make),
    )


def passes(rank, oracle, place, budget):
    """With and without sharing: sample -> logprobs, gradients by HF name, and the tokens of each micro-batch."""
    from r1zero import policy
    from r1zero.batch import LossSize
    from r1zero.division import balance

    built = cases.build_on(oracle, place)
    dp = built.grids.dense.coordinate(rank, "dp")
    cfg = replace(
        built.cfg, train=config.Train(micro_batch_tokens=budget), grpo=config.Grpo(kl_coef=0.1, entropy_coef=0.01)
    )
    model = policy.Policy(cfg, built.chunks, VOCABULARY, [])
    run = partial(policy.get_forward_backward_func(), force_all_reduce=True)
    found = []
    for shared in (True, False):
        every = samples(shared)
        # The last of several data-parallel ranks has no samples, and runs a dummy for each micro-batch of the others.
        count = built.grids.dense.size("dp")
        shards = [*balance(every.sizes, max(1, count - 1)), []]
        mine = every.select(torch.tensor(shards[dp], dtype=torch.long))
        values = model.logprobs(mine)
        rows = [] if values is None else values.split(mine.response_lengths_B.tolist())
        for chunk in built.chunks:
            chunk.zero_grad_buffer()
        size = LossSize(float(every.response_lengths_B.sum()), float(len(every)), 20)
        micro = model._micro_batches(mine)
        with mock.patch.object(policy, "get_forward_backward_func", lambda: run):
            model._schedule(micro, partial(model._loss, mine, size, 1.0), forward_only=False)
        gradients = cases.gathered(built, oracle, lambda parameter: parameter.main_grad)
        tokens = [len(p.tokens) for p in micro if len(p.indices)]
        found.append((dict(zip(mine.ids_B.tolist(), rows, strict=bool(rows))), gradients, tokens))
    return found


IN_FAST = [
    ("qwen2", "one", 4096),
    ("deepseek_v2", "one", 4096),
    ("qwen2_tied", "pp2", 165),
    ("deepseek", "one", 165),
    ("deepseek", "tp2 ep2", 165),
]


@pytest.mark.parametrize("name, layout, budget", fast.only(IN_FAST, CASES))
def test_a_shared_prompt_gives_the_logprobs_and_gradients_of_prompts_that_are_computed_each_time(
    ranks, models, name, layout, budget
):
    size, place = LAYOUTS[layout]
    results = ranks.run(passes, models(name), place, budget, size=size)
    found, expected = ({i: row for result in results for i, row in result[k][0].items()} for k in range(2))
    assert found.keys() == expected.keys() == set(range(len(samples(True))))
    for i, row in expected.items():
        torch.testing.assert_close(found[i], row, atol=1e-5, rtol=1e-5)
    for together, alone in results:
        for key, gradient in alone[1].items():
            assert (together[1][key] - gradient).norm() <= 1e-5 * gradient.norm().clamp_min(1e-3), key
    tokens = [sum(sum(result[k][2]) for result in results) for k in range(2)]
    assert tokens[0] < tokens[1] and all(n <= budget for result in results for n in result[0][2])


def test_the_smaller_micro_batches_divide_a_group():
    from r1zero.division import micro_batches

    sizes = samples(True).sizes
    groups = [{sizes[i].group for i in found} for found in micro_batches(sizes, 165)]
    assert any(a & b for k, a in enumerate(groups) for b in groups[:k])


def update_in(rank, oracle, dtype, first):
    """The factors of the loss that an update tries, and its gradients by HF name. first: the first factor, or None."""
    from r1zero import policy
    from r1zero.batch import LossSize

    built = cases.build_on(oracle, grid(), dtype)
    cfg = replace(built.cfg, grpo=config.Grpo(kl_coef=0.1))
    model = policy.Policy(cfg, built.chunks, VOCABULARY, [], built.optimizer, built.scheduler)
    tried, gradient = [], model._gradient

    def recorded(loss, micro, scale):
        tried.append(scale)
        return gradient(loss, micro, scale)

    model._gradient = recorded
    size = LossSize(2.0**22, 2.0**12, 2**10)  # of a large batch, of which these samples are a part
    with mock.patch.object(policy, "loss_scale", (lambda *_: first) if first else policy.loss_scale):
        assert not model._update(samples(True), size).skipped
    return tried, cases.gathered(built, oracle, lambda parameter: parameter.main_grad)


def gradient_of_the_embedding(rank, oracle, dtype, by_rows):
    """Returns the gradient of an update of several micro-batches, in which tokens occur repeatedly, and how many
    gradients of the embedding autograd made."""
    from r1zero import policy
    from r1zero.batch import LossSize
    from r1zero.model import cpu_megatron

    replace_lookup = cpu_megatron.add_gradient_of_the_embedding_by_rows if by_rows else lambda *_: None
    with mock.patch.object(cpu_megatron, "add_gradient_of_the_embedding_by_rows", replace_lookup):
        built = cases.build_on(oracle, grid(tp=2), dtype)
        cfg = replace(built.cfg, train=replace(built.cfg.train, micro_batch_tokens=165))
        model = policy.Policy(cfg, built.chunks, VOCABULARY, [], built.optimizer, built.scheduler)
        made, weight = [], built.chunks[0].module.embedding.word_embeddings.weight
        weight.register_hook(made.append)
        model._update(samples(True), LossSize(60.0, 12.0, 20))
    return weight.main_grad, sum(gradient is not None for gradient in made)


@pytest.mark.parametrize("dtype, error", [("float32", 1e-6), ("bfloat16", 1e-2)])
@pytest.mark.parametrize("name", ["qwen2", "qwen2_tied"])
def test_the_gradient_of_an_embedding_is_added_in_the_rows_of_its_tokens(ranks, models, name, dtype, error):
    """Also to a weight to which the log-probabilities add theirs."""
    by_rows, whole = (ranks.run(gradient_of_the_embedding, models(name), dtype, way, size=2) for way in (True, False))
    for (found, made), (expected, others) in zip(by_rows, whole, strict=True):
        assert made == 0 and others > 1
        assert (found - expected).norm() < error * expected.norm()
        assert (found.any(1) == expected.any(1)).all() and found.any()


@pytest.mark.parametrize("name", fast.only(["qwen2"], ["qwen2", "deepseek"]))
def test_in_float16_the_loss_is_scaled_until_no_gradient_is_too_small_or_too_large(ranks, models, name):
    def error(found):
        return max(float((found[k] - g).norm() / g.norm()) for k, g in exact.items() if g.norm() > 1e-3 * largest)

    (_, exact), *_ = ranks.run(update_in, models(name), "float32", None, size=1)
    largest = max(g.norm() for g in exact.values())
    ((tried, scaled),) = ranks.run(update_in, models(name), "float16", None, size=1)
    assert tried == [2.0**22] and error(scaled) < 0.05
    ((tried, lowered),) = ranks.run(update_in, models(name), "float16", 2.0**45, size=1)
    assert tried[0] == 2.0**45 > tried[-1] > 1 and len(tried) > 1 and error(lowered) < 0.05
    ((tried, plain),) = ranks.run(update_in, models(name), "float16", 1.0, size=1)
    assert tried == [1.0] and error(plain) > 0.2


def before_ties(rank, oracle, place):
    """Sample -> number of tokens before the first tie, here a difference of 0.1 %, as far as this rank knows."""
    from r1zero import policy
    from r1zero.division import balance
    from r1zero.model import routing

    routing.TIE = 0.001
    built = cases.build_on(oracle, place)
    cfg = replace(built.cfg, train=config.Train(micro_batch_tokens=165))
    every, count = samples(shared=False), built.grids.dense.size("dp")
    # The last of several data-parallel ranks has no samples.
    shard = [*balance(every.sizes, max(1, count - 1)), []][built.grids.dense.coordinate(rank, "dp")]
    mine = every.select(torch.tensor(shard, dtype=torch.long))
    model = policy.Policy(cfg, built.chunks, VOCABULARY, [])
    values, before_B = model.logprobs_and_ties(mine)
    plain = model.logprobs(mine)
    assert (values is None and plain is None) or torch.equal(values, plain)
    return dict(zip(mine.ids_B.tolist(), before_B.tolist(), strict=True))


@pytest.mark.parametrize("name", fast.only(["deepseek"], ["deepseek", "qwen3_moe"]))
def test_the_tokens_before_a_tie_between_experts_are_the_same_on_every_layout(ranks, models, name):
    (alone,) = ranks.run(before_ties, models(name), grid(), size=1)
    lengths = dict(enumerate(samples(shared=False).lengths_B.tolist()))
    assert alone.keys() == lengths.keys() and any(0 < alone[i] < n for i, n in lengths.items())
    assert any(alone[i] == n for i, n in lengths.items())
    for layout in ("tp2 ep2", "pp2", "ep2"):
        size, place = LAYOUTS[layout]
        found = ranks.run(before_ties, models(name), place, size=size)
        assert {i: min(of[i] for of in found if i in of) for i in lengths} == alone, layout
