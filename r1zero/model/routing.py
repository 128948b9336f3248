"""The router of a layer with experts: megatron-core's, with the choice of experts that Hugging Face and vLLM make.

Two implementations that round differently may choose different experts where scores are almost equal. The router marks
such choices, so that the parity gate can tell them from an error, and it can use the engine's choices in place of its
own (train.routing_replay; Ma et al., "Stabilizing MoE Reinforcement Learning by Aligning Training and Inference
Routers", 2025).
"""

from collections.abc import Iterable
from typing import Any

import torch
from megatron.core.transformer.moe.router import TopKRouter
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from r1zero.model.packing import PackedSequences
from r1zero.model.shape import Shape

TIE = 1e-5
"""Difference of two scores, relative to the largest score of the token, below which rounding in fp32 may decide between
them. On the miniature engine and trainer were seen to choose differently between 1.2125484 and 1.2125491."""


class Router(TopKRouter):
    """A router that leaves the choice of experts to an ExpertChoice."""

    def __init__(self, config: TransformerConfig, **kwargs: Any):
        super().__init__(config, **kwargs)
        self.router_replay: Any = ExpertChoice(2 if config.moe_router_score_function == "sigmoid" else 1)


class ExpertChoice:
    """Chooses experts in place of megatron-core's RouterReplay, to which a router leaves every choice.

    megatron-core scores a group by its best moe_router_topk // moe_router_group_topk experts. Hugging Face and vLLM
    score it by its two best experts in DeepSeek-V3 and by its best expert in DeepSeek-V2, whatever these numbers are.
    """

    def __init__(self, best: int):
        self.best = best
        self.layer = 0
        """Number of layers with experts before this one, in the whole model."""
        self.packed: PackedSequences | None = None
        """The micro-batch that the layer computes."""
        self.replays: list[Tensor] = []
        """For each backward pass since they were last taken: the numbers of choices replayed and of those replaced."""

    def get_replay_topk(
        self, scores_TX: Tensor, topk: int, groups: int | None, topk_groups: int | None, default: Any
    ) -> tuple[Tensor, Tensor]:
        """Returns the chosen experts' scores and numbers, (T, topk) each. The arguments are those of RouterReplay.

        With sequence parallelism the T tokens are this tensor rank's part of the micro-batch.
        """
        eligible_TX, ties_T = scores_TX, torch.zeros(len(scores_TX), dtype=torch.bool, device=scores_TX.device)
        if topk_groups:
            grouped = scores_TX.unflatten(1, (groups or 1, -1))
            group_scores = grouped.topk(self.best, dim=-1).values.sum(dim=-1)
            chosen = group_scores.topk(topk_groups, dim=-1, sorted=False).indices
            eligible = torch.zeros_like(group_scores, dtype=torch.bool).scatter_(1, chosen, True)
            eligible_TX = grouped.masked_fill(~eligible[..., None], -torch.inf).flatten(1)
            ties_T = is_tie(group_scores, topk_groups)
        best = torch.topk(eligible_TX, topk, dim=-1)
        if self.packed is None:
            return best
        rows = self.packed.own_rows(len(scores_TX))
        if self.packed.ties_T is not None:
            self.packed.ties_T[rows] |= ties_T | is_tie(eligible_TX, topk)
        if self.packed.experts_TLK is None:
            return best
        chosen = self._replay(self.packed.experts_TLK[rows, self.layer].long(), best.indices)
        return scores_TX.gather(1, chosen), chosen

    def _replay(self, given_TK: Tensor, own_TK: Tensor) -> Tensor:
        """Returns the given experts, or the router's own where none are given."""
        is_given_T = given_TK[:, 0] >= 0
        if torch.is_grad_enabled():  # a layer that is computed again is counted once
            is_other_T = (given_TK.sort().values != own_TK.sort().values).any(1) & is_given_T
            self.replays.append(torch.stack([is_given_T.sum(), is_other_T.sum()]))
        return torch.where(is_given_T[:, None], given_TK, own_TK)


def take_replays(model: torch.nn.Module) -> tuple[int, int]:
    """Returns the number of choices of experts that were replayed in backward passes since the last call, and of those
    that replaced another choice. A choice is that of one token in one layer, on this rank."""
    counts = [count for choice in _choices(model).values() for count in choice.replays]
    for choice in _choices(model).values():
        choice.replays = []
    replayed, replaced = torch.stack(counts).sum(0).tolist() if counts else (0, 0)
    return replayed, replaced


def is_tie(scores_TN: Tensor, chosen: int) -> Tensor:
    """Returns (T,) bool: whether rounding may decide which of N scores are the `chosen` largest."""
    if chosen == scores_TN.shape[1]:
        return torch.zeros(len(scores_TN), dtype=torch.bool, device=scores_TN.device)
    best = scores_TN.topk(chosen + 1, dim=-1).values
    return best[:, -2] - best[:, -1] <= TIE * best[:, 0].abs()


def follow_micro_batches(model: torch.nn.Module, shape: Shape) -> None:
    """Let each choice of experts know its layer and the micro-batch that the layer computes, also when it is computed
    again for the backward pass."""

    def tell(layer: Any, args: Any, kwargs: dict[str, Any]) -> None:
        layer.mlp.router.router_replay.packed = kwargs["packed_seq_params"]

    for layer, choice in _choices(model).items():
        choice.layer = sum(shape.is_moe(i) for i in range(layer.layer_number - 1))
        layer.register_forward_pre_hook(tell, with_kwargs=True)


def _choices(model: torch.nn.Module) -> dict[Any, ExpertChoice]:
    """Returns layer -> choice of experts, for the layers of this rank that have experts."""
    modules: Iterable[Any] = model.modules()  # torch.nn.Module does not declare its submodules
    layers = [m for m in modules if isinstance(getattr(getattr(m, "mlp", None), "router", None), Router)]
    return {layer: layer.mlp.router.router_replay for layer in layers}
