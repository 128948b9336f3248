"""pytest tests/data/test_labels.py"""

import json
from pathlib import Path

import pytest

import preprocess
from r1zero.config import load
from r1zero.data import labels
from r1zero.data.prepare import DataConfig
from r1zero.reward import LabelRow


def test_labels_come_with_their_place_and_solution_and_bad_rows_are_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [
        {"problem": "p", "answer": "1", "solution": "\\boxed{1}"},
        {"problem": "p"},
        {"problem": "p", "answer": 2, "solution": None},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    cfg = load("configs/data/math500.toml", [f"input={file}"], DataConfig)
    assert list(labels.rows(cfg)) == [LabelRow(str(file), 1, "1", "\\boxed{1}"), LabelRow(str(file), 3, "2", None)]


def test_check_labels_names_the_label_that_nothing_can_equal_and_the_solution_that_disagrees(
    tokenizer_path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [("\\frac{1}{2}", "so \\boxed{0.5}"), ("\\frac{1}{", ""), ("3", "so \\boxed{4}"), ("7", "seven")]
    file.write_text("".join(json.dumps({"problem": "p", "answer": a, "solution": s}) + "\n" for a, s in rows))
    overrides = [
        f"input={file}",
        f"tokenizer={tokenizer_path}",
        f"output={tmp_path / 'out'}",
        "dataset_additional_keys=[]",
    ]
    assert preprocess.main(["configs/data/math500.toml", "--check-labels", *overrides]) == 0
    words = capsys.readouterr().err
    assert (
        "4 labels, 1 of them unparsable (25.00%)" in words and f"{file}:2: unparsable label '\\\\frac{{1}}{{'" in words
    )
    assert (
        "2 solutions with a boxed answer" in words
        and f"{file}:3: the solution boxes '4', but the label is '3'" in words
    )
    written = (tmp_path / "out" / labels.REPORT).read_text().splitlines()
    assert len(written) == 4 and all(line in words for line in written)


def test_a_handlers_label_is_the_one_that_is_checked() -> None:
    cfg = load("configs/data/gsm8k.toml", ["input=tests/inputs/prompts/gsm8k.jsonl"], DataConfig)
    assert [row.label for row in labels.rows(cfg)] == ["72", "10"]
