"""A model's dimensions, read from Hugging Face's config.json. No torch, no megatron."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli

from r1zero.config import UserError


DENSE_TOKENS = 128
"""On a CPU, sequences of up to this many tokens are attended by explicit products, whose scores are held for the backward pass;
longer ones by torch's fused attention, which holds none. Measured with head dimensions 32 and 64 on one core with AMX: the products
are faster up to 64 to 192 tokens in training."""


CHUNK_BYTES = 64 << 20
"""A checkpoint's tensor is written in pieces of at most this many bytes, so that a save needs no more memory than that."""


@dataclass(frozen=True, kw_only=True)
class Mla:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1)."""

    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int


@dataclass(frozen=True, kw_only=True)
class Moe:
    """Sigmoid router with a bias in the choice only (DeepSeek-V3, arXiv 2412.19437, section 2.1.2)."""

    experts: int
    topk: int
    groups: int
    topk_groups: int
    ffn_hidden_size: int
    shared_experts: int
    first_dense_layers: int
    routed_scaling_factor: float


@dataclass(frozen=True, kw_only=True)
class Yarn:
    """Longer context by interpolated rotary frequencies (arXiv 2309.00071). `mscale_all_dim` 0: absent."""

    factor: float
    original_max_positions: int
    beta_fast: float
    beta_slow: float
    mscale: float
    mscale_all_dim: float


@dataclass(frozen=True, kw_only=True)
class Shape:
    """All dimensions of a model."""

    family: str
    """HF's architecture, the key of FAMILIES."""
    layers: int
    hidden_size: int
    ffn_hidden_size: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int
    rms_norm_eps: float
    rope_theta: float
    tied: bool
    """The output layer is the embedding."""
    qkv_bias: bool = False
    qk_norm: bool = False
    mla: Mla | None = None
    moe: Moe | None = None
    yarn: Yarn | None = None

    def is_moe(self, layer: int) -> bool:
        return self.moe is not None and layer >= self.moe.first_dense_layers


class Config(dict):
    """config.json, or a file of configs/model/ with the same keys in TOML; missing keys are errors for the user."""

    def __init__(self, path: Path):
        try:
            text = path.read_text(encoding="utf-8")
            super().__init__(tomli.loads(text) if path.suffix == ".toml" else json.loads(text))
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); model.path must be a folder in Hugging Face's format") from None
        except ValueError as error:
            raise UserError(f"{path}: is not {'TOML' if path.suffix == '.toml' else 'JSON'}: {error}") from None
        self.path = path

    def __missing__(self, key: str) -> Any:
        raise UserError(f"{self.path}: {key} is missing; the folder's config.json must state the model's shape")

    def refuse_unless(self, key: str, value: Any, default: Any) -> None:
        if self.get(key, default) != value:
            raise UserError(f"{self.path}: {key} = {self[key]!r}; only {value!r} is supported for {self['architectures'][0]}")

    @property
    def rope(self) -> dict[str, Any]:
        """Rotary parameters: `rope_parameters` since transformers 5, before that `rope_scaling` beside `rope_theta`."""
        rope = dict(self.get("rope_parameters") or self.get("rope_scaling") or {})
        rope.setdefault("rope_type", rope.get("type", "default"))
        rope.setdefault("rope_theta", self.get("rope_theta", 10000.0))
        return rope


def read_qwen2(config: Config) -> dict[str, Any]:
    return {**_read_dense(config), "qkv_bias": True}


def read_qwen3(config: Config) -> dict[str, Any]:
    return {**_read_dense(config), "qkv_bias": bool(config.get("attention_bias", False)), "qk_norm": True}


def _read_dense(config: Config) -> dict[str, Any]:
    config.refuse_unless("use_sliding_window", False, False)
    if config.rope.get("rope_type", "default") != "default":
        raise UserError(f"{config.path}: rope_type = {config.rope['rope_type']!r}; this family is supported with plain rotary "
                        "positions only: remove rope_scaling")
    heads = config["num_attention_heads"]
    return dict(kv_heads=config.get("num_key_value_heads") or heads,
                head_dim=config.get("head_dim") or config["hidden_size"] // heads)


def read_deepseek(config: Config) -> dict[str, Any]:
    for key, value in {"scoring_func": "sigmoid", "topk_method": "noaux_tc", "norm_topk_prob": True, "moe_layer_freq": 1,
                       "attention_bias": False}.items():
        config.refuse_unless(key, value, value)
    mla = Mla(q_lora_rank=config.get("q_lora_rank"), kv_lora_rank=config["kv_lora_rank"], v_head_dim=config["v_head_dim"],
              qk_nope_head_dim=config["qk_nope_head_dim"], qk_rope_head_dim=config["qk_rope_head_dim"])
    moe = Moe(experts=config["n_routed_experts"], topk=config["num_experts_per_tok"], groups=config["n_group"],
              topk_groups=config["topk_group"], ffn_hidden_size=config["moe_intermediate_size"],
              shared_experts=config.get("n_shared_experts") or 0, first_dense_layers=config["first_k_dense_replace"],
              routed_scaling_factor=config["routed_scaling_factor"])
    # HF scores a group by its best two experts, megatron-core by its best topk / topk_groups.
    if moe.topk_groups < moe.groups and moe.topk != 2 * moe.topk_groups:
        raise UserError(f"{config.path}: num_experts_per_tok = {moe.topk} with topk_group = {moe.topk_groups}; trainer and engine "
                        "score groups alike only where num_experts_per_tok = 2 x topk_group")
    if moe.topk < 2:
        raise UserError(f"{config.path}: num_experts_per_tok = {moe.topk}; the router's weights are normalised over at least 2")
    return dict(kv_heads=config["num_attention_heads"], head_dim=mla.qk_nope_head_dim + mla.qk_rope_head_dim, mla=mla, moe=moe,
                yarn=_read_yarn(config))


def _read_yarn(config: Config) -> Yarn | None:
    rope = config.rope
    kind = rope.get("rope_type", "default")
    if kind == "default":
        return None
    if kind != "yarn":
        raise UserError(f"{config.path}: rope_type = {kind!r}; supported are 'default' and 'yarn'")
    if bool(rope.get("mscale")) != bool(rope.get("mscale_all_dim")):
        raise UserError(f"{config.path}: mscale = {rope.get('mscale')} and mscale_all_dim = {rope.get('mscale_all_dim')}; engines "
                        "disagree on what one without the other means: give both or neither")
    return Yarn(factor=float(rope["factor"]), beta_fast=float(rope.get("beta_fast") or 32), beta_slow=float(rope.get("beta_slow") or 1),
                original_max_positions=int(rope.get("original_max_position_embeddings") or config["max_position_embeddings"]),
                mscale=float(rope.get("mscale") or 1.0), mscale_all_dim=float(rope.get("mscale_all_dim") or 0.0))
