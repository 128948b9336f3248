"""What is kept of the responses, the first look at them, and the line about a long step.

python -m pytest tests/observability/test_recorder.py
"""

import json
import threading

import pyarrow.parquet as pq
import pytest
import torch

from r1zero import config, samples
from r1zero.batch import Prompt, Response
from r1zero.distributed.layout import carve
from r1zero.grading import Graded, Samples
from r1zero.observability import first_steps, recorder
from r1zero.observability.progress import Progress

TEXTS = {1: r"<think>a</think><answer>\boxed{2}</answer>", 2: "no", 3: "\x00 é", 4: ""}


def made(folder, dump, rank=0, size=2):
    cfg = config.Config(
        grpo=config.Grpo(group_size=2), metrics=config.Metrics(dump=dump, dump_samples=1), reward=config.Reward()
    )
    return recorder.SampleRecorder(
        cfg, carve(cfg.layout, size), rank, folder, lambda response: TEXTS[response.token_ids[0]]
    )


def batch():
    prompts = [
        Prompt(row=7, token_ids=(1,), label="2", text="1+1"),
        Prompt(row=3, token_ids=(1,), label="4", text="2+2"),
    ]
    answers = [
        Response(p, s, [1 + 2 * p + s, 0], [0.0, 0.0], "length" if p else "stop") for p in (0, 1) for s in (0, 1)
    ]
    rewards, outcomes = torch.tensor([1.0, -0.5, 0.25, 0.0]), torch.tensor([0, 0, 0, 1])
    return Samples(prompts, answers, 0), Graded(rewards, outcomes == 0, outcomes, {"base_acc": rewards}, rewards)


def test_a_few_samples_or_all_are_kept_and_read_back(tmp_path):
    for iteration in (1, 2):
        one = made(tmp_path, "all", rank=0)
        one.record(iteration, *batch())
        other = made(tmp_path, "all", rank=1)
        other.record(iteration, *batch())
        one.close(), other.close()
    assert len((tmp_path / "samples.jsonl").read_text().splitlines()) == 2
    table = pq.read_table(tmp_path / "samples" / "iteration_2")  # a folder of parts, as pandas reads it
    assert table.num_rows == 8 and {"prompt", "response", "label", "reward", "length"} <= set(table.column_names)
    rows = recorder.read(tmp_path, 2)
    assert [r["response"] for r in rows[:4]] == list(TEXTS.values()) and rows[0]["row"] == 7
    assert [r["reward"] for r in rows[:4]] == [1.0, -0.5, 0.25, None] and rows[3]["outcome"] == "timeout"
    one = made(tmp_path, "few")
    one.truncate_after(1)
    assert [p.name for p in (tmp_path / "samples").iterdir()] == ["iteration_1"]
    assert [json.loads(text)["iteration"] for text in (tmp_path / "samples.jsonl").read_text().splitlines()] == [1]


def test_without_a_dump_only_the_first_engine_writes_and_nothing_else(tmp_path):
    for rank in (0, 1):
        one = made(tmp_path, "few", rank=rank)
        one.record(1, *batch())
        one.close()
    assert [p.name for p in tmp_path.iterdir()] == ["samples.jsonl"]
    assert len(recorder.read(tmp_path, None)) == 1


def test_a_flush_waits_for_the_file(tmp_path, monkeypatch):
    may_write, write = threading.Event(), recorder.tables.write
    monkeypatch.setattr(recorder.tables, "write", lambda *given: (may_write.wait(), write(*given)))
    one = made(tmp_path, "all")
    one.record(1, *batch())
    file = tmp_path / "samples" / "iteration_1" / "engine_0.parquet"
    assert not file.exists()
    may_write.set()
    one.flush()
    assert file.exists()
    one.close()


def test_a_dump_that_cannot_be_written_does_not_stop_the_run(tmp_path, caplog):
    (tmp_path / "samples").write_text("in the way")
    one = made(tmp_path, "all")
    one.record(1, *batch())
    one.close()
    assert "metrics.dump: the responses of an iteration were not written (" in caplog.text


def test_the_worst_and_the_best_are_shown_in_the_terminal(tmp_path, capsys):
    one = made(tmp_path, "all")
    one.record(10, *batch())
    one.close()
    assert samples.main([str(tmp_path), "--iteration", "10", "--worst", "2", "--best", "1"]) == 0
    shown = capsys.readouterr().out
    places = [shown.index(f"iteration 10, {what}") for what in ("timeout", "reward -0.5", "reward 1 ")]
    assert places == sorted(places) and shown.count("iteration 10") == 3 and r"\boxed{2}" in shown


