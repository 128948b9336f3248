"""Records a run on rank 0: metrics.jsonl, TensorBoard, alarms, one console line per iteration, and plots."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from rich.text import Text
from torch import Tensor

from r1zero.config import Config, dump
from r1zero.observability import metrics
from r1zero.observability.alarms import AlarmMonitor
from r1zero.observability.board import Board
from r1zero.observability.console import Terminal
from r1zero.observability.plots import draw
from r1zero.observability.trackers import Tracker


class RunWriter:
    """Writes the config and the metrics of a run. On resume, records written after the checkpoint are removed."""

    def __init__(self, folder: Path, done: int, cfg: Config, tolerance: float):
        """done: number of iterations in the checkpoint from which this run continues. tolerance:
        the parity gate's, for the means over samples."""
        self.folder, self.iterations = folder, cfg.run.iterations
        (folder / "config.toml").write_text(dump(cfg), encoding="utf-8")
        alarms = replace(cfg.alarms, highest_gap=cfg.alarms.highest_gap or tolerance)
        # A run without a checkpoint repeats the evaluation before its first iteration, recorded as iteration 0.
        first = done + 1 if done else 0
        metrics.truncate_after(folder / "metrics.jsonl", first - 1)
        self.alarms = AlarmMonitor(alarms, [line for line in metrics.read(folder) if line["iteration"]] if done else [])
        names = cfg.metrics.trackers
        self.board = Board(folder, first, cfg) if "tensorboard" in names else None
        self.trackers = [Tracker(name, cfg, folder) for name in names if name != "tensorboard"]
        self.terminal = Terminal()

    def write(self, iteration: int, values: Mapping[str, float], distributions: Mapping[str, Tensor]) -> None:
        """Record and show the metrics of an iteration.

        distributions: name of a metric -> its value for each sample of the batch. TensorBoard shows their histograms.
        """
        alarms, messages = self.alarms.see(iteration, values)
        values = {**values, **alarms}
        metrics.append(self.folder / "metrics.jsonl", iteration, [values])
        self._log(iteration, values, distributions)
        self.terminal.print(self._line(iteration, values))
        self._show_evaluation(values)
        for message in messages:
            self.terminal.print(message)

    def write_evaluation(self, iteration: int, values: Mapping[str, float]) -> None:
        """Record and show an evaluation before the first iteration."""
        metrics.append(self.folder / "metrics.jsonl", iteration, [dict(values)])
        self._log(iteration, values, {})
        self._show_evaluation(values)

    def _log(self, iteration: int, values: Mapping[str, float], distributions: Mapping[str, Tensor]) -> None:
        named = {name if name.startswith("eval/") else f"train/{name}": value for name, value in values.items()}
        if self.board:
            self.board.write(iteration, named, {f"train/{name}": values for name, values in distributions.items()})
        for tracker in self.trackers:
            tracker.write(iteration, named)

    def _show_evaluation(self, values: Mapping[str, float]) -> None:
        for line in evaluation_lines(values):
            self.terminal.print(line)

    def flush(self) -> None:
        """Flush to disk before a checkpoint, because a resumed run does not write these lines again."""
        if self.board:
            self.board.flush()

    def close(self) -> None:
        """Close the files and draw the plots."""
        if self.board:
            self.board.close()
        for tracker in self.trackers:
            tracker.close()
        for path in draw(self.folder):
            self.terminal.print(f"drew {path}")

    def close_finished(self) -> None:
        """Close the files of a run that had finished before it was started, and say so."""
        self.close()
        self.terminal.print(
            f"{self.folder} already has all of its {self.iterations} iterations, so nothing was trained; for another "
            "run give another run.name, and for a longer one a larger run.iterations"
        )

    def _line(self, iteration: int, m: Mapping[str, float]) -> Text:
        done = round(20 * iteration / self.iterations)
        line = Text(f"{iteration:>{len(str(self.iterations))}}/{self.iterations} ")
        full, rest = "=-" if self.terminal.ascii_only else "━━"
        line.append(full * done, style="green").append(rest * (20 - done), style="bright_black")
        line.append(f"  reward {m['grpo/rewards/mean']:.3f}", style="bold")
        line.append(
            f"  length {m['response_length/mean']:.1f}  kl {m['actor/kl_loss']:.5f}  entropy {m['actor/entropy']:.3f}  "
            f"grad {m['grad_norm']:.3f}  gap {m['rollout_gap/mean']:.1e}  {m['e2e_tps']:.0f} tokens/s per rank  "
            f"{m['timing/all']:.2f} s"
        )
        return line


def evaluation_lines(values: Mapping[str, float]) -> list[str]:
    """A line for each evaluated set: pass@1 with its interval, the largest pass@k, majority, length and shares."""
    lines = []
    for name in dict.fromkeys(key.split("/")[1] for key in values if key.startswith("eval/")):
        of_set = {key.removeprefix(f"eval/{name}/"): v for key, v in values.items() if key.startswith(f"eval/{name}/")}
        best_of = max((int(key[5:]) for key in of_set if key.startswith("pass@") and "/" not in key), default=1)
        several = [f"{key} {of_set[key]:.3f}  " for key in (f"pass@{best_of}", f"maj@{best_of}") if best_of > 1]
        lines.append(
            f"eval {name}: pass@1 {of_set['pass@1']:.3f} ({of_set['pass@1/low']:.3f} to {of_set['pass@1/high']:.3f})  "
            f"{''.join(several)}length {of_set['response_length/mean']:.1f}  truncated {of_set['truncated']:.1%}  "
            f"in format {of_set['format']:.1%}"
        )
    return lines


def show_evaluation(values: Mapping[str, float], title: str) -> None:
    """Print the metrics of an evaluation that is not part of a run."""
    terminal = Terminal()
    for line in (title, *evaluation_lines(values)):
        terminal.print(line)
