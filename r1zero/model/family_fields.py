"""One table per family with every field that its config.json may have, and how it is treated. See config_fields.

Names and defaults are those of Hugging Face's config classes and of the config.json files published for Qwen2.5, Qwen3,
DeepSeek-V2, DeepSeek-V3, Moonlight, Llama 3, Mistral and Qwen3-MoE. tests/model/test_config_fields.py compares every
entry with Hugging Face.
"""

from r1zero.model.config_fields import (
    ANYTHING,
    BLOCK,
    FLAG,
    FRACTION,
    ID,
    IDS,
    LABELS,
    REQUIRED,
    SECTION,
    TEXT,
    TEXTS,
    Fields,
    no_effect,
    number,
    one_of,
    only,
    optional,
    positive,
    read,
    real,
    whole,
)

TYPES = one_of("float32", "bfloat16", "float16")

# Fields that Hugging Face moves from config.json to its generation config. Here [rollout] determines the sampling.
GENERATION = [
    "assistant_confidence_threshold",
    "assistant_lookbehind",
    "bad_words_ids",
    "begin_suppress_tokens",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "encoder_repetition_penalty",
    "epsilon_cutoff",
    "eta_cutoff",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "length_penalty",
    "max_length",
    "min_length",
    "no_repeat_ngram_size",
    "num_assistant_tokens",
    "num_assistant_tokens_schedule",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_scores",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict_in_generate",
    "suppress_tokens",
    "target_lookbehind",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
]

HARMLESS: Fields = {name: no_effect(ANYTHING) for name in GENERATION} | {
    # Origin of the file, and how to load it.
    "transformers_version": no_effect(optional(TEXT)),
    "_name_or_path": no_effect(optional(TEXT)),
    "name_or_path": no_effect(optional(TEXT)),
    "_commit_hash": no_effect(optional(TEXT)),
    "unsloth_version": no_effect(optional(TEXT)),
    "unsloth_fixed": no_effect(optional(FLAG)),
    "auto_map": no_effect(SECTION),
    "tokenizer_class": no_effect(optional(TEXT)),
    "dtype": no_effect(optional(TYPES)),
    "torch_dtype": no_effect(optional(TYPES)),
    "attn_implementation": no_effect(optional(TEXT)),
    "_attn_implementation_autoset": no_effect(optional(FLAG)),
    "experts_implementation": no_effect(optional(TEXT)),
    # What a forward pass returns beside the logits, and how it is computed.
    "use_cache": no_effect(FLAG),
    "output_hidden_states": no_effect(optional(FLAG)),
    "output_attentions": only(False, None),
    "return_dict": only(True),
    "tie_last_hidden_states": no_effect(optional(FLAG)),
    "chunk_size_feed_forward": no_effect(whole(0)),
    # Special tokens: the template makes the prompts; tokenizer and generation_config.json state the stop tokens.
    "bos_token_id": no_effect(optional(ID)),
    "eos_token_id": no_effect(optional(IDS)),
    "pad_token_id": no_effect(optional(ID)),
    "sep_token_id": no_effect(optional(ID)),
    "decoder_start_token_id": no_effect(optional(ID)),
    # Only for training elsewhere: here weights are always loaded, and there is no dropout.
    "initializer_range": no_effect(real()),
    "attention_dropout": no_effect(number()),
    # For other tasks, and for versions of transformers before 5.
    "id2label": no_effect(optional(LABELS)),
    "label2id": no_effect(optional(SECTION)),
    "num_labels": no_effect(whole()),
    "problem_type": only(None),
    "finetuning_task": no_effect(optional(TEXT)),
    "task_specific_params": no_effect(optional(SECTION)),
    "prefix": no_effect(optional(TEXT)),
    "torchscript": no_effect(FLAG),
    "use_bfloat16": no_effect(FLAG),
    "tf_legacy_loss": no_effect(FLAG),
    "is_decoder": no_effect(FLAG),
    "cross_attention_hidden_size": no_effect(optional(whole())),
    "is_encoder_decoder": only(False),
    "add_cross_attention": only(False),
    "tie_encoder_decoder": only(False),
    "pruned_heads": only({}),
}

