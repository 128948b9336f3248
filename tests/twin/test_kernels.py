"""model/kernels/npu.py on the twin: values and gradients of each kernel against plain torch on the CPU, and which of
the vendor's operators a step of a model calls.

    python -m pytest tests/twin/test_kernels.py
"""

from collections.abc import Callable

import pytest
import torch

from tests.twin import kernels
from tests.twin.client import Twin
from tests.twin.project import MegatronGrid, Oracle

# case of tests/twin/kernels.py: the operator that it must call
KERNELS = {
    "norm": "npu_rms_norm",
    "norm of heads": "npu_rms_norm",
    "swiglu": "npu_swiglu",
    "swiglu of three axes": "npu_swiglu",
    "rotary": "npu_rotary_mul",
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", KERNELS)
def test_values_and_gradients_are_those_of_the_cpu(twin: Twin, name: str, dtype: torch.dtype) -> None:
    """In bfloat16 the errors may differ by how often a result is rounded on its way; none is twice as far from the
    exact result as the other."""
    (found,) = twin.run(kernels.compare, name, dtype)
    assert found.calls[f"npu::{KERNELS[name]}"] == 1
    assert found.ours < (1e-6 if dtype == torch.float32 else 2 * found.plain)


# name: (model, ranks, grid, operators that it calls)
DENSE = ("npu_rms_norm", "npu_swiglu", "npu_rotary_mul")
MODELS = {
    "Qwen2": ("qwen2", 1, MegatronGrid(), DENSE),
    "Qwen3 over TP2": ("qwen3", 2, MegatronGrid(tensor_model_parallel_size=2), DENSE),
    "DeepSeek-V3 over EP2": ("deepseek", 2, MegatronGrid(expert_model_parallel_size=2), DENSE),
    "DeepSeek-V3 with YaRN": ("deepseek_yarn_half", 1, MegatronGrid(), DENSE),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_with_the_kernels_equals_transformers(twin: Twin, models: Callable[[str], Oracle], name: str) -> None:
    """YaRN with two different factors scales cosines and sines above 1, which npu_rotary_mul refuses."""
    model, size, place, operators = MODELS[name]
    for found, calls in twin.run(kernels.gradients, models(model), place, size=size):
        assert found.logits <= 1e-5
        assert found.worst <= 1e-4, found.name
        assert found.norm == pytest.approx(found.expected_norm, rel=1e-5)
        assert [operator for operator in operators if not calls.get(f"npu::{operator}")] == []


def test_without_the_patch_megatron_packed_rotary_the_operator_is_not_called(
    twin: Twin, models: Callable[[str], Oracle]
) -> None:
    """ "megatron packed rotary" is applied for devices whose kernels have a function for it."""
    ((_, calls),) = twin.run(kernels.gradients, models("qwen2"), MegatronGrid(), ("rotate",))
    assert "npu::npu_rotary_mul" not in calls
