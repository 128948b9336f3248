"""Tiny configs of every family, and for each field of the tables values other than its default."""

from typing import Any

from r1zero.model.families import FAMILIES
from tests.oracles.transformers_model import DENSE, LATENT, LATENT_V2, LLAMA3, ROUTED

QWEN2, QWEN3, DEEPSEEK, LLAMA, MISTRAL, QWEN3_MOE, DEEPSEEK_V2 = FAMILIES
YARN = dict(rope_type="yarn", rope_theta=10000.0, factor=40.0, original_max_position_embeddings=8)

# Every field that a file must state, and no other.
_NEEDED = {key: value for key, value in DENSE.items() if key != "rope_theta"}
MINIMAL: dict[str, dict[str, Any]] = {
    QWEN2: dict(_NEEDED, architectures=[QWEN2], model_type="qwen2"),
    QWEN3: dict(_NEEDED, architectures=[QWEN3], model_type="qwen3"),
    DEEPSEEK: dict(
        {key: value for key, value in LATENT.items() if key not in ("rope_theta", "norm_topk_prob", "rope_interleave")},
        architectures=[DEEPSEEK],
        model_type="deepseek_v3",
    ),
    LLAMA: dict(_NEEDED, architectures=[LLAMA], model_type="llama"),
    MISTRAL: dict(_NEEDED, architectures=[MISTRAL], model_type="mistral", sliding_window=None),
    QWEN3_MOE: dict(
        {key: value for key, value in ROUTED.items() if key not in ("rope_theta", "head_dim")},
        architectures=[QWEN3_MOE],
        model_type="qwen3_moe",
    ),
    DEEPSEEK_V2: dict(
        {
            key: value
            for key, value in LATENT_V2.items()
            if key not in ("rope_theta", "norm_topk_prob", "topk_method", "n_group", "topk_group")
        },
        architectures=[DEEPSEEK_V2],
        model_type="deepseek_v2",
    ),
}

# Without effect on the logits: every field of the tables that is marked so, at values that no default has.
HARMLESS: dict[str, list[Any]] = {
    "transformers_version": ["4.40.1", None],
    "_name_or_path": ["somewhere"],
    "name_or_path": ["somewhere"],
    "_commit_hash": ["0" * 40],
    "unsloth_version": ["2025.1"],
    "unsloth_fixed": [True],
    "auto_map": [{"AutoModelForCausalLM": "modeling_deepseek.DeepseekV3ForCausalLM"}],
    "tokenizer_class": ["Qwen2Tokenizer"],
    "dtype": ["bfloat16", "float16", None],
    "torch_dtype": ["bfloat16"],
    "attn_implementation": ["sdpa"],
    "_attn_implementation_autoset": [True],
    "experts_implementation": ["eager"],
    "use_cache": [False],
    "output_hidden_states": [True],
    "tie_last_hidden_states": [True],
    "chunk_size_feed_forward": [8],
    "bos_token_id": [3, None],
    "eos_token_id": [4, [4, 5]],
    "pad_token_id": [7, None],
    "sep_token_id": [5],
    "decoder_start_token_id": [6],
    "initializer_range": [0.5],
    "attention_dropout": [0.3],
    "id2label": [{"0": "a", "1": "b", "2": "c"}],
    "label2id": [{"a": 0, "b": 1, "c": 2}],
    "num_labels": [3],
    "finetuning_task": ["x"],
    "task_specific_params": [{"x": {"max_length": 3}}],
    "prefix": ["x"],
    "torchscript": [True],
    "use_bfloat16": [True],
    "tf_legacy_loss": [True],
    "is_decoder": [True],
    "cross_attention_hidden_size": [3],
    "assistant_confidence_threshold": [0.1],
    "assistant_lookbehind": [3],
    "bad_words_ids": [[[3]]],
    "begin_suppress_tokens": [[3]],
    "diversity_penalty": [0.5],
    "do_sample": [True],
    "early_stopping": [True],
    "encoder_no_repeat_ngram_size": [2],
    "encoder_repetition_penalty": [1.5],
    "epsilon_cutoff": [0.1],
    "eta_cutoff": [0.1],
    "exponential_decay_length_penalty": [[3, 1.5]],
    "forced_bos_token_id": [3],
    "forced_eos_token_id": [4],
    "length_penalty": [2.0],
    "max_length": [3],
    "min_length": [30],
    "no_repeat_ngram_size": [2],
    "num_assistant_tokens": [3],
    "num_assistant_tokens_schedule": ["constant"],
    "num_beam_groups": [2],
    "num_beams": [4],
    "num_return_sequences": [2],
    "output_scores": [True],
    "remove_invalid_values": [True],
    "repetition_penalty": [1.5],
    "return_dict_in_generate": [True],
    "suppress_tokens": [[3]],
    "target_lookbehind": [3],
    "temperature": [0.1],
    "top_k": [3],
    "top_p": [0.1],
    "typical_p": [0.1],
}
_HARMLESS_LATENT = HARMLESS | {
    "aux_loss_alpha": [0.1],
    "seq_aux": [False],
    "ep_size": [4],
    "output_router_logits": [True],
    "pretraining_tp": [2, None],
}
HARMLESS_OF: dict[str, dict[str, list[Any]]] = {
    QWEN2: HARMLESS | {"sliding_window": [4, None], "max_window_layers": [1]},
    QWEN3: HARMLESS | {"sliding_window": [4, None], "max_window_layers": [1]},
    DEEPSEEK: _HARMLESS_LATENT | {"num_nextn_predict_layers": [1], "num_mtp_layers": [2]},
    LLAMA: HARMLESS | {"pretraining_tp": [2, None]},
    MISTRAL: HARMLESS,
    QWEN3_MOE: HARMLESS
    | {
        "sliding_window": [4, None],
        "max_window_layers": [1],
        "output_router_logits": [True],
        "router_aux_loss_coef": [0.1],
    },
    DEEPSEEK_V2: _HARMLESS_LATENT | {"attention_dropout": [0.3, None]},
}

