"""Rotary positions: the base of the frequencies and their scaling, as config.json states them. Needs no torch."""

from dataclasses import dataclass
from typing import Any

from r1zero.config import UserError
from r1zero.model.config_fields import Config, shown
from r1zero.model.family_fields import ROPE

ROPE_THETA = 10000.0
"""Hugging Face's default for a file that states none."""


@dataclass(frozen=True, kw_only=True)
class Yarn:
    """YaRN: a longer context by interpolated rotary frequencies (arXiv 2309.00071). `mscale_all_dim` 0: absent."""

    factor: float
    original_max_positions: int
    beta_fast: float
    beta_slow: float
    mscale: float
    mscale_all_dim: float


@dataclass(frozen=True, kw_only=True)
class Llama3Rope:
    """The scaling of rotary frequencies in Llama 3.1 and later, which Hugging Face names rope_type "llama3".

    A frequency whose wavelength is less than original_max_positions / high_freq_factor tokens stays as it is. One whose
    wavelength is more than original_max_positions / low_freq_factor is divided by `factor`. Between the two, the
    divisor changes gradually.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


def read_rope(config: Config, rope_types: tuple[str, ...]) -> dict[str, Any]:
    """Read the fields of Shape for rotary positions: the base of the frequencies, and their scaling if there is one.

    A file may state them in three places. rope_types: the family's supported values of rope_type. Raises UserError.
    """
    stated = [_read_rope(config, name, rope_types) for name in ("rope_scaling", "rope_parameters") if config[name]]
    if len(stated) == 2 and stated[0] != stated[1]:
        raise UserError(
            f"{config.path}: rope_scaling and rope_parameters contradict each other; Hugging Face uses rope_scaling: "
            "remove one of the two"
        )
    return stated[0] if stated else {"rope_theta": float(config["rope_theta"] or ROPE_THETA)}


def _read_rope(config: Config, name: str, rope_types: tuple[str, ...]) -> dict[str, Any]:
    section = Config(config[name], config.path, f"{name}.")
    key = "rope_type" if "rope_type" in section else "type"
    kind = section.get(key, "default")
    if kind not in rope_types:
        hint = "" if len(rope_types) > 1 else f": remove {name}, and train on sequences of the original length"
        raise section.refusal(key, f"for this family only {' and '.join(map(shown, rope_types))} is supported{hint}")
    if section.get("type", kind) != kind:
        raise section.refusal("type", f"rope_type is {shown(kind)}: remove one of the two")
    rope, beside = section.checked(ROPE[kind], f'the rope_type "{kind}"'), config["rope_theta"]
    if None not in (rope["rope_theta"], beside) and rope["rope_theta"] != beside:
        raise rope.refusal("rope_theta", f"rope_theta beside {name} is {shown(beside)}: remove one of the two")
    scaling: dict[str, Any] = {}
    if kind == "yarn":
        scaling = {"yarn": _read_yarn(rope, config)}
    elif kind == "llama3":
        scaling = {"llama3_rope": _read_llama3_rope(rope)}
    return {"rope_theta": float(rope["rope_theta"] or beside or ROPE_THETA), **scaling}


def _read_llama3_rope(rope: Config) -> Llama3Rope:
    if rope["high_freq_factor"] <= rope["low_freq_factor"]:
        raise rope.refusal(
            "high_freq_factor", f"it must be greater than low_freq_factor = {shown(rope['low_freq_factor'])}"
        )
    return Llama3Rope(
        factor=float(rope["factor"]),
        low_freq_factor=float(rope["low_freq_factor"]),
        high_freq_factor=float(rope["high_freq_factor"]),
        original_max_positions=rope["original_max_position_embeddings"],
    )


def _read_yarn(rope: Config, config: Config) -> Yarn:
    if (rope["mscale"] is None) != (rope["mscale_all_dim"] is None):
        raise UserError(
            f"{rope.path}: {rope.prefix}mscale = {shown(rope['mscale'])} and mscale_all_dim = "
            f"{shown(rope['mscale_all_dim'])}; "
            "engines disagree on the meaning of one without the other: state both or neither"
        )
    return Yarn(
        factor=float(rope["factor"]),
        beta_fast=float(rope["beta_fast"]),
        beta_slow=float(rope["beta_slow"]),
        original_max_positions=rope["original_max_position_embeddings"] or config["max_position_embeddings"],
        mscale=float(rope["mscale"] or 1.0),
        mscale_all_dim=float(rope["mscale_all_dim"] or 0.0),
    )
