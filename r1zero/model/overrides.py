"""`[model] overrides`: fields of config.json that have another value for trainer, engine and plan than in the file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from r1zero.config import Model, UserError, suggest
from r1zero.model.config_fields import Config, Fields, shown

OVERRIDABLE = (
    "max_position_embeddings",
    "n_group",
    "norm_topk_prob",
    "num_experts_per_tok",
    "rms_norm_eps",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "routed_scaling_factor",
    "topk_group",
)
"""Fields that change how the weights are used. All others state which weights there are, have only one supported value,
or do not change any logit."""


def check(overrides: Mapping[str, Any], fields: Fields, what: str) -> None:
    """Raises UserError about a field that the family does not have, or that must be as it is in the file.

    fields: those of the family. what: the family, for messages.
    """
    for name, value in overrides.items():
        possible = [field for field in OVERRIDABLE if field in fields]
        if name in fields and name not in possible:
            raise UserError(
                f"model.overrides.{name} = {shown(value)}: this field must be as in the config.json of the weights; "
                f"only {', '.join(possible)} can be overridden"
            )
        if name not in fields:
            hint = suggest(name, possible, "field that can be overridden", str)
            raise UserError(f"model.overrides.{name}: {what} has no such field; {hint}")


def merge(file: Config, overrides: Mapping[str, Any]) -> Config:
    """Returns the contents of a config.json with the overrides. Within a section, each key is overridden by itself.

    Errors about the result name the overrides as well as the file.
    """
    if not overrides:
        return file
    merged = {
        name: {**before, **value} if isinstance(value, dict) and isinstance(before := file.get(name), dict) else value
        for name, value in overrides.items()
    }
    return Config({**file, **merged}, Path(f"model.overrides and {file.path}"))


def stated_config(model: Model) -> dict[str, Any]:
    """Returns the config.json of model.path with model.overrides. Raises UserError if the file cannot be read."""
    return dict(merge(Config.load(Path(model.path) / "config.json"), model.overrides))


def write(model: Model, folder: Path) -> None:
    """Write a config.json with the overrides to a folder, for a reader that takes only files."""
    text = json.dumps(stated_config(model), indent=2) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")
