"""Handling of samples that could not be graded: they are counted and dumped, and above a limit the run stops."""

import json
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

from r1zero.config.errors import RewardError
from r1zero.reward.scorer import Score


def dump_unscored(path: Path, scores: Mapping[Hashable, Score], texts: Mapping[Any, tuple[str, str]]) -> int:
    """Append a JSON line for each ungraded sample, with its (response, label) from `texts`. Returns their number."""
    unscored = [key for key, score in scores.items() if score.outcome != "scored"]
    if unscored:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="ascii") as file:
            for key in unscored:
                response, label = texts[key]
                row = {"outcome": scores[key].outcome, "ms": scores[key].ms, "label": label, "response": response}
                file.write(json.dumps(row) + "\n")
    return len(unscored)


def refuse_share(timeouts: int, failures: int, samples: int, max_share: float) -> None:
    """Stop a run in which too few samples have rewards.

    Raises:
        RewardError: more than `max_share` of the samples were not graded.
    """
    share = (timeouts + failures) / samples if samples else 0.0
    if share > max_share:
        raise RewardError(
            f"{timeouts + failures} of {samples} samples ({share:.1%}) could not be graded, more than the "
            f"{max_share:.1%} allowed: {timeouts} ran past the deadline, {failures} failed in a rule, for the reasons "
            "written above, or have a reward that is not finite; their texts are in unscored.jsonl in the run folder"
        )
