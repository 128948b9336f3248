"""Checks for fields of `[grpo]` that contradict each other, or fields of `[rollout]`."""

import json
from collections.abc import Iterator
from typing import Any

from r1zero.config.errors import UserError
from r1zero.config.grpo import Grpo
from r1zero.config.schema import Rollout

SWITCHES: dict[str, tuple[str, tuple[Any, ...]]] = {
    "max_rounds": ("dynamic_sampling", (True,)),
    "rollout_correction_level": ("rollout_correction", ("truncate", "mask")),
    "rollout_correction_cap": ("rollout_correction", ("truncate", "mask")),
    "rollout_correction_floor": ("rollout_correction", ("mask",)),
    "overlong_buffer_tokens": ("overlong", ("penalty",)),
}
"""Field -> the field that switches it on, and the values of that field with which it is used. With another value of
that field only the default is accepted."""


def check(grpo: Grpo, rollout: Rollout) -> None:
    """Raises UserError for the first contradiction, with the fields, their values and the fix."""
    for sentence in (
        *_groups(grpo),
        *_kl(grpo),
        *_loss(grpo),
        *_correction(grpo),
        *_updates(grpo),
        *_length(grpo, rollout),
        *_unused(grpo),
    ):
        raise UserError(sentence)


def _groups(grpo: Grpo) -> Iterator[str]:
    if grpo.group_size == 1 and grpo.advantage != "batch":
        yield (
            f'grpo.group_size = 1 with grpo.advantage = "{grpo.advantage}", which compares the responses of a group '
            'and needs at least 2; raise group_size, or set advantage = "batch"'
        )
    if grpo.group_size == 1 and grpo.dynamic_sampling:
        yield "grpo.dynamic_sampling = true with grpo.group_size = 1 would leave out every group; raise group_size"
    if grpo.reward_scale == 0:
        yield "grpo.reward_scale = 0.0 makes every reward 0; it must be more than 0"


def _kl(grpo: Grpo) -> Iterator[str]:
    if grpo.kl_in == "reward" and grpo.kl_coef == 0:
        yield 'grpo.kl_in = "reward" with grpo.kl_coef = 0.0 has no effect; raise kl_coef, or remove kl_in'
    if grpo.kl_in == "reward" and grpo.kl_estimator == "k3_unbiased":
        yield (
            'grpo.kl_estimator = "k3_unbiased" with grpo.kl_in = "reward": this estimator differs from "k3" only in '
            "its gradient, and a reward has no gradient; set kl_estimator to k1, k2 or k3"
        )


def _loss(grpo: Grpo) -> Iterator[str]:
    if 0 < grpo.dual_clip <= 1:
        yield f"grpo.dual_clip = {grpo.dual_clip}; it must be more than 1, or 0 to switch it off"
    if grpo.surrogate == "cispo" and grpo.dual_clip > 0:
        yield (
            f'grpo.dual_clip = {grpo.dual_clip} with grpo.surrogate = "cispo", which has no dual clipping; '
            "set dual_clip to 0"
        )


def _correction(grpo: Grpo) -> Iterator[str]:
    kind, floor, cap = grpo.rollout_correction, grpo.rollout_correction_floor, grpo.rollout_correction_cap
    if kind != "none" and grpo.old_logprobs == "rollout":
        yield (
            f'grpo.rollout_correction = "{kind}" with grpo.old_logprobs = "rollout", which already uses the engine\'s '
            'logprobs; set rollout_correction = "none" or old_logprobs = "trainer"'
        )
    if kind == "mask" and floor >= cap:
        yield f"grpo.rollout_correction_floor = {floor}; it must be less than grpo.rollout_correction_cap = {cap}"


def _updates(grpo: Grpo) -> Iterator[str]:
    samples = grpo.prompts_per_iteration * grpo.group_size
    if grpo.mini_batches > samples:
        yield (
            f"grpo.mini_batches = {grpo.mini_batches}; it must be at most the {samples} samples of an iteration "
            "(prompts_per_iteration x group_size)"
        )


def _length(grpo: Grpo, rollout: Rollout) -> Iterator[str]:
    buffer, longest = grpo.overlong_buffer_tokens, rollout.max_response_tokens
    if grpo.overlong == "penalty" and not 0 < buffer <= longest:
        yield (
            f'grpo.overlong_buffer_tokens = {buffer} with grpo.overlong = "penalty"; it must be between 1 and '
            f"rollout.max_response_tokens = {longest}"
        )


def _unused(grpo: Grpo) -> Iterator[str]:
    for name, (switch, on) in SWITCHES.items():
        value, state, default = getattr(grpo, name), getattr(grpo, switch), getattr(Grpo, name)
        if state not in on and value != default:
            yield (
                f"grpo.{name} = {json.dumps(value)} with grpo.{switch} = {json.dumps(state)}, which does not use it; "
                f"set {switch} = {' or '.join(map(json.dumps, on))}, or remove {name}, or set it to its "
                f"default, {json.dumps(default)}"
            )
