"""Locates a disagreement of engine and trainer: the first layer whose output differs, and the weights that differ."""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

from r1zero.batch import Batch
from r1zero.config import Config
from r1zero.distributed.layout import Layout
from r1zero.model import hidden, mapping, placement
from r1zero.model.weights import Weight, weights
from r1zero.roles import Roles
from r1zero.weight_sync import transfer
from r1zero.weight_sync.routes import Span, axis, required_span

DIFFERS = {"float32": 1e-4, "float16": 0.005, "bfloat16": 0.05}
"""Relative 2-norm of the difference of a hidden state that rounding does not explain."""
EXACT = 2.0**-22
"""Relative to a tensor's largest element. Weights are copied, not computed; only reading them by an fp32 product with
the unit matrix may round."""
NAMED = 6
"""Largest number of tensors named in the message."""


class FaultLocalizer:
    """Every rank of the world calls `share_tokens` and then `explain`, with equal arguments."""

    def __init__(self, cfg: Config, layout: Layout, rank: int, roles: Roles, compiled: transfer.Compiled):
        """compiled: the weight sync that gave the engines their weights."""
        self.cfg, self.layout, self.rank, self.roles, self.compiled = cfg, layout, rank, roles, compiled
        self.shape, self.device = roles.shape, compiled.device

    def share_tokens(self, mine: Batch | None, sample: int, owner: int) -> list[int]:
        """Broadcast the tokens of one sample from `owner`, a rank that has it, to all ranks."""
        count = torch.zeros(1, dtype=torch.long, device=self.device)
        tokens = None
        if self.rank == owner:
            assert mine is not None  # the owner has the sample
            at = (mine.ids_B == sample).nonzero()[0]
            tokens = mine.select(at).tokens_T.to(self.device)
            count.fill_(len(tokens))
        dist.broadcast(count, owner)
        tokens = torch.empty(int(count), dtype=torch.long, device=self.device) if tokens is None else tokens
        dist.broadcast(tokens, owner)
        return tokens.tolist()

    def explain(self, tokens: list[int], engines: list[int]) -> str:
        """Returns the second half of an error message: the layer, the tensors, and what to do. Collective."""
        blamed = self.rank in self.layout.rollout and self.layout.engine_of(self.rank) in engines
        layer, distances = self._first_layer(tokens, blamed)
        where = _describe_layer(layer, distances, self.shape.layers)
        every = weights(self.shape)
        suspects = [w for w in every if layer is not None and _belongs(w, layer, self.shape.layers)]
        different = self._differing(suspects, blamed) or self._differing(
            [w for w in every if w not in suspects], blamed
        )
        if not different:
            return (
                f"{where}; all weights are equal, so engine and trainer compute differently from the same weights: "
                "compare their versions and the model's config.json (rotary positions, norms, routing)"
            )
        names = ", ".join(
            f"{name} (by {gap:.2g} on rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))})"
            for name, (gap, ranks) in list(different.items())[:NAMED]
        )
        more = f" and {len(different) - NAMED} more" if len(different) > NAMED else ""
        return (
            f"{where}; tensors of the engine that differ from the trainer's: {names}{more}; "
            "check how they are loaded and synced"
        )

    def _first_layer(self, tokens: list[int], blamed: bool) -> tuple[int | None, list[float]]:
        """Returns the first layer that differs (-1 for the embedding, or None), and all relative distances.

        The distances are those of the worst blamed rank, beginning with the embedding's.
        """
        theirs = self.roles.engine.hidden(tokens) if self.roles.engine else {}
        ours = self._trainers(tokens)
        grid = self.layout.train.dense
        stages = placement.stages(self.shape, self.layout.train)
        distances = []
        for layer in range(-1, self.shape.layers):
            stage = next((i for i, layers in enumerate(stages) if layer in layers), 0)
            state = ours.get(layer, torch.empty(len(tokens), self.shape.hidden_size, device=self.device))[
                : len(tokens)
            ].contiguous()
            dist.broadcast(state, grid.at(pp=stage))
            known = blamed and layer in theirs
            distances.append(float((theirs[layer] - state).norm() / state.norm()) if known else 0.0)
        table = torch.tensor(distances, device=self.device).nan_to_num(nan=torch.inf)
        dist.all_reduce(table, dist.ReduceOp.MAX)
        worst = table.tolist()
        return next((i - 1 for i, gap in enumerate(worst) if gap > DIFFERS[self.cfg.run.dtype]), None), worst

    def _trainers(self, tokens: list[int]) -> dict[int, Tensor]:
        policy = self.roles.policy
        if policy is None:
            return {}
        one = Batch(
            ids_B=torch.zeros(1, dtype=torch.long),
            groups_B=torch.zeros(1, dtype=torch.long),
            prompt_lengths_B=torch.ones(1, dtype=torch.long),
            response_lengths_B=torch.tensor([len(tokens) - 1]),
            tokens_T=torch.tensor(tokens),
            advantages_B=torch.zeros(1),
            scored_B=torch.ones(1),
            rollout_logprobs_R=torch.zeros(len(tokens) - 1),
            ref_logprobs_R=torch.empty(0),
        )
        with hidden.recorded(policy.chunks, policy.tp_group) as found:
            policy.logprobs(one)
        return found

    @torch.no_grad()
    def _differing(self, suspects: list[Weight], blamed: bool) -> dict[str, tuple[float, list[int]]]:
        """Returns HF name -> (largest difference, ranks) of the suspects that differ, in the order of a forward pass.

        The result is the same on all ranks.
        """
        wanted = {w.name for w in suspects}
        local = mapping.local_tensors(self.roles.chunks, self.shape, self.layout.train) if self.roles.chunks else {}
        mine: dict[str, float] = {}
        engines: dict[str, list[Tensor]] = {}

        for weight, span, sent in transfer.pieces(
            self.compiled, lambda weight: local[weight.name].tensor(), verify=False
        ):
            if not blamed or weight.name not in wanted:
                continue
            if weight.name not in engines:
                engines[weight.name] = self._held(weight)
            whole = self._span(weight)
            assert whole is not None  # this rank's engine needs this piece
            first = span.first - whole.first
            if gap := max(_gap(held, sent, axis(weight), first) for held in engines[weight.name]):
                mine[weight.name] = max(gap, mine.get(weight.name, 0.0))
        every: list[dict[str, float]] = [{}] * self.layout.size
        dist.all_gather_object(every, mine)
        ranks = {w.name: [r for r, of_rank in enumerate(every) if w.name in of_rank] for w in suspects}
        return {name: (max(every[r][name] for r in holders), holders) for name, holders in ranks.items() if holders}

    def _held(self, weight: Weight) -> list[Tensor]:
        """Returns the copies of a weight that this rank's engine holds."""
        beside = [weight] if weight.layer is None else [w for w in weights(self.shape) if w.layer == weight.layer]
        assert self.roles.engine is not None  # pieces reach only ranks with an engine
        return self.roles.engine.held(weight.name, self._rows(beside))

    def _rows(self, every: Iterable[Weight]) -> dict[str, int]:
        """Returns HF name -> number of rows that this rank's engine holds."""
        spans = {w.name: (w, span) for w in every if (span := self._span(w))}
        return {name: span.end - span.first if axis(w) == 0 else w.shape[0] for name, (w, span) in spans.items()}

    def _span(self, weight: Weight) -> Span | None:
        return required_span(weight, self.shape, self.layout.rollout, self.compiled.routes.distribution, self.rank)