# Read: values that change the shape.
_ROPES = [
    {"type": "default", "rope_theta": 500.0},
    {"rope_theta": 500, "rope_type": "default", "partial_rotary_factor": 1.0},
]
_FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [64, 32]}
_READ = {
    "vocab_size": [160],
    "hidden_size": [96],
    "intermediate_size": [80],
    "num_hidden_layers": [2],
    "max_position_embeddings": [256],
    "rms_norm_eps": [0.01, 1e-5],
    "rope_theta": [500.0, 1000000],
    "rope_scaling": _ROPES,
    "rope_parameters": _ROPES,
    "quantization_config": [None, _FP8],
    "architectures": [],
}
_READ_DENSE = _READ | {
    "num_attention_heads": [8],
    "num_key_value_heads": [1, 4, None],
    "tie_word_embeddings": [True],
    "layer_types": [None, ["full_attention"] * 4],
}
_READ_LATENT = _READ | {
    "num_attention_heads": [],
    "num_key_value_heads": [None],
    "q_lora_rank": [None, 24],
    "kv_lora_rank": [24],
    "qk_nope_head_dim": [24],
    "qk_rope_head_dim": [8],
    "v_head_dim": [16, 40],
    "head_dim": [16],
    "qk_head_dim": [32],
    "n_routed_experts": [16],
    "moe_intermediate_size": [48],
    "n_shared_experts": [1],
    "first_k_dense_replace": [0, 3],
    "routed_scaling_factor": [1.0, 0.7],
    "rope_scaling": [
        *_ROPES,
        YARN,
        dict(YARN, beta_fast=16, beta_slow=2.5),
        dict(YARN, factor=1.0),
        dict(YARN, factor=3),
        dict(YARN, mscale=0.7, mscale_all_dim=1.3, attention_factor=None, truncate=True),
        {"type": "yarn", "factor": 4.0},
    ],
}
READ: dict[str, dict[str, list[Any]]] = {
    QWEN2: _READ_DENSE | {"head_dim": [16]},
    QWEN3: _READ_DENSE | {"head_dim": [24]},
    DEEPSEEK: _READ_LATENT
    | {"num_local_experts": [8], "num_experts_per_tok": [2, 3], "n_group": [2], "topk_group": [3, 4]},
    LLAMA: {key: value for key, value in _READ_DENSE.items() if key != "layer_types"}
    | {
        "head_dim": [24, 16, None],
        "rope_scaling": [
            *_ROPES,
            LLAMA3,
            dict(LLAMA3, rope_theta=500000.0, factor=32),
            dict(LLAMA3, low_freq_factor=2, high_freq_factor=3.5),
            {"type": "llama3", **{key: value for key, value in LLAMA3.items() if key != "rope_type"}},
        ],
    },
    MISTRAL: {key: value for key, value in _READ_DENSE.items() if key != "layer_types"}
    | {"num_key_value_heads": [1, 4], "head_dim": [24, 16, None]},
    QWEN3_MOE: {key: value for key, value in _READ_DENSE.items() if key != "layer_types"}
    | {
        "num_key_value_heads": [1, 4],
        "head_dim": [24],
        "num_experts": [16],
        "num_local_experts": [8],
        "num_experts_per_tok": [2],
        "moe_intermediate_size": [48],
        "norm_topk_prob": [True],
    },
    DEEPSEEK_V2: _READ_LATENT
    | {"num_experts": [8], "num_experts_per_tok": [1, 3], "n_group": [4], "topk_group": [2], "topk_method": []},
}
TOGETHER: dict[str, list[dict[str, Any]]] = {
    DEEPSEEK: [
        dict(num_attention_heads=8, num_key_value_heads=8),
        dict(num_experts_per_tok=2, topk_group=1),
        dict(n_group=1, topk_group=1, num_experts_per_tok=3),
    ],
    DEEPSEEK_V2: [
        dict(num_attention_heads=8, num_key_value_heads=8),
        *(
            dict(topk_method="group_limited_greedy", n_group=groups, topk_group=chosen, num_experts_per_tok=topk)
            for groups, chosen, topk in [(4, 2, 4), (4, 2, 1), (2, 1, 3), (4, 3, 5)]
        ),
    ],
}
"""Values that are read, of fields that must go together."""
SAME_SHAPE = (
    "layer_types",
    "quantization_config",
    "architectures",
    "head_dim",
    "qk_head_dim",
    "num_local_experts",
    "num_experts",
    "n_group",
    "topk_group",
)
"""Read to be compared with other fields, or by those who read the weights, or without effect at the default of another
field: the shape is the same."""

