"""Every patch of megatron-core is needed: without it a training step fails on a CPU, or gives other gradients."""

import pytest
import torch

from r1zero.patches import PATCHES
from tests.model import cases
from tests.model.cases import grid
from tests.without import without

# What a step needs: experts over ranks (EP2), recomputation, clipping, tensor parallelism, ranks that do not begin at
# 0.
LAYOUTS = {"experts": (2, grid(tp=2, ep=2)), "some ranks": (3, grid(ranks="1-2", pp=2))}
LEFT_OUT = [name for name, patch in PATCHES.items() if patch.test == "tests/model/test_patches.py"]


@cases.together
def step(rank, oracle, place, *names):
    """The gradient's norm and a digest of the weights after one clipped step with recomputation; None on ranks that do
    not train."""
    with without(*names):
        built = cases.build_on(oracle, place, recompute="full", clip_grad=0.1)
        if built is None:
            return None
        samples = cases.my_samples(built, oracle)[1]
        cases.schedule(built, samples, 2)
        _, norm, _ = built.optimizer.step()
        weights = torch.cat([p.detach().double().flatten() for p in built.chunks[0].parameters()])
        return float(norm), float(weights.sum()), float(weights.square().sum())


@pytest.fixture(scope="module")
def whole(ranks, models):
    return {name: ranks.run(step, models("deepseek"), place, size=size) for name, (size, place) in LAYOUTS.items()}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_without_it_a_step_fails_or_is_another(ranks, models, whole, name):
    layout = "some ranks" if name == "megatron global ranks" else "experts"
    size, place = LAYOUTS[layout]
    try:
        assert ranks.run(step, models("deepseek"), place, name, size=size) != whole[layout]
    except AssertionError as error:
        assert "Error" in str(error)
