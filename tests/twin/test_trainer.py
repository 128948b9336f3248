"""megatron-core under the real MindSpeed core_r0.16.0 on the twin: gradients, steps, and resuming, with MindSpeed's own
AdamW.

    R1ZERO_MINDSPEED=CHECKOUT python -m pytest tests/twin/test_trainer.py

MindSpeed is on no package index. The variable names a checkout of commit e4772499; without it these tests are skipped.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.twin import project, trainers
from tests.twin.client import Twin
from tests.twin.environment import mindspeed
from tests.twin.project import MegatronGrid, Oracle

pytestmark = pytest.mark.skipif(
    mindspeed() is None,
    reason="R1ZERO_MINDSPEED names no checkout of MindSpeed e4772499; training under it was NOT tested",
)

ONE, TP2, PP2, EP2 = (
    MegatronGrid(**degrees)
    for degrees in (
        {},
        {"tensor_model_parallel_size": 2},
        {"pipeline_model_parallel_size": 2},
        {"expert_model_parallel_size": 2},
    )
)
# model, ranks, grid, micro-batches
GRADIENTS = {
    "Qwen2": ("qwen2", 1, ONE, 2),
    "Qwen2 over DP2": ("qwen2", 2, ONE, 1),
    "Qwen2 over TP2": ("qwen2", 2, TP2, 1),
    "Qwen2 over PP2": ("qwen2", 2, PP2, 2),
    "Qwen3": ("qwen3", 1, ONE, 1),
    "DeepSeek-V3": ("deepseek", 1, ONE, 1),
    "DeepSeek-V3 with YaRN": ("deepseek_yarn", 1, ONE, 1),
    "DeepSeek-V3 over TP2": ("deepseek", 2, TP2, 1),
    "DeepSeek-V3 over EP2": ("deepseek", 2, EP2, 1),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_logits_and_gradients_equal_transformers(twin: Twin, models: Callable[[str], Oracle], name: str) -> None:
    model, size, place, packs = GRADIENTS[name]
    for found in twin.run(trainers.gradients, models(model), place, packs, size=size):
        assert found.logits <= 1e-5
        assert found.worst <= 1e-4, found.name
        assert found.norm == pytest.approx(found.expected_norm, rel=1e-5)


SAME = {
    "Qwen2, fp32": ("qwen2", "float32", 1, ONE),
    "Qwen2 over DP2, bf16": ("qwen2", "bfloat16", 2, ONE),
    "DeepSeek-V3 over EP2, bf16": ("deepseek", "bfloat16", 2, EP2),
    "Qwen2 over TP2, fp32": ("qwen2", "float32", 2, TP2),
}
OTHER = {"TP2 to PP2": ("qwen2", TP2, PP2), "EP2 to DP2": ("deepseek", EP2, ONE), "DP2 to TP2": ("qwen2", ONE, TP2)}


def saved(
    twin: Twin, oracle: Oracle, place: MegatronGrid, dtype: str, folder: Path, first: int, last: int, size: int
) -> None:
    for trained in twin.run(trainers.train, oracle, place, dtype, folder, first, last, size=size):
        assert trained.adam == "mindspeed.core.optimizer.adamw.AdamW"
        assert set(trained.steps) == {float(last)}, "MindSpeed's AdamW counts its steps in the parameter group"


@pytest.mark.parametrize("name", SAME)
def test_resuming_in_the_same_layout_is_bit_equal(
    twin: Twin, models: Callable[[str], Oracle], tmp_path: Path, name: str
) -> None:
    model, dtype, size, place = SAME[name]
    oracle = models(model)
    for folder in (tmp_path / "whole", tmp_path / "resumed"):
        folder.mkdir()
    saved(twin, oracle, place, dtype, tmp_path / "whole", 0, 3, size)
    saved(twin, oracle, place, dtype, tmp_path / "resumed", 0, 2, size)
    saved(twin, oracle, place, dtype, tmp_path / "resumed", 2, 3, size)
    second, whole, resumed = (
        project.checkpoint_tensors(tmp_path / folder, step, oracle.folder)
        for folder, step in (("whole", 2), ("whole", 3), ("resumed", 3))
    )
    assert whole.keys() == resumed.keys() and len(whole) > 20
    assert [key for key in whole if not torch.equal(whole[key], resumed[key])] == []
    assert [key for key in whole if torch.equal(whole[key], second[key]) and "expert_bias" not in key] == []


@pytest.mark.parametrize("name", OTHER)
def test_a_checkpoint_loads_into_another_layout(
    twin: Twin, models: Callable[[str], Oracle], tmp_path: Path, name: str
) -> None:
    """The next step is that of the first layout but for the order of sums."""
    model, before, after = OTHER[name]
    oracle = models(model)
    for folder in (tmp_path / "one", tmp_path / "other"):
        folder.mkdir()
    saved(twin, oracle, before, "float32", tmp_path / "one", 0, 2, 2)
    shutil.copytree(tmp_path / "one", tmp_path / "other", dirs_exist_ok=True)
    saved(twin, oracle, before, "float32", tmp_path / "one", 2, 3, 2)
    saved(twin, oracle, after, "float32", tmp_path / "other", 2, 3, 2)
    one, other = (project.checkpoint_tensors(tmp_path / folder, 3, oracle.folder) for folder in ("one", "other"))
    worst = {key: float((one[key] - other[key]).abs().max()) for key in one}
    assert max(worst.values()) < 1e-4, max(worst, key=worst.get)
