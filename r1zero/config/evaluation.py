"""The `[evaluation]` section of the configuration."""

from dataclasses import dataclass, field

from r1zero.config.toml import LocalPath, OwnFunction


@dataclass(frozen=True, kw_only=True)
class EvaluationSet:
    path: LocalPath
    """Folder written by preprocess.py. It must have been made with the tokenizer of the model in training, and with a
    template that has the same stop words as that of data.path."""
    samples: int = 1
    """Number of responses to each prompt, the n of avg@n."""
    temperature: float = 0.0
    """0: greedy decoding, for which samples must be 1."""
    max_response_tokens: int = 0
    """Maximum number of tokens of a response; 0: rollout.max_response_tokens."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Evaluation of the model on prompt sets, which has no effect on training."""

    sets: dict[str, EvaluationSet] = field(default_factory=dict)
    """Name -> prompt set. Its metrics are called eval/<name>/...; empty: nothing is evaluated."""
    every_iterations: int = 0
    """Also evaluate after every N-th iteration; 0: only before the first iteration and after the last."""
    correct: OwnFunction = "answer"
    """Which responses are correct. "answer": those whose last box equals the label, in any format. The name of one of
    reward.rules: those to which this rule gives more than 0."""
    best: str = ""
    """Metric for which higher is better: pass@k, avg@k, maj@k or format of a set, such as eval/math500/pass@1. The
    checkpoint with its highest value is kept; empty: none is."""
