"""python -m r1zero.miniature make OUT | evaluate MODEL PROBLEMS | show BEFORE AFTER PROBLEMS"""

import argparse
import os
import random
import shutil
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers.utils import logging as transformers_logging

from r1zero.config import UserError, reason
from r1zero.miniature import base, corpus, problems, solve

HELDOUT = 200
"""Number of problems for evaluation, enough for a standard error of 3 per cent."""


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m r1zero.miniature", description="Miniature base models.")
    parser.add_argument(
        "--threads", type=_positive, default=len(os.sched_getaffinity(0)), help="threads of torch; default: all cores"
    )
    commands = parser.add_subparsers(required=True)
    make = commands.add_parser("make", help="train a base model and write its problems")
    make.add_argument("out", type=Path, help="folder to create base/ and problems/{train,heldout}.jsonl in")
    make.add_argument("--family", choices=("qwen2", "deepseek_v3"), default="qwen2")
    make.add_argument("--seed", type=_seed, default=1)
    make.add_argument("--steps", type=_positive, help="training steps of the base model; default: as the family needs")
    make.add_argument("--problems", type=_positive, default=960, help="number of problems for reinforcement learning")
    make.set_defaults(run=run_make)
    evaluate = commands.add_parser("evaluate", help="print the share of problems that a saved model solves greedily")
    evaluate.add_argument("model", type=Path, help="a folder in Hugging Face's format")
    evaluate.add_argument("problems", type=Path, help="a file of problems that `make` wrote")
    evaluate.add_argument("--limit", type=_positive, help="use only this many problems")
    evaluate.set_defaults(run=run_evaluate)
    show = commands.add_parser("show", help="print the answers of two models to one problem")
    show.add_argument("before", type=Path)
    show.add_argument("after", type=Path)
    show.add_argument("problems", type=Path)
    show.set_defaults(run=run_show)
    return parser.parse_args(argv)


def _positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: it must be at least 1")
    return int(text)


def _seed(text: str) -> int:
    if not 0 <= int(text) < 2**63:
        raise argparse.ArgumentTypeError(f"{text}: it must be from 0 to 2^63 - 1")
    return int(text)


def run_make(options: argparse.Namespace, console: Console) -> None:
    """Make base and problems under temporary names and rename them, so that OUT has only complete folders."""
    final = {name: Path(os.path.realpath(options.out / name)) for name in ("problems", "base")}  # follows links
    for folder in final.values():
        if folder.exists():
            raise UserError(f"{folder} exists: remove it or name another folder")
    began = time.monotonic()
    aside = {name: folder.with_name(f"unfinished.{name}.{os.getpid()}") for name, folder in final.items()}
    try:
        for folder in aside.values():
            folder.mkdir(parents=True)
        _fill(options, aside, console)
        for name in final:
            aside[name].rename(final[name])
    except OSError as error:
        raise UserError(
            f"{options.out}: cannot be written ({reason(error)}); make room, or name another folder"
        ) from None
    finally:
        for folder in aside.values():
            shutil.rmtree(folder, ignore_errors=True)
    console.print(f"{options.out}: {options.family}, made in {time.monotonic() - began:.0f} s", soft_wrap=True)


def _fill(options: argparse.Namespace, aside: dict[str, Path], console: Console) -> None:
    pools = problems.split()
    for name, count in (("train", options.problems), ("heldout", HELDOUT)):
        chosen = problems.draw(pools[name], count, random.Random(f"{options.seed} {name}"))
        problems.write(aside["problems"] / f"{name}.jsonl", chosen)
    known = sum(map(len, pools["corpus"].values()))
    console.print(f"corpus: {known:,} expressions, the R1-Zero format in {corpus.FORMAT_SHARE:.0%} of its documents")
    loss = TextColumn("loss {task.fields[loss]:.3f}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), loss, TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        made = base.make(aside["base"], options.family, options.seed, options.steps, progress)
    console.print(f"{made.parameters:,} parameters, {made.tokens:,} tokens read, loss {made.loss:.3f}")


def run_evaluate(options: argparse.Namespace, console: Console) -> None:
    rows = problems.read(options.problems)[: options.limit]
    with Progress(console=console, transient=True) as progress:
        answered = solve.responses(options.model, rows, progress)
    solved = sum(one.solved for one in answered)
    share = f"{solved} of {len(answered)} problems solved greedily ({solved / len(answered):.3f})"
    console.print(f"{options.model}: {share}", soft_wrap=True)


def run_show(options: argparse.Namespace, console: Console) -> None:
    """Show the first of the longest problems in the file."""
    row = max(problems.read(options.problems), key=lambda row: len(row["problem"]))
    with Progress(console=console, transient=True) as progress:
        before, after = (solve.responses(model, [row], progress)[0] for model in (options.before, options.after))
    console.print(solve.before_and_after(before, after))


def main(argv: list[str] | None = None) -> int:
    options = arguments(argv)
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(options.threads)
    console = Console(highlight=False, markup=False)
    try:
        options.run(options, console)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
