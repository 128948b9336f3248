"""Measures the cost of all guards: python -m tests.bench.guards CONFIG [--ranks 2] [--iterations 21] [section.key=value
...]

Runs the real job, in which the parity gate checks as often as the config says. On every rank the calls of the gate, the
watchdog's stamps, the checks of loss and gradient, and the alarms are timed. The slowest rank counts. The cost of
preflight is divided by the configured number of iterations, that of the gate by its interval in syncs. Fails if all
guards together take 1 % of a step or more.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from r1zero import config
from r1zero.distributed import device

LIMIT = 0.01


def timed(seconds: dict[str, list[float]], name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            seconds.setdefault(name, []).append(time.perf_counter() - began)

    return call


def job(arguments: list[str], out: str) -> None:
    """Run train.py as one rank with the guards' calls timed. At the end, the seconds of each call go to a file."""
    from megatron.core.optimizer import ChainedOptimizer

    import train
    from r1zero import policy, preflight
    from r1zero.guard import parity, skipped
    from r1zero.observability import alarms
    from r1zero.observability.metrics import Stopwatch

    seconds: dict[str, list[float]] = {}
    for owner, names in (
        (parity.ParityGate, ["after_sync"]),
        (alarms.AlarmMonitor, ["see"]),
        (skipped.SkipLimit, ["see"]),
        (policy.Policy, ["_is_finite"]),
        (preflight, ["before", "links"]),
        (Stopwatch, ["_tell"]),
    ):
        for name in names:
            if hasattr(owner, name):
                setattr(owner, name, timed(seconds, f"{owner.__name__}.{name}", getattr(owner, name)))
    # An update computes the norm twice, once for the guard.
    ChainedOptimizer.get_grad_norm = timed(seconds, "grad_norm", ChainedOptimizer.get_grad_norm)
    sys.argv = ["train.py", *arguments]
    try:
        train.main()
    finally:
        Path(out, f"guards_{os.environ.get('RANK', '0')}.json").write_text(json.dumps(seconds), encoding="utf-8")


def run(
    path: str, ranks: int, iterations: int, overrides: list[str]
) -> tuple[list[dict[str, list[float]]], list[dict[str, float]]]:
    """Returns the seconds of the calls on each rank, and the metrics, of a new run."""
    from r1zero.observability import metrics

    # train.py sets these before its imports, but here some modules are imported earlier.
    settings = dict(device.COMMON + device.DEVICES[config.load(path, overrides, config.Config).run.device].environment)
    environment = {**settings, **os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    with tempfile.TemporaryDirectory() as folder:
        launcher = ["mpirun", "-np", str(ranks), "--oversubscribe"] if ranks > 1 else []
        command = [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "tests.bench.guards",
            "--job",
            folder,
            path,
            f"run.dir={folder}",
            "run.name=bench",
            f"run.iterations={iterations}",
            *overrides,
        ]
        subprocess.run(launcher + command, check=True, env=environment)
        calls = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(Path(folder).glob("guards_*.json"))]
        return calls, metrics.read(Path(folder) / "bench")


def costs(calls: list[dict[str, list[float]]], cfg: config.Config, measured: int) -> dict[str, float]:
    """Returns guard -> seconds per step on the slowest rank. measured: iterations of the run that was timed."""

    def slowest(name: str, what: Callable[[list[float]], float]) -> float:
        return max((what(of_rank[name]) for of_rank in calls if of_rank.get(name)), default=0.0)

    first = slowest("ParityGate.after_sync", lambda s: s[0])
    later = slowest(
        "ParityGate.after_sync",
        lambda s: statistics.median(
            [x for i, x in enumerate(s) if i and i % (cfg.parity.every_syncs or i + 1) == 0] or [0.0]
        ),
    )
    whole = cfg.run.iterations
    return {
        f"parity gate, every {cfg.parity.every_syncs} syncs and at the start": later / (cfg.parity.every_syncs or whole)
        + first / whole,
        "check of loss and gradient": slowest("Policy._is_finite", statistics.median)
        + slowest("grad_norm", statistics.median),
        "alarms (rank 0)": slowest("AlarmMonitor.see", lambda s: s[-1]),
        "skipped updates": slowest("SkipLimit.see", statistics.median),
        "watchdog's phase stamps": slowest("Stopwatch._tell", sum) / measured,
        f"preflight over {whole} iterations": (
            slowest("r1zero.preflight.before", sum) + slowest("r1zero.preflight.links", sum)
        )
        / whole,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--iterations", type=int, default=21)
    parser.add_argument("--job", metavar="FOLDER", help=argparse.SUPPRESS)
    args = parser.parse_intermixed_args()
    if args.job:
        job([args.config, *args.overrides], args.job)
        return
    calls, lines = run(args.config, args.ranks, args.iterations, args.overrides)
    cfg = config.load(args.config, args.overrides, config.Config)
    step = statistics.median(line["timing/all"] for line in lines[2:])
    each = costs(calls, cfg, len(lines))
    shown = Table("guard", "ms per step", "share of the step")
    for name, seconds in each.items():
        shown.add_row(name, f"{1e3 * seconds:.2f}", f"{seconds / step:.3%}")
    shown.add_row("all", f"{1e3 * sum(each.values()):.2f}", f"{sum(each.values()) / step:.3%}")
    shown.caption = f"median step {step:.2f} s, {len(lines)} steps on {args.ranks} ranks"
    Console(width=110).print(shown)
    sys.exit(sum(each.values()) >= LIMIT * step)


if __name__ == "__main__":
    main()
