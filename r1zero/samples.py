"""Shows samples of a run in the terminal: `python -m r1zero.samples runs/NAME [--iteration N] [--worst K] [--best K]`.

If the run had `metrics.dump = "all"`, they are chosen from all responses of the iteration, otherwise from the few in
samples.jsonl.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from r1zero.config import UserError
from r1zero.observability import recorder
from r1zero.reward.boxes import last_box

TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def main(arguments: list[str]) -> int:
    """Show the samples that the arguments ask for. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m r1zero.samples", description="Shows samples of a run.")
    parser.add_argument("folder", type=Path, metavar="runs/NAME", help="the folder of a run")
    parser.add_argument("--iteration", type=int, metavar="N", help="default: the newest iteration")
    parser.add_argument(
        "--worst", type=int, default=0, metavar="K", help="the K samples with the lowest reward, lowest first"
    )
    parser.add_argument(
        "--best", type=int, default=0, metavar="K", help="the K samples with the highest reward, highest first"
    )
    options = parser.parse_args(arguments)
    console = Console(soft_wrap=True, highlight=False)
    try:
        for option, count in (("--worst", options.worst), ("--best", options.best)):
            if count < 0:
                raise UserError(f"{option} {count}: must be at least 0; give the number of samples to show")
        rows = recorder.read(options.folder, options.iteration)
        if not rows:
            which = "" if options.iteration is None else f" of iteration {options.iteration}"
            raise UserError(
                f"{options.folder}: contains no samples{which}; name the folder of a run, and an iteration that it "
                "has finished"
            )
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    for row in choose(rows, options.worst, options.best):
        show(row, console)
    return 0


def choose(rows: Sequence[dict[str, Any]], worst: int, best: int) -> list[dict[str, Any]]:
    """Returns the worst rows and then the best ones, or all rows if `worst` and `best` are both 0.

    A response without a reward counts as worse than any other.
    """
    if not worst and not best:
        return list(rows)
    ordered = sorted(
        rows, key=lambda row: float("-inf") if (reward := recorder.number(row.get("reward"))) is None else reward
    )
    return ordered[:worst] + ordered[::-1][:best]


def show(row: dict[str, Any], console: Console) -> None:
    """Print one sample: rewards, label, prompt, and the response with its tags and its last box in colour.

    What the row lacks, as a line that another program wrote may, is left blank.
    """
    reward, response = recorder.number(row.get("reward")), Text(recorder.text(row, "response"))
    console.rule(Text(recorder.describe(row)), align="left")
    console.print(Text(recorder.text(row, "prompt"), style="dim"))
    response.highlight_words(TAGS, "bold cyan")
    if box := last_box(response.plain):
        response.stylize("bold green" if (reward or 0) > 0 else "bold red", box.start, box.stop)
    console.print(response)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
