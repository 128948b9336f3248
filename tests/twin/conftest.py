"""The twin, made once for the session, and tiny checkpoints."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.twin.client import Twin
from tests.twin.environment import environment
from tests.twin.project import models


@pytest.fixture(scope="session")
def twin() -> Iterator[Twin]:
    made = Twin(environment())
    yield made
    made.close()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """checkpoint(kind, seed, **changes) -> folder."""
    made: dict[str, str] = {}

    def get(kind: str, seed: int, **changes: Any) -> str:
        key = f"{kind} {seed} {sorted(changes.items())}"
        if key not in made:
            made[key] = models.write(tmp_path_factory.mktemp("model"), kind, seed, **changes)
        return made[key]

    return get
