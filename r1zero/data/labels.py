"""The labels of a data set with their places and worked solutions, for --check-labels."""

from collections.abc import Iterator

from r1zero.data import handlers, records
from r1zero.data.prepare import DataConfig, Examples
from r1zero.reward import LabelRow

REPORT = "labels.txt"
"""Beside the prompts: every row that --check-labels has found fault with."""


def rows(cfg: DataConfig) -> Iterator[LabelRow]:
    """Every good row, in order. Raises UserError where the files cannot be read."""
    examples, column = Examples(cfg), cfg.map_keys.solution
    for file in records.files(cfg.input):
        for record in records.read(file):
            example = examples.of(record)
            if not isinstance(example, str):
                solution = handlers.lookup(record.value, column) if column else None
                worked = solution if isinstance(solution, str) and solution else None
                yield LabelRow(str(file), record.line, example.label, worked)
