"""python -m pytest tests/reward/test_reward_command.py

`python -m r1zero.reward FILE.jsonl --rules ...` as a user runs it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GOOD = r"<think>so</think><answer>\boxed{\frac{1}{2}}</answer>"


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "r1zero.reward", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
        check=False,
    )


@pytest.fixture
def responses(tmp_path):
    path = tmp_path / "responses.jsonl"

    def write(*rows: object) -> str:
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        return str(path)

    return write


def test_each_line_gets_one_line_of_json_in_order(responses, tmp_path):
    rule = tmp_path / "mine.py"
    rule.write_text("import time\n\ndef mine(response, label):\n    print('noise')\n    if response == 'slow':\n"
                    "        time.sleep(60)\n    return len(response) / 10\n")  # fmt: skip
    rows = [{"response": GOOD, "label": "0.5"}, {"response": "slow", "label": "1"}]
    rows += [{"response": rf"\boxed{{{n}}}", "label": "7", "other": None} for n in range(10)]
    done = run(responses(*rows, ""), "--rules", f"base_acc,acc,{rule}:mine", "--deadline", "1")
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.split("\n") if line]
    assert len(results) == len(rows)
    assert all(list(result) == ["outcome", "equal", "scores", "ms"] for result in results)
    assert results[0]["outcome"] == "scored" and results[0]["equal"] is True and results[0]["ms"] > 0
    assert results[0]["scores"] == {"base_acc": 1.0, "acc": 1.0, f"{rule}:mine": len(GOOD) / 10}
    assert (results[1]["outcome"], results[1]["equal"], results[1]["scores"]) == ("timeout", None, {})
    assert [result["equal"] for result in results[2:]] == [n == 7 for n in range(10)]
    assert "noise" in done.stderr


@pytest.mark.parametrize(
    "rows, arguments, sentence",
    [
        (["{}"], ["--rules", "base_ac"], 'there is no reward rule "base_ac"; the nearest known one is "base_acc"'),
        ([{"response": "x"}], [], ':1: the line must have the text or number "label"'),
        ([{"response": 5, "label": "5"}], [], ':1: the line must have the text "response"'),
        ([{"response": GOOD, "label": True}], [], ':1: the line must have the text or number "label"'),
        ([{"response": GOOD, "label": "5", "additional": 1}], [], ':1: "additional" must be an object'),
        ([{"response": GOOD, "label": "1"}, "{"], [], ":2: not a line of JSON"),
        (["[1, 2]"], [], ':1: the line must be an object with the text fields "response" and "label"'),
        (["[" * 100_000], [], ":1: not a line of JSON"),
        (["{}"], ["--deadline", "0"], "a deadline above 0 s"),
        (["{}"], ["--memory", "1", "--workers", "2"], "16 MiB of memory for each worker, not 2, 5.0 s and 1 MiB"),
    ],
)
def test_what_cannot_be_used_is_one_sentence_and_exit_status_2(responses, rows, arguments, sentence):
    done = run(responses(*rows), *arguments)
    assert done.returncode == 2 and sentence in done.stderr and "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_byte_order_mark_is_skipped_and_a_number_is_a_label_as_it_is_written(responses):
    rows = ['\ufeff{"response": "\\\\boxed{5}", "label": 5}', '{"response": "\\\\boxed{0.10}", "label": 0.10}',
            '{"response": "\\\\boxed{1}", "label": 12345678901234567890123}']  # fmt: skip
    done = run(responses(*rows), "--rules", "acc")
    assert [json.loads(line)["equal"] for line in done.stdout.splitlines()] == [True, True, False] and done.stderr == ""


def test_a_missing_file_is_a_sentence():
    done = run("/nowhere/at/all.jsonl")
    assert done.returncode == 2 and "cannot be read" in done.stderr and "Traceback" not in done.stderr


def test_a_reader_that_leaves_early_is_no_error(responses):
    path = responses(*[{"response": r"\boxed{1}", "label": "1"}] * 3000)
    done = subprocess.run(
        f"{sys.executable} -m r1zero.reward {path} | head -n 1",
        shell=True, capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert json.loads(done.stdout)["equal"] is True and done.stderr == ""
