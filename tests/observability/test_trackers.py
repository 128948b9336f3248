"""Trackers are used only if named, imported only then, and never stop a run.

python -m pytest tests/observability/test_trackers.py
"""

import sys

import pytest

from r1zero import config
from r1zero.config import CollectiveError
from r1zero.evaluation import figures
from r1zero.observability import trackers
from r1zero.observability.writer import RunWriter

STAND_IN = """
import json, pathlib
class Run:
    def __init__(self, folder): self.file = pathlib.Path(folder) / "logged.jsonl"
    def log(self, values, step):
        if step == 3: raise RuntimeError("the server is gone\\nlong story")
        with self.file.open("a") as f: f.write(json.dumps([step, values]) + "\\n")
    def finish(self): self.file.with_name("finished").touch()
def init(project, name, dir, config): return Run(dir)
"""

VALUES = {
    "grpo/rewards/mean": 0.5,
    "response_length/mean": 10.0,
    "actor/kl_loss": 0.0,
    "actor/entropy": 0.1,
    "grad_norm": float("nan"),
    "rollout_gap/mean": 1e-7,
    "e2e_tps": 10.0,
    "timing/all": 1.0,
}


EVALUATED = {
    f"eval/math/{name}": 1.0
    for name in ("pass@1", "pass@1/low", "pass@1/high", "response_length/mean", "truncated", "format")
}


@pytest.fixture
def a_wandb(tmp_path, monkeypatch):
    """A package of that name which writes to a file and fails at step 3; wandb itself is not installed here."""
    (tmp_path / "site" / "wandb").mkdir(parents=True)
    (tmp_path / "site" / "wandb" / "__init__.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    yield
    sys.modules.pop("wandb", None)


def run(folder, *names):
    cfg = config.Config(run=config.Run(iterations=4), metrics=config.Metrics(trackers=names))
    writer = RunWriter(folder, 0, cfg, 1e-5)
    for iteration in range(1, 5):
        writer.write(iteration, VALUES | EVALUATED if iteration == 2 else VALUES, {})
    writer.close()


def test_a_tracker_logs_finite_values_and_one_that_fails_is_named_once(tmp_path, a_wandb, caplog):
    run(tmp_path, "wandb")
    logged = (tmp_path / "logged.jsonl").read_text().splitlines()
    assert [line[:2] for line in logged] == ["[1", "[2", "[4"] and (tmp_path / "finished").exists()
    assert '"train/grpo/rewards/mean": 0.5' in logged[0] and "grad_norm" not in logged[0]
    assert '"eval/math/pass@1": 1.0' in logged[1]
    (said,) = (r.getMessage() for r in caplog.records if "wandb failed" in r.getMessage())
    assert said == (
        "metrics.trackers: wandb failed (RuntimeError: the server is gone); the run continues, and metrics.jsonl has "
        "all metrics"
    )
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 4
    assert not list(tmp_path.glob("events.*"))


def test_no_metric_is_a_folder_of_others_for_mlflow():
    """With mlflow 3 and a store of files, the first evaluation failed: pass@1 was a file and a folder."""
    names = {*VALUES, *(f"eval/math/{name}" for name in figures.names(3))}
    renamed = {trackers.mlflow_name(name) for name in names}
    assert len(renamed) == len(names) and not [name for name in renamed if "@" in name]
    assert not [(one, other) for one in renamed for other in renamed if other.startswith(f"{one}/")]


def test_no_tracker_is_imported_that_is_not_named(tmp_path):
    run(tmp_path, "tensorboard")
    assert list(tmp_path.glob("events.*")) and not {"wandb", "swanlab", "mlflow"} & set(sys.modules)


def test_a_tracker_that_is_not_installed_is_one_sentence():
    trackers.check(("tensorboard",))
    with pytest.raises(CollectiveError, match="names 'swanlab', which is not installed; run pip install swanlab"):
        trackers.check(("tensorboard", "swanlab"))
