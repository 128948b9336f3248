"""Shared fixtures. OMP_NUM_THREADS and TORCHDYNAMO_DISABLE must be set before torch is imported anywhere."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest

from tests.ranks import Ranks


@pytest.fixture(scope="session")
def ranks():
    """Runs functions as the ranks of a gloo world, and jobs: see tests/ranks.py."""
    group = Ranks()
    yield group
    group.close()
