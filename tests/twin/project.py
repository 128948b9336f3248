"""All that the twin takes from the project and its other tests, in one place: a module that moves or is renamed is one edit here."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from r1zero import config, device, layout
from r1zero.batch import Prompt, Response
from r1zero.config import Config, VllmGrid
from tests import jobs
from tests.rollout import models
from tests.rollout.cases import Answer, Case, prompts, share, texts
from tests.rollout.oracle import expected, gap

KIND = "npu"
DEVICE = device.ROWS[KIND]


def import_everything() -> None:
    """What a run on an NPU imports, in its order."""
    device.start(KIND, 0)
    with device.quiet_imports():
        import vllm.model_executor.models.qwen2  # noqa: F401
        import vllm.v1.engine.llm_engine
        import vllm_ascend.worker.worker  # noqa: F401

        import r1zero.reshard.run
        import r1zero.trainer  # noqa: F401


def carve(case: Case, size: int) -> layout.Layout:
    return layout.carve(case.cfg.layout, size)


def build_engine(case: Case, rank: int, size: int) -> Any:
    from r1zero.rollout.vllm_engine import Engine

    cfg = dataclasses.replace(case.cfg, run=dataclasses.replace(case.cfg.run, device=KIND))
    return Engine(cfg, carve(case, size), rank, stop_token_ids=list(case.stop_token_ids), forbidden_ids=list(case.forbidden_ids))


def model_of(engine: Any) -> torch.nn.Module:
    return engine._model


def worker_of(engine: Any) -> Any:
    return engine._llm.llm_engine.model_executor.driver_worker.worker


def weights_for(engine: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    """Of a checkpoint, what this rank's engine keeps."""
    from r1zero.rollout.vllm_engine import EXPERT

    for name, tensor in models.weights(path):
        expert = EXPERT.search(name)
        if not expert or int(expert[1]) in engine.owned_experts:
            yield name, tensor


def short_job(folder: Path, grids: config.Layout, **sections: dict[str, Any]) -> Path:
    """The config file of a job of a few iterations on NPUs. sections override fields: grpo={"kl_coef": 0.0}."""
    sections["run"] = {"device": KIND, **sections.get("run", {})}
    cfg = jobs.job_config(folder, grids, **sections)
    path = folder / f"{cfg.run.name}.toml"
    path.write_text(config.dump(cfg), encoding="utf-8")
    return path


make_base, metrics_of = jobs.make_base, jobs.metrics_of

__all__ = ["Answer", "Case", "Config", "DEVICE", "KIND", "Prompt", "Response", "VllmGrid", "build_engine", "carve", "config", "expected", "gap",
           "import_everything", "model_of", "models", "prompts", "share", "texts", "weights_for", "worker_of"]
