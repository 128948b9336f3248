"""python -m pytest tests/reward/test_label_check.py      (R1ZERO_DATA=DIR for the full data sets)

Every label of the public data sets equals itself, and next to none is unreadable."""

import json
import os
from collections import defaultdict
from pathlib import Path

import pytest

from r1zero.reward import LabelRow, check_labels
from tests.reward.reward_data import read_labels

SETS = {"deepscaler": 4000, "math500": 500, "aime24": 30, "gsm8k": 8792}


def full_data() -> dict[str, list[LabelRow]]:
    """The data sets' rows, from the folder that R1ZERO_DATA names."""
    folder = Path(os.environ["R1ZERO_DATA"])
    path = folder / "deepscaler_sample.json"
    rows = json.loads(path.read_text())
    found = {"deepscaler": [LabelRow(path.name, n, r["answer"], r["solution"]) for n, r in enumerate(rows, 1)]}
    for name in ("math500", "aime24"):
        rows = map(json.loads, (folder / f"{name}.jsonl").open())
        found[name] = [LabelRow(f"{name}.jsonl", n, r["answer"], r["solution"]) for n, r in enumerate(rows, 1)]
    found["gsm8k"] = [
        LabelRow(name, n, json.loads(line)["answer"].split("####")[1].strip(), None)
        for name in ("gsm8k_train.jsonl", "gsm8k_test.jsonl")
        for n, line in enumerate((folder / name).open(), 1)
    ]
    return found


def test_all_labels_equal_themselves_and_under_half_a_percent_cannot_be_parsed(equal):
    from r1zero.reward.equality import answers

    rows, unparsable = defaultdict(int), defaultdict(int)
    for name, count, label in read_labels():
        assert equal(label, label), label
        rows[name] += count
        unparsable[name] += count * (not answers.parses(label))
    assert dict(rows) == SETS
    for name in SETS:
        print(
            f"{name}: {unparsable[name]} of {rows[name]} labels cannot be parsed ({unparsable[name] / rows[name]:.3%})"
        )
        assert unparsable[name] / rows[name] < 0.005


def test_the_report_lists_what_is_wrong_with_file_and_line():
    rows = [
        LabelRow("a.jsonl", 1, "5", r"so \boxed{5}"),
        LabelRow("a.jsonl", 2, "5", r"so \boxed{6}"),
        LabelRow("a.jsonl", 3, r"\begin{cases}", None),
        LabelRow("a.jsonl", 4, "0.5", r"\boxed{\textbf{(B)}\ \frac{1}{2}}"),
        LabelRow("a.jsonl", 5, "0.5", r"\boxed{\text{B}}"),
        LabelRow("a.jsonl", 6, "", "no box"),
    ]
    report = check_labels(rows, workers=1, deadline_s=5.0)
    assert [row.line for row in report.unparsable] == [3, 6] and report.unparsable_share == 2 / 6
    assert [(row.line, box) for row, box in report.disagreeing] == [(2, "6")]
    assert [(row.line, box) for row, box in report.choices] == [(5, r"\text{B}")]
    assert (report.rows, report.boxed, report.agreement, report.ungraded) == (6, 4, pytest.approx(2 / 3), [])
    assert any(line.startswith("a.jsonl:3:") for line in report.lines())
    assert any(line.startswith("a.jsonl:2:") and "'6'" in line and "'5'" in line for line in report.lines())


def test_the_summary_shows_ten_rows_of_a_kind_says_where_the_rest_is_and_knows_gsm8ks_mark():
    rows = [LabelRow("a.jsonl", n, f"She sold {n} clips. So:\n#### {n}", None) for n in range(25)]
    report = check_labels(rows, workers=1, deadline_s=5.0)
    summary = report.summary("out/labels.txt")
    assert (
        sum("unparsable label" in line for line in summary) == 10
        and sum("unparsable label" in line for line in report.lines()) == 25
    )
    assert summary[-1] == "... and 15 more like these in out/labels.txt"
    assert '25 labels contain "####"' in summary[1] and 'handler = "gsm8k"' in summary[1]


@pytest.mark.slow
@pytest.mark.skipif("R1ZERO_DATA" not in os.environ, reason="R1ZERO_DATA names no folder with the full data sets")
@pytest.mark.parametrize("name", SETS)
def test_solutions_of_the_full_data_agree_with_their_labels(name):
    report = check_labels(full_data()[name], workers=2, deadline_s=10.0)
    print(f"\n{name}", *report.lines(), sep="\n")
    assert report.rows == SETS[name] and report.ungraded == []
    assert report.unparsable_share < 0.005
    assert report.agreement >= 0.98
