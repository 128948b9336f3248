"""Filtering, ordering and splitting of prompts.

python -m pytest tests/data/test_selection.py
"""

import json
import re
from pathlib import Path

import pytest

import preprocess
from r1zero.batch import Prompt
from r1zero.data import pass_rates, store
from r1zero.data.prompts import PromptSet


@pytest.fixture
def made(tokenizer_path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Preprocesses problems 0+0 .. 19+19 with overrides; gives the exit status, the words and the labels kept."""
    rows = [{"problem": f"{i}+{i}", "answer": str(2 * i)} for i in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[3]]))

    def call(*overrides: str, output: str = "out") -> tuple[int, str, list[str]]:
        folder = tmp_path / output
        fixed = [f"input={tmp_path}/rows.jsonl", f"tokenizer={tokenizer_path}", f"output={folder}"]
        status = preprocess.main(["configs/data/quickstart.toml", *fixed, *overrides])
        prompts = PromptSet.open(str(folder)) if status == 0 else []
        return status, capsys.readouterr().err, [prompts[i].label for i in range(len(prompts))]

    return call


def write_rates(path: Path, folder: Path, rates: dict[str, float]) -> None:
    prompts = PromptSet.open(str(folder))
    found = {prompts[i].label: prompts[i] for i in range(len(prompts))}
    pass_rates.write(path, [("x:1", found[label], 4, round(4 * rate)) for label, rate in rates.items()])


def test_without_a_selection_every_row_is_kept(made):
    assert made()[2] == [str(2 * i) for i in range(20)] + ["6"]


def test_duplicates_limit_and_sample(made, tmp_path):
    assert made("selection.deduplicate=true")[2] == [str(2 * i) for i in range(20)]
    _, words, labels = made("selection.limit=3")
    assert labels == ["0", "2", "4"] and re.search(r"left out by \[selection\] *│ 18 ", words)
    once = made("selection.sample=5")[2]
    assert made("selection.sample=5")[2] == once and len(once) == 5 and once == sorted(once, key=int)
    assert made("selection.sample=5", "selection.seed=1")[2] != once
    meta = json.loads((tmp_path / "out" / store.META).read_text())
    assert meta["counts"] == {"rows": 21, "kept": 5, "too_long": 0, "bad": 0, "left_out": 16}


def test_both_sides_of_a_split_hold_every_row_once_and_equal_rows_together(made):
    train = made("selection.split=train", "selection.held_out_share=0.4")[2]
    held_out = made("selection.split=held_out", "selection.held_out_share=0.4")[2]
    assert sorted(train + held_out, key=int) == sorted([*(str(2 * i) for i in range(20)), "6"], key=int)
    assert not set(train) & set(held_out) and 3 <= len(held_out) <= 13


def test_pass_rates_filter_and_order(made, tmp_path):
    made(output="all")
    write_rates(tmp_path / "rates.jsonl", tmp_path / "all", {"0": 0.0, "2": 0.25, "4": 1.0, "6": 0.75})
    given = f"selection.pass_rates={tmp_path}/rates.jsonl"
    assert made(given)[2] == ["0", "2", "4", "6", "6"]
    assert made(given, "selection.min_pass_rate=0.25", "selection.max_pass_rate=0.75")[2] == ["2", "6", "6"]
    assert made(given, "selection.order=pass_rate", "selection.deduplicate=true")[2] == ["4", "6", "2", "0"]


@pytest.mark.parametrize(
    "overrides, sentence",
    [
        (["selection.limit=-1"], "selection.limit = -1; it must be at least 0"),
        (["selection.held_out_share=2.0"], "selection.held_out_share = 2.0; it must be between 0 and 1"),
        (["selection.min_pass_rate=0.5"], "selection.min_pass_rate needs selection.pass_rates"),
        (["selection.order=pass_rate"], "selection.order needs selection.pass_rates"),
        (["selection.min_pass_rate=0.5", "selection.max_pass_rate=0.1"], "is above selection.max_pass_rate = 0.1"),
        (["selection.pass_rates=nowhere"], "nowhere: cannot be read"),
        (["selection.pass_rates={rows}"], "rows.jsonl:1: is not a line of pass rates"),
        (["selection.pass_rates={other}"], "contains none of these prompts"),
        (["selection.limt=1"], "unknown key selection.limt; the nearest known one is selection.limit"),
    ],
)
def test_a_mistake_is_one_sentence_and_nothing_is_written(made, tmp_path, overrides, sentence):
    prompt = Prompt(row=0, token_ids=(1,), label="0", text="another prompt")
    pass_rates.write(tmp_path / "other.jsonl", [("x:1", prompt, 1, 1)])
    places = {"rows": tmp_path / "rows.jsonl", "other": tmp_path / "other.jsonl"}
    status, words, _ = made(*(text.format(**places) for text in overrides))
    assert status == 2 and sentence in " ".join(words.split())
    assert not (tmp_path / "out").exists()


def test_show_prints_prompts_with_their_labels(tokenizer_path, tmp_path, capsys):
    (tmp_path / "rows.jsonl").write_text('{"problem": "1+1", "answer": 2}\n' * 3)
    fixed = [f"input={tmp_path}/rows.jsonl", f"tokenizer={tokenizer_path}", f"output={tmp_path}/out"]
    assert preprocess.main(["configs/data/quickstart.toml", *fixed, "--show", "2"]) == 0
    shown = capsys.readouterr().err
    assert shown.count("Question: 1+1=?") == 2 and shown.count("label: 2") == 2 and "prompt 2 of 3" in shown
