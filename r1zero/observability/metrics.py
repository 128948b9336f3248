"""Timers, reductions over ranks, and JSON lines files: metrics.jsonl and samples.jsonl."""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import isfinite, nan
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from r1zero.config import UserError


class Stopwatch:
    """Seconds spent in each phase of an iteration.

    observers: called with the name of a phase when it begins, or "" when it ends, and the iteration.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.iteration = 0
        self.observers: list[Callable[[str, int], None]] = []
        self._began = time.perf_counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """A context whose time counts for the phase `name`."""
        began = time.perf_counter()
        self._tell(name)
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began
        self._tell("")  # not after an exception, which is reported for the phase

    def _tell(self, name: str) -> None:
        for observe in self.observers:
            observe(name, self.iteration)

    def lap(self) -> dict[str, float]:
        """Returns `timing/<phase>` and `timing/all` since the last lap, in seconds."""
        now = time.perf_counter()
        timings = {f"timing/{name}": seconds for name, seconds in self.seconds.items()}
        timings["timing/all"] = now - self._began
        self.seconds, self._began = {}, now
        return timings


class MetricReducer:
    """Collects values and reduces them over all ranks: one collective for the sums, one for the maxima.

    Every rank must add the same names.
    """

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.peaks: dict[str, float] = {}

    def add(self, name: str, value: float) -> None:
        """Add to a sum."""
        self.sums[name] = self.sums.get(name, 0.0) + value

    def peak(self, name: str, value: float) -> None:
        """Take into account for a maximum."""
        self.peaks[name] = max(self.peaks.get(name, -float("inf")), value)

    def reduce(self, device: torch.device) -> tuple[dict[str, float], dict[str, float]]:
        """Returns (sums, maxima) over the world."""
        reduced = []
        for values, operation in ((self.sums, dist.ReduceOp.SUM), (self.peaks, dist.ReduceOp.MAX)):
            names = sorted(values)
            # Token counts exceed 2^24 in a large run, so sums are fp64 wherever the backend supports it.
            dtype = torch.float64 if device.type == "cpu" else torch.float32
            vector = torch.tensor([values[n] for n in names], dtype=dtype, device=device)
            dist.all_reduce(vector, operation)
            reduced.append(dict(zip(names, vector.tolist(), strict=True)))
        return reduced[0], reduced[1]


def append(path: Path, iteration: int, rows: list[dict[str, Any]]) -> None:
    """Append one JSON line per row, with its iteration. Infinity and NaN, which JSON lacks, are written as null."""
    with open(path, "a", encoding="utf-8") as file:
        for row in rows:
            finite = {
                name: None if isinstance(value, float) and not isfinite(value) else value for name, value in row.items()
            }
            file.write(json.dumps({"iteration": iteration, **finite}, ensure_ascii=False, allow_nan=False) + "\n")


def truncate_after(path: Path, iteration: int) -> None:
    """Remove the lines of later iterations and an incomplete last line. The file is replaced by a rename.

    Only a line feed ends a line, because JSON text may contain U+2028, U+2029 and U+0085. Raises UserError for a line
    that `append` did not write.
    """
    path = Path(os.path.realpath(path))  # so that a symbolic link is kept
    if not path.exists():
        return
    with open(path, "rb") as file:
        kept = [
            line
            for number, line in enumerate(file, 1)
            if line.endswith(b"\n") and _iteration(line, f"{path}:{number}") <= iteration
        ]
    aside = path.with_name(path.name + ".tmp")
    aside.write_bytes(b"".join(kept))
    os.replace(aside, path)


def _iteration(line: bytes, where: str) -> int:
    try:
        return int(json.loads(line)["iteration"])
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise UserError(f"{where}: is not a line of a run ({error}); remove it") from None


def read(folder: Path) -> list[dict[str, float]]:
    """Returns the lines of metrics.jsonl, with null as NaN."""
    with open(folder / "metrics.jsonl", "rb") as file:
        return [{name: nan if value is None else value for name, value in json.loads(line).items()} for line in file]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows that `append` wrote; none where there is no file. Raises UserError for a line that it did not write."""
    if not path.is_file():
        return []
    with open(path, "rb") as file:
        lines = list(enumerate(file, 1))
    return [json.loads(line) for number, line in lines if _iteration(line, f"{path}:{number}") >= 0]
