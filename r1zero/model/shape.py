"""A model's dimensions, and how each family states them in Hugging Face's config.json. Needs no torch or megatron."""

from dataclasses import dataclass
from typing import Any, Literal

from r1zero.config import UserError
from r1zero.model.config_fields import Config
from r1zero.model.rope import Llama3Rope, Yarn, read_rope

DENSE_TOKENS = 128
"""On a CPU, attention over sequences of up to this many tokens uses explicit matrix products, whose scores are kept for
the backward pass. Longer sequences use torch's fused attention, which keeps none. Measured with head dimensions 32 and
64 on one core with AMX: in training the products are faster up to 64 to 192 tokens."""


CHUNK_BYTES = 64 << 20
"""Largest number of bytes in which a checkpoint's tensor is written at a time, which bounds the memory of a save."""


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
    """Routed experts, of which a router chooses some for each token, and shared experts that all tokens use."""

    score_function: Literal["sigmoid", "softmax"] = "sigmoid"
    """sigmoid: with a bias that affects only the choice of experts (DeepSeek-V3, arXiv 2412.19437, section 2.1.2).
    softmax: over all experts, without a bias. A group of experts is scored by its two best experts with sigmoid, and by
    its best expert with softmax (DeepSeek-V2, arXiv 2405.04434, section 2.2.2)."""
    norm_topk_prob: bool = True
    """Whether the scores of the chosen experts are divided by their sum."""
    experts: int
    topk: int
    groups: int
    topk_groups: int
    """A token's experts come from this many of the groups, those with the highest scores."""
    ffn_hidden_size: int
    shared_experts: int
    first_dense_layers: int
    routed_scaling_factor: float


@dataclass(frozen=True, kw_only=True)
class Shape:
    """All dimensions of a model."""

    family: str
    """Hugging Face's name of the architecture, the key of FAMILIES."""
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
    """Whether the output layer shares the embedding's weight."""
    qkv_bias: bool = False
    qk_norm: bool = False
    mla: Mla | None = None
    moe: Moe | None = None
    yarn: Yarn | None = None
    llama3_rope: Llama3Rope | None = None

    def require_mla(self) -> Mla:
        """Returns the dimensions of latent attention. Raises ValueError for a model without it."""
        if self.mla is None:
            raise ValueError(f"{self.family} has no latent attention")
        return self.mla

    def require_moe(self) -> Moe:
        """Returns the dimensions of the experts and their router. Raises ValueError for a model without experts."""
        if self.moe is None:
            raise ValueError(f"{self.family} has no experts")
        return self.moe

    def is_moe(self, layer: int) -> bool:
        """Whether a layer (from 0) has experts."""
        return self.moe is not None and layer >= self.moe.first_dense_layers

    @property
    def choices(self) -> tuple[int, int]:
        """Number of layers with experts, and of experts that each of them chooses for a token."""
        moe = self.require_moe()
        return self.layers - moe.first_dense_layers, moe.topk

    @property
    def positions(self) -> int:
        """Length in tokens of the longest sequence for which the engine has rotary positions."""
        stretched = self.yarn.factor * self.yarn.original_max_positions if self.yarn else self.max_positions
        return int(min(stretched, self.max_positions))


def read_qwen2(config: Config) -> dict[str, Any]:
    """Read the fields of Shape that are specific to Qwen2. Raises UserError."""
    head_dim = _hidden_size_per_head(config)
    if config["head_dim"] not in (None, head_dim):
        raise config.refusal(
            "head_dim", f"vLLM supports only hidden_size / num_attention_heads = {head_dim} for this family"
        )
    return {**_read_dense(config, head_dim), "qkv_bias": True}


def read_qwen3(config: Config) -> dict[str, Any]:
    """Read the fields of Shape that are specific to Qwen3. Raises UserError."""
    return {**_read_dense(config, config["head_dim"]), "qk_norm": True}


def read_llama(config: Config) -> dict[str, Any]:
    """Read the fields of Shape that are specific to Llama. Raises UserError."""
    head_dim = _hidden_size_per_head(config)
    return _read_dense(config, config["head_dim"] or head_dim, ("default", "llama3"))


def read_mistral(config: Config) -> dict[str, Any]:
    """Read the fields of Shape that are specific to Mistral. Raises UserError."""
    return _read_dense(config, config["head_dim"] or _hidden_size_per_head(config))


def read_qwen3_moe(config: Config) -> dict[str, Any]:
    """Read the fields of Shape that are specific to Qwen3-MoE. Raises UserError."""
    experts, topk = config["num_experts"] or config["num_local_experts"], config["num_experts_per_tok"]
    if experts is None:
        raise UserError(f"{config.path}: num_experts is missing; it must be a whole number of at least 2")
    if config["num_local_experts"] not in (None, experts):
        raise config.refusal("num_local_experts", f"num_experts is {experts}: remove one of the two")
    if topk > experts:
        raise config.refusal("num_experts_per_tok", f"it must be at most num_experts = {experts}")
    moe = Moe(
        score_function="softmax",
        norm_topk_prob=config["norm_topk_prob"],
        experts=experts,
        topk=topk,
        groups=1,
        topk_groups=1,
        ffn_hidden_size=config["moe_intermediate_size"],
        shared_experts=0,
        first_dense_layers=0,
        routed_scaling_factor=1.0,
    )
    return {**_read_dense(config, config["head_dim"] or _hidden_size_per_head(config)), "qk_norm": True, "moe": moe}


