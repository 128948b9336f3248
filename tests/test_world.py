"""Rank and size from any launcher's variables."""

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
