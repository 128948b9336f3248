"""The prompt sets of `[evaluation]`, opened and checked before anything is built."""

from typing import Any

from r1zero.config import CollectiveError, Config
from r1zero.data.prompts import PromptSet
from r1zero.evaluation import figures


def open_sets(cfg: Config, training: PromptSet, tokenizer_digest: str) -> dict[str, PromptSet]:
    """Name -> prompts. Raises UserError where a set is not one that the engines of this run can answer."""
    _check_best(cfg)
    sets = {}
    for name, one in cfg.evaluation.sets.items():
        field = f"evaluation.sets.{name}.path"
        sets[name] = prompts = PromptSet.open(one.path, field)
        prompts.check(tokenizer_digest)
        prompts.check_length(cfg.rollout.max_prompt_tokens)
        if not len(prompts):
            raise CollectiveError(f"{field} = {one.path!r}: holds no prompt; run preprocess.py on data that does")
        found, expected = _stops(prompts.meta), _stops(training.meta)
        if found != expected:
            raise CollectiveError(
                f"{field} = {one.path!r}: was made with the template {prompts.meta['template']['name']}, whose stop "
                f"tokens are {found}, and data.path with {training.meta['template']['name']}, whose stop tokens are "
                f"{expected}; run preprocess.py with a template that has the same stop words"
            )
    return sets


def _stops(meta: dict[str, Any]) -> list[int]:
    return sorted(meta["stop_token_ids"])


def _check_best(cfg: Config) -> None:
    """Raises CollectiveError where evaluation.best names no figure of this run."""
    if not cfg.evaluation.best:
        return
    every = [f"eval/{name}/{f}" for name, one in cfg.evaluation.sets.items() for f in figures.names(one.samples)]
    if cfg.evaluation.best not in every:
        raise CollectiveError(
            f"evaluation.best = {cfg.evaluation.best!r} is no figure of this run; it must be one of "
            f"{', '.join(every) or 'those of a set of evaluation.sets, of which there is none'}"
        )
