"""The supported families: which fields of config.json are read and how, and what a layer consists of. No torch here."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from r1zero.model.weight_rules import WeightRule, deepseek_layer, dense_layer, qwen3_moe_layer


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
    "Qwen2ForCausalLM": Family(QWEN2, read_qwen2, dense_layer),
    "Qwen3ForCausalLM": Family(QWEN3, read_qwen3, dense_layer),
    "DeepseekV3ForCausalLM": Family(DEEPSEEK_V3, read_deepseek_v3, deepseek_layer),
    "LlamaForCausalLM": Family(LLAMA, read_llama, dense_layer),
    "MistralForCausalLM": Family(MISTRAL, read_mistral, dense_layer),
    "Qwen3MoeForCausalLM": Family(QWEN3_MOE, read_qwen3_moe, qwen3_moe_layer),
    "DeepseekV2ForCausalLM": Family(DEEPSEEK_V2, read_deepseek_v2, deepseek_layer),
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
