"""The trials of --check, with the real components of the run: a sync and a generated token, a grade, and a
checkpoint."""

import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch.distributed as dist

from r1zero.config import UserError
from r1zero.preflight.rows import CheckResult, format_ranks

if TYPE_CHECKING:
    from r1zero.trainer import Trainer

GB = 1e9
ASIDE = "check"
"""Name of a temporary folder in the run's folder."""


def trial(trainer: "Trainer") -> Iterator[CheckResult]:
    """Run the trials. Collective over the world, which must exhaust it; yields the same rows on every rank."""
    names = [""] * dist.get_world_size()
    dist.all_gather_object(names, socket.gethostname())
    hosts = dict(enumerate(names))
    for what, attempt in (("a generated token", _generate), ("a graded sample", _grade), ("a checkpoint", _save)):
        yield from _tried(what, attempt, trainer, hosts)
    if trainer.rank == trainer.layout.train.dense.ranks[0]:
        shutil.rmtree(trainer.folder / ASIDE, ignore_errors=True)


def _tried(
    what: str, attempt: Callable[["Trainer"], str], trainer: "Trainer", hosts: dict[int, str]
) -> list[CheckResult]:
    """Run a trial. Returns one row with what the ranks report, or one per error of the ranks that failed."""
    began = time.perf_counter()
    try:
        mine = ("found", attempt(trainer))
    except UserError as error:
        mine = ("failed", str(error))
    every: list[tuple[str, str]] = [("", "")] * dist.get_world_size()
    dist.all_gather_object(every, mine)
    failures: dict[str, list[int]] = {}
    for rank, (kind, said) in enumerate(every):
        if kind == "failed":
            failures.setdefault(said, []).append(rank)
    if failures:
        return [
            CheckResult(what, "an error", "success on all ranks", "failed", format_ranks(ranks, hosts), said)
            for said, ranks in failures.items()
        ]
    found = next(said for _, said in every if said)
    return [CheckResult(what, f"{found}, {time.perf_counter() - began:.2f} s", "success on all ranks")]


def _generate(trainer: "Trainer") -> str:
    figures = trainer.sync_and_check(0)
    tokens = trainer.roles.engine.probe([trainer.prompts[0]], 1)[0].token_ids if trainer.roles.engine else []
    gap = f", parity {figures['parity/mean']:.1e}" if figures else ""
    return f"token {tokens[0]}{gap}" if tokens else ""


def _grade(trainer: "Trainer") -> str:
    """Grade the right answer to the first prompt, once as it is and once after the tokenizer has coded it."""
    grader, prompt = trainer.grader, trainer.prompts[0]
    if grader.scorer is None:
        return ""
    text = f"<think>One step.</think><answer>\\boxed{{{prompt.label}}}</answer>"
    back = grader.through_tokens(text)
    for key, response in enumerate((text, back)):
        grader.scorer.submit(key, response, prompt.label, prompt.text, prompt.additional)
    scores = grader.scorer.collect()
    plain, score = scores[0], scores[1]
    if score.outcome != "scored":
        raise UserError(
            f"the right answer to the first prompt was not scored ({score.outcome}); check reward.rules and "
            "reward.deadline_s"
        )
    if score.reward != plain.reward:
        raise UserError(
            f"the right answer to the first prompt earns {plain.reward:g}, but {score.reward:g} after encoding and "
            f"decoding, which give {back!r}; choose a tokenizer that can represent it"
        )
    return f"reward {score.reward:g} for the first prompt's label"


def _save(trainer: "Trainer") -> str:
    aside = trainer.folder / ASIDE
    if save := trainer.roles.begin_save(aside, 0, {}):
        save.finish()
    written = sum(os.path.getsize(path) for path in aside.rglob("*") if path.is_file()) if trainer.roles.policy else 0
    return f"{written / GB:.3f} GB" if written else ""
