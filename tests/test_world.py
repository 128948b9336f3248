"""Rank and size from any launcher's variables, and what a rank writes where all meet."""

import subprocess
import sys
from pathlib import Path

import pytest

from r1zero.config import UserError
from r1zero.world import Launch, read_launch


@pytest.mark.parametrize("environment, launch", [
    ({}, Launch(0, 1, 0, 1, "none")),
    ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}, Launch(5, 8, 1, 4, "torchrun")),
    ({"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "0", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"},
     Launch(2, 4, 0, 2, "openmpi")),
    ({"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}, Launch(1, 2, 1, 2, "mpich")),
    ({"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "6", "SLURM_LOCALID": "1", "SLURM_STEP_TASKS_PER_NODE": "2(x3)"},
     Launch(3, 6, 1, 2, "srun")),
    # The shell of an sbatch script has a SLURM_PROCID but is no step: a world of one.
    ({"SLURM_PROCID": "0", "SLURM_NTASKS": "16"}, Launch(0, 1, 0, 1, "none")),
    # mpirun inside a Slurm allocation: MPI's word counts.
    ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"},
     Launch(1, 2, 1, 2, "openmpi")),
])
def test_launchers(environment, launch):
    assert read_launch(environment) == launch


@pytest.mark.parametrize("environment", [{"RANK": "x", "WORLD_SIZE": "2"}, {"RANK": "2", "WORLD_SIZE": "2"}])
def test_nonsense_is_refused(environment):
    with pytest.raises(UserError, match="torchrun"):
        read_launch(environment)


JOIN = """
import os
from datetime import timedelta
import torch.distributed as dist
from r1zero import device, world

store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60))
os.environ.update(RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(store.port), TORCHELASTIC_USE_AGENT_STORE="True",
                  TORCHELASTIC_RESTART_COUNT="3")
world.join(world.read_launch(), device.ROWS["cpu"], 60)
print(*store.list_keys())
"""


def test_a_restarted_attempt_has_keys_of_its_own_in_torchruns_store():
    """It finds those of the failed attempt otherwise, addresses of processes that are gone among them, and waits for ever."""
    done = subprocess.run([sys.executable, "-c", JOIN], cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=120,
                          check=True)
    keys = done.stdout.split()
    assert keys and all(key.startswith("attempt_3/") for key in keys)
