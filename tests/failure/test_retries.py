"""The launch scripts' --retries: a job that lost a rank goes on from its last checkpoint by itself.

python -m pytest tests/failure/test_retries.py -m "long or not long"
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import jobs
from tests.checkpoint.runs import board, figures

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "script, said",
    [
        pytest.param("mpirun.sh", "is started again; retries left after this one: 0", marks=pytest.mark.slow),
        pytest.param("torchrun.sh", "exitcode: -9", marks=pytest.mark.long),
    ],
)
def test_a_job_that_lost_a_rank_goes_on_from_its_last_checkpoint(base, tmp_path, script, said):
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "TRAIN": "tests/failure/job.py",
        "OMP_NUM_THREADS": "1",
        "R1ZERO_ACCIDENT": f"kill 1 update 2 0 {tmp_path / 'happened'}",
    }
    command = [
        str(ROOT / "launch" / script),
        "--retries",
        "1",
        "2",
        str(base / "job.toml"),
        f"run.dir={tmp_path}",
        "run.iterations=3",
        "checkpoint.every_iterations=1",
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (tmp_path / "happened").exists() and said in done.stderr
    assert [line["iteration"] for line in figures(tmp_path / "job")] == [1, 2, 3]
    assert [step for step, _ in board(tmp_path / "job", "grad_norm")] == [1, 2, 3]
    assert not jobs.alive(str(tmp_path))
