"""The project's engine over the real vllm-ascend 0.23.0, against transformers in fp32."""

from collections.abc import Callable

import pytest

from tests.twin import engines, project
from tests.twin.client import Twin
from tests.twin.project import Case

TOLERANCE = 1e-5
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 128}
LENGTHS = [5, 9, 14, 20, 33, 40]


def test_qwen(twin: Twin, checkpoint: Callable[..., str]) -> None:
    old, new = checkpoint("dense", 1), checkpoint("dense", 2)
    case = Case(old, (old, new, old), project.prompts(LENGTHS))
    (life,) = twin.run(engines.live, case)
    for path, answer in zip(case.loads, life.answers, strict=True):
        print(project.gap(case, answer, path))
        assert project.gap(case, answer, path) < TOLERANCE
    print(life.worker, life.model, life.calls, life.held)
