"""Shared fixtures. OMP_NUM_THREADS and TORCHDYNAMO_DISABLE must be set before torch is imported anywhere."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import shutil
import sys

import pytest

from tests.ranks import Ranks

WAITING = ("watchdog", "failure")
"""Folders of tests that mostly wait for deadlines of whole jobs."""


def pytest_collection_modifyitems(items):
    """Begin with the tests that wait, while others use the processor; the last one would otherwise run alone."""
    items.sort(key=lambda item: item.path.parent.name not in WAITING)


@pytest.fixture(autouse=True)
def threads_stay():
    """The number of torch's threads decides the last digits of sums, so a test that leaves another fails itself."""
    yield
    if torch := sys.modules.get("torch"):
        left, wanted = torch.get_num_threads(), int(os.environ["OMP_NUM_THREADS"])
        torch.set_num_threads(wanted)
        assert left == wanted, f"the test leaves torch with {left} threads in place of {wanted}"


@pytest.fixture(scope="session")
def ranks():
    """Runs functions as the ranks of a gloo world, and jobs: see tests/ranks.py."""
    group = Ranks()
    yield group
    group.close()


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """models(name) -> the transformers model of that name with its folder, made when it is first asked for."""
    from tests.oracles import transformers_model

    made = {}

    def get(name):
        if name not in made:
            made[name] = transformers_model.make(name, tmp_path_factory.mktemp(name))
        return made[name]

    return get


@pytest.fixture
def folder(models, tmp_path):
    """A copy of the folder of the model with latent attention, which a test may damage."""
    return shutil.copytree(models("deepseek").folder, tmp_path / "model")
