"""The trained model and the reference model as the step uses them: logprobs of a batch, and one update on it.

Both run megatron-core's pipeline schedules over packed micro-batches. The results are those of the last pipeline stage.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from math import inf, isfinite, log2
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from r1zero.batch import Batch, LossSize, MicroBatch, MiniBatch, pack
from r1zero.config import Config
from r1zero.division import micro_batches, spread
from r1zero.logprobs import OutputLayer, TokenStats, token_stats
from r1zero.model import build, packing, routing
from r1zero.model.kernels.choice import kernels_of
from r1zero.model.optimizer import clip_and_step
from r1zero.objective import SUMS, Inputs, objective

SCALE_STEP = 32.0
"""By what the factor of the loss is divided when a gradient is too large."""


class _Update(NamedTuple):
    """The result of one optimizer step."""

    sums: Tensor
    gap_max: float
    grad_norm: float
    skipped: bool
    computed_tokens: int


def loss_scale(dtype: str, size: LossSize) -> float:
    """Returns the power of two by which the loss is multiplied before its gradient is computed.

    The loss is divided by about the number of tokens, so the gradients of a token's activations are below what float16
    can represent (6e-8) as soon as there are many. This undoes that division. It depends on the batch alone, so that a
    resumed run takes the same steps. If a gradient is still too large for float16, the update is computed again with a
    smaller factor.
    """
    return 2.0 ** round(log2(max(1.0, size.tokens))) if dtype == "float16" else 1.0


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
        # This group also reduces the gradients. Another group of the same ranks would allocate its own buffers.
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
    def logprobs(self, batch: Batch, parts: list[list[int]] | None = None) -> Tensor | None:
        """Returns the (R,) fp32 logprobs of the response tokens, in the batch's order, on the last pipeline stage.

        Returns None on other stages. Collective over the ranks of the role. parts: the positions of the samples of each
        micro-batch, the same number on all data-parallel ranks; otherwise the batch is cut here.
        """
        return self._logprobs(batch, self._micro_batches(batch) if parts is None else _pack_all(batch, parts))

    @torch.no_grad()
    def logprobs_and_ties(self, batch: Batch) -> tuple[Tensor | None, Tensor]:
        """Returns `logprobs`, and for each sample the number of tokens before the first for which rounding may have
        chosen an expert: (B,) int64, all of its tokens if there is none.

        A rank knows the layers of its stage and the tokens of its tensor rank. The samples must not share prompts.
        """
        micro, before_B = self._micro_batches(batch), batch.lengths_B.clone()
        ties: list[Tensor] = []
        values = self._logprobs(batch, micro, ties)
        for p, ties_T in zip(micro, ties, strict=True):
            assert not any(p.shared)
            of_samples = ties_T[: len(p.tokens)].cpu().split(p.lengths)
            for sample, of_sample in zip(p.indices.tolist(), of_samples, strict=False):  # a dummy has no sample
                before_B[sample] = min(of_sample.nonzero()[:, 0].tolist(), default=len(of_sample))
        return values, before_B

    def _logprobs(self, batch: Batch, micro: list[MicroBatch], ties: list[Tensor] | None = None) -> Tensor | None:
        stats = self._schedule(
            micro, lambda p, hidden, non_loss_data: self._stats(p, hidden).logprobs_R, forward_only=True, ties=ties
        )
        if not parallel_state.is_pipeline_last_stage():
            return None
        out = torch.empty(int(batch.response_lengths_B.sum()))
        for p, values in zip(micro, stats, strict=True):
            out[p.response_index] = values.cpu()
        return out

    def update(self, batch: Batch, parts: list[MiniBatch]) -> dict[str, float]:
        """Take one optimizer step on the GRPO loss of each mini-batch in turn. Collective over the ranks that train.

        The learning rate is the same for all steps of an iteration.

        Returns these values, of which the first three are zero on a rank that is not `is_reporting_rank`:

        * each name of SUMS: this rank's share of the sum, over all steps;
        * `computed_tokens`: this rank's share of the tokens in the micro-batches of all steps;
        * `gap_max`: the largest difference of a token's logprob between trainer and engine;
        * `grad_norm`: the norm of the whole model's gradient before clipping, as the mean over the steps;
        * `lr`: the learning rate of all steps;
        * `skipped`: 1.0 on all ranks if the loss or the gradient of any step is not finite, otherwise 0.0. Such a step
          does not change weights or moments;
        * `replayed`, `replaced`: this rank's counts of routing.take_replays.
        """
        lr = self.optimizer.param_groups[0]["lr"]
        updates = []
        for part in parts:
            mine = torch.isin(batch.ids_B, part.ids_B).nonzero()[:, 0]
            updates.append(self._update(batch.select(mine), part.size))
        if not all(u.skipped for u in updates):
            self.scheduler.step(1)
        # With old_logprobs = "rollout" the gap is measured with the current policy, which has the engine's weights only
        # in the first update.
        gaps = updates[:1] if self.cfg.grpo.old_logprobs == "rollout" else updates
        sums = torch.stack([u.sums for u in updates]).sum(0)
        for name in ("gap", "gap_tokens"):
            sums[SUMS.index(name)] = sum(float(u.sums[SUMS.index(name)]) for u in gaps)
        grad_norm = sum(u.grad_norm for u in updates) / len(updates)
        replayed, replaced = routing.take_replays(self.chunks[0])
        return {
            **dict(zip(SUMS, sums.tolist(), strict=True)),
            "computed_tokens": float(sum(u.computed_tokens for u in updates)),
            "replayed": float(replayed),
            "replaced": float(replaced),
            "gap_max": max(u.gap_max for u in gaps),
            "lr": lr,
            "grad_norm": grad_norm if isfinite(grad_norm) else inf,
            "skipped": float(any(u.skipped for u in updates)),
        }

    def _update(self, batch: Batch, size: LossSize) -> _Update:
        micro = self._micro_batches(batch)
        scale = loss_scale(self.cfg.run.dtype, size)
        while True:
            results, grad_norm = self._gradient(partial(self._loss, batch, size, scale), micro, scale)
            # Check the gradient before anything is changed: megatron's optimizer steps on any gradient, finite or not.
            skipped = not self._is_finite(grad_norm, results)
            if not skipped or scale == 1.0:
                break
            scale = max(1.0, scale / SCALE_STEP)
        if not skipped:
            with self.optimizer_on_device():
                clip_and_step(self.optimizer, grad_norm)
        if not self.is_reporting_rank:
            return _Update(torch.zeros(len(SUMS), dtype=torch.float64), 0.0, grad_norm, skipped, 0)
        sums = torch.stack([r["sums"] for r in results]).cpu().double().sum(0)
        tokens = sum(len(p.tokens) for p in micro if len(p.indices))
        return _Update(sums, max(float(r["gap_max"]) for r in results), grad_norm, skipped, tokens)

    def _gradient(
        self, loss: Callable[..., Any], micro: list[MicroBatch], scale: float
    ) -> tuple[list[dict[str, Tensor]], float]:
        """Compute the gradient of the loss, which `loss` multiplies by `scale`.

        Returns what `loss` reports for each micro-batch, and the norm of the whole model's gradient.
        """
        chunk: Any  # megatron-core's wrapper; torch.nn.Module does not declare its methods
        for chunk in self.chunks:
            chunk.train()
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()
        results = self._schedule(micro, loss, forward_only=False)
        if scale != 1.0:
            for chunk in self.chunks:
                chunk.scale_gradients(1.0 / scale)
        self.optimizer.prepare_grads()
        return results, float(self.optimizer.get_grad_norm())

    def _is_finite(self, grad_norm: float, results: list[dict[str, Tensor]]) -> bool:
        """Whether the loss and the gradient are finite on all ranks. grad_norm is that of the whole model."""
        loss = sum(r["sums"][: SUMS.index("entropy")].abs().sum() for r in results) if self.is_reporting_rank else 0.0
        broken = torch.tensor(float(not isfinite(grad_norm + float(loss))), device=self.device)
        dist.all_reduce(broken, dist.ReduceOp.MAX, group=self.optimizer.get_grad_stats_parallel_group())
        return not broken

    def _loss(
        self, batch: Batch, size: LossSize, scale: float, p: MicroBatch, hidden: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Returns what megatron's schedule expects: the loss, a number of tokens, and the values to report.

        The loss is already divided by the size of the whole mini-batch. Three values instead of two, with a number of
        tokens of 0, make megatron leave it unscaled (see model/build.py).
        """

        def of_tokens(flat: Tensor) -> Tensor | None:
            return flat[p.response_index].to(self.device) if len(flat) else None

        rollout_logprobs_R = batch.rollout_logprobs_R[p.response_index].to(self.device)
        result = objective(
            self.cfg.grpo,
            Inputs(
                *self._stats(p, hidden),
                old_logprobs_R=of_tokens(batch.old_logprobs_R),
                ref_logprobs_R=of_tokens(batch.ref_logprobs_R),
                rollout_logprobs_R=rollout_logprobs_R,
                advantages_B=batch.advantages_B[p.indices].to(self.device),
                in_loss_B=batch.scored_B[p.indices].to(self.device) > 0,
                lengths_B=batch.response_lengths_B[p.indices].to(self.device),
            ),
            size,
        )
        return result.loss * scale, torch.tensor(0, dtype=torch.int), {"sums": result.sums, "gap_max": result.gap_max}

    def _stats(self, p: MicroBatch, hidden: Tensor) -> TokenStats:
        layer = OutputLayer(
            build.output_weight(self.chunks[-1]),
            self.forbidden_V,
            self.cfg.rollout.temperature,
            self.tp_group,
            build.reduces_during_backward(self.chunks[-1]),
            kernels_of(self.cfg.run.device).accumulate,
        )
        return token_stats(hidden, p.rows.to(self.device), p.targets.to(self.device), layer)

    def _micro_batches(self, batch: Batch) -> list[MicroBatch]:
        """Cut the batch into micro-batches, the same number on all data-parallel ranks."""
        groups = micro_batches(batch.sizes, self.cfg.train.micro_batch_tokens)
        count = torch.tensor(len(groups), device=self.device)
        dist.all_reduce(count, dist.ReduceOp.MAX, group=self.dp_group)
        return _pack_all(batch, spread(groups, int(count)))

    def _schedule(
        self,
        micro: list[MicroBatch],
        on_hidden: Callable[..., Any],
        forward_only: bool,
        ties: list[Tensor] | None = None,
    ) -> list[Any]:
        """Run megatron's schedule. The last pipeline stage calls `on_hidden(micro-batch, hidden)` for each.

        ties: gets the `ties_T` of each micro-batch, if it is given.
        """

        def forward(data: Iterator[MicroBatch], chunk: torch.nn.Module) -> tuple[Tensor, Callable[..., Any]]:
            p = next(data)
            # Sequence parallelism divides the packed sequence evenly over the tensor-parallel ranks.
            packed = packing.pack(p.lengths, self.tp_group.size(), self.device, p.shared, p.experts)
            if ties is not None:
                packed.ties_T = torch.zeros(len(packed.positions_T), dtype=torch.bool, device=self.device)
                ties.append(packed.ties_T)
            return build.forward(chunk, p.tokens.to(self.device), packed), partial(on_hidden, p)

        return get_forward_backward_func()(
            forward_step_func=forward,
            data_iterator=iter(micro),
            model=self.chunks,
            num_microbatches=len(micro),
            seq_length=1,  # this and the next are ignored; see model/build.py
            micro_batch_size=1,
            forward_only=forward_only,
            collect_non_loss_data=forward_only,
        )


def _pack_all(batch: Batch, parts: list[list[int]]) -> list[MicroBatch]:
    return [pack(batch, torch.tensor(part, dtype=torch.long)) for part in parts]
