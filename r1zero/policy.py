"""The trained model and the reference model as the step uses them: logprobs of a batch, and one update on it.

Both run megatron-core's pipeline schedules over packed micro-batches. The results are those of the last pipeline stage.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from math import inf, isfinite
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from r1zero import grpo
from r1zero.batch import Batch, MicroBatch, micro_batches, pack, spread
from r1zero.config import Config
from r1zero.logprobs import TokenStats, token_stats
from r1zero.model import build, packing

SUMS = ("pg_loss", "kl", "entropy", "clipped", "ppo_kl", "gap")
"""The sums over the batch's unmasked response tokens that `update` returns."""


class Policy:
    """This rank's part of one role's model. Only the trained model has an optimizer and a scheduler."""

    def __init__(
        self,
        cfg: Config,
        chunks: list[torch.nn.Module],
        vocab_size: int,
        forbidden_ids: list[int],
        optimizer: Any = None,
        scheduler: Any = None,
    ):
        self.cfg, self.chunks = cfg, chunks
        self.device = device = next(chunks[0].parameters()).device
        self.optimizer, self.scheduler = optimizer, scheduler
        self.optimizer_on_device: Callable[[], Any] = nullcontext
        """Returns a context in which the optimizer's state is on the device."""
        self.tp_group = parallel_state.get_tensor_model_parallel_group()
        # The group that also reduces the gradients: another one of the same ranks would take buffers of its own.
        self.dp_group = parallel_state.get_data_parallel_group(with_context_parallel=True)
        width = vocab_size // self.tp_group.size()
        first = width * self.tp_group.rank()
        self.forbidden_V = torch.zeros(width, dtype=torch.bool, device=device)
        self.forbidden_V[[i - first for i in forbidden_ids if first <= i < first + width]] = True

    @property
    def is_reporting_rank(self) -> bool:
        """Whether this rank reports results for its data-parallel index: last pipeline stage, first tensor rank."""
        return parallel_state.is_pipeline_last_stage() and self.tp_group.rank() == 0

    @staticmethod
    def groups() -> dict[str, dist.ProcessGroup]:
        """Returns megatron's process groups of this rank that a step uses."""
        return {
            "train tp": parallel_state.get_tensor_model_parallel_group(),
            "train pp": parallel_state.get_pipeline_model_parallel_group(),
            "train dp": parallel_state.get_data_parallel_group(with_context_parallel=True),
            "train ep": parallel_state.get_expert_model_parallel_group(),
        }

    @torch.no_grad()
    def logprobs(self, batch: Batch) -> Tensor | None:
        """Returns the (R,) fp32 logprobs of the batch's response tokens, in its order, on the last pipeline stage.

        Returns None on other stages. Collective over the ranks of the role.
        """
        packs = self._micro_batches(batch)
        stats = self._schedule(
            packs, lambda p, logits, non_loss_data: self._stats(p, logits).logprobs_R, forward_only=True
        )
        if not parallel_state.is_pipeline_last_stage():
            return None
        out = torch.empty(int(batch.response_lengths_B.sum()))
        for p, values in zip(packs, stats, strict=True):
            out[p.response_index] = values.cpu()
        return out

    def update(self, batch: Batch, loss_tokens: float) -> dict[str, float]:
        """Take one optimizer step on the GRPO loss. Collective over the ranks that train.

        loss_tokens: number of unmasked response tokens in the whole batch, over all ranks.

        Returns this rank's share of SUMS and `gap_max`, the largest difference between the logprob of a token here and
        in the rollout engine; both are zero on ranks that do not report. Also returns `grad_norm` of the whole model
        before clipping, the step's `lr`, and `skipped`: 1.0 on all ranks if the loss or the gradient is not finite, in
        which case weights, moments and learning rate stay as they were.
        """
        packs = self._micro_batches(batch)
        chunk: Any  # megatron-core's wrapper; torch.nn.Module does not declare its methods
        for chunk in self.chunks:
            chunk.train()
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()
        results = self._schedule(packs, partial(self._loss, batch, loss_tokens), forward_only=False)
        lr = self.optimizer.param_groups[0]["lr"]
        # Check the gradient before anything is changed: without a loss scaler, megatron's optimizer steps on any
        # gradient, finite or not.
        self.optimizer.prepare_grads()
        grad_norm = float(self.optimizer.get_grad_norm())
        skipped = not self._is_finite(grad_norm, results)
        if not skipped:
            with self.optimizer_on_device():
                self.optimizer.step()
            self.scheduler.step(1)
        sums, gap = torch.zeros(len(SUMS), dtype=torch.float64), 0.0
        if self.is_reporting_rank:
            sums = torch.stack([r["sums"] for r in results]).cpu().double().sum(0)
            gap = max(float(r["gap_max"]) for r in results)
        return {
            **dict(zip(SUMS, sums.tolist(), strict=True)),
            "gap_max": gap,
            "lr": lr,
            "grad_norm": grad_norm if isfinite(grad_norm) else inf,
            "skipped": float(skipped),
        }

    def _is_finite(self, grad_norm: float, results: list[dict[str, Tensor]]) -> bool:
        """Whether the loss and the gradient are finite on all ranks. grad_norm is that of the whole model."""
        loss = sum(r["sums"][: SUMS.index("entropy")].abs().sum() for r in results) if self.is_reporting_rank else 0.0
        broken = torch.tensor(float(not isfinite(grad_norm + float(loss))), device=self.device)
        dist.all_reduce(broken, dist.ReduceOp.MAX, group=self.optimizer.get_grad_stats_parallel_group())
        return not broken

    def _loss(
        self, batch: Batch, loss_tokens: float, p: MicroBatch, logits: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Returns the loss, a number of tokens of 0, and the sums to report.

        The loss is already divided by the tokens of the whole batch; the triple tells megatron not to scale it again.
        """
        cfg, (logprobs, entropy) = self.cfg.grpo, self._stats(p, logits)
        lengths = batch.response_lengths_B[p.indices]

        def each(values_B: Tensor) -> Tensor:
            return values_B[p.indices].repeat_interleave(lengths).to(self.device)

        mask, advantages = each(batch.scored_B) > 0, each(batch.advantages_B)
        # There is one update per rollout, so the old policy is the current one: its logprobs are these, detached.
        old = logprobs.detach()
        surrogate = grpo.clipped_surrogate(logprobs, old, advantages, cfg.clip_ratio)
        kl = torch.zeros_like(logprobs)
        if len(batch.ref_logprobs_R):
            # For masked tokens, use the policy's logprob in place of the reference's: a value that is not finite would
            # reach the gradient through the mask.
            ref = torch.where(mask, batch.ref_logprobs_R[p.response_index].to(self.device), old)
            kl = grpo.KL_ESTIMATORS[cfg.kl_estimator](logprobs, ref)
        loss = grpo.token_mean(surrogate.loss_R + cfg.kl_coef * kl, mask, loss_tokens)
        with torch.no_grad():
            # A NaN counts as an infinite difference, because a maximum would ignore it.
            apart = (old - batch.rollout_logprobs_R[p.response_index].to(self.device)).abs().nan_to_num(nan=torch.inf)
            gap = torch.where(mask, apart, 0.0)
            figures = (surrogate.loss_R, kl, entropy, surrogate.clipped_R, old - logprobs, gap)
            sums = torch.stack([grpo.masked_sum(f, mask) for f in figures])
        return loss, torch.tensor(0, dtype=torch.int), {"sums": sums, "gap_max": gap.max() if len(gap) else gap.sum()}

    def _stats(self, p: MicroBatch, logits: Tensor) -> TokenStats:
        return token_stats(
            logits,
            p.rows.to(self.device),
            p.targets.to(self.device),
            temperature=self.cfg.rollout.temperature,
            forbidden_V=self.forbidden_V,
            group=self.tp_group,
        )

    def _micro_batches(self, batch: Batch) -> list[MicroBatch]:
        groups = micro_batches(batch.lengths_B.tolist(), self.cfg.train.micro_batch_tokens)
        count = torch.tensor(len(groups), device=self.device)
        dist.all_reduce(count, dist.ReduceOp.MAX, group=self.dp_group)
        return [pack(batch, torch.tensor(g, dtype=torch.long)) for g in spread(groups, int(count))]

    def _schedule(self, packs: list[MicroBatch], on_logits: Callable[..., Any], forward_only: bool) -> list[Any]:
        """Run megatron's schedule. The last pipeline stage calls `on_logits(pack, logits)` for each micro-batch."""

        def forward(data: Iterator[MicroBatch], chunk: torch.nn.Module) -> tuple[Tensor, Callable[..., Any]]:
            p = next(data)
            # Sequence parallelism divides the packed sequence evenly over the tensor-parallel ranks.
            packed = packing.pack(p.lengths, self.tp_group.size(), self.device)
            return build.forward(chunk, p.tokens.to(self.device), packed), partial(on_logits, p)

        return get_forward_backward_func()(
            forward_step_func=forward,
            data_iterator=iter(packs),
            model=self.chunks,
            num_microbatches=len(packs),
            seq_length=1,
            micro_batch_size=1,
            forward_only=forward_only,
            collect_non_loss_data=forward_only,
        )
