"""Compares the job with an earlier commit of it: python -m tests.bench.commits COMMIT CONFIG [--rounds 3] [--steps 8]
[--ranks 2] [--half-billion] [--hidden WIDTH --layers N] [section.key=value ...]

Both run in turns on the same model, prompts and fields, and do not learn, so that their responses stay as long. Each
takes the other fields from its own CONFIG. Printed are medians of the seconds by phase, and the ratio of tokens/s.
"""

import argparse
import io
import statistics
import subprocess
import tempfile
import zipfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from r1zero import config
from r1zero.config import Config
from tests.bench import step, work

PHASES = ("rollout", "reference_model", "update", "all")


def extract(commit: str, folder: Path) -> Path:
    """Write the files of a commit to a folder. Returns the folder. If there is no such commit, git says so."""
    command = ["git", "archive", "--format=zip", commit]  # tarfile's safe extraction came with Python 3.11.4
    archive = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    with zipfile.ZipFile(io.BytesIO(archive)) as files:
        files.extractall(folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("commit")
    work.add_arguments(parser)
    args = parser.parse_intermixed_args()
    lines: dict[str, list[dict[str, float]]] = {args.commit: [], "now": []}
    with tempfile.TemporaryDirectory() as folder:
        path, ranks, overrides = work.prepare(parser, args, Path(folder))
        cfg = config.load(path, overrides, Config)
        same = {"model.path": cfg.model.path, "data.path": cfg.data.path}
        overrides = [*overrides, *(f"{field}={Path(value).resolve()}" for field, value in same.items())]
        overrides += ["model.checkpoint=", "optimizer.lr=1e-9"]
        trees = {args.commit: extract(args.commit, Path(folder) / "tree"), "now": Path.cwd()}
        for turn in range(args.rounds):
            for name, tree in trees.items():
                out = Path(folder) / f"{name}_{turn}"
                lines[name] += step.run_in(out, path, ranks, args.steps, overrides, tree)
    Console().print(table(lines, args.commit, ranks))


def table(lines: dict[str, list[dict[str, float]]], before: str, ranks: int) -> Table:
    """Returns medians per step of both, and the ratio of their tokens/s. before: the name of the earlier one."""
    medians = {
        name: {key: statistics.median(line.get(key, 0.0) for line in of_name) for key in of_name[0]}
        for name, of_name in lines.items()
    }
    shown = Table("per step", *lines)
    for phase in PHASES:
        shown.add_row(f"seconds, {phase}", *(f"{of[f'timing/{phase}']:.3f}" for of in medians.values()))
    rates = {name: of["e2e_tps"] * ranks for name, of in medians.items()}
    shown.add_row("tokens/s", *(f"{rate:,.0f}" for rate in rates.values()))
    shown.caption = (
        f"now {rates['now'] / rates[before]:.2f} times as many tokens/s; medians of {len(lines[before])} and "
        f"{len(lines['now'])} steps"
    )
    return shown


if __name__ == "__main__":
    work.run(main)
