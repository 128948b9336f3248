"""Checks whether the labels of a data set can be graded. A label that no answer can equal gives no learning signal."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from r1zero.reward.scorer import Pool

SHOWN = 10
"""Number of rows of each kind in LabelReport.summary."""

_BATCH = 1000
_MARK = "####"


@dataclass(frozen=True)
class LabelRow:
    """A label with its location."""

    file: str
    line: int
    label: str
    solution: str | None  # worked solution, graded against the label if it boxes an answer


@dataclass
class LabelReport:
    """The results of grading each label against itself, and each solution's last box against its label."""

    rows: int = 0
    unparsable: list[LabelRow] = field(default_factory=list)  # equal only to the identical text
    marked: int = 0  # labels that contain gsm8k's mark of a final answer
    boxed: int = 0  # solutions with a boxed answer
    choices: list[tuple[LabelRow, str]] = field(default_factory=list)  # the box has a choice letter, the label a value
    disagreeing: list[tuple[LabelRow, str]] = field(default_factory=list)
    ungraded: list[LabelRow] = field(default_factory=list)  # deadline exceeded, or the worker died

    @property
    def unparsable_share(self) -> float:
        """Share of all labels that are unparsable."""
        return len(self.unparsable) / self.rows if self.rows else 0.0

    @property
    def agreement(self) -> float:
        """Share of equal pairs among the solutions whose box can be compared with the label."""
        compared = self.boxed - len(self.choices)
        return 1 - len(self.disagreeing) / compared if compared else 1.0

    def lines(self) -> list[str]:
        """Returns the whole report as lines, each row with its file and line number."""
        return [line for heading, rows in self._sections() for line in (*heading, *rows)]

    def summary(self, file: str) -> list[str]:
        """Returns the report with at most SHOWN rows of each kind. file: where the whole report is."""
        out = []
        for heading, rows in self._sections():
            out += [*heading, *rows[:SHOWN]]
            out += [f"... and {len(rows) - SHOWN} more like these in {file}"] if len(rows) > SHOWN else []
        return out

    def _sections(self) -> list[tuple[list[str], list[str]]]:
        """Returns (headings, rows) for each kind of problem."""
        labels = [f"{self.rows} labels, {len(self.unparsable)} of them unparsable ({self.unparsable_share:.2%})"]
        if self.marked:
            labels.append(
                f'{self.marked} labels contain "{_MARK}", after which gsm8k has the final answer; '
                'handler = "gsm8k" in the data\'s config uses only that as the label'
            )
        solutions = [
            (
                f"{self.boxed} solutions with a boxed answer, {len(self.choices)} of them a choice letter beside a "
                f"value; {self.agreement:.2%} of the others agree with their label"
            )
        ]
        return [
            (labels, [f"{row.file}:{row.line}: unparsable label {row.label!r}" for row in self.unparsable]),
            ([], [f"{row.file}:{row.line}: label {row.label!r} was not graded in time" for row in self.ungraded]),
            (
                solutions if self.boxed else [],
                [
                    f"{row.file}:{row.line}: the solution boxes {box!r}, but the label is {row.label!r}"
                    for row, box in self.disagreeing
                ],
            ),
        ]


def check_labels(rows: Iterable[LabelRow], workers: int, deadline_s: float) -> LabelReport:
    """Grade every label and solution in killable workers, as training does.

    Raises:
        RewardError: there are no workers, or there is no deadline.
    """
    report, pool, batch = LabelReport(), Pool([], workers, deadline_s), []
    try:
        for row in rows:
            batch.append(row)
            if len(batch) == _BATCH:
                _check_batch(report, pool, batch)
                batch = []
        _check_batch(report, pool, batch)
    finally:
        pool.close()
    return report


def _check_batch(report: LabelReport, pool: Pool, rows: list[LabelRow]) -> None:
    pool.submit([[number, "label", row.label, row.solution] for number, row in enumerate(rows)])
    results = pool.collect(range(len(rows)))
    for number, row in enumerate(rows):
        outcome, result, _ = results[number]
        report.rows += 1
        report.marked += _MARK in row.label
        if outcome != "scored":
            report.ungraded.append(row)
            continue
        if not result["parses"]:
            report.unparsable.append(row)
        if result["box"] is not None:
            report.boxed += 1
            if result["choice"]:
                report.choices.append((row, result["box"]))
            elif not result["agrees"]:
                report.disagreeing.append((row, result["box"]))
