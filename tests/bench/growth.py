"""Measures how time and memory grow: python -m tests.bench.growth CONFIG [--iterations 4] [--axis AXIS ...]
[section.key=value ...]

Trains random Qwen2 models with the tokenizer and the prompts of CONFIG and changes one size at a time: samples per
prompt, response tokens, hidden size, layers, ranks. The learning rate is 0, so that responses keep their length. For
each size it prints the medians of the phases and rank 0's peak memory beside what `--plan` predicts, and for each axis
the exponents: the slope of the logarithm of the seconds over the logarithm of the size. 1 is linear growth; along
`ranks`, -1 is perfect division of the work.
"""

import argparse
import json
import math
import statistics
import tempfile
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from r1zero import config
from r1zero.config import Config
from r1zero.observability import metrics
from tests.bench import real, step, work


class Sizes(NamedTuple):
    """What the job is run with."""

    samples: int = 8
    response_tokens: int = 64
    hidden: int = 128
    layers: int = 4
    ranks: int = 2


AXES: dict[str, tuple[int, ...]] = {
    "samples": (4, 8, 16),
    "response_tokens": (32, 64, 128),
    "hidden": (128, 256, 512),
    "layers": (2, 4, 8),
    "ranks": (1, 2, 4),
}
PHASES = {
    "timing/rollout": "rollout",
    "timing/reference_model": "reference",
    "timing/update": "update",
    "timing/resharding_to_infer": "sync",
    "timing/all": "all",
}


class Point(NamedTuple):
    """What was found for one size."""

    seconds: list[float]
    """In the order of PHASES."""
    peak: float
    """Bytes of rank 0."""
    planned: float


def measure(folder: Path, path: str, sizes: Sizes, iterations: int, overrides: list[str]) -> Point:
    """Run the job with these sizes."""
    source = config.load(path, overrides, Config).model.path
    model = folder / f"{sizes.hidden}_{sizes.layers}" / "model"
    if not model.exists():
        work.random_model(model.parent, source, sizes.hidden, sizes.layers)
    name = "_".join(map(str, sizes))
    arguments = [
        path,
        f"run.dir={folder}",
        f"run.name={name}",
        f"run.iterations={step.WARM_UP + iterations}",
        f"model.path={model}",
        "model.checkpoint=",
        f"grpo.group_size={sizes.samples}",
        f"rollout.max_response_tokens={sizes.response_tokens}",
        "optimizer.lr=0",
        *overrides,
    ]
    peaks = folder / "peaks.json"
    step.launch(sizes.ranks, ["-m", "tests.bench.real", "--job", str(peaks), *arguments])
    lines = metrics.read(folder / name)[step.WARM_UP :]
    found = {real.PHASES[phase]: peak for phase, peak in json.loads(peaks.read_text()).items() if phase in real.PHASES}
    said = real.planned([*arguments, "--world", str(sizes.ranks)])
    return Point(
        [statistics.median(line[metric] for line in lines) for metric in PHASES],
        max(found.values()),
        max(said[phase] for phase in found),
    )


def exponent(sizes: tuple[int, ...], seconds: list[float]) -> float:
    return statistics.linear_regression([*map(math.log, sizes)], [*map(math.log, seconds)]).slope


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--iterations", type=int, default=4)
    parser.add_argument("--axis", action="append", choices=AXES)
    args = parser.parse_intermixed_args()
    shown = Table("", *(f"{phase}, s" for phase in PHASES.values()), "peak, GB", "planned, GB")
    with tempfile.TemporaryDirectory() as folder:
        known: dict[Sizes, Point] = {}
        for axis in args.axis or AXES:
            for value in AXES[axis]:
                sizes = Sizes()._replace(**{axis: value})
                if sizes not in known:
                    known[sizes] = measure(Path(folder), args.config, sizes, args.iterations, args.overrides)
                seconds, peak, planned = known[sizes]
                figures = [f"{x:.3f}" for x in seconds]
                shown.add_row(f"{axis} {value}", *figures, f"{peak / 1e9:.2f}", f"{planned / 1e9:.2f}")
            columns = zip(*(known[Sizes()._replace(**{axis: value})].seconds for value in AXES[axis]), strict=True)
            slopes = [f"{exponent(AXES[axis], list(column)):+.2f}" for column in columns]
            shown.add_row(f"exponent of {axis}", *slopes, end_section=True)
    Console(width=120).print(shown)


if __name__ == "__main__":
    work.run(main)