def _hidden_size_per_head(config: Config) -> int:
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    if hidden % heads:
        raise config.refusal("num_attention_heads", f"it must divide hidden_size = {hidden}")
    return hidden // heads


def _read_dense(config: Config, head_dim: int, rope_types: tuple[str, ...] = ("default",)) -> dict[str, Any]:
    heads, layers = config["num_attention_heads"], config["num_hidden_layers"]
    kv_heads = heads if config["num_key_value_heads"] is None else config["num_key_value_heads"]
    if heads % kv_heads:
        raise config.refusal("num_key_value_heads", f"it must divide num_attention_heads = {heads}")
    if head_dim % 2:
        raise UserError(f"{config.path}: head_dim = {head_dim}; rotary positions need an even number")
    types = config.get("layer_types")
    if types is not None and (set(types) != {"full_attention"} or len(types) != layers):
        raise config.refusal("layer_types", f'only "full_attention" is supported, {layers} times (num_hidden_layers)')
    return dict(kv_heads=kv_heads, head_dim=head_dim, **read_rope(config, rope_types))


def read_deepseek_v2(config: Config) -> dict[str, Any]:
    """Read the fields of Shape that are specific to DeepSeek-V2. Raises UserError."""
    _hidden_size_per_head(config)
    if config["topk_method"] == "greedy":
        groups = topk_groups = 1
    elif None in (config["n_group"], config["topk_group"]):
        raise config.refusal("topk_method", "n_group and topk_group must then be whole numbers of at least 1")
    else:
        groups, topk_groups = config["n_group"], config["topk_group"]
    moe = _read_moe(config, score_function="softmax", norm_topk_prob=False, groups=groups, topk_groups=topk_groups)
    return _read_latent(config, "num_experts", moe)


def read_deepseek_v3(config: Config) -> dict[str, Any]:
    """Read the fields of Shape that are specific to DeepSeek-V3. Raises UserError."""
    moe = _read_moe(config, score_function="sigmoid", groups=config["n_group"], topk_groups=config["topk_group"])
    return _read_latent(config, "num_local_experts", moe)


def _read_latent(config: Config, experts: str, moe: Moe) -> dict[str, Any]:
    """experts: the other name of n_routed_experts."""
    heads = config["num_attention_heads"]
    mla = Mla(
        **{
            name: config[name]
            for name in ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
        }
    )
    if mla.qk_rope_head_dim % 2:
        raise config.refusal("qk_rope_head_dim", "rotary positions need an even number")
    for name, implied in {
        "num_key_value_heads": heads,
        "head_dim": mla.qk_rope_head_dim,
        experts: config["n_routed_experts"],
        "qk_head_dim": mla.qk_nope_head_dim + mla.qk_rope_head_dim,
    }.items():
        if config[name] not in (None, implied):
            raise config.refusal(name, f"the other fields imply {implied}; state that value, or remove the field")
    return dict(
        kv_heads=heads,
        head_dim=mla.qk_nope_head_dim + mla.qk_rope_head_dim,
        mla=mla,
        moe=moe,
        **read_rope(config, ("default", "yarn")),
    )


def _read_moe(config: Config, **routing: Any) -> Moe:
    moe = Moe(
        **routing,
        experts=config["n_routed_experts"],
        topk=config["num_experts_per_tok"],
        ffn_hidden_size=config["moe_intermediate_size"],
        shared_experts=config["n_shared_experts"],
        first_dense_layers=config["first_k_dense_replace"],
        routed_scaling_factor=config["routed_scaling_factor"],
    )
    if moe.first_dense_layers >= config["num_hidden_layers"]:
        raise config.refusal(
            "first_k_dense_replace", f"it must be less than num_hidden_layers = {config['num_hidden_layers']}"
        )
    if moe.experts % moe.groups or moe.experts < 2 * moe.groups:
        raise config.refusal(
            "n_group",
            f"each group must have the same number of the {moe.experts} experts (n_routed_experts), "
            "and at least 2 of them",
        )
    if moe.topk_groups > moe.groups:
        raise config.refusal("topk_group", f"it must be at most n_group = {moe.groups}")
    if moe.topk > moe.experts:
        raise config.refusal("num_experts_per_tok", f"it must be at most n_routed_experts = {moe.experts}")
    if moe.topk > (eligible := moe.topk_groups * moe.experts // moe.groups):
        raise config.refusal(
            "num_experts_per_tok",
            f"topk_group = {moe.topk_groups} of n_group = {moe.groups} groups have {eligible} experts",
        )
    return moe