def _gap(held: Tensor, sent: Tensor, along: int, first: int) -> float:
    """Returns the largest difference between the engine's tensor and a piece of the trainer's, or 0.

    first: where the piece begins on the axis `along` of the engine's tensor.
    """
    length = sent.shape[along]
    if held.dim() != sent.dim() or held.shape[along] < first + length:
        return torch.inf
    part = held.narrow(along, first, length)
    if part.shape != sent.shape:
        return torch.inf
    apart = (part.float() - sent.float()).abs().max().nan_to_num(nan=torch.inf)
    return float(apart) if apart > EXACT * sent.float().abs().max() else 0.0


def _belongs(weight: Weight, layer: int, layers: int) -> bool:
    if weight.layer is not None:
        return weight.layer == layer
    return weight.place in ("first", "both ends") and layer == -1


def _describe_layer(layer: int | None, distances: list[float], layers: int) -> str:
    if layer is None:
        return f"the hidden states of all {layers} layers agree (to {max(distances):.1g}, relative)"
    name = "the embedding" if layer == -1 else f"layer {layer} (of 0 to {layers - 1})"
    before = f", {distances[layer]:.1g} before it" if layer >= 0 else ""
    return f"the first hidden state that differs is that of {name}, by {distances[layer + 1]:.2g} relative{before}"
