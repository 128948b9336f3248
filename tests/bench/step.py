"""Where a step's time goes: python -m tests.bench.step CONFIG [--ranks 2] [--iterations 12] [section.key=value ...]

Runs the real job in a folder of its own and prints the median of each phase after a warm-up. Absolute seconds mean little on a
shared machine; shares and ratios within one run do.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from r1zero import metrics

WARM_UP = 2


def run(config: str, ranks: int, iterations: int, overrides: list[str]) -> list[dict[str, float]]:
    """metrics.jsonl of a fresh run, its warm-up left out."""
    environment = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    with tempfile.TemporaryDirectory() as folder:
        launcher = ["mpirun", "-np", str(ranks), "--oversubscribe"] if ranks > 1 else []
        job = [sys.executable, "-W", "ignore", "train.py", config, f"run.dir={folder}", "run.name=bench", f"run.iterations={WARM_UP + iterations}"]
        subprocess.run(launcher + job + overrides, check=True, env=environment)
        return metrics.read(Path(folder) / "bench")[WARM_UP:]


def table(lines: list[dict[str, float]]) -> Table:
    total = statistics.median(line["timing/all"] for line in lines)
    phases = {key: statistics.median(line.get(key, 0.0) for line in lines) for line in lines for key in line if key.startswith("timing/")}
    tokens = {"timing/rollout": "vllm_tps", "timing/update": "update_tps", "timing/all": "e2e_tps"}
    shown = Table("phase", "seconds", "share", "tokens/s and rank")
    for key, seconds in sorted(phases.items(), key=lambda item: -item[1]):
        speed = statistics.median(line[tokens[key]] for line in lines) if key in tokens else None
        shown.add_row(key.removeprefix("timing/"), f"{seconds:.3f}", f"{seconds / total:.1%}", "" if speed is None else f"{speed:,.0f}")
    parts = statistics.median(sum(v for k, v in line.items() if k.startswith("timing/") and k != "timing/all") / line["timing/all"] for line in lines)
    shown.caption = f"phases add up to {parts:.1%} of the step; medians of {len(lines)} steps"
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--iterations", type=int, default=12)
    args = parser.parse_intermixed_args()
    Console().print(table(run(args.config, args.ranks, args.iterations, args.overrides)))


if __name__ == "__main__":
    main()
