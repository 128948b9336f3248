"""Are the labels of a data set gradable? A label that nothing can equal is a prompt without signal."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from r1zero.reward.scorer import Pool

SHOWN = 10
"""Rows of each kind in LabelReport.summary."""

_BATCH = 1000
_MARK = "####"


@dataclass(frozen=True)
class LabelRow:
    file: str
    line: int
    label: str
    solution: str | None  # worked solution, graded against the label where it boxes an answer


@dataclass
class LabelReport:
    """What grading each label against itself, and each solution's last box against its label, has shown."""

    rows: int = 0
    unparsable: list[LabelRow] = field(default_factory=list)  # equal to nothing but the same letters
    marked: int = 0  # labels with gsm8k's mark of a final answer in them
    boxed: int = 0  # solutions with a boxed answer
    choices: list[tuple[LabelRow, str]] = field(
        default_factory=list
    )  # the box holds a choice letter, the label a value
    disagreeing: list[tuple[LabelRow, str]] = field(default_factory=list)
    ungraded: list[LabelRow] = field(default_factory=list)  # past the deadline, or the worker died

    @property
    def unparsable_share(self) -> float:
        return len(self.unparsable) / self.rows if self.rows else 0.0

    @property
    def agreement(self) -> float:
        """Of the solutions whose box can be compared with the label."""
        compared = self.boxed - len(self.choices)
        return 1 - len(self.disagreeing) / compared if compared else 1.0

    def lines(self) -> list[str]:
        """The whole report as sentences, each row with its file and line."""
        return [line for heading, rows in self._sections() for line in (*heading, *rows)]

    def summary(self, file: str) -> list[str]:
        """The same with at most SHOWN rows of each kind; `file` is where the whole report stands."""
        out = []
        for heading, rows in self._sections():
            out += [*heading, *rows[:SHOWN]]
            out += [f"... and {len(rows) - SHOWN} more like these in {file}"] if len(rows) > SHOWN else []
        return out

    def _sections(self) -> list[tuple[list[str], list[str]]]:
        """(headings, rows) of each kind of trouble."""
        labels = [f"{self.rows} labels, {len(self.unparsable)} of them unparsable ({self.unparsable_share:.2%})"]
        if self.marked:
            labels.append(
                f'{self.marked} labels hold "{_MARK}", after which gsm8k has the final answer; '
                'handler = "gsm8k" in the data\'s config takes that for the label'
            )
        solutions = [
            (
                f"{self.boxed} solutions with a boxed answer, {len(self.choices)} of them a choice letter beside a "
                f"value; "
                f"{self.agreement:.2%} of the others agree with their label"
            )
        ]
        return [
            (labels, [f"{row.file}:{row.line}: unparsable label {row.label!r}" for row in self.unparsable]),
            ([], [f"{row.file}:{row.line}: label {row.label!r} was not graded in time" for row in self.ungraded]),
            (
                solutions if self.boxed else [],
                [
                    f"{row.file}:{row.line}: the solution boxes {box!r}, the label is {row.label!r}"
                    for row, box in self.disagreeing
                ],
            ),
        ]


def check_labels(rows: Iterable[LabelRow], workers: int, deadline_s: float) -> LabelReport:
    """Grades every label and solution in killable workers, as training will.

    Raises:
        RewardError: no workers or no deadline.
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
