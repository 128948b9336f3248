"""Tiny random checkpoints, each written once for the session."""

import pytest

from tests.oracles import tiny_models as models


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory):
    """checkpoint(kind, seed, **changes) -> folder."""
    made: dict[str, str] = {}

    def get(kind: str, seed: int, **changes: object) -> str:
        key = f"{kind} {seed} {sorted(changes.items())}"
        if key not in made:
            made[key] = models.write(tmp_path_factory.mktemp("model"), kind, seed, **changes)
        return made[key]

    return get