_REFUSED = {
    "architectures": [["GemmaForCausalLM"], [QWEN2, QWEN3], []],
    "model_type": ["gemma", "qwen2_moe"],
    "hidden_act": ["gelu", "swish"],
    "original_max_position_embeddings": [128],
    "partial_rotary_factor": [0.5],
    "is_encoder_decoder": [True],
    "add_cross_attention": [True],
    "tie_encoder_decoder": [True],
    "return_dict": [False],
    "output_attentions": [True],
    "problem_type": ["single_label_classification"],
    "pruned_heads": [{"0": [1]}],
    "rope_scaling": [
        {"rope_type": "linear", "factor": 2.0},
        {"rope_type": ["default"]},
        {"rope_type": "default", "mrope_section": [2, 3, 3]},
        {"rope_type": "default", "factor": 2.0},
        {"rope_type": "default", "partial_rotary_factor": 0.5},
        {"rope_type": "default", "type": "yarn"},
        {"full_attention": {"rope_type": "default"}},
        {"rope_type": "default", "rope_theta": None},
    ],
    "quantization_config": [
        {"quant_method": "gptq", "bits": 4},
        {"quant_method": "fp8"},
        dict(_FP8, fmt="e5m2"),
        dict(_FP8, weight_block_size=[128]),
        dict(_FP8, weight_block_size=None),
        dict(_FP8, another=1),
    ],
    "per_layer_config": [{"0": {"intermediate_size": 32}}],
    "is_causal": [False],
    "qk_norm": [True],
    "index_topk": [None],
}
_REFUSED_DENSE = _REFUSED | {
    "use_sliding_window": [True],
    "layer_types": [["sliding_attention"] * 4, ["full_attention"] * 3],
    "use_mrope": [True],
    "num_key_value_heads": [3, 8],
    "rope_scaling": [*_REFUSED["rope_scaling"], YARN, LLAMA3],
    "dual_chunk_attention_config": [{"chunk_size": 8}],
}
_REFUSED_LATENT = _REFUSED | {
    "tie_word_embeddings": [True],
    "attention_bias": [True],
    "moe_layer_freq": [2],
    "num_key_value_heads": [2],
    "head_dim": [32],
    "qk_head_dim": [40],
    "qk_rope_head_dim": [7],
    "n_shared_experts": [0, None],
    "first_k_dense_replace": [4],
    "q_lora_rank": [0],
    "routed_scaling_factor": [0.0, 2],
    "v_head_dim": [None],
    "moe_router_dtype": ["float32"],
    "rope_scaling": [
        *_REFUSED["rope_scaling"],
        LLAMA3,
        dict(YARN, attention_factor=1.0),
        dict(YARN, truncate=False),
        dict(YARN, mscale=1.0),
        dict(YARN, mscale=0.0, mscale_all_dim=0.0),
        dict(YARN, factor=None),
        dict(YARN, factor=0.5),
        dict(YARN, beta_fast=None),
        dict(YARN, apply_yarn_scaling=False),
        dict(YARN, original_max_position_embeddings=None),
    ],
}
REFUSED: dict[str, dict[str, list[Any]]] = {
    QWEN2: _REFUSED_DENSE | {"head_dim": [24], "num_attention_heads": [5], "attention_bias": [True]},
    QWEN3: _REFUSED_DENSE | {"head_dim": [15], "attention_bias": [True]},
    DEEPSEEK: _REFUSED_LATENT
    | {
        "rope_interleave": [False, None],
        "norm_topk_prob": [False],
        "scoring_func": ["softmax"],
        "topk_method": ["greedy"],
        "num_local_experts": [16],
        "n_group": [3, 8, None],
        "topk_group": [5, 1, None],
        "num_experts_per_tok": [1, 6],
        "n_routed_experts": [6],
    },
    LLAMA: _REFUSED_DENSE
    | {
        "head_dim": [15],
        "num_attention_heads": [5],
        "attention_bias": [True],
        "mlp_bias": [True],
        "sliding_window": [4, None],
        "bias": [True],
        "qkv_bias": [True],
        "logit_scale": [0.5],
        "rope_scaling": [
            *_REFUSED["rope_scaling"],
            YARN,
            dict(LLAMA3, factor=0.5),
            dict(LLAMA3, low_freq_factor=4),
            dict(LLAMA3, low_freq_factor=0),
            dict(LLAMA3, high_freq_factor=None),
            dict(LLAMA3, original_max_position_embeddings=None),
            {key: value for key, value in LLAMA3.items() if key != "original_max_position_embeddings"},
            dict(LLAMA3, attention_factor=1.0),
        ],
    },
    MISTRAL: _REFUSED_DENSE
    | {
        "sliding_window": [4096, 0],
        "num_key_value_heads": [3, 8, None],
        "head_dim": [15],
        "num_attention_heads": [6],
        "attention_bias": [True],
        "llama_4_scaling": [{"beta": 0.1, "original_max_position_embeddings": 8}],
    },
    QWEN3_MOE: _REFUSED_DENSE
    | {
        "num_key_value_heads": [3, 8, None],
        "head_dim": [15, None],
        "num_attention_heads": [6],
        "attention_bias": [True],
        "num_experts": [1, 2, None],
        "num_local_experts": [16],
        "num_experts_per_tok": [1, 9],
        "moe_intermediate_size": [0],
        "norm_topk_prob": [None],
        "decoder_sparse_step": [2],
        "mlp_only_layers": [[0]],
        "shared_expert_intermediate_size": [32],
    },
    DEEPSEEK_V2: _REFUSED_LATENT
    | {
        "num_attention_heads": [6],
        "mlp_bias": [True],
        "attention_dropout": [1],
        "norm_topk_prob": [True, None],
        "scoring_func": ["sigmoid"],
        "topk_method": ["noaux_tc", None, "group_limited_greedy"],
        "num_experts": [16],
        "n_group": [0],
        "topk_group": [0],
        "num_experts_per_tok": [9, None],
        "n_routed_experts": [1, 3],
        "rope_interleave": [True],
        "num_nextn_predict_layers": [1],
    },
}
"""Beside MINIMAL."""
