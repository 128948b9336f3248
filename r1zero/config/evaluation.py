"""The `[evaluation]` section of the configuration."""

from dataclasses import dataclass, field

from r1zero.config.toml import LocalPath, OwnFunction


@dataclass(frozen=True, kw_only=True)
class EvaluationSet:
    path: LocalPath
    """Folder written by preprocess.py with the training model's tokenizer and a template with the same stop words."""
    samples: int = 1
    """n: responses to each prompt."""
    temperature: float = 0.0
    """0: the most likely token each time, which allows one sample only."""
    max_response_tokens: int = 0
    """0: as rollout.max_response_tokens."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Prompts that the engines answer without any effect on training."""

    sets: dict[str, EvaluationSet] = field(default_factory=dict)
    """Name -> prompt set. Its figures are called eval/<name>/...; empty: nothing is evaluated."""
    every_iterations: int = 0
    """Besides before the first iteration and after the last, evaluate after every so many iterations; 0: only then."""
    correct: OwnFunction = "answer"
    """What makes a response correct. "answer": its last box equals the label, whatever its format. Or one of
    reward.rules, which must give it more than 0."""
    best: str = ""
    """Figure, such as eval/math500/pass@1, by whose highest value the best checkpoint is kept; empty: none is."""
