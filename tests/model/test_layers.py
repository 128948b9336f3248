"""The choice of experts from groups, against megatron-core's own where the definitions coincide.

tests/model/test_parity.py and tests/model/test_config_fields.py compare it with Hugging Face where they do not.

    python -m pytest tests/model/test_layers.py
"""

import pytest
import torch


def route_twice(rank, score_function, best, topk):
    """(probabilities, map) of megatron-core's router function, with its own choice of experts and with ours."""
    from megatron.core.transformer.moe.moe_utils import topk_routing_with_score_function

    from r1zero.model.layers import GroupLimitedChoice

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
        for choice in (None, GroupLimitedChoice(best))
    ]


@pytest.mark.parametrize("score_function, best, topk", [("sigmoid", 2, 6), ("softmax", 1, 3), ("softmax", 1, 5)])
def test_the_choice_is_bit_for_bit_that_of_megatron_where_both_score_groups_alike(ranks, score_function, best, topk):
    (own, ours), *_ = ranks.run(route_twice, score_function, best, topk, size=1)
    assert torch.equal(own[0], ours[0]) and torch.equal(own[1], ours[1])
    assert own[1].sum() == 500 * topk
