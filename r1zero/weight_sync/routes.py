"""Computes from both layouts which rank sends which part of which weight to which rank. Needs no torch.

A part of a weight is an interval on one axis: the axis that tensor parallelism splits, or the first. Trainer and engine
split a weight along the same axis, each by its own degree. Each interval that an engine needs comes from one rank that
holds it: from the same rank if possible, otherwise from the holders in turn. No tensor is gathered, and no rank
receives a byte twice.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from r1zero.config import UserError
from r1zero.distributed.layout import Grid, Layout
from r1zero.model import placement
from r1zero.model.shape import Shape
from r1zero.model.weights import Weight, weights

VOCABULARY_MULTIPLE = 64
"""vLLM pads the vocabulary to a multiple of this before it splits it (VocabParallelEmbedding)."""


class Span(NamedTuple):
    """Rows (or columns) first .. end - 1 of the axis."""

    first: int
    end: int


class Hop(NamedTuple):
    """An interval of a weight's axis that one rank sends to another."""

    source: int
    target: int
    """World ranks. If they are equal, the part is already there and is only copied."""
    first: int
    end: int


@dataclass(frozen=True)
class Route:
    """The hops of one weight. All weights with the same holders and needs share one Route."""

    hops: tuple[Hop, ...]

    @cached_property
    def of_rank(self) -> dict[int, list[Hop]]:
        """World rank -> the hops that it sends, receives or copies."""
        found: dict[int, list[Hop]] = {}
        for hop in self.hops:
            found.setdefault(hop.source, []).append(hop)
            if hop.target != hop.source:
                found.setdefault(hop.target, []).append(hop)
        return found

    @cached_property
    def traffic(self) -> dict[int, tuple[int, int]]:
        """World rank -> units of the axis that it (sends to, receives from) other ranks."""
        found: dict[int, tuple[int, int]] = {}
        for hop in self.hops:
            if hop.source != hop.target:
                sent, got = found.get(hop.source, (0, 0))
                found[hop.source] = sent + hop.end - hop.first, got
                sent, got = found.get(hop.target, (0, 0))
                found[hop.target] = sent, got + hop.end - hop.first
        return found


class ExpertDistribution(NamedTuple):
    """How vLLM distributes the layers with experts."""

    expert_parallel: bool
    """True: whole experts are distributed over tensor and data ranks. False: tensor parallelism splits each expert."""
    shared_whole: bool
    """Whether each rank holds all of the shared experts and processes its own tokens."""


def expert_distribution(rollout: Grid, expert_parallel: bool, device: str) -> ExpertDistribution:
    """Returns how vLLM distributes experts on this grid.

    If both the tensor and the data degree exceed 1, vLLM splits tokens instead of shared experts
    (ParallelConfig.use_sequence_parallel_moe). vllm-ascend disables that (NPUPlatform.check_and_update_config).
    """
    both = expert_parallel and rollout.size("tp") > 1 and rollout.size("dp") > 1
    return ExpertDistribution(expert_parallel, both and device != "npu")


def axis(weight: Weight) -> int:
    """Returns the axis along which a weight is transferred."""
    return weight.cut or 0


def need(weight: Weight, shape: Shape, rollout: Grid, distribution: ExpertDistribution) -> dict[int, Span]:
    """Returns world rank -> the interval of the weight that vLLM keeps there, for the ranks that keep any."""
    tp = rollout.size("tp")
    if weight.expert is not None and distribution.expert_parallel:
        dp, t = divmod(_owner(weight, shape, rollout), tp)
        return {
            rollout.at(tp=t, dp=dp, replica=r): Span(0, weight.shape[axis(weight)])
            for r in range(rollout.size("replica"))
        }
    spans = [_vllm_span(weight, shape, tp, t, distribution) for t in range(tp)]
    return {rank: spans[i % tp] for i, rank in enumerate(rollout.ranks)}


def required_span(
    weight: Weight, shape: Shape, rollout: Grid, distribution: ExpertDistribution, rank: int
) -> Span | None:
    """Returns the entry of `need` for one rank, or None."""
    if rank not in rollout:
        return None
    tp, t = rollout.size("tp"), rollout.coordinate(rank, "tp")
    if weight.expert is not None and distribution.expert_parallel:
        mine = rollout.coordinate(rank, "dp") * tp + t == _owner(weight, shape, rollout)
        return Span(0, weight.shape[axis(weight)]) if mine else None
    return _vllm_span(weight, shape, tp, t, distribution)


def _owner(weight: Weight, shape: Shape, rollout: Grid) -> int:
    """Returns the index within a replica of the rank that holds the weight's expert, tensor rank fastest.

    Consecutive ranks hold equal runs of consecutive experts (vLLM's "linear" placement).
    """
    return weight.require_expert() // (shape.require_moe().experts // (rollout.size("tp") * rollout.size("dp")))


