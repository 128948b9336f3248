"""python -m pytest tests/reward/test_unscored.py"""

import json
import math

import pytest

from r1zero.reward import RewardError, Score, dump_unscored, refuse_share

SCORED = Score("scored", 1.0, {"acc": 1.0}, True, 0.5)
TIMEOUT = Score("timeout", math.nan, {}, None, 5000.0)
FAILED = Score("failed", math.nan, {}, None, 12.0)


def test_the_texts_of_ungraded_samples_are_kept(tmp_path):
    path = tmp_path / "samples" / "unscored.jsonl"
    scores = {"a": SCORED, "b": TIMEOUT, "c": FAILED}
    texts = {key: (f"response {key} \ud800", f"label {key}") for key in scores}
    assert dump_unscored(path, scores, texts) == 2
    assert dump_unscored(path, {"b": TIMEOUT}, texts) == 1
    rows = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert [(row["outcome"], row["label"]) for row in rows] == [
        ("timeout", "label b"), ("failed", "label c"), ("timeout", "label b"),
    ]  # fmt: skip
    assert rows[0]["response"] == "response b \ud800"


def test_nothing_is_written_when_all_are_scored(tmp_path):
    assert dump_unscored(tmp_path / "none.jsonl", {"a": SCORED}, {}) == 0
    assert list(tmp_path.iterdir()) == []


def test_a_run_with_too_many_ungraded_samples_is_stopped_with_a_sentence():
    refuse_share(timeouts=1, failures=1, samples=20, max_share=0.1)
    refuse_share(timeouts=0, failures=0, samples=0, max_share=0.0)
    with pytest.raises(RewardError, match=r"3 of 20 samples \(15.0%\).*more than the 10.0% allowed: 2 ran.*1 failed"):
        refuse_share(timeouts=2, failures=1, samples=20, max_share=0.1)