def test_what_a_line_lacks_is_left_blank(tmp_path, capsys):
    lines = [
        {},
        {"reward": "1.0", "scores": [1], "label": 2, "prompt": None, "response": "of text"},
        {"reward": 10**400, "scores": {"acc": "much", "format": 0.5}, "outcome": "failed"},
        {"reward": 1, "scores": None, "label": "7", "response": r"\boxed{7}"},
    ]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps({"iteration": 1, **line}) + "\n" for line in lines))
    assert samples.main([str(tmp_path), "--best", "4"]) == 0
    shown = capsys.readouterr()
    titles = [line.split(" ─")[0] for line in shown.out.splitlines() if line.startswith("iteration")]
    expected = ["reward 1, label 7", "failed (format 0.5)", "no reward", "no reward"]
    assert titles == [f"iteration 1, {title}" for title in expected] and not shown.err
    assert "of text" in shown.out and r"\boxed{7}" in shown.out


@pytest.mark.parametrize("option", ["--worst", "--best"])
def test_a_negative_number_of_samples_is_one_sentence(tmp_path, capsys, option):
    one = made(tmp_path, "few")
    one.record(1, *batch())
    one.close()
    assert samples.main([str(tmp_path), option, "-3"]) == 2
    shown = capsys.readouterr()
    assert shown.err == f"{option} -3: must be at least 0; give the number of samples to show\n" and not shown.out


@pytest.mark.parametrize(
    "arguments, sentence", [([], "contains no samples;"), (["--iteration", "9"], "of iteration 9;")]
)
def test_a_folder_without_samples_is_one_sentence(tmp_path, capsys, arguments, sentence):
    assert samples.main([str(tmp_path), *arguments]) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1


GOOD = {
    "grpo/rewards/min": 0.0,
    "grpo/rewards/max": 1.0,
    "response_format/mean": 0.1,
    "response_length/clip_ratio": 0.0,
}


@pytest.mark.parametrize(
    "changed, rules, words",
    [
        ({}, {"base_acc": 1.0}, []),
        ({"response_format/mean": 0.0}, {"math_17k_acc": 1.0}, []),
        ({"response_format/mean": 0.0}, {"base_acc": 1.0, "acc": 0.5}, ["format required by base_acc", "template"]),
        ({"grpo/rewards/max": 0.0}, {"acc": 1.0}, ["all rewards of the first iteration are 0", "base model"[5:]]),
        (
            {"response_format/mean": 0.0, "response_length/clip_ratio": 0.9},
            {"format": 1.0},
            ["raise rollout.max_response_tokens (90% of the responses were cut off)"],
        ),
    ],
)
def test_a_first_iteration_with_nothing_to_learn_from_is_named_with_cures(changed, rules, words):
    said = first_steps.finding(GOOD | changed, rules)
    assert bool(said) == bool(words) and all(word in said for word in words)


def test_the_first_look_shows_a_response_once_on_one_rank(tmp_path, capsys):
    for rank in (0, 1):
        one = made(tmp_path, "few", rank=rank)
        one.record(1, *batch())
        one.look_at_first(GOOD | {"response_format/mean": 0.0})
        one.look_at_first(GOOD)
    said = capsys.readouterr().out
    assert said.count("first iteration: ") == 1 and r"</answer>" in said


def test_the_line_of_a_long_phase_has_counts_speed_and_time_left():
    now = [0.0]
    progress = Progress(lambda: now[0])
    progress.phase("rollout", 3)
    progress.expect(10)
    now[0] = 20.0
    assert progress.line() == "iteration 3: rollout, 20 s, 0 of 10 responses of this engine finished"
    for length in (100, 400, 300, 200):
        progress.see([Response(0, 0, [0] * length, [], "stop")])
    assert progress.line() == (
        "iteration 3: rollout, 20 s, 4 of 10 responses of this engine finished (50 tokens/s, the longest has "
        "400 tokens), about 30 s left"
    )
    progress.begin("evaluation of math", 4)
    now[0] = 24.0
    progress.see([Response(0, 0, [0] * 80, [], "stop")])
    assert progress.line() == (
        "iteration 3: evaluation of math, 4 s, 1 of 4 responses of this engine finished (20 tokens/s, the longest has "
        "80 tokens), about 12 s left"
    )
    now[0] = 20.0
    progress.phase("update", 3)
    now[0] = 52.0
    assert progress.line() == "iteration 3: update, 32 s"
    progress.phase("", 3)
    assert progress.line() == ""
