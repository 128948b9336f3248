"""model/kernels/npu.py on the twin: values and gradients of each kernel against plain torch on the CPU, and which of
the vendor's operators a step of a model calls.

    python -m pytest tests/twin/test_kernels.py
"""

from collections.abc import Callable

import pytest
import torch

from r1zero.model.families import read_shape
from tests import fast
from tests.twin import kernels
from tests.twin.client import Twin
from tests.twin.project import MegatronGrid, Oracle

PERMUTE, UNPERMUTE = "npu_moe_token_permute_with_routing_map", "npu_moe_token_unpermute_with_routing_map"
# case of tests/twin/kernels.py: the operators that it must call, and how often
KERNELS = {
    "norm": {"npu_rms_norm": 1},
    "norm of heads": {"npu_rms_norm": 1},
    "swiglu": {"npu_swiglu": 1},
    "swiglu of three axes": {"npu_swiglu": 1},
    "attention": {"npu_fusion_attention": 1},
    "attention over shared prompts": {"npu_fusion_attention": 1},
    "attention over many sequences": {"npu_fusion_attention": 2},
    "rotary": {"npu_rotary_mul": 1},
    "experts": {"npu_grouped_matmul": 3},
    "experts without rows": {},
    "more experts than a list takes": {"npu_grouped_matmul": 3},
    "permutation": {PERMUTE: 1, UNPERMUTE: 1},
}


@pytest.mark.parametrize("dtype", fast.only([torch.float32], [torch.float32, torch.bfloat16]), ids=str)
@pytest.mark.parametrize("name", KERNELS)
def test_values_and_gradients_are_those_of_the_cpu(twin: Twin, name: str, dtype: torch.dtype) -> None:
    ((errors, calls),) = twin.run(kernels.compare, name, dtype)
    assert calls == {f"npu::{operator}": times for operator, times in KERNELS[name].items()}
    assert errors.are_of_rounding(dtype), errors


# name: (model, ranks, grid, operators that it calls)
DENSE = ("npu_rms_norm", "npu_swiglu", "npu_rotary_mul", "npu_fusion_attention")
EXPERTS = (*DENSE, "npu_grouped_matmul", PERMUTE, UNPERMUTE)
MODELS = {
    "Qwen2": ("qwen2", 1, MegatronGrid(), DENSE),
    "Qwen3 over TP2": ("qwen3", 2, MegatronGrid(tensor_model_parallel_size=2), DENSE),
    "DeepSeek-V3 over EP2": ("deepseek", 2, MegatronGrid(expert_model_parallel_size=2), EXPERTS),
    "DeepSeek-V3 over TP2": ("deepseek", 2, MegatronGrid(tensor_model_parallel_size=2), EXPERTS),
    "DeepSeek-V3 with YaRN": ("deepseek_yarn_half", 1, MegatronGrid(), EXPERTS),
    "Qwen3-MoE": ("qwen3_moe", 1, MegatronGrid(), EXPERTS),
    "DeepSeek-V2-Lite": ("deepseek_v2_lite", 1, MegatronGrid(), EXPERTS),
}


@pytest.mark.parametrize("name", fast.only(["Qwen2", "DeepSeek-V3 over EP2"], MODELS))
def test_a_model_with_the_kernels_equals_transformers(twin: Twin, models: Callable[[str], Oracle], name: str) -> None:
    """YaRN with two different factors scales cosines and sines above 1, which npu_rotary_mul refuses."""
    model, size, place, operators = MODELS[name]
    for found, calls in twin.run(kernels.gradients, models(model), place, size=size):
        assert found.logits <= 1e-5
        assert found.worst <= 1e-4, found.name
        assert found.norm == pytest.approx(found.expected_norm, rel=1e-5)
        assert [operator for operator in operators if not calls.get(f"npu::{operator}")] == []
        assert (kernels.OVERLAP in calls) == model.startswith("deepseek"), "the family with shared experts"


def test_layers_that_are_recomputed_have_the_same_gradients(twin: Twin, models: Callable[[str], Oracle]) -> None:
    """Every operator of a layer is called once more."""
    ((kept, once),), ((found, calls),) = (
        twin.run(kernels.gradients, models("deepseek"), MegatronGrid(), (), recompute) for recompute in ("none", "full")
    )
    assert (found.logits, found.worst, found.norm) == (kept.logits, kept.worst, kept.norm)
    assert calls["npu::npu_fusion_attention"] == 2 * once["npu::npu_fusion_attention"]
    assert calls[kernels.OVERLAP] == 2 * once[kernels.OVERLAP]


def test_gradients_of_weights_are_added_to_their_sums_in_fp32(twin: Twin, models: Callable[[str], Oracle]) -> None:
    """In bfloat16. Without the kernel each product is rounded first; its patches, "megatron weight gradient" and
    "megatron has weight gradient", are then left out."""
    ((found, calls),), ((rounded, others),) = (
        twin.run(kernels.gradients, models("qwen2"), MegatronGrid(), without, "none", "bfloat16")
        for without in ((), ("accumulate",))
    )
    operator = "atb::_npu_matmul_add_fp32"
    assert calls[operator] == 4 * read_shape(models("qwen2").folder).layers and operator not in others
    assert found.worst < rounded.worst < 0.1 and found.logits == rounded.logits
    assert found.norm == pytest.approx(found.expected_norm, rel=0.01)


# patch: (kernel of the device that it puts into megatron-core, operator)
PATCHED = {
    "megatron packed rotary": (("rotate",), "npu_rotary_mul"),
    "megatron token permute": (("permute", "unpermute"), PERMUTE),
    "megatron token unpermute": (("permute", "unpermute"), UNPERMUTE),
}


@pytest.mark.parametrize("patch", fast.only(["megatron token permute"], PATCHED))
def test_without_its_patch_an_operator_is_not_called(twin: Twin, models: Callable[[str], Oracle], patch: str) -> None:
    """A patch is applied for devices whose kernels have a function for it."""
    without, operator = PATCHED[patch]
    ((found, calls),) = twin.run(kernels.gradients, models("deepseek"), MegatronGrid(), without)
    assert found.worst <= 1e-4
    assert "npu::npu_swiglu" in calls and f"npu::{operator}" not in calls
