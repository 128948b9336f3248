"""Experiment trackers that log in addition to metrics.jsonl. Each is imported only if metrics.trackers names it.

Each tracker logs in its own thread. Its first error is reported as a warning, and the run continues. The trackers' own
environment variables, such as WANDB_MODE, SWANLAB_MODE and MLFLOW_TRACKING_URI, determine where they send the metrics
and whether they work offline.
"""

import importlib
import importlib.util
import logging
import re
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from math import isfinite
from pathlib import Path
from typing import Any, TypeVar

from r1zero.config import CollectiveError, Config, plain

log = logging.getLogger(__name__)

PROJECT = "r1zero"
T = TypeVar("T")
Log = Callable[[dict[str, float], int], None]
Close = Callable[[], None]


def _wandb(wandb: Any, cfg: Config, folder: Path) -> tuple[Log, Close]:
    run = wandb.init(project=PROJECT, name=cfg.run.name, dir=str(folder), config=plain(cfg))
    return lambda values, step: run.log(values, step=step), run.finish


def _swanlab(swanlab: Any, cfg: Config, folder: Path) -> tuple[Log, Close]:
    swanlab.init(project=PROJECT, experiment_name=cfg.run.name, logdir=str(folder / "swanlab"), config=plain(cfg))
    return lambda values, step: swanlab.log(values, step=step), swanlab.finish


def _mlflow(mlflow: Any, cfg: Config, folder: Path) -> tuple[Log, Close]:
    mlflow.set_experiment(PROJECT)
    mlflow.start_run(run_name=cfg.run.name)
    mlflow.log_dict(plain(cfg), "config.json")

    def log_metrics(values: dict[str, float], step: int) -> None:
        mlflow.log_metrics({mlflow_name(name): value for name, value in values.items()}, step=step)

    return log_metrics, mlflow.end_run


def mlflow_name(name: str) -> str:
    """Returns the name of a metric for MLflow.

    MLflow does not allow @ in it, and its store of files keeps `a/b` in a folder `a`, so `a` cannot be a metric too.

    >>> mlflow_name("eval/math/pass@1"), mlflow_name("eval/math/pass@1/low")
    ('eval/math/pass_at_1', 'eval/math/pass_at_1_low')
    """
    return re.sub(r"@(\d+)/", r"@\1_", name).replace("@", "_at_")


OPENERS: dict[str, Callable[[Any, Config, Path], tuple[Log, Close]]] = {
    "wandb": _wandb,
    "swanlab": _swanlab,
    "mlflow": _mlflow,
}
"""Name in metrics.trackers, which is also the name of the package -> function that starts the tracker.

The function takes the imported package, the config and the run's folder, and returns the tracker's functions for
logging metrics and for closing it."""


def check(names: tuple[str, ...]) -> None:
    """Raises CollectiveError if one of the named trackers is not installed. Imports none of them."""
    for name in names:
        if name in OPENERS and importlib.util.find_spec(name) is None:
            raise CollectiveError(
                f"metrics.trackers names {name!r}, which is not installed; run pip install {name}, or remove it"
            )


class Background:
    """A thread that makes the calls of one tracker, in order. The first error is reported, and the run continues."""

    def __init__(self, name: str):
        self.name = name
        self._thread = ThreadPoolExecutor(1, name)
        self._is_broken = False

    def submit(self, call: Callable[[], T]) -> Future[T]:
        """Have the thread make a call."""
        future = self._thread.submit(call)
        future.add_done_callback(self._say)
        return future

    def close(self) -> None:
        """Wait until all calls are made."""
        self._thread.shutdown()

    def _say(self, future: Future[Any]) -> None:
        error = future.exception()
        if error is not None and not self._is_broken:
            self._is_broken = True
            log.warning(
                "metrics.trackers: %s failed (%s: %s); the run continues, and metrics.jsonl has all metrics",
                self.name,
                type(error).__name__,
                str(error).strip().partition("\n")[0],
            )


class Tracker:
    """One tracker of a run, on rank 0."""

    def __init__(self, name: str, cfg: Config, folder: Path):
        self._thread = Background(name)
        self._opened = self._thread.submit(lambda: OPENERS[name](importlib.import_module(name), cfg, folder))

    def write(self, iteration: int, values: Mapping[str, float]) -> None:
        """Log the values of an iteration that are finite numbers."""
        finite = {key: value for key, value in values.items() if isfinite(value)}
        self._thread.submit(lambda: self._opened.result()[0](finite, iteration))

    def close(self) -> None:
        """Wait until everything is logged, and close the tracker."""

        def finish() -> None:
            self._opened.result()[1]()

        self._thread.submit(finish)
        self._thread.close()
