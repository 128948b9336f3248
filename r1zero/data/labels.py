"""Labels with their places and worked solutions, for --check-labels: no tokenizer, nothing written."""

from collections.abc import Iterator
from typing import NamedTuple

from r1zero.data import handlers, records
from r1zero.data.prepare import DataConfig, Examples


class Labelled(NamedTuple):
    source: str
    """file:line."""
    label: str
    solution: str
    """Empty where the data has none."""


def rows(cfg: DataConfig) -> Iterator[Labelled]:
    """Every good row, in order. Raises UserError where the files cannot be read."""
    examples, column = Examples(cfg), cfg.map_keys.solution
    for file in records.files(cfg.input):
        for record in records.read(file):
            example = examples.of(record)
            if not isinstance(example, str):
                solution = handlers.lookup(record.value, column) if column else None
                yield Labelled(record.source, example.label, solution if isinstance(solution, str) else "")
