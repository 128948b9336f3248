"""A look at the first iteration: whether there is anything to learn from, said at once instead of after a day."""

from collections.abc import Mapping

NEEDS_FORMAT = ("base_acc", "format", "strict_format")
"""Rules that give nothing, or less, to a response outside of the R1-Zero format."""


def finding(values: Mapping[str, float], rules: Mapping[str, float]) -> str:
    """What is wrong with the first iteration and its likely cures, in one sentence; empty: nothing is.

    values: the metrics of iteration 1. rules: reward.rules.
    """
    lowest, highest = values["grpo/rewards/min"], values["grpo/rewards/max"]
    rewarded = [rule for rule in NEEDS_FORMAT if rules.get(rule, 0.0) > 0]
    if rewarded and not values["response_format/mean"]:
        what = f"no response of the first iteration is in the format that {' and '.join(rewarded)} rewards"
    elif lowest == highest:
        what = f"all rewards of the first iteration are {lowest:g}, so that there is nothing to learn from"
    else:
        return ""
    truncated = values["response_length/clip_ratio"]
    cures = ["choose a template that asks for <think> and <answer>", "a model that sometimes does what it asks for"]
    if truncated:
        cures.append(f"a longer rollout.max_response_tokens ({truncated:.0%} of the responses were cut off)")
    cures.append("or, with own labels, run preprocess.py --check-labels")
    return f"{what}; the likely cures: {', '.join(cures)}"
