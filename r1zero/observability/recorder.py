"""Records the responses of a run: a few of each iteration in samples.jsonl, and with metrics.dump = "all" all of them
as Parquet files."""

import logging
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from math import isfinite
from pathlib import Path
from typing import Any

from r1zero.batch import Response
from r1zero.config import Config, reason
from r1zero.distributed.layout import Layout
from r1zero.grading import Graded, Samples
from r1zero.observability import first_steps, metrics, tables
from r1zero.observability.console import Terminal

log = logging.getLogger(__name__)

FOLDER = "samples"
"""Folder inside the folder of a run. It contains iteration_N/engine_E.parquet."""
_ITERATION = re.compile(r"iteration_(\d+)")


class SampleRecorder:
    """Writes samples of this rank's engine.

    samples.jsonl is written by the first rank that generates, and the Parquet files by the first rank of each engine.
    Other ranks write nothing.
    """

    def __init__(self, cfg: Config, layout: Layout, rank: int, folder: Path, text: Callable[[Response], str]):
        """text: returns the text of a response, as it is graded."""
        self.cfg, self.folder, self.text = cfg, folder, text
        self.writes_first = rank == layout.rollout.ranks[0]
        writes_all = cfg.metrics.dump == "all" and rank in layout.rollout and layout.rollout.coordinate(rank, "tp") == 0
        self.engine = layout.engine_of(rank) if writes_all else None
        self._thread = ThreadPoolExecutor(1, "samples") if writes_all else None
        self._written: Future[None] | None = None
        self._first_response = ""

    def truncate_after(self, iteration: int) -> None:
        """Remove what was recorded for later iterations."""
        if not self.writes_first:
            return
        metrics.truncate_after(self.folder / "samples.jsonl", iteration)
        for path in (self.folder / FOLDER).glob("iteration_*"):
            match = _ITERATION.fullmatch(path.name)
            if match and int(match[1]) > iteration:
                shutil.rmtree(path)

    def record(self, iteration: int, samples: Samples | None, graded: Graded | None) -> None:
        """Record the samples of an iteration and their grades. Both are None on a rank that does not generate.

        A thread writes the Parquet file during the next iteration. If the file before it is not finished yet, this
        waits for it, so that at most one is pending.
        """
        if samples is None or graded is None:
            return
        self._first_response = self.text(samples.responses[0])
        if self.writes_first:
            every = range(0, len(samples.responses), self.cfg.grpo.group_size)[: self.cfg.metrics.dump_samples]
            metrics.append(
                self.folder / "samples.jsonl", iteration, [self._row(samples, graded, sample) for sample in every]
            )
        if self._thread:
            rows = [
                {"iteration": iteration, **self._row(samples, graded, k), **_more(samples, k)}
                for k in range(len(samples.responses))
            ]
            path = self.folder / FOLDER / f"iteration_{iteration}" / f"engine_{self.engine}.parquet"
            self.flush()
            self._written = self._thread.submit(tables.write, path, rows)

    def look_at_first(self, values: Mapping[str, float]) -> None:
        """After the first iteration, one rank prints a line with a response if there is nothing to learn from.

        values: the metrics of the iteration.
        """
        found = first_steps.finding(values, self.cfg.reward.rules) if self.writes_first else ""
        if found:
            Terminal().print(f"first iteration: {found}. One of the responses: {self._first_response!r}")

    def close(self) -> None:
        """Wait until all files are written."""
        self.flush()
        if self._thread:
            self._thread.shutdown()

    def flush(self) -> None:
        """Wait for the pending Parquet file. Before each checkpoint, so that it never precedes the responses up to it.

        A file that could not be written is reported and does not stop the run.
        """
        try:
            if self._written:
                self._written.result()
        except OSError as error:
            log.warning("metrics.dump: the responses of an iteration were not written (%s)", reason(error))
        self._written = None

    def _row(self, samples: Samples, graded: Graded, sample: int) -> dict[str, Any]:
        response, scored = samples.responses[sample], bool(graded.scored_B[sample])
        prompt = samples.prompts[response.prompt]
        return {
            "prompt": prompt.text,
            "response": self.text(response),
            "label": prompt.label,
            "outcome": graded.outcome(sample),
            "reward": float(graded.rewards_B[sample]) if scored else None,
            "scores": graded.scores(sample) if scored else {},
        }


def _more(samples: Samples, sample: int) -> dict[str, Any]:
    """Returns the columns that only the Parquet files have."""
    response = samples.responses[sample]
    return {
        "row": samples.prompts[response.prompt].row,
        "sample": response.sample,
        "length": len(response.token_ids),
        "truncated": response.finish_reason == "length",
    }


def read(folder: Path, iteration: int | None) -> Sequence[dict[str, Any]]:
    """Returns the recorded samples of an iteration, from its Parquet files if there are any, else from samples.jsonl.

    folder: the folder of a run. iteration: None stands for the newest one. The result is empty if there are none.
    Raises UserError if a file is corrupt.
    """
    rows = metrics.read_rows(folder / "samples.jsonl")
    kept = [int(m[1]) for path in (folder / FOLDER).glob("iteration_*") if (m := _ITERATION.fullmatch(path.name))]
    known = sorted({*kept, *(int(row["iteration"]) for row in rows)})
    if not known:
        return []
    chosen = known[-1] if iteration is None else iteration
    parts = sorted((folder / FOLDER / f"iteration_{chosen}").glob("engine_*.parquet"))
    return tables.read(parts) if parts else [row for row in rows if row["iteration"] == chosen]


def number(value: Any) -> float | None:
    """Returns a value from JSON as a float, or None if it is not a finite number that fits one."""
    is_number = isinstance(value, float) or (type(value) is int and abs(value) < 2**63)
    return float(value) if is_number and isfinite(value) else None


def text(row: dict[str, Any], name: str) -> str:
    """Returns a text of the row, or an empty text if the row has none under this name."""
    value = row.get(name)
    return value if isinstance(value, str) else ""


def describe(row: dict[str, Any]) -> str:
    """Returns iteration, reward or outcome, the value of each rule, and the label, as far as the row has them."""
    reward, given = number(row.get("reward")), row.get("scores")
    values = {rule: number(value) for rule, value in given.items()} if isinstance(given, dict) else {}
    scores = ", ".join(f"{rule} {value:g}" for rule, value in values.items() if value is not None)
    graded = (text(row, "outcome") or "no reward") if reward is None else f"reward {reward:g}"
    return f"iteration {row.get('iteration', '')}, {graded}{f' ({scores})' if scores else ''}" + (
        f", label {label}" if (label := text(row, "label")) else ""
    )
