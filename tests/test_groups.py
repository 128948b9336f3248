"""Which groups make up a batch, and where an engine has them."""

import torch

from r1zero.batch import Prompt, Response
from r1zero.config import Config, Grpo
from r1zero.distributed.exchange import Rewards
from r1zero.grading import Graded, Samples
from r1zero.groups import Round, choose_groups, is_enough, merge_rounds, own_batch

P, G, ENGINES = 4, 2, 2
CFG = Config(grpo=Grpo(prompts_per_iteration=P, group_size=G, dynamic_sampling=True, max_rounds=3))


def draw(number, useful, engine):
    """Round `number` of P prompts on two engines, of which one is this rank's. The reward of sample g of group p is
    10 * p + g in the first round and 100 more in the second; a token tells the same."""
    rewards = torch.tensor([100.0 * number + 10 * p + g for p in range(P) for g in range(G)]).double()
    flags = torch.tensor(useful).repeat_interleave(G)
    first, share = engine * P // ENGINES, P // ENGINES
    prompts = [Prompt(p, (1,), "", "") for p in range(first, first + share)]
    responses = [
        Response(k, g, [int(rewards[(first + k) * G + g])], [-1.0], "stop") for k in range(share) for g in range(G)
    ]
    mine = rewards[first * G : (first + share) * G]
    graded = Graded(mine, torch.ones(share * G, dtype=torch.bool), torch.zeros(share * G).long(), {"acc": mine}, mine)
    return Round(Samples(prompts, responses, first * G), graded, Rewards(rewards, torch.ones(P * G) > 0, flags))


def test_useful_groups_of_all_rounds_fill_the_batch_in_the_order_in_which_they_were_drawn():
    first, second = [False, True, False, True], [True, False, True, True]
    seen = {}
    for engine in range(ENGINES):
        draws = [draw(0, first, engine), draw(1, second, engine)]
        assert not is_enough(CFG, draws[:1]) and is_enough(CFG, draws)
        chosen = choose_groups(CFG, draws, ENGINES)
        # Groups 1 and 3 of the first round, 0 and 2 of the second, numbered on; the fifth useful one is left out.
        assert chosen.groups == [1, 3, 4, 6] and chosen.drawn == 8
        assert chosen.rewards.rewards_B.tolist() == [10, 11, 30, 31, 100, 101, 120, 121]
        assert chosen.engine_B.tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
        samples, graded = merge_rounds(draws)
        assert len(samples.prompts) == 4 and [r.prompt for r in samples.responses] == [0, 0, 1, 1, 2, 2, 3, 3]
        assert (
            graded.in_format_B.tolist()
            == graded.rewards_B.tolist()
            == [float(r.token_ids[0]) for r in samples.responses]
        )
        batch = own_batch(CFG, samples, graded, chosen, torch.arange(8.0))
        seen |= dict(zip(batch.ids_B.tolist(), batch.tokens_T[1::2].tolist(), strict=True))
        assert batch.advantages_B.tolist() == batch.ids_B.tolist() == torch.where(chosen.engine_B == engine)[0].tolist()
    assert [seen[i] for i in range(8)] == chosen.rewards.rewards_B.tolist()


def test_the_last_round_ends_an_iteration_whatever_is_missing():
    draws = [draw(k, [k == 1, False, False, False], 0) for k in range(3)]
    assert [is_enough(CFG, draws[:n]) for n in (1, 2, 3)] == [False, False, True]
    assert choose_groups(CFG, draws, ENGINES).groups == [4]
    samples, graded = merge_rounds(draws)
    empty = choose_groups(CFG, [draw(k, [False] * 4, 0) for k in range(3)], ENGINES)
    assert empty.groups == [] and len(own_batch(CFG, samples, graded, empty, torch.empty(0))) == 0
