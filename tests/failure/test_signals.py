"""A signal to one rank: all finish the step, save and end well; by the clock they save, too.

python -m pytest tests/failure/test_signals.py
"""

import json

import pytest


def iterations(folder):
    return [json.loads(line)["iteration"] for line in (folder / "metrics.jsonl").read_bytes().splitlines()]


@pytest.mark.slow
def test_a_signal_to_any_rank_saves_the_step_and_ends_the_run_well(ranks, base, tmp_path):
    arguments, log = [str(base / "job.toml"), f"run.dir={tmp_path}", "run.iterations=9"], tmp_path / "log"
    for iteration, (signal, rank, phase) in enumerate(
        [("TERM", 1, "rollout"), ("USR1", 0, "update"), ("INT", 1, "update")], start=1
    ):
        ended = ranks.job(2, arguments, log, f"{signal} {rank} {phase} {iteration} 0")
        assert ended["statuses"] == [0, 0] and not ended["left"], log.read_text()[-3000:]
        assert iterations(tmp_path / "job") == list(range(1, iteration + 1))
        assert (tmp_path / "job/checkpoints/latest").read_text() == f"step_{iteration}\n"
    # Rank 0 says it once, when it hears the signal from a user.
    assert log.read_text().count("finishing this step and saving, then the run ends") == 1
    ended = ranks.job(2, arguments, log, "INT-INT 0 update 4 0", launcher_kills=True)
    assert -2 in ended["statuses"] and not ended["left"]
    assert (tmp_path / "job/checkpoints/latest").read_text() == "step_3\n"


@pytest.mark.slow
def test_the_clock_saves_and_a_failed_save_stops_the_run_or_does_not(ranks, base, tmp_path):
    arguments, log = (
        [str(base / "job.toml"), f"run.dir={tmp_path}", "run.iterations=2", "checkpoint.every_minutes=0.0001"],
        tmp_path / "log",
    )
    (tmp_path / "job").mkdir()
    (tmp_path / "job/checkpoints").write_text("a file where a folder must be")
    ended = ranks.job(1, arguments, log)
    assert ended["statuses"] == [2] and iterations(tmp_path / "job") == [1]
    said = log.read_text()
    assert said.count("step_1: cannot be written") == 1 and "Traceback" not in said
    ended = ranks.job(1, [*arguments, "checkpoint.on_failed_save=continue"], log)
    assert ended["statuses"] == [2] and iterations(tmp_path / "job") == [1, 2], (
        "after the last iteration nothing is forgiven"
    )
    said = log.read_text()
    assert (
        said.count('the run continues, because checkpoint.on_failed_save = "continue"') == 1 and "Traceback" not in said
    )
