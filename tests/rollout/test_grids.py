"""Engines over several ranks, colocated and on a part of the world: all sample what one rank alone samples."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from r1zero.config import VllmGrid
from tests import fast
from tests.oracles.generation import TOLERANCE, gap
from tests.rollout import cases
from tests.rollout.cases import Answer, Case, prompts

LENGTHS = [5, 9, 14, 20]


@pytest.fixture(scope="module")
def dense(checkpoint, ranks) -> tuple[Case, Answer]:
    old, new = checkpoint("dense", 1), checkpoint("dense", 2)
    case = Case(old, (old, new), prompts(LENGTHS))
    return case, ranks.run(cases.answer, case, size=1)[0]


@pytest.fixture(scope="module")
def experts(checkpoint, ranks) -> tuple[Case, Answer]:
    old, new = checkpoint("experts", 1), checkpoint("experts", 2)
    case = Case(old, (old, new), prompts(LENGTHS))
    return case, ranks.run(cases.answer, case, size=1)[0]


def check(case: Case, alone: Answer, answers: list[Answer | None]) -> None:
    """Each rank's answers are transformers', and the tokens those of one rank alone; nothing is left over."""
    engines = [a for i, a in enumerate(answers) if a is not None]
    tp = case.grid.tensor_parallel_size
    for i, answer in enumerate(engines):
        mine = cases.share(case, len(engines) // tp, i // tp)
        first = case.prompts.index(mine.prompts[0])
        same = [r for r in alone.responses if first <= r.prompt < first + len(mine.prompts)]
        assert [r.token_ids for r in answer.responses] == [r.token_ids for r in same]
        assert gap(mine, answer) < TOLERANCE
        assert answer.left_over == {}


YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 40.0,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 32,
}


@pytest.mark.parametrize(
    "changes",
    [{}, {"kv_lora_rank": 512}, {"rope_parameters": YARN, "max_position_embeddings": 1280}],
    ids=["any width", "the kernel's width", "yarn"],
)
def test_latent_attention_and_experts_on_one_rank(checkpoint, ranks, changes):
    old, new = (checkpoint("experts", seed, **changes) for seed in (1, 2))
    case = Case(old, (old, new), prompts([5, 9, 40, 64]), max_prompt_tokens=64, max_num_batched_tokens=128)
    (answer,) = ranks.run(cases.answer, case, size=1)
    assert gap(case, answer) < TOLERANCE < 0.01 < gap(case, answer, old)


@pytest.mark.parametrize("grid", [VllmGrid(tensor_parallel_size=2), VllmGrid()], ids=["TP2", "two replicas"])
def test_dense_on_two_ranks(dense, ranks, grid):
    case = replace(dense[0], grid=grid)
    check(case, dense[1], ranks.run(cases.answer, case, size=2))


@pytest.mark.slow
def test_tied_embeddings_cut_over_two_ranks(checkpoint, ranks):
    old, new = (checkpoint("dense", seed, tie_word_embeddings=True) for seed in (1, 2))
    case = Case(old, (old, new), prompts(LENGTHS), grid=VllmGrid(tensor_parallel_size=2))
    for answer in ranks.run(cases.answer, case, size=2):
        assert gap(case, answer) < TOLERANCE < 0.01 < gap(case, answer, old)


SUBSETS = [(tp, *ranks) for tp in (1, 2) for ranks in (("1-2", "0"), ("0,2", "1"))]


@pytest.mark.parametrize("tp, ranks_of_rollout, train", fast.only([(2, "0,2", "1")], SUBSETS))
def test_dense_on_two_ranks_of_three(dense, ranks, ranks_of_rollout, train, tp):
    case = replace(dense[0], grid=VllmGrid(ranks=ranks_of_rollout, tensor_parallel_size=tp), train_ranks=train)
    answers = ranks.run(cases.answer, case, size=3)
    assert [a is None for a in answers] == [str(rank) == train for rank in range(3)]
    check(case, dense[1], answers)


GRIDS = {
    "TP2": VllmGrid(tensor_parallel_size=2),
    "experts over TP2": VllmGrid(tensor_parallel_size=2, enable_expert_parallel=True),
    "experts over DP2": VllmGrid(data_parallel_size=2, enable_expert_parallel=True),
}


@pytest.mark.parametrize("name", fast.only(["TP2", "experts over DP2"], GRIDS))
def test_experts_on_two_ranks(experts, ranks, name):
    grid = GRIDS[name]
    case = replace(experts[0], grid=grid)
    answers = ranks.run(cases.answer, case, size=2)
    check(case, experts[1], answers)
    owned = [list(a.owned_experts) for a in answers]
    assert owned == ([[0, 1, 2, 3], [4, 5, 6, 7]] if grid.enable_expert_parallel else [list(range(8))] * 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    "grid",
    [
        VllmGrid(tensor_parallel_size=2, data_parallel_size=2, enable_expert_parallel=True),
        VllmGrid(data_parallel_size=2, enable_expert_parallel=True),
    ],
    ids=["TP2 x DP2", "DP2 in two replicas"],
)
def test_experts_on_four_ranks(experts, ranks, grid):
    case = replace(experts[0], grid=grid)
    check(case, experts[1], ranks.run(cases.answer, case, size=4))


@pytest.mark.slow
def test_experts_over_two_data_parallel_ranks_of_three(experts, ranks):
    case = replace(experts[0], grid=replace(GRIDS["experts over DP2"], ranks="1-2"), train_ranks="0")
    check(case, experts[1], ranks.run(cases.answer, case, size=3))


def test_engines_that_share_experts_may_end_at_different_times(experts, ranks):
    """Prompts 0 and 1 can only stop at once, the others run to the limit: the first engine steps on for the second."""
    case = replace(
        experts[0], grid=GRIDS["experts over DP2"], stop_token_ids=tuple(range(0, 512, 2)), group_size=4, iteration=1
    )
    answers = ranks.run(cases.answer, case, size=2)
    lengths = [max(len(r.token_ids) for r in a.responses) for a in answers]
    assert lengths[0] != lengths[1]
    for engine, answer in enumerate(answers):
        assert gap(cases.share(case, 2, engine), answer) < TOLERANCE


@pytest.mark.slow
def test_two_jobs_on_one_host_do_not_meet_in_shared_memory(dense, ranks):
    case = replace(dense[0], grid=VllmGrid(tensor_parallel_size=2))
    with ThreadPoolExecutor() as pool:
        jobs = [pool.submit(ranks.run, cases.answer, case, size=2) for _ in range(2)]
    for job in jobs:
        for answer in job.result():
            assert gap(case, answer) < TOLERANCE
