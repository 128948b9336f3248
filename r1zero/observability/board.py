"""TensorBoard: scalars, a layout of the main charts, histograms, some of the responses, and hyperparameters.

Everything is written by a thread, so that a step does not wait for it.
"""

import json
from collections.abc import Mapping
from concurrent.futures import wait
from math import ceil
from pathlib import Path
from textwrap import TextWrapper
from typing import Any

from torch import Tensor

from r1zero.config import Config, plain
from r1zero.observability.recorder import describe, text
from r1zero.observability.trackers import Background

LAYOUT = {
    "Overview": {
        "reward": ["Multiline", ["train/grpo/rewards/mean$"]],
        "response length": ["Multiline", ["train/response_length/mean$"]],
        "evaluation (pass@1)": ["Multiline", ["eval/[^/]+/pass@1$"]],
        "gap of engine and trainer": ["Multiline", ["train/rollout_gap/mean$"]],
    },
    "Details": {
        "in format": ["Multiline", ["train/response_format/mean$", "eval/[^/]+/format$"]],
        "KL to the reference": ["Multiline", ["train/actor/kl_loss$"]],
        "entropy": ["Multiline", ["train/actor/entropy$"]],
        "gradient norm": ["Multiline", ["train/grad_norm$"]],
    },
}
"""The charts of TensorBoard's custom scalars: tags as regular expressions."""

HYPERPARAMETERS = (
    "model.path",
    "data.path",
    "run.seed",
    "run.iterations",
    "run.dtype",
    "grpo.prompts_per_iteration",
    "grpo.group_size",
    "grpo.mini_batches",
    "grpo.epochs",
    "grpo.kl_coef",
    "grpo.kl_estimator",
    "grpo.advantage",
    "grpo.importance_ratio",
    "grpo.surrogate",
    "grpo.clip_low",
    "grpo.clip_high",
    "grpo.aggregation",
    "grpo.overlong",
    "grpo.dynamic_sampling",
    "optimizer.lr",
    "optimizer.clip_grad",
    "optimizer.weight_decay",
    "rollout.temperature",
    "rollout.max_response_tokens",
    "reward.rules",
)
"""The config keys that are shown as hyperparameters."""

TEXTS = 50
"""The responses of about this many iterations are written. TensorBoard itself shows ten of them."""


_WRAPPER = TextWrapper(100, expand_tabs=False, replace_whitespace=False, drop_whitespace=False, break_on_hyphens=False)


class Board:
    """TensorBoard's files in the folder of a run. An error is reported once, and the run continues."""

    def __init__(self, folder: Path, first: int, cfg: Config):
        """first: records of an earlier process from this iteration on are hidden."""
        self._samples, self._first, self._last = folder / "samples.jsonl", first, cfg.run.iterations
        self._read_bytes = self._newest = 0
        self._thread = Background("tensorboard")
        self._opened = self._thread.submit(lambda: _open(folder, first, cfg))

    def write(self, iteration: int, values: Mapping[str, float], distributions: Mapping[str, Tensor]) -> None:
        """Write the metrics of an iteration, and a histogram of each distribution, a tensor of any shape."""
        self._newest = iteration
        arrays = {name: tensor.detach().cpu().numpy() for name, tensor in distributions.items()}

        def log() -> None:
            board = self._opened.result()
            for name, value in values.items():
                board.add_scalar(name, value, iteration)
            for name, array in arrays.items():
                if array.size:
                    board.add_histogram(name, array, iteration)
            if self._shows_texts(iteration):
                self._write_texts(iteration)

        self._thread.submit(log)

    def flush(self) -> None:
        """Wait until everything is on the disk."""
        wait([self._thread.submit(lambda: self._opened.result().flush())])

    def close(self) -> None:
        """Write the last responses, mark the run as finished, and close the files."""

        def finish() -> None:
            self._write_texts(self._newest)
            board = self._opened.result()
            board.file_writer.add_summary(_hyperparameters({}, [])[2])
            board.close()

        self._thread.submit(finish)
        self._thread.close()

    def _shows_texts(self, iteration: int) -> bool:
        return iteration in (1, self._last) or iteration % ceil(self._last / TEXTS) == 0

    def _write_texts(self, until: int) -> None:
        """Write the lines of samples.jsonl up to an iteration that have not been read yet, one text per position.

        Another rank may have written the lines, and may be writing those of the next iteration.
        """
        if not self._samples.is_file():
            return
        position: dict[int, int] = {}
        with self._samples.open("rb") as file:
            file.seek(self._read_bytes)
            for line in file:
                if not line.endswith(b"\n") or (at := (row := json.loads(line))["iteration"]) > until:
                    break
                self._read_bytes += len(line)
                position[at] = position.get(at, 0) + 1
                if at >= self._first and self._shows_texts(at):
                    self._opened.result().add_text(f"samples/{position[at]}", markdown(row), at)


def _open(folder: Path, first: int, cfg: Config) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    board: Any = SummaryWriter(str(folder), purge_step=first)
    board.add_custom_scalars(LAYOUT)
    results = ["train/grpo/rewards/mean", "train/response_length/mean"]
    results += [f"eval/{name}/pass@1" for name in cfg.evaluation.sets]
    # SummaryWriter.add_hparams would write them as another run, in a folder of its own.
    for summary in _hyperparameters(chosen_fields(cfg), results)[:2]:
        board.file_writer.add_summary(summary)
    return board


def _hyperparameters(values: dict[str, Any], results: list[str]) -> tuple[Any, Any, Any]:
    """Returns the summaries of the experiment, of the start of a run, and of its end. results: tags of scalars."""
    from torch.utils.tensorboard.summary import hparams

    return hparams(values, dict.fromkeys(results, 0))


def chosen_fields(cfg: Config) -> dict[str, Any]:
    """Returns the values of HYPERPARAMETERS. A value that is neither a number nor a text is written as JSON."""
    tree, found = plain(cfg), {}
    for name in HYPERPARAMETERS:
        section, field = name.split(".")
        value = tree[section][field]
        found[name] = value if isinstance(value, bool | int | float | str) else json.dumps(value, ensure_ascii=False)
    return found


def markdown(row: dict[str, Any]) -> str:
    """Returns a line of samples.jsonl as Markdown.

    Its texts are indented, so that their characters have no effect on the page, and wrapped, because TensorBoard cuts
    long lines off.
    """
    parts = (("", describe(row)), ("prompt", text(row, "prompt")), ("response", text(row, "response")))
    return "\n\n".join(f"**{name}**\n\n{_verbatim(part)}" if name else _verbatim(part) for name, part in parts)


def _verbatim(text: str) -> str:
    lines = (part for line in text.splitlines() or [""] for part in _WRAPPER.wrap(line) or [""])
    return "\n".join("    " + line for line in lines)
