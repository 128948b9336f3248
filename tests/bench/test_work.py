"""The command lines of the benchmarks: python -m pytest tests/bench/test_work.py"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest

from r1zero import config
from r1zero.config import Config
from tests import jobs
from tests.bench import commits, growth, real, step, trl, work

ROOT = Path(__file__).parents[2]
MISSING = "configs/missing.toml"


@pytest.mark.parametrize(
    "main, arguments, said",
    [
        (commits.main, ["no-such-commit", "configs/cpu.toml"], "no-such-commit: ended with status 128"),
        (commits.main, ["HEAD", MISSING], f"{MISSING}: "),
        (commits.main, ["HEAD", "configs/cpu.toml", "grpo.group_sise=4"], "group_sise"),
        (commits.main, ["configs/cpu.toml"], "give either one CONFIG or --half-billion; the configs are []"),
        (commits.main, ["HEAD", "configs/cpu.toml", "--steps", "0"], "argument --steps: '0' is not a number of at"),
        (trl.main, [MISSING, "--venv", "/dev/null/none"], f"{MISSING}: "),
        (trl.main, ["--rounds", "two", "configs/cpu.toml"], "argument --rounds: 'two' is not a number of at least 1"),
        (growth.main, [MISSING], f"{MISSING}: "),
        (step.main, [MISSING, "--ranks", "1"], "ended with status 2, for the reason above"),
    ],
)
def test_wrong_arguments_end_with_a_sentence(monkeypatch, capfd, main, arguments, said):
    monkeypatch.setattr(sys, "argv", ["bench", *arguments])
    with pytest.raises(SystemExit) as end:
        work.run(main)
    assert end.value.code == 2 and said in (shown := capfd.readouterr().err) and "Traceback" not in shown


def test_the_made_job_can_be_run_in_the_folder_of_another_commit(monkeypatch, tmp_path):
    """Another one stands where the model of half a billion parameters is kept, in a folder that is named relatively."""
    made = jobs.make_base(tmp_path, "qwen2") / "base"
    folder = Path(os.path.relpath(tmp_path / "bench", ROOT))
    (tmp_path / "bench").mkdir()
    made.rename(tmp_path / "bench/tied")
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(real, "FOLDER", folder)
    parser = argparse.ArgumentParser()
    work.add_arguments(parser)
    path, ranks, overrides = work.prepare(parser, parser.parse_args(["--half-billion"]), tmp_path)
    monkeypatch.chdir(tmp_path)
    cfg = config.load(path, overrides, Config)
    assert ranks == 1 and Path(cfg.model.path, "config.json").is_file() and Path(cfg.data.path).is_dir()


def test_the_files_of_a_commit_are_those_that_git_shows(tmp_path):
    tree = commits.extract("HEAD", tmp_path / "tree")
    shown = subprocess.run(["git", "show", "HEAD:train.py"], check=True, capture_output=True).stdout
    assert (tree / "train.py").read_bytes() == shown
