"""megatron-core against plain transformers in fp32: logits and gradients by HF name, on one rank and on every layout.

python -m pytest tests/model/test_parity.py
"""

import pytest
import torch

from tests import fast
from tests.model import cases
from tests.model.cases import grid

# world size, grid. Grids smaller than their world are carved out of it.
LAYOUTS = {
    "one": (1, grid()),
    "dp2": (2, grid()),
    "tp2": (2, grid(tp=2)),
    "pp2": (2, grid(pp=2)),
    "pp2 uneven, ranks 2-3 of 4": (4, grid(ranks="2-3", pp=2, layers=(3, 1))),
    "tp2 pp2": (4, grid(tp=2, pp=2)),
    "tp2 dp2": (4, grid(tp=2)),
}
EXPERT_LAYOUTS = {
    "ep2": (2, grid(ep=2)),
    "tp2 ep2": (2, grid(tp=2, ep=2)),
    "tp2 ep2, ranks 1 and 3 of 4": (4, grid(ranks="1,3", tp=2, ep=2)),
    "tp2 ep4": (4, grid(tp=2, ep=4)),
    "pp2 ep2": (4, grid(pp=2, ep=2)),
}
FAMILIES = [
    "qwen2",
    "qwen2_tied",
    "qwen3",
    "llama",
    "llama_tied",
    "mistral",
    "qwen3_moe",
    "qwen3_moe_plain",
    "deepseek",
    "deepseek_no_q_lora",
    "deepseek_v2",
    "deepseek_v2_lite",
    "moonlight",
    "deepseek_yarn",
    "deepseek_yarn_half",
    "deepseek_yarn_plain",
]
# name, layout, micro-batches
CASES = (
    [(name, "one", 1) for name in FAMILIES]
    + [(name, layout, 2) for name in ("qwen2", "qwen2_tied", "deepseek") for layout in LAYOUTS if layout != "one"]
    + [("qwen3", "tp2", 1), ("qwen3", "tp2 pp2", 4), ("deepseek_yarn", "tp2", 1), ("deepseek_no_q_lora", "tp2", 1)]
    + [("qwen2", "one", 3), ("deepseek", "one", 8), ("deepseek", "ep2", 1), ("qwen2", "pp2", 8)]
    + [("qwen2", "tp2", 8), ("deepseek", "tp2 ep2", 8)]
    + [("deepseek", layout, 2) for layout in EXPERT_LAYOUTS]
    + [("llama", "tp2", 1), ("llama", "tp2 pp2", 4), ("llama_tied", "pp2", 2), ("mistral", "tp2 pp2", 4)]
    + [("qwen3_moe", "tp2 ep2", 8), ("qwen3_moe", "pp2 ep2", 2), ("qwen3_moe_plain", "ep2", 1)]
    + [("deepseek_v2", "tp2 ep2", 8), ("deepseek_v2", "pp2 ep2", 2)]
    + [("deepseek_v2_lite", "tp2 ep2", 8), ("deepseek_v2_lite", "pp2 ep2", 2)]
    + [("moonlight", "tp2 ep2", 8), ("moonlight", "pp2 ep2", 2)]
)


IN_FAST = [
    *((name, "one", 1) for name in FAMILIES),
    ("qwen2_tied", "pp2", 2),
    ("qwen2", "tp2 dp2", 2),
    ("deepseek", "tp2 ep2", 8),
    ("qwen3_moe", "pp2 ep2", 2),
]


@pytest.mark.parametrize("name, layout, packs", fast.only(IN_FAST, CASES))
def test_logits_and_gradients_equal_transformers(ranks, models, name, layout, packs):
    size, place = {**LAYOUTS, **EXPERT_LAYOUTS}[layout]
    results = [r for r in ranks.run(cases.parity, models(name), place, packs, size=size) if r]
    speaking = [r for r in results if "logits" in r]
    assert speaking
    for result in speaking:
        assert result["logits"] <= 1e-5 * result["scale"]
    norm = torch.cat([g.flatten() for g in models(name).gradients().values()]).double().norm()
    for result in results:
        assert result["norm"] == pytest.approx(float(norm), rel=1e-5)
        worst = max(result["gradients"], key=result["gradients"].get)
        assert result["gradients"][worst] <= 1e-4, worst
