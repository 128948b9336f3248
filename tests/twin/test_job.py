"""train.py with run.device = "npu" on two ranks: rollout, reward, reference, update, reshard in place, save and resume.

    python -m pytest tests/twin/test_job.py

With R1ZERO_MINDSPEED the real adaptor patches megatron-core and torch; without it a stand-in does what megatron-core
needs."""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.twin import jobs, project
from tests.twin.client import Twin
from tests.twin.project import Layout, MegatronGrid, VllmGrid

pytestmark = pytest.mark.slow
TOLERANCE = 1e-5
EP2 = MegatronGrid(expert_model_parallel_size=2)
# name: (family, train, rollout)
JOBS = {
    "dense, two replicas": ("qwen2", MegatronGrid(), VllmGrid()),
    "dense, TP2": ("qwen2", MegatronGrid(tensor_model_parallel_size=2), VllmGrid(tensor_parallel_size=2)),
    "experts over TP2": ("deepseek_v3", EP2, VllmGrid(tensor_parallel_size=2, enable_expert_parallel=True)),
    "experts over DP2": ("deepseek_v3", EP2, VllmGrid(data_parallel_size=2, enable_expert_parallel=True)),
}
RESUMED = {"dense, TP2": MegatronGrid(), "experts over TP2": MegatronGrid()}
"""Another layout of the trainer, for the second half of the job."""
AWAY: dict[str, dict[str, Any]] = {"train": {"offload": True}, "optimizer": {"offload": True}}
LONG = ("dense, two replicas", "experts over DP2")
"""Two jobs show what is particular to NPUs; the others, minutes together, are run with the long tests."""
SAME = ("grpo/rewards/mean", "response_length/mean", "actor/pg_loss", "actor/kl_loss", "grad_norm", "rollout_gap/max")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {family: project.make_base(tmp_path_factory.mktemp(family), family) for family in ("qwen2", "deepseek_v3")}


@pytest.fixture(scope="module")
def whole(twin: Twin, bases: dict[str, Path]) -> dict[str, list[dict[str, float]]]:
    """Metrics of each job's two iterations, run at a stretch when first asked for."""

    class Runs(dict):
        def __missing__(self, name: str) -> list[dict[str, float]]:
            self[name] = run(twin, bases, name, JOBS[name][1], "whole", 2)
            return self[name]

    return Runs()


def run(
    twin: Twin,
    bases: dict[str, Path],
    name: str,
    grid: MegatronGrid,
    kind: str,
    iterations: int,
    **sections: dict[str, Any],
) -> list[dict[str, float]]:
    """Metrics of a job of JOBS in a folder of its kind's own. grid: the trainer's."""
    family, _, rollout = JOBS[name]
    path = project.short_job(
        bases[family],
        Layout(train=grid, rollout=rollout),
        run={"name": folder_name(name, kind), "iterations": iterations},
        **sections,
    )
    assert twin.run(jobs.train, [str(path)], size=2, world=False) == [0, 0]
    return project.metrics_of(path)


def folder_name(name: str, kind: str) -> str:
    return f"{kind} {name}".replace(" ", "_").replace(",", "")


def chosen(names: Iterable[str]) -> list[Any]:
    return [pytest.param(name, marks=[pytest.mark.long] * (name in LONG)) for name in names]


@pytest.mark.parametrize("name", chosen(JOBS))
def test_the_engines_agree_with_the_trainer_after_every_update(
    whole: dict[str, list[dict[str, float]]], name: str
) -> None:
    """Weights reach the engines in place, after their sleep, through all that vllm-ascend does to them."""
    first, second = whole[name]
    assert max(first["rollout_gap/max"], second["rollout_gap/max"]) < TOLERANCE
    assert first["actor/kl_loss"] == 0.0 < 0.01 < second["actor/kl_loss"], "the update changed nothing"


@pytest.mark.parametrize("name", chosen(RESUMED))
def test_a_job_that_resumes_is_the_one_that_was_not_stopped(
    twin: Twin, bases: dict[str, Path], whole: dict[str, Any], name: str
) -> None:
    """Bit by bit in the same layout; in another one as close as another order of sums."""
    run(twin, bases, name, JOBS[name][1], "stopped", 1)
    base = bases[JOBS[name][0]]
    shutil.copytree(
        project.run_folder(base, folder_name(name, "stopped")), project.run_folder(base, folder_name(name, "moved"))
    )
    same = run(twin, bases, name, JOBS[name][1], "stopped", 2)
    other = run(twin, bases, name, RESUMED[name], "moved", 2)
    for key in SAME:
        assert same[1][key] == whole[name][1][key], key
        assert other[1][key] == pytest.approx(whole[name][1][key], rel=1e-4, abs=1e-5), key


@pytest.mark.long
@pytest.mark.parametrize("name", ["experts over TP2"])
def test_what_waits_on_the_host_changes_nothing(
    twin: Twin, bases: dict[str, Path], whole: dict[str, Any], name: str
) -> None:
    away = run(twin, bases, name, JOBS[name][1], "away", 2, **AWAY)
    for kept, moved in zip(whole[name], away, strict=True):
        for key in SAME:
            assert moved[key] == kept[key], key


def test_check_tries_everything_once(twin: Twin, bases: dict[str, Path]) -> None:
    path = project.short_job(
        bases["deepseek_v3"], Layout(train=EP2, rollout=JOBS["experts over DP2"][2]), run={"name": "check"}
    )
    assert twin.run(jobs.train, [str(path), "--check"], size=2, world=False) == [0, 0]
