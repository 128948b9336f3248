"""The optimizer of a trained model, and its learning-rate schedule."""

import logging
from typing import Any

import torch
from megatron.core.optimizer import ChainedOptimizer, OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer import optimizer as library
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.utils import unwrap_model

from r1zero import config
from r1zero.distributed.layout import MegatronGrids
from r1zero.distributed.subworld import subworld

log = logging.getLogger(__name__)

FUSED = ("cpu", "cuda")
"""Devices on which torch's AdamW has a kernel that passes over weights, gradients and moments once."""


def build_optimizer(
    chunks: list[torch.nn.Module], cfg: config.Optimizer, grids: MegatronGrids
) -> tuple[ChainedOptimizer, OptimizerParamScheduler]:
    """Adam with fp32 master weights sharded over data-parallel ranks. Load the weights first: the masters are copies.

    The scheduler starts with the rate of the first update; call `scheduler.step(1)` after each update.
    """
    settings = unwrap_model(chunks[0]).config
    with subworld(grids.dense.ranks, renumber=True):
        optimizer = get_megatron_optimizer(
            OptimizerConfig(
                optimizer="adam",
                lr=cfg.lr,
                min_lr=cfg.lr,
                weight_decay=cfg.weight_decay,
                adam_beta1=cfg.adam_beta1,
                adam_beta2=cfg.adam_beta2,
                adam_eps=cfg.adam_eps,
                clip_grad=cfg.clip_grad,
                bf16=settings.bf16,
                params_dtype=settings.params_dtype,
                use_distributed_optimizer=True,
            ),
            chunks,
        )
    for part in optimizer.chained_optimizers:
        _fuse(part.optimizer)
    warmup = cfg.lr_warmup_iterations
    scheduler = OptimizerParamScheduler(
        optimizer,
        init_lr=cfg.lr / (warmup + 1),
        max_lr=cfg.lr,
        min_lr=cfg.lr,
        lr_warmup_steps=warmup,
        lr_decay_steps=warmup + 1,
        lr_decay_style="constant",
        start_wd=cfg.weight_decay,
        end_wd=cfg.weight_decay,
        wd_incr_steps=0,
        wd_incr_style="constant",
    )
    return optimizer, scheduler


def _fuse(adam: Any) -> None:
    """Choose torch's fused AdamW, for which megatron-core has no setting, where the library uses torch's.

    Otherwise torch makes more than ten passes, on a GPU with temporary tensors of 4 bytes per parameter.
    """
    groups = [group for group in adam.param_groups if group["params"]]  # a rank may have no parameters of a group
    if isinstance(adam, torch.optim.AdamW):
        for group in groups:
            if all(p.device.type in FUSED for p in group["params"]):
                group["fused"] = True
    fused = ", fused" if any(group.get("fused") for group in groups) else ""
    log.info("Adam is %s.%s%s", type(adam).__module__, type(adam).__qualname__, fused)


def clip_and_step(optimizer: ChainedOptimizer, grad_norm: float) -> None:
    """Scale the gradients to the norm `clip_grad` if theirs, grad_norm, is larger, and update the weights.

    `optimizer.prepare_grads` must have been called. This is megatron-core's `ChainedOptimizer.step` without its first
    half, which would prepare the gradients and compute their norm a second time.
    """
    for part in optimizer.chained_optimizers:
        parameters = [] if getattr(part, "is_stub_optimizer", False) else part.get_parameters()
        if parameters and part.config.clip_grad > 0:
            # Found at the call, because r1zero/model/cpu_megatron.py and MindSpeed replace it in this module.
            library.clip_grad_by_total_norm_fp32(parameters, max_norm=part.config.clip_grad, total_norm=grad_norm)
    optimizer.step_with_ready_grads()
