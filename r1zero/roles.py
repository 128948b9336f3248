"""The three roles on this rank: which models and engine live here, built in the one order in which all ranks build
them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from r1zero.batch import Batch
from r1zero.checkpoint import step_folders, training
from r1zero.checkpoint.base_weights import load_base_weights
from r1zero.config import Config, UserError
from r1zero.distributed.device import give_back_memory, set_expandable_segments
from r1zero.distributed.layout import Layout, MegatronGrids
from r1zero.model import build
from r1zero.model.families import read_shape
from r1zero.model.offload import OptimizerOffload, WeightOffload
from r1zero.policy import Policy
from r1zero.rollout.engine import Engine
from r1zero.weight_sync.sync import Sync


class Roles:
    """engine: on a rank that generates. policy: on a rank that trains. reference: on a rank of a reference's own grid;
    where it is colocated with train, `original` holds its weights, to be put in the policy's place."""

    def __init__(
        self,
        cfg: Config,
        layout: Layout,
        rank: int,
        device: torch.device,
        *,
        stop_token_ids: list[int],
        forbidden_ids: list[int],
    ):
        self.cfg, self.layout, self.rank = cfg, layout, rank
        self.shape = read_shape(cfg.model.path)
        self.engine: Engine | None = None
        self.policy = self.reference = self.original = self.weight_offload = self.trained = None
        # The engine first: it looks for free memory on the whole device.
        if rank in layout.rollout:
            self.engine = Engine(cfg, layout, rank, stop_token_ids=stop_token_ids, forbidden_ids=forbidden_ids)
        trains = rank in layout.train.dense
        grids = layout.train if trains else layout.reference
        if grids is None or rank not in grids.dense:
            return
        self._engine_leaves()  # both may not fit
        hosts = build.initialize(grids, cfg.run.device, cfg.run.seed)
        chunks = build.build_model(self.shape, cfg, grids, trainable=trains)
        self._load(chunks, grids, hosts)
        if not trains:
            self.reference = Policy(cfg, chunks, self.shape.vocab_size, forbidden_ids)
            return
        if cfg.train.offload:
            self.weight_offload = WeightOffload(chunks, device)
        elif cfg.grpo.kl_coef and layout.reference is None:
            self.original = [p.detach().clone() for p in chunks[0].parameters()]
        optimizer, scheduler = build.build_optimizer(chunks, cfg.optimizer, grids)
        self.policy = Policy(cfg, chunks, self.shape.vocab_size, forbidden_ids, optimizer, scheduler)
        self.trained = training.Trained(chunks, optimizer, scheduler, self.shape, grids, hosts)
        if self.weight_offload:
            self.trained = replace(self.trained, weights_of=self.weight_offload.flat)
        if cfg.optimizer.offload:
            optimizer_offload = OptimizerOffload(optimizer, device)
            self.policy.optimizer_on_device = optimizer_offload.on_device
            self.trained = replace(self.trained, content_of=optimizer_offload.content)

    def _load(self, chunks: list[torch.nn.Module], grids: MegatronGrids, hosts: dist.ProcessGroup) -> None:
        """The original weights."""
        if self.cfg.model.checkpoint:
            training.load_weights(chunks, self.shape, grids, self.cfg.model.checkpoint, self.cfg.model.path, hosts)
        else:
            load_base_weights(chunks, self.shape, grids, self.cfg.model.path)

    def reference_logprobs(self, batch: Batch | None) -> Tensor | None:
        """(R,) by the original weights, on the last stage of the grid that has them; None elsewhere."""
        if batch is None:
            return None
        if self.reference:
            return self.reference.logprobs(batch)
        with self._original_in_place():
            return self.policy.logprobs(batch)

    def to_training(self) -> None:
        """Where engine and trainer share a device the engine leaves it, and the trainer comes back if it had left."""
        if self.policy or self.reference:
            self._engine_leaves()

    def _engine_leaves(self) -> None:
        if self.engine:
            self.engine.sleep()
            set_expandable_segments(self.cfg.run.device, True)

    def to_rollout(self, sync: Sync) -> None:
        """The trained weights to the engines, everywhere at once. Both are on the device then, until
        `offload_trainer`."""
        if self.weight_offload:
            self.weight_offload.onload("policy")
        if self.engine and (self.policy or self.reference):
            set_expandable_segments(self.cfg.run.device, False)
            self.engine.wake()
        sync.push(self.chunks, self.engine)
        give_back_memory(self.cfg.run.device)

    def offload_trainer(self) -> None:
        """The trainer leaves the device while the engines generate, if it is to."""
        if self.weight_offload:
            self.weight_offload.offload()

    @contextmanager
    def _original_in_place(self) -> Iterator[None]:
        """The original weights where the trained ones are: from the host, or else by exchanging pointers."""
        self._exchange("original")
        try:
            yield
        finally:
            self._exchange("policy")

    def _exchange(self, name: str) -> None:
        if self.weight_offload:
            self.weight_offload.onload(name)
            return
        for i, p in enumerate(self.policy.chunks[0].parameters()):
            p.data, self.original[i] = self.original[i], p.data

    def update(self, batch: Batch | None, ref_logprobs_R: Tensor | None, loss_tokens: float) -> dict[str, float]:
        """One optimizer step; {} on a rank that does not train. Without any scored token nothing is learned, and
        nothing is done."""
        if batch is None or not loss_tokens:
            return {}
        if self.weight_offload:
            self.weight_offload.onload("policy")
            self.weight_offload.gradients()
        figures = self.policy.update(
            batch if ref_logprobs_R is None else batch.with_reference(ref_logprobs_R), loss_tokens
        )
        give_back_memory(self.cfg.run.device)
        return figures

    @property
    def chunks(self) -> list[torch.nn.Module] | None:
        """The trained model's, on a rank that trains."""
        return self.policy.chunks if self.policy else None

    def groups(self) -> dict[str, dist.ProcessGroup]:
        """Of the trainer and the engine on this rank, by what they are for."""
        return {**(self.policy.groups() if self.policy else {}), **(self.engine.groups() if self.engine else {})}

    def close(self) -> None:
        """Before the world is left: vLLM's finalisers would look for their groups after it."""
        if self.engine:
            self.engine.close()

    def save(self, folder: Path, iteration: int, extra: dict[str, Any]) -> None:
        """Collective over the ranks that train. Nothing moves: what is written is read from where it is. Raises
        UserError where there is no room."""
        if self.trained:
            training.save(folder, iteration, self.trained, extra, self.cfg.checkpoint)

    def resume(self, folder: Path, mode: str) -> dict[str, Any] | None:
        """What `save` was given, and its iteration, from the newest whole checkpoint, on every rank of the world; None
        without one."""
        found = step_folders.newest(folder)
        if found is None:
            return None
        if mode == "never":
            raise UserError(
                f'checkpoint.resume = "never", and {found.path} is there; '
                'set it to "auto" to go on from it, or change run.name'
            )
        return self.load(found)

    def load(self, found: step_folders.CheckpointInfo) -> dict[str, Any]:
        """Take weights and optimizer state of a checkpoint. Returns what `save` was given, and its iteration."""
        if self.trained:
            if self.weight_offload:
                self.weight_offload.onload("policy")
            with self.policy.optimizer_on_device():
                training.load(found, self.trained)
        return {**found.extra, "iteration": found.iteration}
