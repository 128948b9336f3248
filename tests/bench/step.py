"""Measures the phases of a step: python -m tests.bench.step CONFIG [--ranks 2] [--iterations 12] [--plain ROUNDS]
[--floor ROUNDS] [section.key=value ...]

Runs the real job in a temporary folder and prints the median of each phase after a warm-up. On a shared machine only
shares and ratios within one run are meaningful, not absolute seconds. Therefore --plain runs the job and a plain
version of the same step (plain.py) alternately, and --floor the job, vLLM alone with the job's requests (floor.py), and
torch alone with the job's samples (floor_training.py).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from r1zero import config
from r1zero.observability import metrics
from tests.bench import work

WARM_UP = 2


FROZEN = ["metrics.dump=all", "optimizer.lr=1e-9"]
"""With --floor the job does not learn, so that the floors find the lengths of its responses in every
iteration."""


def run(path: str, ranks: int, iterations: int, overrides: list[str]) -> list[dict[str, float]]:
    """Returns the lines of metrics.jsonl of a new run, without its warm-up."""
    with tempfile.TemporaryDirectory() as folder:
        return run_in(Path(folder), path, ranks, iterations, overrides)


def run_in(
    folder: Path, path: str, ranks: int, iterations: int, overrides: list[str], tree: Path | None = None
) -> list[dict[str, float]]:
    """Like `run`, in a folder of the caller. tree: where train.py is; by default the working directory."""
    own = [f"run.dir={folder}", "run.name=bench", f"run.iterations={WARM_UP + iterations}"]
    launch(ranks, ["train.py", path, *own, *overrides], cwd=tree)
    return metrics.read(folder / "bench")[WARM_UP:]


def launch(ranks: int, program: list[str], **more: Any) -> subprocess.CompletedProcess[str]:
    """Run a Python program on some ranks."""
    environment = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    launcher = ["mpirun", "-np", str(ranks), "--oversubscribe"] if ranks > 1 else []
    command = [*launcher, sys.executable, "-W", "ignore", *program]
    return subprocess.run(command, check=True, env=environment, text=True, **more)


FLOORS = ("floor", "floor_training")
"""The modules that measure phases without this project."""
PHASES = {
    "rollout": ("timing/rollout", "vLLM alone, the same requests"),
    "reference": ("timing/reference_model", "forward pass in torch alone, the same tokens without sharing"),
    "update": ("timing/update", "forward, backward and Adam in torch alone, the same tokens"),
    "sync": ("timing/resharding_to_infer", "a copy of all weights in memory"),
}
"""Phase as the modules name it -> its metric, and what they measure."""


def against_floor(path: str, ranks: int, iterations: int, rounds: int, overrides: list[str]) -> Table:
    """Returns a table that compares the job's phases with their floors, in turns."""
    ours: list[dict[str, float]] = []
    theirs: dict[str, list[float]] = {phase: [] for phase in PHASES}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            ours += run_in(Path(folder), path, ranks, iterations, [*overrides, *FROZEN])
            for module in FLOORS:
                bare = ["-m", f"tests.bench.{module}", path, f"{folder}/bench", str(WARM_UP + 1), *overrides]
                printed = launch(ranks, bare, stdout=subprocess.PIPE).stdout
                for phase, seconds in json.loads(printed.strip().split("\n")[-1]).items():
                    theirs[phase] += seconds
    shown = Table("phase", "the job", "floor", "floor / job", "what the floor is")
    for phase, (metric, what) in PHASES.items():
        job, floor = statistics.median(line[metric] for line in ours), statistics.median(theirs[phase])
        shown.add_row(phase, f"{job:.4f} s", f"{floor:.4f} s", f"{floor / job:.2f}", what)
    large = [PHASES[phase][0] for phase in ("rollout", "reference", "update")]
    rest = statistics.median(1.0 - sum(line[metric] for metric in large) / line["timing/all"] for line in ours)
    shown.caption = (
        f"{rest:.1%} of the step is none of the first three phases; medians of {len(ours)} steps and "
        f"{len(theirs['rollout'])} repetitions"
    )
    return shown


def run_plain(path: str, iterations: int, overrides: list[str]) -> list[dict[str, float]]:
    command = [sys.executable, "-W", "ignore", "-m", "tests.bench.plain", str(WARM_UP + iterations), path, *overrides]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}  # it uses all cores
    printed = subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True).stdout
    return [json.loads(line) for line in printed.strip().split("\n")][WARM_UP:]


def against_plain(job: list[dict[str, float]], plain: list[dict[str, float]], sizes: float) -> Table:
    """Returns a table that compares the job with the plain version.

    Response tokens/s are compared, because both versions learn and the lengths of their responses change differently.
    sizes: number of samples per iteration.
    """
    theirs = statistics.median(line["tokens"] / line["seconds"] for line in plain)
    ours = statistics.median(line["response_length/mean"] * sizes / line["timing/all"] for line in job)
    shown = Table("", "seconds per step", "response tokens/s")
    shown.add_row("the job", f"{statistics.median(line['timing/all'] for line in job):.3f}", f"{ours:,.0f}")
    shown.add_row(
        "plain version, transformers alone",
        f"{statistics.median(line['seconds'] for line in plain):.3f}",
        f"{theirs:,.0f}",
    )
    shown.caption = (
        f"the job has {ours / theirs:.2f} times as many tokens/s; medians of {len(job)} and {len(plain)} steps"
    )
    return shown


def table(lines: list[dict[str, float]]) -> Table:
    total = statistics.median(line["timing/all"] for line in lines)
    phases = {
        key: statistics.median(line.get(key, 0.0) for line in lines)
        for line in lines
        for key in line
        if key.startswith("timing/")
    }
    tokens = {"timing/rollout": "vllm_tps", "timing/update": "update_tps", "timing/all": "e2e_tps"}
    shown = Table("phase", "seconds", "share", "tokens/s per rank")
    for key, seconds in sorted(phases.items(), key=lambda item: -item[1]):
        speed = statistics.median(line[tokens[key]] for line in lines) if key in tokens else None
        shown.add_row(
            key.removeprefix("timing/"),
            f"{seconds:.3f}",
            f"{seconds / total:.1%}",
            "" if speed is None else f"{speed:,.0f}",
        )
    parts = statistics.median(
        sum(v for k, v in line.items() if k.startswith("timing/") and k != "timing/all") / line["timing/all"]
        for line in lines
    )
    shown.caption = f"phases add up to {parts:.1%} of the step; medians of {len(lines)} steps"
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--iterations", type=int, default=12)
    parser.add_argument(
        "--plain", type=int, default=0, metavar="ROUNDS", help="alternate with the plain version, ROUNDS times"
    )
    parser.add_argument(
        "--floor",
        type=int,
        default=0,
        metavar="ROUNDS",
        help="alternate with vLLM alone and torch alone, ROUNDS times, and exit",
    )
    args = parser.parse_intermixed_args()
    if args.floor:
        Console().print(against_floor(args.config, args.ranks, args.iterations, args.floor, args.overrides))
        return
    job, plain = [], []
    for _ in range(max(1, args.plain)):
        job += run(args.config, args.ranks, args.iterations, args.overrides)
        if args.plain:
            plain += run_plain(args.config, args.iterations, args.overrides)
    Console().print(table(job))
    if plain:
        grpo = config.load(args.config, args.overrides, config.Config).grpo
        Console().print(against_plain(job, plain, grpo.prompts_per_iteration * grpo.group_size))


if __name__ == "__main__":
    work.run(main)
