"""A run that was cut off and started again is the run that was not: metrics, samples, TensorBoard and weights.

python -m pytest tests/checkpoint/test_resume.py
"""

import contextlib
import dataclasses
import io
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from r1zero import config
from r1zero.config import MegatronGrid, UserError, VllmGrid
from tests import jobs, patience
from tests.checkpoint.runs import check_equal, figures


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory):
    return jobs.make_base(tmp_path_factory.mktemp("qwen2"), "qwen2")


class CutOff(Exception):
    pass


def run(rank, cfg, last):
    """The run, cut off after the metrics of iteration `last` were written."""

    def use(trainer):
        step = trainer.step

        def cut(iteration):
            if iteration > last:
                raise CutOff
            return step(iteration)

        trainer.step = cut
        trainer.roles.close = lambda: None  # left to with_trainer
        with contextlib.suppress(CutOff):
            trainer.run()
        return trainer.done

    return jobs.with_trainer(rank, cfg, use)


def refused(rank, cfg):
    try:
        jobs.with_trainer(rank, cfg, lambda trainer: trainer.run())
    except UserError as error:
        return str(error)


LAYOUTS = {
    "alone": (1, config.Layout()),
    "train DP2, two engines": (2, config.Layout()),
    "train TP2, rollout TP2": (
        2,
        config.Layout(train=MegatronGrid(tensor_model_parallel_size=2), rollout=VllmGrid(tensor_parallel_size=2)),
    ),
    "three grids": (
        3,
        config.Layout(train=MegatronGrid(ranks="1"), reference=MegatronGrid(ranks="0"), rollout=VllmGrid(ranks="2")),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_run_cut_off_past_its_checkpoint_goes_on_as_if_it_never_was(ranks, qwen2, tmp_path, name):
    size, layout = LAYOUTS[name]
    cfg = jobs.job_config(
        qwen2, layout, run=dict(dir=str(tmp_path), iterations=4), checkpoint=dict(every_iterations=2, keep=2)
    )
    named = {name: dataclasses.replace(cfg, run=dataclasses.replace(cfg.run, name=name)) for name in ("whole", "cut")}
    assert ranks.run(run, named["whole"], 4, size=size) == [4] * size
    assert ranks.run(run, named["cut"], 3, size=size) == [3] * size
    assert len(figures(tmp_path / "cut")) == 3 and (tmp_path / "cut/checkpoints/latest").read_text() == "step_2\n"
    assert ranks.run(run, named["cut"], 4, size=size) == [4] * size
    check_equal(tmp_path / "whole", tmp_path / "cut", 4)
    # To the original weights, which a resumed run must not take from the checkpoint.
    assert figures(tmp_path / "whole")[3]["actor/kl_loss"] > 0


@pytest.mark.slow
def test_rounds_and_mini_batches_go_on_where_they_were(ranks, qwen2, tmp_path):
    """The order of prompts after a round too many, and that of mini-batches."""
    cfg = jobs.job_config(
        qwen2,
        config.Layout(),
        run=dict(dir=str(tmp_path), iterations=4),
        grpo=dict(
            prompts_per_iteration=4, group_size=4, kl_coef=0.05, dynamic_sampling=True, max_rounds=3, mini_batches=2
        ),
        reward=dict(rules={jobs.RARE_RULE: 1.0}),
        checkpoint=dict(every_iterations=2, keep=2),
    )
    named = {name: dataclasses.replace(cfg, run=dataclasses.replace(cfg.run, name=name)) for name in ("whole", "cut")}
    assert ranks.run(run, named["whole"], 4, size=2) == [4, 4]
    assert ranks.run(run, named["cut"], 3, size=2) == [3, 3]
    assert ranks.run(run, named["cut"], 4, size=2) == [4, 4]
    check_equal(tmp_path / "whole", tmp_path / "cut", 4)
    assert max(line["dynamic_sampling/rounds"] for line in figures(tmp_path / "whole")) > 1


@pytest.mark.slow
def test_another_layout_continues_the_run_within_tolerance(ranks, qwen2, tmp_path):
    cfg = jobs.job_config(
        qwen2, config.Layout(), run=dict(dir=str(tmp_path), iterations=4), checkpoint=dict(every_iterations=2, keep=2)
    )
    ranks.run(run, cfg, 4, size=1)
    whole = figures(tmp_path / "job")
    shutil.rmtree(tmp_path / "job/checkpoints/step_4")
    tp2 = dataclasses.replace(cfg, layout=LAYOUTS["train TP2, rollout TP2"][1])
    assert ranks.run(run, tp2, 4, size=2) == [4, 4]
    for one, other in zip(whole, figures(tmp_path / "job"), strict=True):
        for key in ("grad_norm", "actor/kl_loss", "grpo/rewards/mean"):
            assert other[key] == pytest.approx(one[key], rel=1e-5, abs=1e-5), (one["iteration"], key)


@pytest.mark.slow
def test_a_run_that_must_not_resume_refuses_a_folder_with_a_checkpoint(ranks, qwen2, tmp_path):
    cfg = jobs.job_config(qwen2, config.Layout(), run=dict(dir=str(tmp_path), iterations=1))
    ranks.run(run, cfg, 1, size=2)
    before = (tmp_path / "job/metrics.jsonl").read_text()
    never = dataclasses.replace(cfg, checkpoint=config.Checkpoint(resume="never"))
    for sentence in ranks.run(refused, never, size=2):
        assert 'checkpoint.resume = "never"' in sentence and "step_1 exists" in sentence
    assert (tmp_path / "job/metrics.jsonl").read_text() == before


def printed(rank, cfg):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        run(rank, cfg, 1)
    return out.getvalue()


def test_a_finished_run_that_is_started_again_says_that_it_trained_nothing(ranks, qwen2, tmp_path):
    cfg = jobs.job_config(qwen2, config.Layout(), run=dict(dir=str(tmp_path), iterations=1))
    assert "nothing was trained" not in ranks.run(printed, cfg, size=1)[0]
    before = (tmp_path / "job/metrics.jsonl").read_text()
    (said,) = ranks.run(printed, cfg, size=1)
    assert f"{tmp_path / 'job'} already has all of its 1 iterations" in " ".join(said.split())
    assert "give another run.name" in " ".join(said.split())
    assert (tmp_path / "job/metrics.jsonl").read_text() == before


def job(folder: Path, name: str, log) -> subprocess.Popen:
    environment = {
        **os.environ,
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "OMP_NUM_THREADS": "1",
        "TORCHDYNAMO_DISABLE": "1",
    }
    mpirun = [str(Path(sys.executable).with_name("mpirun")), "-np", "2", "--oversubscribe"]
    return subprocess.Popen(
        [*mpirun, sys.executable, "-W", "ignore", "train.py", str(folder / "job.toml"), f"run.name={name}"],
        env=environment,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )


@pytest.mark.slow
def test_the_real_job_whose_launcher_is_killed_at_a_random_moment_ends_and_goes_on_by_the_same_command(qwen2, tmp_path):
    cfg = jobs.job_config(
        qwen2, config.Layout(), run=dict(dir=str(tmp_path), iterations=8), checkpoint=dict(every_iterations=1, keep=2)
    )
    (qwen2 / "job.toml").write_text(config.dump(cfg))
    seed = random.randrange(1000)
    with open(tmp_path / "log", "w") as log:
        assert patience.finish(job(qwen2, "whole", log)) == 0, (tmp_path / "log").read_text()[-3000:]
        killed = job(qwen2, "cut", log)
        metrics = tmp_path / "cut" / "metrics.jsonl"
        while killed.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") >= 2):
            time.sleep(0.05)
        time.sleep(random.Random(seed).random() * 1.0)
        os.killpg(killed.pid, signal.SIGKILL)
        killed.wait()
        gone = patience.wait(lambda: not jobs.alive(str(qwen2 / "job.toml"), "run.name=cut"), [])
        assert gone, f"seed {seed}: ranks outlive their launcher"
        # Open MPI's folder would stop a later mpirun that gets the same process id.
        shutil.rmtree(Path(tempfile.gettempdir()) / f"ompi.{killed.pid}", ignore_errors=True)
        done = len(metrics.read_bytes().splitlines())
        assert patience.finish(job(qwen2, "cut", log)) == 0, (
            f"seed {seed}, killed after {done}:\n" + (tmp_path / "log").read_text()[-3000:]
        )
    sys.stdout.write(f"seed {seed}: killed after {done} of 8 iterations\n")
    check_equal(tmp_path / "whole", tmp_path / "cut", 8)
