"""Shapes and tables of weights: counted by hand, compared with what transformers writes, and refused where they contradict.

    python -m pytest tests/model/test_families.py
"""

import json

import pytest

from r1zero.config import UserError
from r1zero.model.families import FAMILIES, read_shape, weights
from tests.model.oracle import MODELS

# The published config.json of DeepSeek-V3, as far as it says something of the shape.
V3 = dict(
    architectures=["DeepseekV3ForCausalLM"], num_hidden_layers=61, hidden_size=7168, intermediate_size=18432, num_attention_heads=128,
    vocab_size=129280, max_position_embeddings=163840, rms_norm_eps=1e-6, rope_theta=10000, q_lora_rank=1536, kv_lora_rank=512,
    qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128, n_routed_experts=256, num_experts_per_tok=8, n_group=8, topk_group=4,
    moe_intermediate_size=2048, n_shared_experts=1, first_k_dense_replace=3, routed_scaling_factor=2.5, scoring_func="sigmoid",
    topk_method="noaux_tc", norm_topk_prob=True, moe_layer_freq=1, tie_word_embeddings=False, hidden_act="silu", num_nextn_predict_layers=1,
    rope_scaling=dict(type="yarn", factor=40, beta_fast=32, beta_slow=1, mscale=1.0, mscale_all_dim=1.0,
                      original_max_position_embeddings=4096))


def shape_of(folder, config):
    (folder / "config.json").write_text(json.dumps(config))
    return read_shape(folder)


def test_deepseek_v3_has_671_billion_parameters_without_multi_token_prediction(tmp_path):
    shape = shape_of(tmp_path, V3)
    assert sum(w.size for w in weights(shape)) == 671_026_419_200
    routed = sum(w.size for w in weights(shape) if w.expert is not None)
    assert routed == 58 * 256 * 3 * 7168 * 2048
    assert shape.yarn.factor == 40.0 and shape.yarn.mscale_all_dim == 1.0


@pytest.mark.parametrize("name", MODELS)
def test_the_table_names_exactly_the_tensors_that_transformers_writes(models, name):
    oracle = models(name)
    table = {w.name: w.shape for w in weights(read_shape(oracle.folder))}
    assert table == {key: tuple(value.shape) for key, value in oracle.weights().items()}


def test_weights_come_in_the_order_of_a_forward_pass(tmp_path):
    layers = [-1 if w.place == "first" else 61 if w.place == "last" else w.layer for w in weights(shape_of(tmp_path, V3))]
    assert layers == sorted(layers)


@pytest.mark.parametrize("change, words", [
    (dict(architectures=["LlamaForCausalLM"]), ["LlamaForCausalLM", *FAMILIES]),
    (dict(num_experts_per_tok=6), ["num_experts_per_tok = 6", "topk_group = 4"]),
    (dict(scoring_func="softmax"), ["scoring_func", "softmax", "sigmoid"]),
    (dict(norm_topk_prob=False), ["norm_topk_prob"]),
    (dict(hidden_act="gelu"), ["hidden_act", "gelu"]),
    (dict(rope_scaling=dict(V3["rope_scaling"], mscale_all_dim=0)), ["mscale = 1.0", "mscale_all_dim = 0"]),
    (dict(rope_scaling=dict(type="linear", factor=2.0)), ["linear"]),
])
def test_a_shape_that_engines_read_differently_is_refused(tmp_path, change, words):
    with pytest.raises(UserError) as caught:
        shape_of(tmp_path, {**V3, **change})
    assert all(word in str(caught.value) for word in [*words, "config.json"])


def test_a_missing_field_or_file_is_named(tmp_path):
    with pytest.raises(UserError, match="kv_lora_rank is missing"):
        shape_of(tmp_path, {k: v for k, v in V3.items() if k != "kv_lora_rank"})
    with pytest.raises(UserError, match="model.path"):
        read_shape(tmp_path / "nothing")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        read_shape(tmp_path)


def test_sliding_windows_and_stretched_positions_of_dense_families_are_refused(tmp_path):
    qwen = dict(V3, architectures=["Qwen2ForCausalLM"], rope_scaling=None)
    assert shape_of(tmp_path, qwen).qkv_bias
    with pytest.raises(UserError, match="use_sliding_window"):
        shape_of(tmp_path, dict(qwen, use_sliding_window=True))
    with pytest.raises(UserError, match="yarn"):
        shape_of(tmp_path, dict(qwen, rope_scaling=V3["rope_scaling"]))