COMMON: Fields = HARMLESS | {
    "architectures": read(TEXTS),
    "vocab_size": read(whole()),
    "hidden_size": read(whole()),
    "intermediate_size": read(whole()),
    "num_hidden_layers": read(whole()),
    "num_attention_heads": read(whole()),
    "num_key_value_heads": read(optional(whole())),
    "max_position_embeddings": read(whole()),
    "rms_norm_eps": read(positive(real())),
    "hidden_act": only("silu"),
    "quantization_config": read(optional(SECTION), None),
    # Rotary positions: `rope_parameters` since transformers 5; before that `rope_scaling` and `rope_theta`. See ROPE.
    "rope_theta": read(positive(number()), None),
    "rope_scaling": read(optional(SECTION), None),
    "rope_parameters": read(optional(SECTION), None),
    "original_max_position_embeddings": only(why="state it inside rope_scaling"),
    "partial_rotary_factor": only(1.0, 1, None, why="vLLM and Hugging Face apply it to different parts of a head"),
}

DENSE: Fields = COMMON | {
    "tie_word_embeddings": read(FLAG, False),
    "use_sliding_window": only(False),
    "sliding_window": no_effect(optional(whole(0))),
    "max_window_layers": no_effect(whole(0)),
    "layer_types": read(optional(TEXTS), None),
    "use_mrope": only(False),
}

QWEN2: Fields = DENSE | {"model_type": only("qwen2", default=REQUIRED), "head_dim": read(whole(), None)}

QWEN3: Fields = DENSE | {
    "model_type": only("qwen3", default=REQUIRED),
    "head_dim": read(whole(), 128),
    "attention_bias": only(False, why="Hugging Face adds a bias to the output projection as well, which vLLM lacks"),
}

# What DeepSeek-V2 and DeepSeek-V3 share: latent attention and experts.
LATENT: Fields = COMMON | {
    "tie_word_embeddings": only(False, why="vLLM always gives this family a separate output layer"),
    "attention_bias": only(False),
    "q_lora_rank": read(optional(whole())),
    "kv_lora_rank": read(whole()),
    "qk_nope_head_dim": read(whole()),
    "qk_rope_head_dim": read(whole(2)),
    "v_head_dim": read(whole()),
    # Implied by other fields.
    "head_dim": read(whole(), None),
    "qk_head_dim": read(whole(), None),
    "n_routed_experts": read(whole(2)),
    "moe_intermediate_size": read(whole()),
    "n_shared_experts": read(whole()),
    "first_k_dense_replace": read(whole(0)),
    "routed_scaling_factor": read(positive(real())),
    "moe_layer_freq": only(1, why="every layer after the first dense ones must have experts"),
    "aux_loss_alpha": no_effect(number()),
    "seq_aux": no_effect(FLAG),
    "ep_size": no_effect(whole()),
    "output_router_logits": no_effect(FLAG),
    "pretraining_tp": no_effect(optional(whole())),
}

ONE_GROUP = "a model that chooses among all of its experts has n_group = 1 and topk_group = 1"

DEEPSEEK_V3: Fields = LATENT | {
    "model_type": only("deepseek_v3", default=REQUIRED),
    "rope_interleave": only(True, why="vLLM always rotates pairs of neighbouring elements"),
    # Must equal n_routed_experts. If it contradicts that, Hugging Face uses this one.
    "num_local_experts": read(whole(), None),
    "num_experts_per_tok": read(whole(2)),
    # With null neither Hugging Face nor vLLM computes anything: both raise an error in the router.
    "n_group": read(whole(), why=ONE_GROUP),
    "topk_group": read(whole(), why=ONE_GROUP),
    "norm_topk_prob": only(True),
    # Files written by transformers 5 have neither, so rollout/arguments.py passes them to the engine.
    "scoring_func": only("sigmoid"),
    "topk_method": only("noaux_tc"),
    "num_nextn_predict_layers": no_effect(whole(0)),
    "num_mtp_layers": no_effect(whole(0)),
}

