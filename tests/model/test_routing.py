"""The choice of experts from groups, against megatron-core's own where the definitions coincide; ties and replays.

tests/model/test_parity.py and tests/model/test_config_fields.py compare it with Hugging Face where they do not.

    python -m pytest tests/model/test_routing.py
"""

import pytest
import torch

from tests import fast
from tests.model import cases
from tests.model.test_parity import EXPERT_LAYOUTS, LAYOUTS
from tests.oracles import transformers_model
from tests.oracles.transformers_model import LENGTHS


def route_twice(rank, score_function, best, topk):
    """(probabilities, map) of megatron-core's router function, with its own choice of experts and with ours."""
    from megatron.core.transformer.moe.moe_utils import topk_routing_with_score_function

    from r1zero.model.routing import ExpertChoice

    chance = torch.Generator().manual_seed(1)
    logits, bias = torch.randn(500, 32, generator=chance), torch.randn(32, generator=chance)
    return [
        topk_routing_with_score_function(
            logits,
            topk,
            use_pre_softmax=True,
            num_groups=8,
            group_topk=3,
            scaling_factor=2.5,
            score_function=score_function,
            expert_bias=bias if score_function == "sigmoid" else None,
            router_replay=choice,
        )
        for choice in (None, ExpertChoice(best))
    ]


@pytest.mark.parametrize("score_function, best, topk", [("sigmoid", 2, 6), ("softmax", 1, 3), ("softmax", 1, 5)])
def test_the_choice_is_bit_for_bit_that_of_megatron_where_both_score_groups_alike(ranks, score_function, best, topk):
    (own, ours), *_ = ranks.run(route_twice, score_function, best, topk, size=1)
    assert torch.equal(own[0], ours[0]) and torch.equal(own[1], ours[1])
    assert own[1].sum() == 500 * topk


def marked(rank):
    """Which of six tokens are ties, in scores of 4 experts in 2 groups of which 1 is eligible, and without groups."""
    from types import SimpleNamespace

    from r1zero.model.routing import TIE, ExpertChoice

    near, far = TIE / 2, TIE * 2
    scores_TX = torch.tensor(
        [
            [0.9, 0.8, 0.2, 0.1],
            [1.0, 1.0 - near, 0.2, 0.1],  # two experts of the better group
            [1.0, 1.0 - far, 0.2, 0.1],
            [0.5, 0.2, 0.5, 0.2],  # both groups, and the experts in each
            [0.9, 0.8, 0.2, 0.2],  # in the worse group
            [0.9, 0.1, 0.1, 0.1],  # without groups of the best expert and one of three others
        ],
        dtype=torch.float64,
    )
    found = []
    for groups, topk_groups, topk in ((2, 1, 1), (None, None, 1), (None, None, 2), (None, None, 3), (None, None, 4)):
        choice, ties_T = ExpertChoice(2), torch.zeros(len(scores_TX), dtype=torch.bool)
        choice.packed = SimpleNamespace(ties_T=ties_T, experts_TLK=None, own_rows=slice)
        choice.get_replay_topk(scores_TX, topk, groups, topk_groups, None)
        found.append(ties_T.nonzero()[:, 0].tolist())
    return found


def test_a_choice_between_almost_equal_scores_is_a_tie(ranks):
    assert ranks.run(marked, size=1) == [[[1, 3], [1, 3], [5], [3, 4, 5], []]]


REPLAYED = [
    ("deepseek", "one", 3, "none"),
    ("deepseek", "tp2 ep2", 2, "full"),
    ("deepseek", "pp2 ep2", 4, "full"),
    ("qwen3_moe", "tp2 ep2", 2, "none"),
    ("qwen3_moe_plain", "pp2 ep2", 2, "none"),
    ("deepseek_v2", "one", 2, "full"),
]


@pytest.mark.parametrize("name, layout, packs, recompute", fast.only(REPLAYED[:2], REPLAYED))
def test_replayed_experts_give_the_logits_and_gradients_of_transformers_with_them(
    ranks, models, tmp_path, name, layout, packs, recompute
):
    """Random experts, from any groups, for nine tokens of ten."""
    shape = transformers_model.MODELS[name][1]
    layers = shape["num_hidden_layers"] - shape.get("first_k_dense_replace", 0)
    make = torch.Generator().manual_seed(5)
    random = torch.rand(sum(LENGTHS), layers, 8, generator=make)
    experts = random.topk(shape["num_experts_per_tok"]).indices.to(torch.int16)
    experts[torch.rand(sum(LENGTHS), generator=make) < 0.1] = -1
    oracle = transformers_model.forced(models(name), tmp_path, experts)
    size, place = {**LAYOUTS, **EXPERT_LAYOUTS}[layout]
    results = [r for r in ranks.run(cases.parity, oracle, place, packs, recompute, experts, size=size) if r]
    assert (oracle.logits() - models(name).logits()).abs().max() > 0.1 * oracle.logits().abs().max()
    for result in results:
        assert "logits" not in result or result["logits"] <= 1e-5 * result["scale"]
        worst = max(result["gradients"], key=result["gradients"].get)
        assert result["gradients"][worst] <= 1e-4, worst
    assert any("logits" in result for result in results)
