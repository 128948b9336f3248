"""run.deterministic: the same run twice, by processes whose generators begin differently.

python -m pytest tests/failure/test_determinism.py
"""

import os
import random

import numpy
import pytest
import torch

from r1zero.distributed import device
from tests.checkpoint.runs import check_equal


@pytest.mark.slow
def test_two_runs_are_equal_in_every_bit_of_metrics_samples_and_checkpoint(ranks, base, tmp_path):
    arguments = [str(base / "job.toml"), f"run.dir={tmp_path}", "run.iterations=2", "run.deterministic=true"]
    for name in ("one", "two"):
        assert ranks.job(2, [*arguments, f"run.name={name}"], tmp_path / "log")["statuses"] == [0, 0], (
            tmp_path / "log"
        ).read_text()[-3000:]
    check_equal(tmp_path / "one", tmp_path / "two", 2)


def test_every_generator_of_the_process_is_seeded_and_torch_refuses_what_is_not_deterministic():
    def drawn():
        device.seed(5, True)
        return random.random(), numpy.random.rand(), torch.rand(1).item()

    try:
        assert drawn() == drawn() and torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    "kind, names",
    [
        ("cpu", set()),
        ("cuda", {"CUBLAS_WORKSPACE_CONFIG", "NCCL_ALGO"}),
        ("npu", {"HCCL_DETERMINISTIC", "LCCL_DETERMINISTIC", "CLOSE_MATMUL_K_SHIFT", "ATB_MATMUL_SHUFFLE_K_ENABLE"}),
    ],
)
def test_a_device_gets_what_libraries_outside_torch_read(monkeypatch, kind, names):
    for name in names:
        monkeypatch.setenv(name, "whatever the user had")
    device.make_deterministic(kind)
    assert dict(device.DEVICES[kind].deterministic).keys() == names
    assert all(os.environ[name] == value for name, value in device.DEVICES[kind].deterministic)
