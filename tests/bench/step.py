"""Where a step's time goes: python -m tests.bench.step CONFIG [--ranks 2] [--iterations 12] [--plain ROUNDS]
[section.key=value ...]

Runs the real job in a folder of its own and prints the median of each phase after a warm-up. Absolute seconds mean
little on a shared machine; shares and ratios within one run do: --plain runs the job and the same step written by hand
(plain.py) in turns.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from r1zero import config
from r1zero.observability import metrics

WARM_UP = 2


def run(path: str, ranks: int, iterations: int, overrides: list[str]) -> list[dict[str, float]]:
    """metrics.jsonl of a fresh run, its warm-up left out."""
    environment = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    with tempfile.TemporaryDirectory() as folder:
        launcher = ["mpirun", "-np", str(ranks), "--oversubscribe"] if ranks > 1 else []
        job = [
            sys.executable,
            "-W",
            "ignore",
            "train.py",
            path,
            f"run.dir={folder}",
            "run.name=bench",
            f"run.iterations={WARM_UP + iterations}",
        ]
        subprocess.run(launcher + job + overrides, check=True, env=environment)
        return metrics.read(Path(folder) / "bench")[WARM_UP:]


def run_plain(path: str, iterations: int, overrides: list[str]) -> list[dict[str, float]]:
    command = [sys.executable, "-W", "ignore", "-m", "tests.bench.plain", str(WARM_UP + iterations), path, *overrides]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}  # it takes all cores
    printed = subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True).stdout
    return [json.loads(line) for line in printed.strip().split("\n")][WARM_UP:]


def against_plain(job: list[dict[str, float]], plain: list[dict[str, float]], sizes: float) -> Table:
    """Both learn, and answers grow: a second's response tokens compare better than a step's seconds."""
    theirs = statistics.median(line["tokens"] / line["seconds"] for line in plain)
    ours = statistics.median(line["response_length/mean"] * sizes / line["timing/all"] for line in job)
    shown = Table("", "seconds a step", "response tokens a second")
    shown.add_row("the job", f"{statistics.median(line['timing/all'] for line in job):.3f}", f"{ours:,.0f}")
    shown.add_row(
        "by hand, transformers alone", f"{statistics.median(line['seconds'] for line in plain):.3f}", f"{theirs:,.0f}"
    )
    shown.caption = (
        f"the job is {ours / theirs:.2f} times as fast a token; medians of {len(job)} and {len(plain)} steps, in turns"
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
    shown = Table("phase", "seconds", "share", "tokens/s and rank")
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
        "--plain", type=int, default=0, metavar="ROUNDS", help="take turns with the loop written by hand, so many times"
    )
    args = parser.parse_intermixed_args()
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
    main()
