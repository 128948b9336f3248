"""All that the twin takes from the project and its other tests, in one place: a module that moves or is renamed is one edit here."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from r1zero import config, device, layout
from r1zero.batch import Prompt, Response
from r1zero.config import Config, Layout, MegatronGrid, VllmGrid
from tests import jobs
from tests.model import oracle
from tests.model.oracle import LENGTHS, Oracle
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


@dataclasses.dataclass(frozen=True)
class Model:
    """A trained model on one rank of its grid."""

    chunks: list[torch.nn.Module]
    optimizer: Any
    scheduler: Any
    grids: Any
    trained: Any
    """As checkpoints see it."""

    def local_tensors(self) -> dict[str, Any]:
        """HF name -> this rank's part."""
        from r1zero.model import mapping

        return mapping.local_tensors(self.chunks, self.trained.shape, self.grids)

    def shards(self) -> list[Any]:
        """What of each parameter this rank's optimizer keeps."""
        from r1zero.model import state_shards

        return state_shards.optimizer_shards(self.optimizer)

    def save(self, folder: Path, step: int) -> None:
        from r1zero.model import checkpoint

        checkpoint.save(folder, step, self.trained, {}, config.Checkpoint(keep=100))

    def load(self, folder: Path) -> None:
        from r1zero.model import checkpoint, step_folders

        checkpoint.load(step_folders.newest(folder), self.trained)


def build_model(folder: Path, place: MegatronGrid, size: int, dtype: str = "float32") -> Model:
    """A checkpoint's model with an optimizer, on the grid's ranks."""
    from r1zero.model import build, mapping
    from r1zero.model.checkpoint import Trained
    from r1zero.model.families import read_shape

    cfg = Config(run=config.Run(dtype=dtype, device=KIND), layout=Layout(train=place),
                 optimizer=config.Optimizer(lr=1e-2, clip_grad=1e4))
    grids = layout.carve(cfg.layout, size).train
    hosts, shape = build.initialize(grids, KIND, 1), read_shape(folder)
    chunks = build.build_model(shape, cfg, grids, True)
    mapping.load(chunks, shape, grids, str(folder))
    optimizer, scheduler = build.build_optimizer(chunks, cfg.optimizer, grids)
    return Model(chunks, optimizer, scheduler, grids, Trained(chunks, optimizer, scheduler, shape, grids, hosts))


def forward(chunk: torch.nn.Module, sequences: list[Tensor], multiple: int, device: torch.device) -> Tensor:
    """Of a stage, over sequences packed end to end."""
    from r1zero.model import build, packing

    return build.forward(chunk, torch.cat(sequences), packing.pack([len(s) for s in sequences], multiple, device))


def checkpoint_tensors(folder: Path, step: int, model: Path) -> dict[str, Tensor]:
    """All that a training checkpoint holds: weights, master weights and moments, each whole."""
    from r1zero.model import conversion
    from r1zero.model.families import read_shape

    found = conversion.open_weights(folder / f"step_{step}", read_shape(model))
    return {key: found.region(key, (0,) * len(about.size), tuple(about.size)) for key, about in found._tensors.items()}


def short_job(base: Path, grids: Layout, **sections: dict[str, Any]) -> Path:
    """The config file of a job of a few iterations on NPUs, on what `make_base` made. sections override fields: grpo={"kl_coef": 0.0}."""
    sections["run"] = {"device": KIND, **sections.get("run", {})}
    cfg = jobs.job_config(base, grids, **sections)
    path = base / f"{cfg.run.name}.toml"
    path.write_text(config.dump(cfg), encoding="utf-8")
    return path


def run_folder(base: Path, name: str) -> Path:
    return base / "runs" / name


def metrics_of(path: Path) -> list[dict[str, float]]:
    """Of the job of a config file, a row for each iteration."""
    return jobs.metrics_of(config.load(str(path), [], Config))


make_base, make_oracle = jobs.make_base, oracle.make

__all__ = ["Answer", "build_engine", "build_model", "carve", "Case", "checkpoint_tensors", "config", "Config", "DEVICE", "expected",
           "forward", "gap", "import_everything", "KIND", "Layout", "LENGTHS", "make_base", "make_oracle", "MegatronGrid", "metrics_of", "Model",
           "model_of", "models", "Oracle", "Prompt", "prompts", "Response", "run_folder", "share", "short_job", "texts", "VllmGrid",
           "weights_for", "worker_of"]
