"""The range of values that each field of the config may have.

Relations between fields, and with the layout, are checked by the modules that depend on them.
"""

import dataclasses
import re
from math import inf, isfinite
from typing import TYPE_CHECKING

from r1zero.config import recipe
from r1zero.config.errors import UserError
from r1zero.config.schema import Config

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_SET_NAME = re.compile(r"[A-Za-z0-9_-]+")

TINY = 1e-12
"""Lower limit of values that must be greater than 0."""

# Field: smallest and largest value. Any other number must only be finite and not negative.
LIMITS: dict[str, tuple[float, float]] = {
    "run.seed": (0, 2**63 - 1),
    "run.iterations": (1, inf),
    "run.threads": (1, 4096),
    "run.timeout_s": (1, inf),
    "rollout.temperature": (TINY, inf),
    "rollout.max_prompt_tokens": (1, inf),
    "rollout.max_response_tokens": (1, inf),
    "rollout.max_num_seqs": (1, inf),
    "rollout.max_num_batched_tokens": (1, inf),
    "rollout.kv_cache_gib": (TINY, inf),
    "rollout.engine": (-inf, inf),
    "grpo.prompts_per_iteration": (1, inf),
    "grpo.group_size": (1, inf),
    "grpo.rollout_correction_cap": (TINY, inf),
    "grpo.max_rounds": (1, inf),
    "grpo.mini_batches": (1, inf),
    "grpo.epochs": (1, inf),
    "reward.workers_per_rank": (1, inf),
    "reward.deadline_s": (TINY, inf),
    "reward.max_unscored_share": (0, 1),
    "reward.worker_memory_mib": (16, 1 << 20),
    "reward.rules": (-inf, inf),
    "optimizer.lr": (0, inf),
    "optimizer.adam_beta1": (0, 1 - TINY),
    "optimizer.adam_beta2": (0, 1 - TINY),
    "optimizer.adam_eps": (TINY, inf),
    "optimizer.clip_grad": (TINY, inf),
    "optimizer.max_skipped": (1, inf),
    "train.micro_batch_tokens": (1, inf),
    "checkpoint.keep": (1, inf),
    "evaluation.sets.*.samples": (1, inf),
    "parity.tokens": (1, inf),
    "layout.train.pipeline_layers": (1, inf),
    "layout.reference.pipeline_layers": (1, inf),
}
LARGEST_INTEGER = 2**63 - 1


def check(cfg: Config) -> None:
    """Raises UserError with the field, its value and the limit."""
    _check(cfg, "")
    if not cfg.reward.rules:
        raise UserError("reward.rules = {}, so nothing is rewarded; name at least one rule and its weight")
    if "/" in cfg.run.name or cfg.run.name in ("", ".", "..") or "\0" in cfg.run.name + cfg.run.dir:
        raise UserError(f"run.name = {cfg.run.name!r}; it must be a valid name for a folder in run.dir")
    recipe.check(cfg.grpo, cfg.rollout)
    _check_evaluation(cfg)


def _check_evaluation(cfg: Config) -> None:
    """Raises UserError about an evaluation set whose fields contradict each other or the rest of the config."""
    correct = cfg.evaluation.correct
    if correct != "answer" and correct not in cfg.reward.rules:
        raise UserError(
            f"evaluation.correct = {correct!r}; it must be 'answer' or one of reward.rules: "
            f"{', '.join(cfg.reward.rules)}"
        )
    for name, one in cfg.evaluation.sets.items():
        field = f"evaluation.sets.{name}"
        if not _SET_NAME.fullmatch(name):
            raise UserError(
                f"{field}: the name must consist of letters, digits, '_' and '-', because it names a folder"
            )
        if one.samples > 1 and not one.temperature:
            raise UserError(
                f"{field}.samples = {one.samples} with temperature = 0 would give {one.samples} equal responses; "
                "set samples to 1, or a temperature greater than 0"
            )


def _check(section: "DataclassInstance | type[DataclassInstance]", prefix: str, key: str = "") -> None:
    """Check all numbers of a section.

    prefix: what precedes the field names in messages. key: the same for LIMITS, where `*` stands for a name that the
    user chose.
    """
    for field in dataclasses.fields(section):
        value, name, limit = getattr(section, field.name), prefix + field.name, key + field.name
        if dataclasses.is_dataclass(value):
            _check(value, f"{name}.", f"{limit}.")
        for chosen, inner in value.items() if isinstance(value, dict) else ():
            if dataclasses.is_dataclass(inner):
                _check(inner, f"{name}.{chosen}.", f"{limit}.*.")
        values = value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else (value,)
        for number in values:
            if isinstance(number, int | float) and not isinstance(number, bool):
                _number(name, number, LIMITS.get(limit, (0, inf)))


def _number(name: str, value: float, limits: tuple[float, float]) -> None:
    least, most = limits
    if isinstance(value, float) and not isfinite(value):
        raise UserError(f"{name} = {value}; it must be a finite number")
    if isinstance(value, int) and abs(value) > LARGEST_INTEGER:
        raise UserError(f"{name} = an integer of {value.bit_length()} bits; it must be at most {LARGEST_INTEGER}")
    if value < least:
        raise UserError(f"{name} = {value}; it must be {'greater than 0' if least == TINY else f'at least {least:g}'}")
    if value > most:
        raise UserError(f"{name} = {value}; it must be {'less than 1' if most == 1 - TINY else f'at most {most}'}")
