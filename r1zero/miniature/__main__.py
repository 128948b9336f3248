"""python -m r1zero.miniature make OUT | evaluate MODEL PROBLEMS | show BEFORE AFTER PROBLEMS"""

import argparse
import os
import random
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers.utils import logging as transformers_logging

from r1zero.config import UserError
from r1zero.miniature import base, corpus, problems, solve

HELDOUT = 200
"""Problems that judge a model: enough for a standard error of 3 per cent."""


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m r1zero.miniature", description="Miniature base models.")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of torch; default: cores")
    commands = parser.add_subparsers(required=True)
    make = commands.add_parser("make", help="train a base model and write its problems")
    make.add_argument("out", type=Path, help="folder to fill: base/ and problems/{train,heldout}.jsonl")
    make.add_argument("--family", choices=("qwen2", "deepseek_v3"), default="qwen2")
    make.add_argument("--seed", type=int, default=1)
    make.add_argument("--steps", type=int, help="of the base model's training; default: what the family needs")
    make.add_argument("--problems", type=int, default=960, help="rows to train by reinforcement")
    make.set_defaults(run=run_make)
    evaluate = commands.add_parser("evaluate", help="share of problems a saved model solves greedily")
    evaluate.add_argument("model", type=Path, help="a folder in Hugging Face's format")
    evaluate.add_argument("problems", type=Path, help="a file that make wrote")
    evaluate.add_argument("--limit", type=int, help="only the first so many problems")
    evaluate.set_defaults(run=run_evaluate)
    show = commands.add_parser("show", help="one problem answered by two models")
    show.add_argument("before", type=Path)
    show.add_argument("after", type=Path)
    show.add_argument("problems", type=Path)
    show.set_defaults(run=run_show)
    return parser.parse_args(argv)


def run_make(options: argparse.Namespace, console: Console) -> None:
    """Everything is written under another name first: OUT/problems and OUT/base exist only when they are whole."""
    for name in ("base", "problems"):
        if (options.out / name).exists():
            raise UserError(f"{options.out / name} exists: remove it or name another folder")
    began = time.monotonic()
    unfinished = options.out / f"unfinished.{os.getpid()}"
    (unfinished / "problems").mkdir(parents=True)
    pools = problems.split()
    for name, count in (("train", options.problems), ("heldout", HELDOUT)):
        chosen = problems.draw(pools[name], count, random.Random(f"{options.seed} {name}"))
        problems.write(unfinished / "problems" / f"{name}.jsonl", chosen)
    known = sum(map(len, pools["corpus"].values()))
    console.print(f"corpus: {known:,} expressions, the R1-Zero format in {corpus.FORMAT_SHARE:.0%} of its documents")
    loss = TextColumn("loss {task.fields[loss]:.3f}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), loss, TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        made = base.make(unfinished / "base", options.family, options.seed, options.steps, progress)
    for name in ("problems", "base"):
        (unfinished / name).rename(options.out / name)
    unfinished.rmdir()
    size = f"{made.parameters:,} parameters, {made.tokens:,} tokens read"
    console.print(f"{options.out}: {options.family}, {size}, loss {made.loss:.3f}, {time.monotonic() - began:.0f} s")


def run_evaluate(options: argparse.Namespace, console: Console) -> None:
    rows = problems.read(options.problems)[: options.limit]
    with Progress(console=console, transient=True) as progress:
        answered = solve.responses(options.model, rows, progress)
    solved = sum(one.solved for one in answered)
    share = f"{solved} of {len(answered)} problems solved greedily ({solved / len(answered):.3f})"
    console.print(f"{options.model}: {share}", soft_wrap=True)


def run_show(options: argparse.Namespace, console: Console) -> None:
    """The first of the longest problems of the file."""
    row = max(problems.read(options.problems), key=lambda row: len(row["problem"]))
    with Progress(console=console, transient=True) as progress:
        before, after = (solve.responses(model, [row], progress)[0] for model in (options.before, options.after))
    console.print(solve.before_and_after(before, after))


def main(argv: list[str] | None = None) -> int:
    options = arguments(argv)
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(options.threads)
    console = Console(highlight=False)
    try:
        options.run(options, console)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
