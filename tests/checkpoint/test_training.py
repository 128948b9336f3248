"""Resume equals uninterrupted: bit for bit in the same layout, and the same state in another.

python -m pytest tests/checkpoint/test_training.py
"""

import pytest
import torch

from tests import fast
from tests.model import cases
from tests.model.cases import grid

SAME = [
    ("qwen2", "float32", 1, grid()),
    ("qwen2", "bfloat16", 2, grid(tp=2)),
    ("qwen2", "float32", 2, grid()),
    ("qwen2", "float16", 2, grid()),
    ("qwen2_tied", "float32", 2, grid(pp=2)),
    ("deepseek", "bfloat16", 2, grid(ep=2)),
    ("deepseek", "float32", 4, grid(ranks="1,3", tp=2, ep=2)),
]
OTHER = [
    ("qwen2", "bfloat16", (2, grid(tp=2)), (2, grid(pp=2))),
    ("qwen2", "float32", (2, grid()), (1, grid())),
    ("deepseek", "float32", (2, grid(ep=2)), (1, grid())),
    ("deepseek", "float32", (1, grid()), (2, grid(tp=2))),
    ("qwen2_tied", "float32", (2, grid(pp=2)), (2, grid(tp=2))),
]


def both(ranks, oracle, dtype, folder, saved, loaded):
    before = [r for r in ranks.run(cases.save_then_continue, oracle, saved[1], dtype, folder, size=saved[0]) if r]
    after = [r for r in ranks.run(cases.load_then_continue, oracle, loaded[1], dtype, folder, size=loaded[0]) if r]
    return before, after


@pytest.mark.parametrize("name, dtype, size, place", fast.only(SAME[:1], SAME))
def test_resume_in_the_same_layout_is_bit_equal(ranks, models, tmp_path, name, dtype, size, place):
    before, after = both(ranks, models(name), dtype, tmp_path, (size, place), (size, place))
    assert len(before) == len(after) > 0
    for a, b in zip(before, after, strict=True):
        assert a.keys() == b.keys() and len(a) > 20
        assert [key for key in a if not torch.equal(a[key], b[key])] == []
        assert [
            key for key in a if key.startswith("middle weight") and torch.equal(a[key], a[key.replace("middle", "end")])
        ] == []


@pytest.mark.parametrize("name, dtype, saved, loaded", fast.only(OTHER[:1], OTHER))
def test_a_checkpoint_loads_into_another_layout(ranks, models, tmp_path, name, dtype, saved, loaded):
    before, after = both(ranks, models(name), dtype, tmp_path, saved, loaded)
    for key, value in before[0].items():
        if key.startswith("middle"):
            assert torch.equal(value, after[0][key]), key
        elif key.startswith("end weight") and dtype == "float32":
            assert (value - after[0][key]).abs().max() < 1e-4, key
