"""Timers, reductions over ranks, and the run's record: metrics.jsonl, TensorBoard, one console line an iteration."""

import json
import os
import time
from contextlib import contextmanager
from math import isfinite, nan
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping

import torch
import torch.distributed as dist
from rich.text import Text

from r1zero.config import UserError
from r1zero.observability.console import Terminal


class Stopwatch:
    """Seconds by phase of one iteration. observers: told the name of a phase that begins, "" at its end, and the iteration."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.iteration = 0
        self.observers: list[Callable[[str, int], None]] = []
        self._began = time.perf_counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        self._tell(name)
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began
        self._tell("")   # not after an exception: it belongs to the phase

    def _tell(self, name: str) -> None:
        for observe in self.observers:
            observe(name, self.iteration)

    def lap(self) -> dict[str, float]:
        """`timing/<phase>` and `timing/all` since the last lap, in seconds."""
        now = time.perf_counter()
        timings = {f"timing/{name}": seconds for name, seconds in self.seconds.items()}
        timings["timing/all"] = now - self._began
        self.seconds, self._began = {}, now
        return timings


class Tally:
    """Figures to be reduced over all ranks, in one collective a kind. Every rank names the same figures."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.peaks: dict[str, float] = {}

    def add(self, name: str, value: float) -> None:
        self.sums[name] = self.sums.get(name, 0.0) + value

    def peak(self, name: str, value: float) -> None:
        self.peaks[name] = max(self.peaks.get(name, -float("inf")), value)

    def reduce(self, device: torch.device) -> tuple[dict[str, float], dict[str, float]]:
        """(sums, peaks) over the world."""
        reduced = []
        for values, operation in ((self.sums, dist.ReduceOp.SUM), (self.peaks, dist.ReduceOp.MAX)):
            names = sorted(values)
            # Counts of tokens pass 2^24 in a large run: fp64 on the host's backends, fp32 where a device knows no other.
            dtype = torch.float64 if device.type == "cpu" else torch.float32
            vector = torch.tensor([values[n] for n in names], dtype=dtype, device=device)
            dist.all_reduce(vector, operation)
            reduced.append(dict(zip(names, vector.tolist(), strict=True)))
        return reduced[0], reduced[1]


class Record:
    """What rank 0 writes into the run's folder. On resume what came after the checkpoint is taken back first."""

    def __init__(self, folder: Path, done: int, iterations: int):
        """done: iterations already in the checkpoint that this run continues from."""
        from torch.utils.tensorboard import SummaryWriter

        self.folder, self.iterations = folder, iterations
        keep_until(folder / "metrics.jsonl", done)
        self.board = SummaryWriter(str(folder), purge_step=done + 1)   # what an earlier process wrote of later steps is void
        self.terminal = Terminal()

    def write(self, iteration: int, metrics: Mapping[str, float]) -> None:
        append(self.folder / "metrics.jsonl", iteration, [dict(metrics)])
        for name, value in metrics.items():
            self.board.add_scalar(f"train/{name}", value, iteration)
        self.terminal.print(self._line(iteration, metrics))

    def flush(self) -> None:
        """Before a checkpoint: what it has seen is not written again after it."""
        self.board.flush()

    def say(self, text: str) -> None:
        self.terminal.print(text)

    def close(self) -> None:
        self.board.close()

    def _line(self, iteration: int, m: Mapping[str, float]) -> Text:
        done = round(20 * iteration / self.iterations)
        line = Text(f"{iteration:>{len(str(self.iterations))}}/{self.iterations} ")
        full, rest = "=-" if self.terminal.ascii_only else "━━"
        line.append(full * done, style="green").append(rest * (20 - done), style="bright_black")
        line.append(f"  reward {m['grpo/rewards/mean']:.3f}", style="bold")
        line.append(f"  length {m['response_length/mean']:.1f}  kl {m['actor/kl_loss']:.5f}  entropy {m['actor/entropy']:.3f}  "
                    f"grad {m['grad_norm']:.3f}  gap {m['rollout_gap/mean']:.1e}  {m['e2e_tps']:.0f} tokens/s per rank  {m['timing/all']:.2f} s")
        return line


def append(path: Path, iteration: int, rows: list[dict[str, Any]]) -> None:
    """Write one JSON line per row, each with its iteration. JSON has no infinity and no NaN: such numbers are written as null."""
    with open(path, "a", encoding="utf-8") as file:
        for row in rows:
            finite = {name: None if isinstance(value, float) and not isfinite(value) else value for name, value in row.items()}
            file.write(json.dumps({"iteration": iteration, **finite}, ensure_ascii=False, allow_nan=False) + "\n")


def keep_until(path: Path, iteration: int) -> None:
    """Drop the lines of later iterations, and an incomplete last line. The file is replaced by a rename.

    Only a line feed ends a line: U+2028, U+2029 and U+0085 may stand in a JSON text as they are. Raises UserError for a
    line that `append` did not write.
    """
    path = Path(os.path.realpath(path))   # a link stays
    if not path.exists():
        return
    with open(path, "rb") as file:
        kept = [line for number, line in enumerate(file, 1)
                if line.endswith(b"\n") and _iteration(line, f"{path}:{number}") <= iteration]
    aside = path.with_name(path.name + ".tmp")
    aside.write_bytes(b"".join(kept))
    os.replace(aside, path)


def _iteration(line: bytes, where: str) -> int:
    try:
        return int(json.loads(line)["iteration"])
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise UserError(f"{where}: is no line of a run ({error}); remove it") from None


def read(folder: Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl; a null is read as NaN."""
    with open(folder / "metrics.jsonl", "rb") as file:
        return [{name: nan if value is None else value for name, value in json.loads(line).items()} for line in file]
