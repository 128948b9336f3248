"""Rank and size from any launcher's variables."""

import pytest

from r1zero.config import UserError
from r1zero.distributed import launcher
from r1zero.distributed.launcher import Launch, read_launch


@pytest.mark.parametrize(
    "environment, launch",
    [
        ({}, Launch(0, 1, 0, 1, "none")),
        ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}, Launch(5, 8, 1, 4, "torchrun")),
        (
            {
                "OMPI_COMM_WORLD_RANK": "2",
                "OMPI_COMM_WORLD_SIZE": "4",
                "OMPI_COMM_WORLD_LOCAL_RANK": "0",
                "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
            },
            Launch(2, 4, 0, 2, "openmpi"),
        ),
        (
            {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"},
            Launch(1, 2, 1, 2, "mpich"),
        ),
        (
            {
                "SLURM_PROCID": "3",
                "SLURM_STEP_NUM_TASKS": "6",
                "SLURM_LOCALID": "1",
                "SLURM_STEP_TASKS_PER_NODE": "2(x3)",
            },
            Launch(3, 6, 1, 2, "srun"),
        ),
        # The shell of an sbatch script has a SLURM_PROCID but is no step: a world of one.
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "16"}, Launch(0, 1, 0, 1, "none")),
        # srun --mpi=pmi2, where Slurm sets MPICH's variables beside its own.
        (
            {
                "SLURM_PROCID": "3",
                "SLURM_STEP_NUM_TASKS": "6",
                "SLURM_LOCALID": "1",
                "SLURM_STEP_TASKS_PER_NODE": "2(x3)",
                "PMI_RANK": "3",
                "PMI_SIZE": "6",
                "PMI_FD": "9",
            },
            Launch(3, 6, 1, 2, "srun"),
        ),
        # MPICH's launcher, which starts its daemons by srun.
        (
            {
                "SLURM_PROCID": "1",
                "SLURM_STEP_NUM_TASKS": "2",
                "PMI_RANK": "5",
                "PMI_SIZE": "8",
                "MPI_LOCALRANKID": "1",
                "MPI_LOCALNRANKS": "4",
            },
            Launch(5, 8, 1, 4, "mpich"),
        ),
        # torchrun started by mpirun or srun, once a node: its agent's word counts.
        (
            {
                "RANK": "9",
                "WORLD_SIZE": "16",
                "LOCAL_RANK": "1",
                "LOCAL_WORLD_SIZE": "8",
                "TORCHELASTIC_RUN_ID": "none",
                "OMPI_COMM_WORLD_RANK": "1",
                "OMPI_COMM_WORLD_SIZE": "2",
            },
            Launch(9, 16, 1, 8, "torchrun"),
        ),
        (
            {
                "RANK": "9",
                "WORLD_SIZE": "16",
                "LOCAL_RANK": "1",
                "LOCAL_WORLD_SIZE": "8",
                "TORCHELASTIC_RUN_ID": "none",
                "PMI_RANK": "1",
                "PMI_SIZE": "2",
            },
            Launch(9, 16, 1, 8, "torchrun"),
        ),
        # torchrun's names set by hand to what srun says.
        (
            {
                "RANK": "3",
                "WORLD_SIZE": "6",
                "LOCAL_RANK": "1",
                "LOCAL_WORLD_SIZE": "2",
                "SLURM_PROCID": "3",
                "SLURM_STEP_NUM_TASKS": "6",
            },
            Launch(3, 6, 1, 2, "torchrun"),
        ),
        # By hand in the shell of srun --pty.
        (
            {"RANK": "1", "WORLD_SIZE": "2", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"},
            Launch(1, 2, 1, 2, "torchrun"),
        ),
        # mpirun inside a Slurm allocation: MPI's word counts.
        (
            {
                "SLURM_PROCID": "0",
                "SLURM_STEP_NUM_TASKS": "1",
                "OMPI_COMM_WORLD_RANK": "1",
                "OMPI_COMM_WORLD_SIZE": "2",
            },
            Launch(1, 2, 1, 2, "openmpi"),
        ),
    ],
)
def test_launchers(environment, launch):
    assert read_launch(environment) == launch


@pytest.mark.parametrize(
    "environment, words",
    [
        ({"RANK": "x", "WORLD_SIZE": "2"}, "torchrun: RANK='x' is not a number"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "torchrun: RANK='-1' is not a number"),
        ({"RANK": "1", "WORLD_SIZE": "2 "}, "torchrun: WORLD_SIZE='2 ' is not a number"),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": ""}, "torchrun: LOCAL_RANK='' is not a number"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "torchrun: rank 2 (RANK) lies outside its world of 2 (WORLD_SIZE)"),
        (
            {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "x2"},
            "srun: SLURM_STEP_TASKS_PER_NODE='x2' is",
        ),
        # A container's place among containers, under mpirun and under srun.
        (
            {"RANK": "0", "WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "16"},
            "RANK=0 WORLD_SIZE=1 and OMPI_COMM_WORLD_RANK=3 OMPI_COMM_WORLD_SIZE=16 contradict each other; unset those",
        ),
        (
            {"RANK": "0", "WORLD_SIZE": "2", "SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "16"},
            "RANK=0 WORLD_SIZE=2 and SLURM_PROCID=3 SLURM_STEP_NUM_TASKS=16 contradict each other",
        ),
        (
            {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2", "PMI_RANK": "1", "PMI_SIZE": "4"},
            "OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=2 and PMI_RANK=1 PMI_SIZE=4 contradict each other",
        ),
    ],
)
def test_nonsense_is_refused(environment, words):
    with pytest.raises(UserError) as caught:
        read_launch(environment)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "environment, speaks",
    [
        ({}, True),
        ({"RANK": "0"}, True),
        ({"RANK": "1"}, False),
        ({"RANK": "0", "OMPI_COMM_WORLD_RANK": "1"}, False),
        ({"RANK": "1", "OMPI_COMM_WORLD_RANK": "0", "SLURM_PROCID": "3"}, True),
        ({"SLURM_PROCID": "x"}, False),
    ],
)
def test_one_rank_says_what_is_wrong_with_the_launch(environment, speaks):
    assert (launcher.stand_in(environment).rank == 0) == speaks
