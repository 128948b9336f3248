"""Every patch of megatron-core is needed: without it a training step on a CPU fails, gives other gradients, or sends
what one rank holds to itself."""

import cProfile
from unittest import mock

import pytest
import torch

from r1zero.distributed import device
from r1zero.patches import PATCHES
from tests import fast
from tests.model import cases
from tests.model.cases import grid
from tests.without import without

# What a step needs: experts over ranks (EP2), recomputation, clipping, tensor parallelism; and an embedding at both
# ends of a pipeline, on ranks that do not begin at 0.
LAYOUTS = {"experts": ("deepseek", 2, grid(tp=2, ep=2)), "tied pipeline": ("qwen2_tied", 3, grid(ranks="1-2", pp=2))}
SLOW = "megatron exchange with itself"
IN_A_TIED_PIPELINE = ("megatron global ranks", "megatron Tensor.cuda")
LEFT_OUT = [name for name, patch in PATCHES.items() if patch.test == "tests/model/test_patches.py" and name != SLOW]


def step(rank, oracle, place, *names):
    """The gradient's norm, a digest of the weights after one clipped step with recomputation, the world rank of the
    next pipeline stage, and the groups for which options were asked; None on ranks that do not train."""
    from megatron.core import parallel_state

    asked = []
    with without(*names), mock.patch.object(device, "group_options", lambda kind, group: asked.append(group)):
        built = cases.build_on(oracle, place, recompute="full", clip_grad=0.1)
        if built is None:
            return None
        samples = cases.my_samples(built, oracle)[1]
        cases.schedule(built, samples, 2)
        _, norm, _ = built.optimizer.step()
        weights = torch.cat([p.detach().double().flatten() for p in built.chunks[0].parameters()])
        next_rank = parallel_state.get_pipeline_model_parallel_next_rank()
        return float(norm), float(weights.sum()), float(weights.square().sum()), next_rank, sorted(asked)


@pytest.fixture(scope="module")
def whole(ranks, models):
    return {name: ranks.run(step, models(m), place, size=size) for name, (m, size, place) in LAYOUTS.items()}


@pytest.mark.parametrize(
    "name", fast.only(("megatron global ranks", "megatron replicated linear", "megatron clip"), LEFT_OUT)
)
def test_without_it_a_step_fails_or_is_another(ranks, models, whole, name):
    layout = "tied pipeline" if name in IN_A_TIED_PIPELINE else "experts"
    model, size, place = LAYOUTS[layout]
    try:
        ended = ranks.run(step, models(model), place, name, size=size)
    except AssertionError:  # a rank failed or had to be ended
        return
    assert ended != whole[layout]


def collectives_of_a_step(rank, oracle, *names):
    """The functions of torch's process groups that a step of one rank calls, and a digest of its weights."""
    with without(*names):
        built = cases.build_on(oracle, grid(), clip_grad=0.1)
        samples = cases.my_samples(built, oracle)[1]
        with cProfile.Profile() as profile:
            cases.schedule(built, samples, 2)
            built.chunks[0].finish_grad_sync()  # what the trainer's schedule does
            built.optimizer.step()
    called = {one.code for one in profile.getstats() if isinstance(one.code, str) and "distributed_c10d" in one.code}
    weights = sum(float(p.detach().double().square().sum()) for p in built.chunks[0].parameters())
    return {name for name in called if "scatter" in name or "gather" in name}, weights


def test_one_rank_exchanges_neither_gradients_nor_parameters_with_itself(ranks, models):
    ((called, weights),), ((others, same),) = (
        ranks.run(collectives_of_a_step, models("qwen2"), *names, size=1) for names in ((), (SLOW,))
    )
    assert weights == same and not called
    gather, scatter = sorted(others)
    assert "gather" in gather and "scatter" in scatter
