"""Opens and checks the prompt sets of `[evaluation]`, before the model and the engines are built."""

from typing import Any

from r1zero.config import CollectiveError, Config
from r1zero.data.prompts import PromptSet
from r1zero.evaluation import figures


def open_sets(cfg: Config, training: PromptSet, tokenizer_digest: str) -> dict[str, PromptSet]:
    """Returns the prompts of each set, by name.

    training: the prompts of data.path. Raises UserError if the engines of this run cannot answer a set, or if
    evaluation.best cannot select a checkpoint.
    """
    check_best(cfg)
    sets = {}
    for name, one in cfg.evaluation.sets.items():
        field = f"evaluation.sets.{name}.path"
        sets[name] = prompts = PromptSet.open(one.path, field)
        prompts.check(tokenizer_digest)
        prompts.check_length(cfg.rollout.max_prompt_tokens)
        if not len(prompts):
            raise CollectiveError(f"{field} = {one.path!r}: contains no prompts; run preprocess.py on other data")
        found, expected = _stops(prompts.meta), _stops(training.meta)
        if found != expected:
            raise CollectiveError(
                f"{field} = {one.path!r}: was made with the template {prompts.meta['template']['name']}, whose stop "
                f"tokens are {found}, but data.path was made with {training.meta['template']['name']}, whose stop "
                f"tokens are {expected}; run preprocess.py with a template that has the same stop words"
            )
    return sets


def _stops(meta: dict[str, Any]) -> list[int]:
    return sorted(meta["stop_token_ids"])


def check_best(cfg: Config) -> None:
    """Raises CollectiveError if evaluation.best is not a metric of this run for which higher is better."""
    if not cfg.evaluation.best:
        return
    allowed = [
        f"eval/{name}/{metric}"
        for name, one in cfg.evaluation.sets.items()
        for metric in figures.names(one.samples)
        if figures.HIGHER_IS_BETTER.fullmatch(metric)
    ]
    if cfg.evaluation.best not in allowed:
        raise CollectiveError(
            f"evaluation.best = {cfg.evaluation.best!r} is not a metric of this run for which higher is better; "
            f"it must be one of {', '.join(allowed) or 'the metrics of the sets in evaluation.sets, which has none'}"
        )
