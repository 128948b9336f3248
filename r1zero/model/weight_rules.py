"""What a transformer layer of each kind consists of: one row for each HF tensor. Needs no torch.

A row describes one HF tensor: its shape in letters, the megatron-core parameter that holds it (alone or fused with
others) and the axis that tensor parallelism splits. Planning, loading, export and sync read the same rows.

Letters: V vocabulary, H hidden, D head, Q all query heads, K all key (or value) heads, F dense MLP, E one expert,
S shared experts, X routed experts, A query latent, C key-value latent, R latent and rotary key (the output of
kv_a_proj), B both parts of all queries (MLA), U keys and values computed from the latent, O input of the output
projection of attention.
"""

from dataclasses import dataclass
from typing import Literal

from r1zero.model.shape import Shape

Holder = Literal["first", "layer", "last", "both ends"]


@dataclass(frozen=True)
class WeightRule:
    """One row of a family's table. `{e}` stands for the number of the expert."""

    hf: str
    dims: str
    megatron: str
    """Name of the parameter, relative to its layer if place is "layer". `{e}` is the expert's number on its rank."""
    cut: int | None = None
    """Axis that the tensor degree splits (for an expert, the expert tensor degree). None: each rank has the whole."""
    fused: str = ""
    """Letters of the tensors that share the parameter, in order, with this tensor's letter in brackets: "Q[K]K"."""
    blocks: str = ""
    """Letter for the number of blocks in which the fused parameter repeats its order ("g": one block per key-value
    head); empty: one block per rank."""
    place: Holder = "layer"
    fp32: bool = False


ENDS = (
    WeightRule("model.embed_tokens.weight", "VH", "embedding.word_embeddings.weight", 0, place="first"),
    WeightRule("model.norm.weight", "H", "decoder.final_layernorm.weight", place="last"),
    WeightRule("lm_head.weight", "VH", "output_layer.weight", 0, place="last"),
)
_NORMS = (
    WeightRule("input_layernorm.weight", "H", "input_layernorm.weight"),
    WeightRule("post_attention_layernorm.weight", "H", "pre_mlp_layernorm.weight"),
)
_ATTENTION = (
    WeightRule("self_attn.q_proj.weight", "QH", "self_attention.linear_qkv.weight", 0, "[Q]KK", "g"),
    WeightRule("self_attn.k_proj.weight", "KH", "self_attention.linear_qkv.weight", 0, "Q[K]K", "g"),
    WeightRule("self_attn.v_proj.weight", "KH", "self_attention.linear_qkv.weight", 0, "QK[K]", "g"),
    WeightRule("self_attn.o_proj.weight", "HQ", "self_attention.linear_proj.weight", 1),
)
_QKV_BIAS = (
    WeightRule("self_attn.q_proj.bias", "Q", "self_attention.linear_qkv.bias", 0, "[Q]KK", "g"),
    WeightRule("self_attn.k_proj.bias", "K", "self_attention.linear_qkv.bias", 0, "Q[K]K", "g"),
    WeightRule("self_attn.v_proj.bias", "K", "self_attention.linear_qkv.bias", 0, "QK[K]", "g"),
)
_QK_NORM = (
    WeightRule("self_attn.q_norm.weight", "D", "self_attention.q_layernorm.weight"),
    WeightRule("self_attn.k_norm.weight", "D", "self_attention.k_layernorm.weight"),
)
_MLA_Q = (WeightRule("self_attn.q_proj.weight", "BH", "self_attention.linear_q_proj.weight", 0),)
_MLA_Q_LORA = (
    WeightRule("self_attn.q_a_proj.weight", "AH", "self_attention.linear_q_down_proj.weight"),
    WeightRule("self_attn.q_a_layernorm.weight", "A", "self_attention.q_layernorm.weight"),
    WeightRule("self_attn.q_b_proj.weight", "BA", "self_attention.linear_q_up_proj.weight", 0),
)
_MLA = (
    WeightRule("self_attn.kv_a_proj_with_mqa.weight", "RH", "self_attention.linear_kv_down_proj.weight"),
    WeightRule("self_attn.kv_a_layernorm.weight", "C", "self_attention.kv_layernorm.weight"),
    WeightRule("self_attn.kv_b_proj.weight", "UC", "self_attention.linear_kv_up_proj.weight", 0),
    WeightRule("self_attn.o_proj.weight", "HO", "self_attention.linear_proj.weight", 1),
)
_MLP = (
    WeightRule("mlp.gate_proj.weight", "FH", "mlp.linear_fc1.weight", 0, "[F]F"),
    WeightRule("mlp.up_proj.weight", "FH", "mlp.linear_fc1.weight", 0, "F[F]"),
    WeightRule("mlp.down_proj.weight", "HF", "mlp.linear_fc2.weight", 1),
)
_ROUTER = (WeightRule("mlp.gate.weight", "XH", "mlp.router.weight"),)
_ROUTER_BIAS = (WeightRule("mlp.gate.e_score_correction_bias", "X", "mlp.router.expert_bias", fp32=True),)
_EXPERT = (
    WeightRule("mlp.experts.{e}.gate_proj.weight", "EH", "mlp.experts.local_experts.{e}.linear_fc1.weight", 0, "[E]E"),
    WeightRule("mlp.experts.{e}.up_proj.weight", "EH", "mlp.experts.local_experts.{e}.linear_fc1.weight", 0, "E[E]"),
    WeightRule("mlp.experts.{e}.down_proj.weight", "HE", "mlp.experts.local_experts.{e}.linear_fc2.weight", 1),
)
_SHARED = (
    WeightRule("mlp.shared_experts.gate_proj.weight", "SH", "mlp.shared_experts.linear_fc1.weight", 0, "[S]S"),
    WeightRule("mlp.shared_experts.up_proj.weight", "SH", "mlp.shared_experts.linear_fc1.weight", 0, "S[S]"),
    WeightRule("mlp.shared_experts.down_proj.weight", "HS", "mlp.shared_experts.linear_fc2.weight", 1),
)


def dense_layer(shape: Shape, layer: int) -> tuple[WeightRule, ...]:
    return _NORMS + _ATTENTION + (_QKV_BIAS if shape.qkv_bias else ()) + (_QK_NORM if shape.qk_norm else ()) + _MLP


def deepseek_layer(shape: Shape, layer: int) -> tuple[WeightRule, ...]:
    attention = _NORMS + (_MLA_Q_LORA if shape.require_mla().q_lora_rank else _MLA_Q) + _MLA
    if not shape.is_moe(layer):
        return attention + _MLP
    bias = _ROUTER_BIAS if shape.require_moe().score_function == "sigmoid" else ()
    return attention + _ROUTER + bias + _EXPERT + _SHARED


def qwen3_moe_layer(shape: Shape, layer: int) -> tuple[WeightRule, ...]:
    return _NORMS + _ATTENTION + _QK_NORM + _ROUTER + _EXPERT