def _vllm_span(weight: Weight, shape: Shape, tp: int, t: int, distribution: ExpertDistribution) -> Span:
    length = weight.shape[axis(weight)]
    if weight.cut is None or (distribution.shared_whole and ".shared_experts." in weight.name):
        return Span(0, length)
    if weight.place != "layer":
        width = -(-length // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE // tp
        return Span(min(length, t * width), min(length, (t + 1) * width))
    if ".k_proj." in weight.name or ".v_proj." in weight.name:
        # With more tensor ranks than key-value heads, several ranks hold the same head.
        tp, t = min(tp, shape.kv_heads), t * shape.kv_heads // tp if tp > shape.kv_heads else t
    return Span(t * length // tp, (t + 1) * length // tp)


def check_engine(shape: Shape, rollout: Grid, expert_parallel: bool) -> None:
    """Raises UserError if vLLM's degrees do not divide the model's dimensions evenly."""
    tp, dp = rollout.size("tp"), rollout.size("dp")
    cuts = [
        ("num_attention_heads", shape.heads),
        ("intermediate_size", shape.ffn_hidden_size),
        (
            f"vocab_size padded to {VOCABULARY_MULTIPLE}",
            -(-shape.vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE,
        ),
    ]
    if shape.moe and not expert_parallel:
        cuts.append(("moe_intermediate_size", shape.moe.ffn_hidden_size))
    for name, size in cuts:
        if size % tp:
            raise UserError(
                f"layout.rollout.tensor_parallel_size = {tp} does not divide the model's {name} = {size}; choose a "
                "divisor"
            )
    if shape.mla is None and shape.kv_heads % tp and tp % shape.kv_heads:
        raise UserError(
            f"layout.rollout.tensor_parallel_size = {tp} neither divides nor is a multiple of the model's "
            f"num_key_value_heads = {shape.kv_heads}; choose a divisor or a multiple"
        )
    experts = shape.moe.experts if shape.moe else 0
    if expert_parallel and not experts:
        raise UserError(f"layout.rollout.enable_expert_parallel is set, but {shape.family} has no experts; remove it")
    if expert_parallel and experts % (tp * dp):
        fits = [n for n in range(1, experts + 1) if not experts % n and n % tp == 0 and not len(rollout.ranks) % n]
        raise UserError(
            f"layout.rollout: tensor_parallel_size {tp} x data_parallel_size {dp} = {tp * dp} does not divide the "
            f"model's {experts} experts; data_parallel_size = {' or '.join(str(n // tp) for n in fits) or 'none'} "
            "would"
        )


@dataclass
class Routes:
    """The routes of all weights. One is computed per kind: DeepSeek-V3 has 45,446 weights of some 1,600 kinds."""

    layout: Layout
    shape: Shape
    expert_parallel: bool
    device: str
    """cpu, cuda or npu: the device of the engine."""
    _made: dict[tuple, Route] = field(default_factory=dict)

    def __post_init__(self) -> None:
        placement.check(self.shape, self.layout.train)
        check_engine(self.shape, self.layout.rollout, self.expert_parallel)
        self.distribution = expert_distribution(self.layout.rollout, self.expert_parallel, self.device)

    @cached_property
    def weights(self) -> list[Weight]:
        """All weights of the model."""
        return weights(self.shape)

    @cached_property
    def stage_of_layer(self) -> list[int]:
        """Pipeline stage of each layer in the trainer."""
        return [s for s, layers in enumerate(placement.stages(self.shape, self.layout.train)) for _ in layers]

    def kind(self, weight: Weight) -> tuple:
        """Returns a key that is equal for weights with the same holders and needs."""
        place = weight.place if weight.layer is None else self.stage_of_layer[weight.layer]
        rule = next((part for part in (".k_proj.", ".v_proj.", ".shared_experts.") if part in weight.name), "")
        return place, weight.expert, weight.cut, weight.shape[axis(weight)], rule

    def route(self, weight: Weight) -> Route:
        """Returns the route of a weight. Weights of the same kind share one."""
        kind = self.kind(weight)
        if kind not in self._made:
            needed = need(weight, self.shape, self.layout.rollout, self.distribution)
            self._made[kind] = Route(tuple(match(self.held(weight), needed)))
        return self._made[kind]

    def held(self, weight: Weight) -> dict[int, Span]:
        """Returns world rank -> the interval of the weight that the trainer holds there."""
        parts = placement.holders(weight, self.shape, self.layout.train)
        return {rank: Span(part[axis(weight)].start, part[axis(weight)].stop) for rank, part in parts.items()}


def match(have: dict[int, Span], need: dict[int, Span]) -> list[Hop]:
    """Returns hops that give every rank the units it needs, each once.

    Ranks that need the same interval are assigned to its holders in turn.
    """
    holders: dict[Span, list[int]] = {}
    for rank in sorted(have):
        holders.setdefault(have[rank], []).append(rank)
    targets: dict[Span, list[int]] = {}
    for rank in sorted(need):
        targets.setdefault(need[rank], []).append(rank)
    hops = []
    for wanted, ranks in targets.items():
        for held, sources in holders.items():
            first, end = max(wanted.first, held.first), min(wanted.end, held.end)
            if first >= end:
                continue
            owners = set(sources)
            hops += [Hop(rank, rank, first, end) for rank in ranks if rank in owners]
            others = [rank for rank in ranks if rank not in owners]
            hops += [Hop(sources[i % len(sources)], rank, first, end) for i, rank in enumerate(others)]
    return hops
