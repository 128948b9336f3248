import shutil

import pytest

from tests.model import oracle


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Name -> Oracle, each made when first asked for."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = oracle.make(name, tmp_path_factory.mktemp(name))
        return made[name]

    return get


@pytest.fixture
def folder(models, tmp_path):
    """A copy of the latent model that a test may spoil."""
    return shutil.copytree(models("deepseek").folder, tmp_path / "model")
