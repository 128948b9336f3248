"""The responses of a run on disk: a few of each iteration in samples.jsonl, and all of them as Parquet if asked for."""

import logging
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
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
"""In the folder of a run: iteration_N/engine_E.parquet."""
_ITERATION = re.compile(r"iteration_(\d+)")


class SampleRecorder:
    """Writes the samples of this rank's engine, on the first rank of each engine. Other ranks record nothing."""

    def __init__(self, cfg: Config, layout: Layout, rank: int, folder: Path, text: Callable[[Response], str]):
        """text: the text of a response as it is graded."""
        self.cfg, self.folder, self.text = cfg, folder, text
        self.writes_first = rank == layout.rollout.ranks[0]
        writes_all = cfg.metrics.dump == "all" and rank in layout.rollout and layout.rollout.coordinate(rank, "tp") == 0
        self.engine = layout.engine_of(rank) if writes_all else None
        self._thread = ThreadPoolExecutor(1, "samples") if writes_all else None
        self._written: Future[None] | None = None
        self._first_response = ""

    def truncate_after(self, iteration: int) -> None:
        """Remove what was recorded of later iterations."""
        if not self.writes_first:
            return
        metrics.truncate_after(self.folder / "samples.jsonl", iteration)
        for path in (self.folder / FOLDER).glob("iteration_*"):
            match = _ITERATION.fullmatch(path.name)
            if match and int(match[1]) > iteration:
                shutil.rmtree(path)

    def record(self, iteration: int, samples: Samples | None, graded: Graded | None) -> None:
        """Parquet is written in a thread while the next iteration goes on; at most one iteration waits for it."""
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
            self._wait()
            self._written = self._thread.submit(tables.write, path, rows)

    def look_at_first(self, values: Mapping[str, float]) -> None:
        """After the first iteration: say on one rank if there is nothing to learn from, and show one response."""
        found = first_steps.finding(values, self.cfg.reward.rules) if self.writes_first else ""
        if found:
            Terminal().print(f"first iteration: {found}. One of the responses: {self._first_response!r}")

    def close(self) -> None:
        """Wait until everything is written."""
        self._wait()
        if self._thread:
            self._thread.shutdown()

    def _wait(self) -> None:
        """A dump that cannot be written costs the run nothing but the dump."""
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
    """What only the full dump has."""
    response = samples.responses[sample]
    return {
        "row": samples.prompts[response.prompt].row,
        "sample": response.sample,
        "length": len(response.token_ids),
        "truncated": response.finish_reason == "length",
    }


def read(folder: Path, iteration: int | None) -> Sequence[dict[str, Any]]:
    """The recorded samples of an iteration, all of them if they were kept; None: of the newest iteration.

    Empty where there are none.
    """
    rows = metrics.read_rows(folder / "samples.jsonl")
    kept = [int(m[1]) for path in (folder / FOLDER).glob("iteration_*") if (m := _ITERATION.fullmatch(path.name))]
    known = sorted({*kept, *(int(row["iteration"]) for row in rows)})
    if not known:
        return []
    chosen = known[-1] if iteration is None else iteration
    parts = sorted((folder / FOLDER / f"iteration_{chosen}").glob("engine_*.parquet"))
    return tables.read(parts) if parts else [row for row in rows if row["iteration"] == chosen]
