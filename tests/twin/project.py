"""All that the twin takes from the project and its other tests, in one place: a module that moves or is renamed is one
edit here."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from r1zero import config
from r1zero.batch import Prompt, Response
from r1zero.config import Config, Layout, MegatronGrid, VllmGrid
from r1zero.distributed import device, layout
from tests import jobs
from tests.oracles import tiny_models as models
from tests.oracles.generation import expected, gap
from tests.oracles.transformers_model import LENGTHS, Oracle
from tests.rollout.cases import Answer, Case, prompts, share, sums_are_kept, texts

KIND = "npu"
DEVICE = device.DEVICES[KIND]


def import_everything() -> None:
    """What a run on an NPU imports, in its order."""
    device.start(KIND, 0)
    with device.quiet_imports():
        import vllm_ascend.worker.worker  # noqa: F401

        import r1zero.trainer  # noqa: F401


def carve(case: Case, size: int) -> layout.Layout:
    return layout.carve(case.cfg.layout, size)


def build_engine(case: Case, rank: int, size: int) -> Any:
    from r1zero.rollout.engine import Engine

    cfg = dataclasses.replace(case.cfg, run=dataclasses.replace(case.cfg.run, device=KIND))
    return Engine(
        cfg, carve(case, size), rank, stop_token_ids=list(case.stop_token_ids), forbidden_ids=list(case.forbidden_ids)
    )


def model_of(engine: Any) -> torch.nn.Module:
    return engine._model


def worker_of(engine: Any) -> Any:
    return engine._llm.llm_engine.model_executor.driver_worker.worker


def core_of(engine: Any) -> Any:
    return engine._llm.llm_engine.engine_core.engine_core


def nothing_scheduled_ahead() -> Any:
    from r1zero.rollout import arguments

    return mock.patch.object(arguments, "ASYNCHRONOUS", ())


@contextmanager
def preemptions(engine: Any) -> Iterator[list[Any]]:
    """The requests that the scheduler puts off meanwhile, as its cache is full."""
    scheduler, found = core_of(engine).scheduler, []
    plain = scheduler._preempt_request

    def preempt(request: Any, *args: Any, **kwargs: Any) -> Any:
        found.append(request)
        return plain(request, *args, **kwargs)

    with mock.patch.object(scheduler, "_preempt_request", preempt):
        yield found


@contextmanager
def cached_tokens(engine: Any) -> Iterator[list[int]]:
    """Number of prompt tokens that each finished request found in the prefix cache."""
    found, plain = [], engine._outputs

    def outputs() -> Iterator[list[Any]]:
        for ended in plain():
            found.extend(output.num_cached_tokens for output in ended)
            yield ended

    with mock.patch.object(engine, "_outputs", outputs):
        yield found


@torch.no_grad()
def hidden_states(path: str, tokens: list[int]) -> dict[int, Tensor]:
    """Of transformers, as the engine counts: -1 the embeddings, i what layer i gives to the next. (T, H)"""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    found: dict[int, Tensor] = {}
    for layer, module in enumerate([model.model.embed_tokens, *model.model.layers], -1):
        module.register_forward_hook(
            lambda _, __, out, layer=layer: found.__setitem__(layer, (out[0] if isinstance(out, tuple) else out)[0])
        )
    model(torch.tensor([tokens]))
    return found


def weights_for(engine: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    """Of a checkpoint, what this rank's engine keeps."""
    from r1zero.rollout.cuda import EXPERT

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
        from r1zero.checkpoint import state_shards

        return state_shards.optimizer_shards(self.optimizer)

    def save(self, folder: Path, step: int) -> None:
        from r1zero.checkpoint import saving

        saving.save(folder, step, self.trained, {}, config.Checkpoint(keep=100))

    def load(self, folder: Path) -> None:
        from r1zero.checkpoint import step_folders, training

        training.load(step_folders.newest(folder), self.trained)


def build_model(folder: Path, place: MegatronGrid, size: int, dtype: str = "float32", recompute: str = "none") -> Model:
    """A checkpoint's model with an optimizer, on the grid's ranks."""
    from r1zero.checkpoint.base_weights import load_base_weights
    from r1zero.checkpoint.training import TrainedModel
    from r1zero.model import build
    from r1zero.model.families import read_shape
    from r1zero.model.optimizer import build_optimizer

    cfg = Config(
        run=config.Run(dtype=dtype, device=KIND),
        train=config.Train(recompute=recompute),
        layout=Layout(train=place),
        optimizer=config.Optimizer(lr=1e-2, clip_grad=1e4),
    )
    grids = layout.carve(cfg.layout, size).train
    hosts, shape = build.initialize(grids, KIND, 1), read_shape(folder)
    chunks = build.build_model(shape, cfg, grids, True)
    load_base_weights(chunks, shape, grids, str(folder))
    optimizer, scheduler = build_optimizer(chunks, cfg.optimizer, grids)
    return Model(chunks, optimizer, scheduler, grids, TrainedModel(chunks, optimizer, scheduler, shape, grids, hosts))


def forward(chunk: torch.nn.Module, sequences: list[Tensor], multiple: int, device: torch.device) -> Tensor:
    """Of a stage, over sequences packed end to end."""
    from r1zero.model import build, packing

    return build.forward(chunk, torch.cat(sequences), packing.pack([len(s) for s in sequences], multiple, device))


def compare_kernels(case: str, dtype: torch.dtype) -> Any:
    """Errors of this device's kernel against plain torch on the CPU."""
    from r1zero.model.kernels.choice import kernels_of
    from tests.model import kernel_cases

    return kernel_cases.compare(kernels_of(KIND), case, KIND, dtype)


@contextmanager
def without_kernels(*names: str) -> Iterator[None]:
    """Build models meanwhile with megatron-core's own functions in the place of these kernels."""
    from r1zero.model.kernels.choice import KERNELS

    with mock.patch.dict(KERNELS, {KIND: dataclasses.replace(KERNELS[KIND], **dict.fromkeys(names))}):
        yield


def checkpoint_tensors(folder: Path, step: int, model: Path) -> dict[str, Tensor]:
    """All that a training checkpoint holds: weights, master weights and moments, each whole."""
    from r1zero.checkpoint import conversion
    from r1zero.model.families import read_shape

    found = conversion.open_weights(folder / f"step_{step}", read_shape(model))
    return {key: found.region(key, (0,) * len(about.size), tuple(about.size)) for key, about in found._tensors.items()}


def short_job(base: Path, grids: Layout, **sections: dict[str, Any]) -> Path:
    """The config file of a job of a few iterations on NPUs, on what `make_base` made. sections override fields:
    grpo={"kl_coef": 0.0}."""
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


make_base = jobs.make_base

__all__ = [
    "DEVICE",
    "KIND",
    "LENGTHS",
    "Answer",
    "Case",
    "Config",
    "Layout",
    "MegatronGrid",
    "Model",
    "Oracle",
    "Prompt",
    "Response",
    "VllmGrid",
    "build_engine",
    "build_model",
    "cached_tokens",
    "carve",
    "checkpoint_tensors",
    "compare_kernels",
    "config",
    "core_of",
    "expected",
    "forward",
    "gap",
    "hidden_states",
    "import_everything",
    "make_base",
    "metrics_of",
    "model_of",
    "models",
    "nothing_scheduled_ahead",
    "preemptions",
    "prompts",
    "run_folder",
    "share",
    "short_job",
    "sums_are_kept",
    "texts",
    "weights_for",
    "without_kernels",
    "worker_of",
]
