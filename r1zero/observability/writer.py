"""Records a run on rank 0: metrics.jsonl, TensorBoard, alarms, one console line per iteration, and plots."""

from collections.abc import Mapping
from pathlib import Path

from rich.text import Text

from r1zero.config import Alarms
from r1zero.observability import metrics
from r1zero.observability.alarms import AlarmMonitor
from r1zero.observability.console import Terminal
from r1zero.observability.plots import draw


class RunWriter:
    """Writes the metrics of a run. On resume, records written after the checkpoint are removed."""

    def __init__(self, folder: Path, done: int, iterations: int, alarms: Alarms):
        """done: number of iterations in the checkpoint from which this run continues."""
        from torch.utils.tensorboard import SummaryWriter

        self.folder, self.iterations = folder, iterations
        metrics.keep_until(folder / "metrics.jsonl", done)
        self.alarms = AlarmMonitor(alarms, metrics.read(folder) if done else [])
        # purge_step hides what an earlier process wrote about later steps.
        self.board = SummaryWriter(str(folder), purge_step=done + 1)
        self.terminal = Terminal()

    def write(self, iteration: int, values: Mapping[str, float]) -> None:
        """Record and show the metrics of an iteration."""
        alarms, messages = self.alarms.see(iteration, values)
        values = {**values, **alarms}
        metrics.append(self.folder / "metrics.jsonl", iteration, [values])
        for name, value in values.items():
            self.board.add_scalar(f"train/{name}", value, iteration)
        self.terminal.print(self._line(iteration, values))
        for message in messages:
            self.terminal.print(message)

    def flush(self) -> None:
        """Flush to disk before a checkpoint, because a resumed run does not write these lines again."""
        self.board.flush()

    def close(self) -> None:
        """Close the files and draw the plots."""
        self.board.close()
        for path in draw(self.folder):
            self.terminal.print(f"drew {path}")

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
