"""The models and the engine of this rank. All ranks build theirs in the same order, because building is collective."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from r1zero.batch import Batch, MiniBatch
from r1zero.checkpoint import saving, step_folders, training
from r1zero.checkpoint.base_weights import load_base_weights
from r1zero.config import Config, UserError
from r1zero.distributed.device import set_expandable_segments
from r1zero.distributed.host import give_back_memory
from r1zero.distributed.layout import Layout, MegatronGrids
from r1zero.model import build
from r1zero.model.families import read_shape
from r1zero.model.offload import OptimizerOffload, WeightOffload
from r1zero.model.optimizer import build_optimizer
from r1zero.policy import Policy
from r1zero.rollout.engine import Engine
from r1zero.weight_sync.sync import Sync

log = logging.getLogger(__name__)


class Roles:
    """The models and the engine that live on this rank.

    engine: set on a rank that generates. policy: set on a rank that trains. reference: set on a rank of the reference's
    own grid. If the reference is colocated with train, `original` (or, with train.offload, `weight_offload`) holds its
    weights, which replace the policy's while the reference logprobs are computed.
    """

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
        self.shape = read_shape(cfg.model.path, cfg.model.overrides)
        self.engine: Engine | None = None
        self.policy = self.reference = self.original = self.weight_offload = self.trained = None
        # The engine is built first, because vLLM checks at its start how much memory of the whole device is free.
        if rank in layout.rollout:
            self.engine = Engine(cfg, layout, rank, stop_token_ids=stop_token_ids, forbidden_ids=forbidden_ids)
            log.info("start: the engine is built")
        trains = rank in layout.train.dense
        grids = layout.train if trains else layout.reference
        if grids is None or rank not in grids.dense:
            return
        self._sleep_engine()  # the device may have no room for both the engine and the trainer
        hosts = build.initialize(grids, cfg.run.device, cfg.run.seed)
        chunks = build.build_model(self.shape, cfg, grids, trainable=trains)
        self._load(chunks, grids, hosts)
        log.info("start: the model is built and its weights are loaded")
        if not trains:
            self.reference = Policy(cfg, chunks, self.shape.vocab_size, forbidden_ids)
            return
        if cfg.train.offload:
            self.weight_offload = WeightOffload(chunks, device)
        elif cfg.grpo.kl_coef and layout.reference is None:
            self.original = [p.detach().clone() for p in chunks[0].parameters()]
        optimizer, scheduler = build_optimizer(chunks, cfg.optimizer, grids)
        self.policy = Policy(cfg, chunks, self.shape.vocab_size, forbidden_ids, optimizer, scheduler)
        self.trained = training.TrainedModel(chunks, optimizer, scheduler, self.shape, grids, hosts)
        if self.weight_offload:
            self.trained = replace(self.trained, weights_of=self.weight_offload.flat)
        if cfg.optimizer.offload:
            optimizer_offload = OptimizerOffload(optimizer, device)
            self.policy.optimizer_on_device = optimizer_offload.on_device
            self.trained = replace(self.trained, content_of=optimizer_offload.content)

    def _load(self, chunks: list[torch.nn.Module], grids: MegatronGrids, hosts: dist.ProcessGroup) -> None:
        """Load the weights that training starts from, which are also those of the reference."""
        if self.cfg.model.checkpoint:
            training.load_weights(chunks, self.shape, grids, self.cfg.model.checkpoint, self.cfg.model.path, hosts)
        else:
            load_base_weights(chunks, self.shape, grids, self.cfg.model.path)

    @contextmanager
    def reference_model(self) -> Iterator[Policy]:
        """The model with the original weights, on a rank of the grid that holds them.

        If it is the trainer's, they take the policy's place inside the context: copied from the host, or by exchanging
        pointers.
        """
        if self.reference:
            yield self.reference
            return
        self._swap_weights("original")
        try:
            yield self.require_policy()
        finally:
            self._swap_weights("policy")

    def to_training(self) -> None:
        """Free the engine's device memory if the trainer or the reference uses the same device."""
        if self.policy or self.reference:
            self._sleep_engine()

    def _sleep_engine(self) -> None:
        if self.engine:
            self.engine.sleep()
            set_expandable_segments(self.cfg.run.device, True)

    def to_rollout(self, sync: Sync) -> None:
        """Send the trained weights to the engines. Collective over the world.

        Engine and trainer are then both on the device, until `offload_trainer`.
        """
        if self.weight_offload:
            self.weight_offload.onload("policy")
        if self.engine and (self.policy or self.reference):
            set_expandable_segments(self.cfg.run.device, False)
            self.engine.wake()
        sync.push(self.chunks, self.engine)
        give_back_memory(self.cfg.run.device)

    def offload_trainer(self) -> None:
        """Free the trainer's device memory while the engines generate, if train.offload is set."""
        if self.weight_offload:
            self.weight_offload.offload()

    def _swap_weights(self, name: str) -> None:
        if self.weight_offload:
            self.weight_offload.onload(name)
            return
        original = self.original
        assert original is not None  # kept if the weights are not offloaded and grpo.kl_coef is not 0
        for i, p in enumerate(self.require_policy().chunks[0].parameters()):
            p.data, original[i] = original[i], p.data

    def old_logprobs(self, batch: Batch | None) -> Tensor | None:
        """Returns the (R,) logprobs under the current weights, on the last pipeline stage of the trainer.

        Returns None on other ranks.
        """
        if batch is None:
            return None
        if self.weight_offload:
            self.weight_offload.onload("policy")
        return self.require_policy().logprobs(batch)

    def update(self, batch: Batch | None, parts: list[MiniBatch]) -> dict[str, float]:
        """Take one optimizer step for each mini-batch. Returns {} on a rank that does not train.

        Mini-batches without a scored token are omitted. If none is left, nothing is updated and the result is {} too.
        """
        parts = [part for part in parts if part.size.tokens]
        if batch is None or not parts:
            return {}
        if self.weight_offload:
            self.weight_offload.onload("policy")
            self.weight_offload.gradients()
        figures = self.require_policy().update(batch, parts)
        give_back_memory(self.cfg.run.device)
        return figures

    def require_policy(self) -> Policy:
        """Returns this rank's part of the trained model. Raises RuntimeError on a rank that does not train."""
        if self.policy is None:
            raise RuntimeError(f"rank {self.rank} does not train")
        return self.policy

    @property
    def chunks(self) -> list[torch.nn.Module] | None:
        """The chunks of the trained model, on a rank that trains; None elsewhere."""
        return self.policy.chunks if self.policy else None

    def groups(self) -> dict[str, dist.ProcessGroup]:
        """Returns the process groups of this rank's trainer and engine, by purpose."""
        return {**(self.policy.groups() if self.policy else {}), **(self.engine.groups() if self.engine else {})}

    def close(self) -> None:
        """Close the engine. Must precede leaving the world, because vLLM's finalisers use its process groups."""
        if self.engine:
            self.engine.close()

    def begin_save(self, folder: Path, iteration: int, extra: dict[str, Any]) -> saving.PendingSave | None:
        """Start to save a checkpoint. Returns None on a rank that does not train. Collective over those that do.

        Raises UserError if the disk has too little room. Weights and optimizer state are written from wherever they
        are, on the host or on the device.
        """
        if not self.trained:
            return None
        return saving.begin(folder, iteration, self.trained, extra, self.cfg.checkpoint)

    def resume(self, folder: Path, mode: str) -> dict[str, Any] | None:
        """Load the newest complete checkpoint. Returns the `extra` that `save` was given, and the iteration.

        Runs on every rank of the world. Returns None if there is no checkpoint. Raises UserError if mode is "never" and
        there is one.
        """
        checkpoint = step_folders.newest(folder)
        if checkpoint is None:
            return None
        if mode == "never":
            raise UserError(
                f'checkpoint.resume = "never", but {checkpoint.path} exists; '
                'set it to "auto" to continue from it, or change run.name'
            )
        return self.load(checkpoint)

    def load(self, checkpoint: step_folders.CheckpointInfo) -> dict[str, Any]:
        """Load weights and optimizer state. Returns the `extra` that `save` was given, and the iteration."""
        if self.trained:
            if self.weight_offload:
                self.weight_offload.onload("policy")
            with self.require_policy().optimizer_on_device():
                training.load(checkpoint, self.trained)
        return {**checkpoint.extra, "iteration": checkpoint.iteration}
