"""Packs, recomputation, micro-batches, the rate and the router's bias; weights out again to ranks.

python -m pytest tests/model/test_build.py
"""

import pytest
import torch

from tests import fast
from tests.model import cases
from tests.model.cases import grid

GRIDS = [
    ("qwen2", 1, grid()),
    ("qwen2", 2, grid(tp=2)),
    ("qwen2", 2, grid(pp=2)),
    ("deepseek", 1, grid()),
    ("deepseek", 2, grid(tp=2, ep=2)),
]


@pytest.mark.parametrize("dense_tokens", [0, 1000], ids=["fused attention", "explicit products"])
@pytest.mark.parametrize("name, size, place", fast.only([GRIDS[0], GRIDS[4]], GRIDS))
def test_a_sequence_has_the_same_logits_in_any_company(ranks, models, name, size, place, dense_tokens):
    results = [r for r in ranks.run(cases.logits_of_packs, models(name), place, dense_tokens, size=size) if r["alone"]]
    assert results  # of a pipeline only the last stage has logits
    for found in results:
        alone = torch.cat(found["alone"])
        assert (found["together"][0] - alone).abs().max() <= 1e-5 * alone.abs().max()


RECOMPUTED = [
    ("qwen2", 1, grid(), [("full", ()), ("selective", ())]),
    ("deepseek", 1, grid(), [("full", ()), ("full", (2,)), ("selective", ())]),
    ("deepseek", 2, grid(tp=2, ep=2), [("full", ())]),
    ("deepseek", 2, grid(pp=2, layers=(2, 2)), [("full", (1, 0))]),
]


@pytest.mark.parametrize("name, size, place, ways", fast.only([RECOMPUTED[0], RECOMPUTED[2]], RECOMPUTED))
def test_recomputation_changes_no_bit_of_the_trained_weights(ranks, models, name, size, place, ways):
    def trained(recompute, layers=()):
        return ranks.run(cases.trained, models(name), place, recompute, 2, layers, size=size)[0]

    plain = trained("none")
    for way in ways:
        recomputed = trained(*way)
        assert [key for key, value in plain.items() if not torch.equal(recomputed[key], value)] == []


def test_answering_for_cuda_leaves_torch_whole_for_transformers(ranks, models):
    assert torch.equal(*ranks.run(cases.transformers_beside_megatron, models("deepseek_yarn"), size=1)[0])


def test_the_routers_bias_stays_in_fp32_as_it_was_loaded(ranks, models):
    oracle = models("deepseek")
    found = ranks.run(cases.trained, oracle, grid(), "none", 1, size=1)[0]
    biases = [value for key, value in found.items() if key.endswith("expert_bias")]
    loaded = [value for key, value in sorted(oracle.weights().items()) if key.endswith("e_score_correction_bias")]
    assert len(biases) == 3 and all(torch.equal(a, b) for a, b in zip(biases, loaded, strict=True))


def test_the_rate_rises_in_equal_steps_and_then_stays(ranks, models):
    assert ranks.run(cases.rates, models("qwen2"), 0, size=1)[0] == [1.0] * 5
    assert ranks.run(cases.rates, models("qwen2"), 3, size=1)[0] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])


SENT = [
    ("qwen2", grid(ranks="0-1", tp=2)),
    ("qwen2_tied", grid(ranks="2-3", pp=2)),
    ("deepseek", grid(ranks="1,3", tp=2, ep=2)),
    ("deepseek", grid(tp=2, pp=2)),
]


@pytest.mark.parametrize("name, place", fast.only(SENT[1:3], SENT))
def test_weights_reach_exactly_the_ranks_that_want_them(ranks, models, name, place):
    wanted = {"experts.1.": (0,), "experts.5.": (3,), "lm_head": (1, 2), "": (0, 2, 3)}
    source = models(name).weights()
    for rank, found in enumerate(ranks.run(cases.streamed, models(name), place, wanted, size=4)):
        assert found.keys() == {key for key in source if rank in next(v for k, v in wanted.items() if k in key)}
        assert all(torch.equal(value, source[key]) for key, value in found.items())
