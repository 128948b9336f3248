"""The engine computes as Hugging Face does, for every field and value that the families' tables let pass.

The trainer's half is tests/model/test_config_fields.py, which tries each field alone.

    python -m pytest tests/rollout/test_config_fields.py
"""

import json
from pathlib import Path
from typing import Any

import pytest

from tests import fast
from tests.model.config_values import DEEPSEEK, DEEPSEEK_V2, HARMLESS_OF, LLAMA, MISTRAL, QWEN2, QWEN3, QWEN3_MOE, YARN
from tests.oracles import tiny_models as models
from tests.oracles.generation import TOLERANCE, gap
from tests.oracles.transformers_model import LLAMA3
from tests.rollout import cases
from tests.rollout.cases import Case, prompts

# family, kind of model, its dimensions, what config.json then says; every field that is read has another value than its
# default
FILES: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "Qwen2": (
        QWEN2,
        "dense",
        dict(num_key_value_heads=4, tie_word_embeddings=True),
        dict(
            rms_norm_eps=0.01,
            num_key_value_heads=None,
            rope_scaling={"type": "default", "rope_theta": 500.0},
            layer_types=["full_attention"] * 3,
            max_position_embeddings=256,
        ),
    ),
    "Qwen3": (QWEN3, "qwen3", dict(head_dim=64), dict(rms_norm_eps=0.01, rope_theta=500)),
    "Llama": (
        LLAMA,
        "llama",
        dict(head_dim=32, tie_word_embeddings=True),
        dict(rms_norm_eps=0.01, rope_scaling=dict(LLAMA3, rope_theta=500.0, low_freq_factor=0.5, high_freq_factor=3)),
    ),
    "Mistral": (MISTRAL, "mistral", dict(head_dim=32, num_key_value_heads=4), dict(rms_norm_eps=0.01, rope_theta=500)),
    "Qwen3-MoE": (
        QWEN3_MOE,
        "qwen3_moe",
        dict(norm_topk_prob=False, num_experts_per_tok=3, moe_intermediate_size=64, tie_word_embeddings=True),
        dict(rms_norm_eps=0.01, rope_theta=500.0),
    ),
    "DeepSeek-V3": (
        DEEPSEEK,
        "experts",
        dict(
            q_lora_rank=None,
            qk_nope_head_dim=24,
            v_head_dim=48,
            n_group=1,
            topk_group=1,
            num_experts_per_tok=3,
            n_shared_experts=2,
            first_k_dense_replace=0,
            moe_intermediate_size=48,
        ),
        dict(rms_norm_eps=0.01, rope_theta=500.0, routed_scaling_factor=0.7, num_key_value_heads=None, head_dim=64),
    ),
    "DeepSeek-V3 with yarn": (
        DEEPSEEK,
        "experts",
        dict(n_group=4, topk_group=2, num_experts_per_tok=3),
        dict(
            rms_norm_eps=1e-5,
            routed_scaling_factor=1.3,
            rope_scaling=dict(YARN, beta_fast=16, beta_slow=2.5, mscale=0.7, mscale_all_dim=1.3),
        ),
    ),
    # "greedy" ignores the groups.
    "DeepSeek-V2": (
        DEEPSEEK_V2,
        "deepseek_v2_lite",
        dict(qk_nope_head_dim=24, v_head_dim=48, first_k_dense_replace=0, moe_intermediate_size=48),
        dict(
            rms_norm_eps=0.01,
            rope_theta=500.0,
            routed_scaling_factor=0.7,
            num_key_value_heads=None,
            n_group=4,
            topk_group=1,
            scoring_func="softmax",
        ),
    ),
    "DeepSeek-V2 with groups": (
        DEEPSEEK_V2,
        "deepseek_v2",
        dict(n_group=4, topk_group=3, num_experts_per_tok=5),
        dict(
            rms_norm_eps=1e-5,
            routed_scaling_factor=1.3,
            rope_scaling=dict(YARN, beta_fast=16, beta_slow=2.5, mscale=0.7, mscale_all_dim=1.3),
        ),
    ),
}


def restate(path: str, fields: dict[str, Any]) -> str:
    """What a model's config.json says beyond its dimensions."""
    file = Path(path) / "config.json"
    stated = json.loads(file.read_text())
    del stated["rope_parameters"]
    file.write_text(json.dumps({**stated, **fields}))
    return path


@pytest.mark.parametrize("name", fast.only(["Qwen2", "Llama", "DeepSeek-V3"], FILES))
def test_the_engine_reads_config_json_as_hugging_face_does(ranks, tmp_path, name):
    family, kind, dimensions, fields = FILES[name]
    harmless = {name: values[0] for name, values in HARMLESS_OF[family].items()}
    path = restate(models.write(tmp_path, kind, 1, **dimensions), harmless | fields)
    (answer,) = ranks.run(cases.answer, case := Case(path, (path,), prompts([5, 9, 33])), size=1)
    assert gap(case, answer) < TOLERANCE
