from unittest import mock

import pytest
import torch

from r1zero.model.optimizer import clip_and_step
from tests.model import cases
from tests.model.cases import grid


def stepped(rank, oracle, place, clip_grad, by_library):
    """The weights after one step on the same gradient."""
    built = cases.build_on(oracle, place, clip_grad=clip_grad)
    _, samples = cases.my_samples(built, oracle)
    cases.schedule(built, samples, 2)
    if by_library:
        built.optimizer.step()
    else:
        built.optimizer.prepare_grads()
        clip_and_step(built.optimizer, float(built.optimizer.get_grad_norm()))
    return torch.cat([p.detach().flatten() for p in built.chunks[0].parameters()])


@pytest.mark.parametrize("name", ["qwen2", "deepseek"])
def test_a_step_with_a_known_norm_equals_the_librarys(ranks, models, name):
    """With experts on ranks of their own there are two optimizers, which are clipped by one norm."""
    oracle, place = models(name), grid(tp=2, ep=2) if name == "deepseek" else grid(tp=2)
    clipped, expected, free = (
        ranks.run(stepped, oracle, place, clip, by_library, size=2)
        for clip, by_library in ((0.01, False), (0.01, True), (1e6, False))
    )
    for ours, theirs, other in zip(clipped, expected, free, strict=True):
        assert torch.equal(ours, theirs) and not torch.equal(ours, other)


def test_gradients_on_a_cpu_are_clipped_to_what_the_library_clips_them_to():
    """Its own function, which asserts that a gradient is on a GPU."""
    from megatron.core.optimizer import clip_grads

    from r1zero.model import cpu_megatron

    found = []
    for clip in (cpu_megatron._clip, clip_grads.clip_grad_by_total_norm_fp32):
        parameters = [torch.nn.Parameter(torch.ones(n)) for n in (3, 70, 2)]
        draw = torch.Generator().manual_seed(0)
        for parameter in parameters[:2]:
            parameter.grad = torch.randn(len(parameter), generator=draw)
            parameter.grad.type = lambda: "torch.cuda.FloatTensor"
        with mock.patch.object(clip_grads, "torch", cpu_megatron._facade()):
            found.append([])
            for norm in (0.3, 7.0):
                clip(parameters, max_norm=1.0, total_norm=norm)
                found[-1] += [parameter.grad.clone() for parameter in parameters[:2]]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*found, strict=True))
    assert torch.equal(found[0][2], found[0][0] * (1.0 / (7.0 + 1e-6)))


def operators_of_adam(rank, oracle):
    built = cases.build_on(oracle, grid())
    cases.schedule(built, cases.my_samples(built, oracle)[1], 2)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        built.optimizer.step()
    return {event.key for event in profile.key_averages() if event.key.startswith("aten::")}


def test_adam_passes_over_the_weights_once(ranks, models):
    (found,) = ranks.run(operators_of_adam, models("qwen2"), size=1)
    assert "aten::_fused_adamw_" in found
    assert not found & {"aten::sqrt", "aten::addcdiv_", "aten::lerp_", "aten::_foreach_sqrt"}
