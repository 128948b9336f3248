"""Mixes several inputs in the proportion of their weights."""

from collections import Counter
from collections.abc import Mapping
from fractions import Fraction

from r1zero.config import UserError


def quotas(available: Counter[str], weights: Mapping[str, float], total: int) -> dict[str, int]:
    """Returns the number of prompts to keep of each source.

    available: number of prompts of each source. total: their number in the mix; 0: as many as possible. Raises
    UserError if a source has fewer prompts than its share of `total`.
    """
    exact = {name: Fraction(weight) for name, weight in weights.items()}
    shares = {name: weight / sum(exact.values()) for name, weight in exact.items()}
    wanted = {
        name: (total or min(available[other] / shares[other] for other in shares)) * share
        for name, share in shares.items()
    }
    found = {name: int(count) for name, count in wanted.items()}
    # What rounding down leaves over goes to the largest remainders, so that `total` prompts are kept.
    left = total - sum(found.values()) if total else 0
    for name in sorted(wanted, key=lambda name: found[name] - wanted[name])[:left]:
        found[name] += 1
    for name, count in found.items():
        if count > available[name]:
            raise UserError(
                f"selection.sample = {total}: the weight of sources.{name} asks for {count} of these prompts, but it "
                f"has only {available[name]}; lower selection.sample, or this weight"
            )
        if not count:
            raise UserError(
                f"sources.{name}.weight = {weights[name]}: is so small that no prompt of this source is kept; raise "
                "it, or selection.sample"
            )
    return found
