"""Checks after the first iteration whether there is anything to learn from, so that the user learns it at once."""

from collections.abc import Mapping

NEEDS_FORMAT = ("base_acc", "format", "strict_format")
"""Rules that give no reward, or a lower one, to a response that does not have the R1-Zero format."""


def finding(values: Mapping[str, float], rules: Mapping[str, float]) -> str:
    """Returns a sentence with the problem of the first iteration and its likely fixes, or an empty text.

    values: the metrics of iteration 1. rules: reward.rules.
    """
    lowest, highest = values["grpo/rewards/min"], values["grpo/rewards/max"]
    rewarded = [rule for rule in NEEDS_FORMAT if rules.get(rule, 0.0) > 0]
    if rewarded and not values["response_format/mean"]:
        what = f"no response of the first iteration has the format required by {' and '.join(rewarded)}"
    elif lowest == highest:
        what = f"all rewards of the first iteration are {lowest:g}, so there is nothing to learn from"
    else:
        return ""
    truncated = values["response_length/clip_ratio"]
    cures = ["choose a template that asks for <think> and <answer>", "choose a model that sometimes follows it"]
    if truncated:
        cures.append(f"raise rollout.max_response_tokens ({truncated:.0%} of the responses were cut off)")
    cures.append("or check your own labels with preprocess.py --check-labels")
    return f"{what}; likely fixes: {', '.join(cures)}"