DEEPSEEK_V2: Fields = LATENT | {
    "model_type": only("deepseek_v2", default=REQUIRED),
    "mlp_bias": only(False),
    "attention_dropout": no_effect(optional(real())),
    # Must equal n_routed_experts. If it contradicts that, Hugging Face uses this one.
    "num_experts": read(whole(), None),
    "num_experts_per_tok": read(whole()),
    # With "greedy" Hugging Face ignores the groups, so rollout/arguments.py gives the engine a single group.
    "topk_method": read(one_of("greedy", "group_limited_greedy"), "greedy"),
    "n_group": read(optional(whole()), None),
    "topk_group": read(optional(whole()), None),
    "norm_topk_prob": only(False, why="vLLM divides the scores by their sum, and Hugging Face does not"),
    "scoring_func": only("softmax"),
}

LLAMA: Fields = COMMON | {
    "model_type": only("llama", default=REQUIRED),
    "tie_word_embeddings": read(FLAG, False),
    "head_dim": read(optional(whole()), None),
    "attention_bias": only(False),
    "mlp_bias": only(False),
    "pretraining_tp": no_effect(optional(whole())),
    "initializer_range": no_effect(FRACTION),
}

MISTRAL: Fields = COMMON | {
    "model_type": only("mistral", default=REQUIRED),
    "tie_word_embeddings": read(FLAG, False),
    "num_key_value_heads": read(whole()),
    "head_dim": read(optional(whole()), None),
    # Hugging Face takes 4096 if a file does not state it, so every file must state null.
    "sliding_window": only(None, default=REQUIRED, why="the trainer attends to all earlier tokens"),
}

QWEN3_MOE: Fields = COMMON | {
    "model_type": only("qwen3_moe", default=REQUIRED),
    "tie_word_embeddings": read(FLAG, False),
    "num_key_value_heads": read(whole()),
    "head_dim": read(whole(), None),
    "attention_bias": only(False, why="Hugging Face adds a bias to the output projection as well, which vLLM lacks"),
    "use_sliding_window": only(False),
    "sliding_window": no_effect(optional(whole(0))),
    "max_window_layers": no_effect(whole(0)),
    # transformers 5 writes num_local_experts; published files state num_experts.
    "num_experts": read(whole(2), None),
    "num_local_experts": read(whole(2), None),
    "num_experts_per_tok": read(whole(2)),
    "moe_intermediate_size": read(whole()),
    "norm_topk_prob": read(FLAG, False),
    "decoder_sparse_step": only(1, why="every layer must have experts"),
    "mlp_only_layers": only([], None, why="every layer must have experts"),
    "output_router_logits": no_effect(FLAG),
    "router_aux_loss_coef": no_effect(real()),
}

_ANY_ROPE: Fields = {
    "rope_type": read(TEXT, None),
    "type": read(TEXT, None),
    "rope_theta": read(positive(number()), None),
    "partial_rotary_factor": only(1.0, 1, why="vLLM and Hugging Face apply it to different parts of a head"),
}
ROPE: dict[str, Fields] = {
    "default": _ANY_ROPE,
    "yarn": _ANY_ROPE
    | {
        "factor": read(number(1.0)),
        "original_max_position_embeddings": read(whole(), None),
        "beta_fast": read(positive(number()), 32),
        "beta_slow": read(positive(number()), 1),
        "mscale": read(positive(number()), None),
        "mscale_all_dim": read(positive(number()), None),
        "attention_factor": only(None, why="vLLM does not scale by it; state mscale and mscale_all_dim"),
        "truncate": only(True, why="vLLM always rounds the range of the ramp"),
    },
    "llama3": _ANY_ROPE
    | {
        "factor": read(number(1.0)),
        "low_freq_factor": read(positive(number())),
        "high_freq_factor": read(positive(number())),
        "original_max_position_embeddings": read(whole()),
    },
}
"""Fields of rope_scaling and rope_parameters, for each rope_type."""

FP8: Fields = {
    "quant_method": only("fp8", default=REQUIRED, why="dequantise the checkpoint to bfloat16 first"),
    "fmt": only("e4m3"),
    "weight_block_size": read(BLOCK),
    # How activations are quantised, and which tensors are not. The type of each tensor in the files decides that.
    "activation_scheme": no_effect(TEXT),
    "scale_fmt": no_effect(TEXT),
    "dequantize": no_effect(FLAG),
    "modules_to_not_convert": no_effect(optional(TEXTS)),
    "modules_to_convert": no_effect(optional(TEXTS)),
    "ignored_layers": no_effect(optional(TEXTS)),
}
"""Fields of quantization_config."""
