"""Trains the quick start's miniature with each published recipe: python -m tests.bench.recipes FOLDER [--seeds 1 2 3]
[--only NAME ...] [--picture FILE]

Each run is the job of configs/cpu.toml with 60 iterations on two ranks, below FOLDER; a run that is finished already is
not repeated. Prints, for each recipe and over all seeds, the iteration at which the mean reward first reaches 0.75, the
mean of the last ten iterations, the largest distance between engine and trainer, and draws the curves.
"""

import argparse
import statistics
import subprocess
from pathlib import Path

from rich.console import Console
from rich.table import Table

from r1zero.observability import metrics

GOAL = 0.75
ITERATIONS = 60
FOUR = "grpo.mini_batches=4"
SEQUENCE = ('grpo.importance_ratio="sequence"', 'grpo.aggregation="sequence"')
BF16 = ('run.dtype="bfloat16"', FOUR)
RECIPES: dict[str, tuple[str, ...]] = {
    "R1-Zero (default)": (),
    "Dr. GRPO": ('grpo.advantage="none"', 'grpo.aggregation="constant"', "grpo.kl_coef=0.0"),
    "DAPO": (
        "grpo.clip_high=0.28", "grpo.kl_coef=0.0", 'grpo.overlong="penalty"', "grpo.overlong_buffer_tokens=16",
        "grpo.dynamic_sampling=true", "grpo.max_rounds=3",
    ),
    "four mini-batches": (FOUR,),
    "GSPO": (*SEQUENCE, "grpo.clip_low=0.03", "grpo.clip_high=0.04", FOUR),
    "CISPO": ('grpo.surrogate="cispo"', "grpo.clip_low=1.0", "grpo.clip_high=2.0", FOUR),
    "bf16, trainer's old logprobs": BF16,
    "bf16, engine's old logprobs": (*BF16, 'grpo.old_logprobs="rollout"'),
    "bf16, engine's mismatch truncated": (*BF16, 'grpo.rollout_correction="truncate"'),
}  # fmt: skip
"""The fields of the README's table. GSPO's bounds, CISPO's bound and DAPO's buffer are for these short answers."""


def run(folder: Path, name: str, seed: int) -> list[dict[str, float]]:
    """Returns the metrics of a run's iterations, and runs it if it has not finished."""
    label = "".join(c if c.isalnum() else "_" for c in name).lower() + f"_{seed}"
    where = folder / label
    if not finished(where):
        with (folder / f"{label}.log").open("w") as log:
            subprocess.run(
                ["mpirun", "-np", "2", "python", "train.py", "configs/cpu.toml", *RECIPES[name], f"run.seed={seed}",
                 f"run.name={label}", f"run.dir={folder}", f"run.iterations={ITERATIONS}"],
                check=True, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
    return [line for line in metrics.read(where) if line["iteration"]]


def finished(folder: Path) -> bool:
    path = folder / "metrics.jsonl"
    return path.exists() and len(path.read_text().splitlines()) >= ITERATIONS


def rewards(lines: list[dict[str, float]]) -> list[float]:
    return [line["grpo/rewards/mean"] for line in lines]


def row(name: str, runs: list[list[dict[str, float]]]) -> list[str]:
    first = [next((i for i, r in enumerate(rewards(lines), 1) if r >= GOAL), None) for lines in runs]
    last = [statistics.mean(rewards(lines)[-10:]) for lines in runs]
    return [
        name,
        ", ".join(f"{r[0]:.3f}" for r in map(rewards, runs)),
        ", ".join("never" if i is None else str(i) for i in first),
        ", ".join(f"{r:.3f}" for r in last),
        f"{statistics.mean(line['response_length/mean'] for lines in runs for line in lines[-10:]):.1f}",
        f"{max(line['rollout_gap/max'] for lines in runs for line in lines):.1e}",
    ]


def draw(path: Path, results: dict[str, list[list[dict[str, float]]]]) -> None:
    """Draw one small chart for each recipe, with the default's mean as a grey line in all."""
    from matplotlib.figure import Figure

    columns = 3
    figure = Figure(figsize=(10, 2.7 * -(-len(results) // columns)), layout="constrained")
    grid = figure.subplots(-(-len(results) // columns), columns, sharex=True, sharey=True, squeeze=False).flatten()
    default = results.get("R1-Zero (default)")
    for axes, (name, runs) in zip(grid, results.items(), strict=False):
        iterations = range(1, ITERATIONS + 1)
        if default:
            mean = [statistics.mean(values) for values in zip(*map(rewards, default), strict=True)]
            axes.plot(iterations, mean, color="#999999", linewidth=1, linestyle="--")
        for lines in runs:
            axes.plot(iterations, rewards(lines), linewidth=1.2)
        axes.axhline(GOAL, color="#cccccc", linewidth=0.8)
        axes.set_title(name, fontsize=10)
        axes.set_ylim(0, 1)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid[len(results) :]:
        axes.set_axis_off()
    figure.supxlabel("iteration", fontsize=10)
    figure.supylabel("mean reward (one line per seed; dashed: mean of the default)", fontsize=10)
    figure.savefig(path, dpi=110)


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__)
    ask.add_argument("folder", type=Path)
    ask.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    ask.add_argument("--only", nargs="+", choices=RECIPES, default=list(RECIPES))
    ask.add_argument("--picture", type=Path)
    args = ask.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    results = {name: [run(args.folder, name, seed) for seed in args.seeds] for name in args.only}
    table = Table("recipe", "first reward", f"first iteration of {GOAL}", "last ten", "length", "largest gap")
    for name, runs in results.items():
        table.add_row(*row(name, runs))
    Console(width=160).print(table)
    if args.picture:
        draw(args.picture, results)


if __name__ == "__main__":
    main()
