from typing import Iterator

import pytest

from tests.rollout import models
from tests.rollout.ranks import Ranks


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    ranks = Ranks()
    yield ranks
    ranks.close()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory):
    """checkpoint(kind, seed, **changes) -> folder, written once."""
    made: dict[str, str] = {}

    def get(kind: str, seed: int, **changes: object) -> str:
        key = f"{kind}-{seed}-" + "-".join(f"{k}={v}" for k, v in sorted(changes.items()))
        if key not in made:
            made[key] = models.write(tmp_path_factory.mktemp("model"), kind, seed, **changes)
        return made[key]
    return get
