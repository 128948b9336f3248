"""The labels of a data set with their locations and worked solutions, for --check-labels."""

from collections.abc import Iterator

from r1zero.data import fields, records
from r1zero.data.data_config import DataConfig, parts
from r1zero.data.prepare import Examples
from r1zero.reward import LabelRow

REPORT = "labels.txt"
"""File beside the prompts with every row to which --check-labels objects."""


def rows(cfg: DataConfig) -> Iterator[LabelRow]:
    """Yields every valid row, in order. Raises UserError if the files cannot be read."""
    for part in parts(cfg).values():
        examples = Examples(part)
        column = examples.keys.solution
        for file in records.files(part.input):
            for record in records.read(file):
                example = examples.of(record)
                if not isinstance(example, str):
                    solution = fields.lookup(record.value, column) if column else None
                    worked = solution if isinstance(solution, str) and solution else None
                    yield LabelRow(str(file), record.line, example.label, worked)
