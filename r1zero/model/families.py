"""A model family as data: its shape from Hugging Face's config.json, and one table of its weights. Needs no torch.

A row of the table describes one HF tensor: its shape in letters, the megatron-core parameter that holds it (alone or
fused with others) and the axis that tensor parallelism splits. Planning, loading, export and sync read the same rows.

Letters: V vocabulary, H hidden, D head, Q all query heads, K all key (or value) heads, F dense MLP, E one expert,
S shared experts, X routed experts, A query latent, C key-value latent, R latent and rotary key (the output of
kv_a_proj), B both parts of all queries (MLA), U keys and values computed from the latent, O input of the output
projection of attention.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from r1zero.config import Model, UserError
from r1zero.model import overrides
from r1zero.model.config_fields import Config, Fields, shown
from r1zero.model.family_fields import DEEPSEEK_V2, DEEPSEEK_V3, FP8, LLAMA, MISTRAL, QWEN2, QWEN3, QWEN3_MOE
from r1zero.model.shape import (
    Shape,
    read_deepseek_v2,
    read_deepseek_v3,
    read_llama,
    read_mistral,
    read_qwen2,
    read_qwen3,
    read_qwen3_moe,
)

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


@dataclass(frozen=True)
class Weight:
    """One HF tensor and where megatron-core holds it."""

    name: str
    shape: tuple[int, ...]
    layer: int | None
    expert: int | None
    place: Holder
    parameter: str
    """Name in megatron-core, relative to its layer ("layer") or model chunk; `{e}`: the expert's number on its rank."""
    cut: int | None
    fp32: bool
    first: int = 0
    """First row of this tensor in the fused, unsplit parameter ..."""
    total: int = 0
    """... which has this many rows."""
    blocks: int = 1
    """Blocks of the unsplit fused parameter, distributed over the tensor ranks; 1: each rank has a block of its own."""

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def fused_rows(self, degree: int = 1) -> tuple["FusedRows", ...]:
        """Returns where the rows of this tensor are in the parameter of one of `degree` tensor ranks.

        All ranks have them in the same places, so the rows are counted from the beginning of the rank's own part. With
        degree 1 these are the places in the parameter without tensor parallelism.
        """
        ranks = degree if self.cut == 0 else 1
        blocks = self.blocks // ranks if self.blocks > 1 else 1
        rows, stride, first = (n // ranks // blocks for n in (self.shape[0], self.total or self.shape[0], self.first))
        return tuple(FusedRows(i * rows, i * stride + first, rows) for i in range(blocks))

    def require_layer(self) -> int:
        """Returns the number of the layer. Raises ValueError for a weight outside of the layers."""
        if self.layer is None:
            raise ValueError(f"{self.name} is in no layer")
        return self.layer

    def require_expert(self) -> int:
        """Returns the number of the expert. Raises ValueError for a weight that belongs to none."""
        if self.expert is None:
            raise ValueError(f"{self.name} is of no expert")
        return self.expert


class FusedRows(NamedTuple):
    """Consecutive rows of an HF tensor that are also consecutive in the parameter that holds them."""

    row: int
    """First row in the HF tensor, or in a rank's part of it."""
    fused: int
    """First row in the parameter."""
    rows: int


_ENDS = (
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


def _dense_layer(shape: Shape, layer: int) -> tuple[WeightRule, ...]:
    return _NORMS + _ATTENTION + (_QKV_BIAS if shape.qkv_bias else ()) + (_QK_NORM if shape.qk_norm else ()) + _MLP


def _deepseek_layer(shape: Shape, layer: int) -> tuple[WeightRule, ...]:
    attention = _NORMS + (_MLA_Q_LORA if shape.require_mla().q_lora_rank else _MLA_Q) + _MLA
    if not shape.is_moe(layer):
        return attention + _MLP
    bias = _ROUTER_BIAS if shape.require_moe().score_function == "sigmoid" else ()
    return attention + _ROUTER + bias + _EXPERT + _SHARED


def _qwen3_moe_layer(shape: Shape, layer: int) -> tuple[WeightRule, ...]:
    return _NORMS + _ATTENTION + _QK_NORM + _ROUTER + _EXPERT


@dataclass(frozen=True)
class Family:
    """What distinguishes a family: the fields of its config.json and its table of weights."""

    fields: Fields
    """Every field that config.json may have."""
    read: Callable[[Config], dict[str, Any]]
    """Reads the fields of Shape that are specific to the family, from a config that was checked against `fields`."""
    layer: Callable[[Shape, int], tuple[WeightRule, ...]]
    """Returns the rows of one transformer layer."""


FAMILIES = {
    "Qwen2ForCausalLM": Family(QWEN2, read_qwen2, _dense_layer),
    "Qwen3ForCausalLM": Family(QWEN3, read_qwen3, _dense_layer),
    "DeepseekV3ForCausalLM": Family(DEEPSEEK_V3, read_deepseek_v3, _deepseek_layer),
    "LlamaForCausalLM": Family(LLAMA, read_llama, _dense_layer),
    "MistralForCausalLM": Family(MISTRAL, read_mistral, _dense_layer),
    "Qwen3MoeForCausalLM": Family(QWEN3_MOE, read_qwen3_moe, _qwen3_moe_layer),
    "DeepseekV2ForCausalLM": Family(DEEPSEEK_V2, read_deepseek_v2, _deepseek_layer),
}


def read_shape(hf_dir: str | Path, changes: Mapping[str, Any] | None = None) -> Shape:
    """Read the shape from `hf_dir`/config.json, or from a file in configs/model/.

    changes: model.overrides. Raises UserError if the file is missing, contradicts itself, or has an unknown field or an
    unsupported value, or if a field cannot be overridden.
    """
    file = Config.load(Path(hf_dir) if Path(hf_dir).suffix == ".toml" else Path(hf_dir) / "config.json")
    architecture = _architecture(file)
    family = FAMILIES[architecture]
    overrides.check(changes or {}, family.fields, architecture)
    config = overrides.merge(file, changes or {}).checked(family.fields, architecture)
    _fp8_block(config)
    return Shape(
        family=architecture,
        layers=config["num_hidden_layers"],
        hidden_size=config["hidden_size"],
        ffn_hidden_size=config["intermediate_size"],
        heads=config["num_attention_heads"],
        vocab_size=config["vocab_size"],
        max_positions=config["max_position_embeddings"],
        rms_norm_eps=config["rms_norm_eps"],
        tied=bool(config["tie_word_embeddings"]),
        **family.read(config),
    )


def _architecture(config: Config) -> str:
    found = config.get("architectures")
    if not isinstance(found, list) or len(found) != 1 or found[0] not in [*FAMILIES]:
        raise UserError(
            f"{config.path}: architectures = {shown(found)}; it must be a list of one of {', '.join(FAMILIES)}"
        )
    return found[0]


def fp8_block(hf_dir: str | Path) -> tuple[int, int] | None:
    """Returns (rows, columns) that share a scale in an FP8 checkpoint; None for other checkpoints. Raises UserError."""
    return _fp8_block(Config.load(Path(hf_dir) / "config.json"))


def _fp8_block(config: Config) -> tuple[int, int] | None:
    if not config.get("quantization_config"):
        return None
    rows, columns = config.section("quantization_config", FP8, "FP8 checkpoints")["weight_block_size"]
    return rows, columns


def model_shape(model: Model) -> Shape:
    """Read the shape from model.path's config.json or from model.shape. Raises UserError if both exist and differ."""
    if not model.shape:
        return read_shape(model.path, model.overrides)
    stated = read_shape(model.shape, model.overrides)
    if model.path and (Path(model.path) / "config.json").exists():
        found = read_shape(model.path, model.overrides)
        for field in dataclasses.fields(Shape):
            ours, theirs = getattr(stated, field.name), getattr(found, field.name)
            if ours != theirs:
                raise UserError(
                    f"{model.shape} states {field.name} = {ours}, but {model.path}/config.json states {theirs}; "
                    "name the shape file of this model, or remove model.shape"
                )
    return stated


def weights(shape: Shape) -> list[Weight]:
    """Returns all tensors of the HF checkpoint, except multi-token prediction, in the order of a forward pass."""
    return list(_weights(shape))


@lru_cache(maxsize=4)
def _weights(shape: Shape) -> tuple[Weight, ...]:
    dims = _dims(shape)
    embedding, norm, head = (_weight(row, row.hf, dims, None, None) for row in _ENDS)
    if shape.tied:
        embedding = _weight(
            WeightRule(_ENDS[0].hf, "VH", _ENDS[0].megatron, 0, place="both ends"), _ENDS[0].hf, dims, None, None
        )
    found = [embedding]
    for layer in range(shape.layers):
        for row in FAMILIES[shape.family].layer(shape, layer):
            name = f"model.layers.{layer}.{row.hf}"
            if "{e}" in name:
                continue
            found.append(_weight(row, name, dims, layer, None))
        if shape.is_moe(layer):
            rows = [row for row in FAMILIES[shape.family].layer(shape, layer) if "{e}" in row.hf]
            found.extend(
                _weight(row, f"model.layers.{layer}.{row.hf.format(e=e)}", dims, layer, e)
                for e in range(shape.require_moe().experts)
                for row in rows
            )
    return (*found, norm) if shape.tied else (*found, norm, head)


def _dims(shape: Shape) -> dict[str, int]:
    dims = {
        "V": shape.vocab_size,
        "H": shape.hidden_size,
        "D": shape.head_dim,
        "F": shape.ffn_hidden_size,
        "Q": shape.heads * shape.head_dim,
        "K": shape.kv_heads * shape.head_dim,
        "g": shape.kv_heads,
    }
    if mla := shape.mla:
        dims |= {
            "A": mla.q_lora_rank or 0,
            "C": mla.kv_lora_rank,
            "R": mla.kv_lora_rank + mla.qk_rope_head_dim,
            "B": shape.heads * shape.head_dim,
            "U": shape.heads * (mla.qk_nope_head_dim + mla.v_head_dim),
            "O": shape.heads * mla.v_head_dim,
        }
    if moe := shape.moe:
        dims |= {"X": moe.experts, "E": moe.ffn_hidden_size, "S": moe.shared_experts * moe.ffn_hidden_size}
    return dims


def _weight(row: WeightRule, name: str, dims: dict[str, int], layer: int | None, expert: int | None) -> Weight:
    full = tuple(dims[letter] for letter in row.dims)
    before = row.fused.partition("[")[0]
    letters = row.fused.replace("[", "").replace("]", "")
    return Weight(
        name=name,
        shape=full,
        layer=layer,
        expert=expert,
        place=row.place,
        parameter=row.megatron,
        cut=row.cut,
        fp32=row.fp32,
        first=sum(dims[x] for x in before),
        total=sum(dims[x] for x in letters) or full[0],
        blocks=dims[row.blocks] if row.blocks else 1,
    )
