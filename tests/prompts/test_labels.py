"""pytest tests/prompts/test_labels.py"""

import json
from pathlib import Path

from r1zero.config import load
from r1zero.data import labels
from r1zero.data.prepare import DataConfig


def test_labels_come_with_their_place_and_solution_and_bad_rows_are_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [
        {"problem": "p", "answer": "1", "solution": "\\boxed{1}"},
        {"problem": "p"},
        {"problem": "p", "answer": 2, "solution": None},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    cfg = load("configs/data/math500.toml", [f"input={file}"], DataConfig)
    assert list(labels.rows(cfg)) == [(f"{file}:1", "1", "\\boxed{1}"), (f"{file}:3", "2", "")]


def test_a_handlers_label_is_the_one_that_is_checked() -> None:
    cfg = load("configs/data/gsm8k.toml", ["input=tests/data/prompts/gsm8k.jsonl"], DataConfig)
    assert [row.label for row in labels.rows(cfg)] == ["72", "10"]
