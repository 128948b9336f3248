"""The layout of the roles as data: each role is a grid over world ranks. Planning, tests and runs share it. No torch.

The axis orders are megatron-core's ("tp-cp-ep-dp-pp", innermost first) and vLLM's (tensor, data, replica). Ranks of a
tensor group are adjacent; then come data (or expert) ranks, then pipeline stages.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from r1zero import config
from r1zero.config import UserError

Role = Literal["train", "reference", "rollout"]


@dataclass(frozen=True)
class Grid:
    """The given `ranks`, arranged along named `axes` of which the first varies fastest."""

    ranks: tuple[int, ...]
    axes: tuple[tuple[str, int], ...]

    @cached_property
    def _index(self) -> dict[int, int]:
        return {rank: i for i, rank in enumerate(self.ranks)}

    def __contains__(self, rank: int) -> bool:
        return rank in self._index

    def size(self, axis: str) -> int:
        """Returns the size of an axis."""
        return dict(self.axes)[axis]

    def coordinate(self, rank: int, axis: str) -> int:
        """Returns the position of a world rank along one axis."""
        i = self._index[rank]
        for name, size in self.axes:
            if name == axis:
                return i % size
            i //= size
        raise KeyError(axis)

    def groups(self, *axes: str) -> list[tuple[int, ...]]:
        """Returns groups of ranks that differ only along `axes`, each in grid order, sorted by their first rank."""
        groups: dict[int, list[int]] = {}
        for i, rank in enumerate(self.ranks):
            key, stride, rest = 0, 1, i
            for name, size in self.axes:
                rest, c = divmod(rest, size)
                key += 0 if name in axes else c * stride
                stride *= size
            groups.setdefault(key, []).append(rank)
        return [tuple(g) for g in groups.values()]

    def group(self, rank: int, *axes: str) -> tuple[int, ...]:
        """Returns the group of `groups(*axes)` that contains a rank."""
        return next(g for g in self.groups(*axes) if rank in g)

    def at(self, **coordinates: int) -> int:
        """Returns the world rank at the given coordinates; an axis that is not named is at 0."""
        index, stride = 0, 1
        for name, size in self.axes:
            index += coordinates.get(name, 0) * stride
            stride *= size
        return self.ranks[index]


@dataclass(frozen=True)
class MegatronGrids:
    """Two views of the ranks of one role: for dense layers (tp, dp, pp) and for experts (etp, ep, edp, pp)."""

    dense: Grid
    experts: Grid
    pipeline_layers: tuple[int, ...]
    """Layers per stage; empty: equal stages."""


@dataclass(frozen=True)
class Layout:
    """The grids of all roles in a world of `size` ranks."""

    size: int
    train: MegatronGrids
    reference: MegatronGrids | None
    """None: the reference has no grid of its own and temporarily replaces the policy on train's."""
    rollout: Grid
    """Axes tp, dp, replica. Each (dp, replica) is an engine with its own requests."""

    @property
    def reference_grids(self) -> MegatronGrids:
        """The grids of the ranks that compute the reference: its own, or those of train."""
        return self.reference or self.train

    @property
    def engines(self) -> int:
        """Number of engines."""
        return self.rollout.size("dp") * self.rollout.size("replica")

    def engine_of(self, rank: int) -> int:
        """Returns the number of the engine to which a rollout rank belongs: 0 .. engines - 1."""
        return self.rollout.coordinate(rank, "replica") * self.rollout.size("dp") + self.rollout.coordinate(rank, "dp")


def carve(cfg: config.Layout, size: int) -> Layout:
    """Returns the layout of a world of `size` ranks. Raises UserError if degrees and ranks do not fit together."""
    train = _megatron("layout.train", cfg.train, size)
    reference = _megatron("layout.reference", cfg.reference, size) if cfg.reference else None
    rollout = _vllm("layout.rollout", cfg.rollout, size)
    if reference and set(reference.dense.ranks) == set(train.dense.ranks):
        if cfg.reference != cfg.train:
            raise UserError(
                "layout.reference covers the ranks of layout.train with other degrees; a colocated reference "
                "uses train's grid: remove the section, or give it ranks of its own"
            )
        reference = None
    roles = {"train": set(train.dense.ranks), "rollout": set(rollout.ranks)}
    if reference:
        roles["reference"] = set(reference.dense.ranks)
    _check_overlaps(roles, size)
    return Layout(size=size, train=train, reference=reference, rollout=rollout)


def _check_overlaps(roles: dict[str, set[int]], size: int) -> None:
    names = list(roles)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            if roles[a] != roles[b] and roles[a] & roles[b]:
                raise UserError(
                    f"layout.{a}.ranks = {_spell(roles[a])} and layout.{b}.ranks = {_spell(roles[b])} overlap in part; "
                    "two roles must cover the same ranks or have none in common"
                )
    idle = set(range(size)) - set().union(*roles.values())
    if idle:
        raise UserError(
            f"ranks {_spell(idle)} of a world of {size} belong to no role; start fewer processes or widen "
            "layout.*.ranks"
        )


def _megatron(section: str, cfg: config.MegatronGrid, size: int) -> MegatronGrids:
    ranks = parse_ranks(f"{section}.ranks", cfg.ranks, size)
    tp, pp, ep = cfg.tensor_model_parallel_size, cfg.pipeline_model_parallel_size, cfg.expert_model_parallel_size
    _check_positive(
        section, tensor_model_parallel_size=tp, pipeline_model_parallel_size=pp, expert_model_parallel_size=ep
    )
    if len(ranks) % (tp * pp):
        raise UserError(
            f"{section}: tp {tp} x pp {pp} = {tp * pp} does not divide its {len(ranks)} ranks (ranks = {cfg.ranks!r}); "
            "change a degree or the ranks"
        )
    # If each rank holds all experts (ep 1), tensor parallelism must split them: otherwise megatron-core 0.16.1 never
    # sums their gradients over the tensor ranks. With ep > 1 each expert is whole.
    etp = tp if ep == 1 else 1
    if len(ranks) % (etp * ep * pp):
        raise UserError(
            f"{section}: ep {ep} x pp {pp} = {ep * pp} does not divide its {len(ranks)} ranks; "
            f"expert_model_parallel_size must divide the {len(ranks) // pp} ranks of a stage"
        )
    if cfg.pipeline_layers and len(cfg.pipeline_layers) != pp:
        raise UserError(
            f"{section}.pipeline_layers has {len(cfg.pipeline_layers)} entries for {pp} stages; give one number per "
            "stage"
        )
    dense = (("tp", tp), ("dp", len(ranks) // (tp * pp)), ("pp", pp))
    experts = (("etp", etp), ("ep", ep), ("edp", len(ranks) // (etp * ep * pp)), ("pp", pp))
    return MegatronGrids(Grid(ranks, dense), Grid(ranks, experts), cfg.pipeline_layers)


def _vllm(section: str, cfg: config.VllmGrid, size: int) -> Grid:
    ranks = parse_ranks(f"{section}.ranks", cfg.ranks, size)
    tp, dp = cfg.tensor_parallel_size, cfg.data_parallel_size
    _check_positive(section, tensor_parallel_size=tp, data_parallel_size=dp)
    if len(ranks) % (tp * dp):
        raise UserError(
            f"{section}: tensor_parallel_size {tp} x data_parallel_size {dp} = {tp * dp} does not divide its "
            f"{len(ranks)} ranks (ranks = {cfg.ranks!r}); change a degree or the ranks"
        )
    if dp > 1 and not cfg.enable_expert_parallel:
        raise UserError(
            f"{section}.data_parallel_size = {dp} without enable_expert_parallel couples engines without a benefit; "
            "set it to 1 (replicas) or enable expert parallelism"
        )
    return Grid(ranks, (("tp", tp), ("dp", dp), ("replica", len(ranks) // (tp * dp))))


def _check_positive(section: str, **degrees: int) -> None:
    for name, degree in degrees.items():
        if degree < 1:
            raise UserError(f"{section}.{name} = {degree}; it must be at least 1")


def parse_ranks(field: str, text: str, size: int) -> tuple[int, ...]:
    """Returns "all" or "0-5,8" as ascending world ranks. Raises UserError with the name of the field."""
    if text == "all":
        return tuple(range(size))
    ranks: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise UserError(
                f'{field} = {text!r}: {part!r} is not a rank or a range; write "all" or, for example, "0-5,8"'
            )
        ranks.update(range(int(first), int(last or first) + 1))
    if not ranks or max(ranks) >= size:
        raise UserError(
            f"{field} = {text!r} names rank {max(ranks, default='none')} in a world of {size} (ranks 0 to {size - 1}); "
            "start more processes or change the ranks"
        )
    return tuple(sorted(ranks))


def _spell(ranks: set[int]) -> str:
    """Returns ranks as ranges: {0,1,2,5} -> 0-2,5."""
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and rank == runs[-1][-1] + 1:
            runs[-1][1:] = [rank]
        else:
            runs.append([rank])
    return ",".join("-".join(map(str, run)) for run in runs)


def check_world(cfg: config.Layout, size: int) -> None:
    """Raises UserError if another number of ranks was started than the config is for."""
    if cfg.world not in (0, size):
        raise UserError(
            f"layout.world = {cfg.world}, but {size} ranks were started; "
            f"start {cfg.world}, or change layout.world and the degrees"
        )


def check_batch(cfg: config.Config, layout: Layout) -> None:
    """Check that prompts divide over engines, a response fits a micro-batch, and tokens fit a scheduler step.

    Raises UserError.
    """
    prompts, engines = cfg.grpo.prompts_per_iteration, layout.engines
    if prompts < 1 or prompts % engines:
        raise UserError(
            f"grpo.prompts_per_iteration = {prompts} is not a multiple of the {engines} rollout engines; "
            f"use {max(1, math.ceil(prompts / engines)) * engines}, or change layout.rollout"
        )
    longest = cfg.rollout.max_prompt_tokens + cfg.rollout.max_response_tokens
    if cfg.train.micro_batch_tokens < longest:
        raise UserError(
            f"train.micro_batch_tokens = {cfg.train.micro_batch_tokens} is less than one response with its prompt "
            f"(rollout.max_prompt_tokens + max_response_tokens = {longest}); raise it to at least {longest}"
        )
    samples, dp = prompts * cfg.grpo.group_size, layout.train.dense.size("dp")
    if samples < dp:
        raise UserError(
            f"an iteration has {samples} responses for {dp} data-parallel ranks; raise grpo.prompts_per_iteration"
        )


def reference_runs_ahead(cfg: config.Config, layout: Layout) -> bool:
    """Returns whether the reference's logprobs are computed during the rollout, because its ranks do not generate.

    They are not with expert parallelism, where tokens of several data-parallel ranks are multiplied together: the
    rounding would depend on which samples meet. Nor with routing replay, whose experts are too much data to send twice.
    """
    grids = layout.reference_grids
    split = not set(grids.dense.ranks) & set(layout.rollout.ranks)
    return bool(split and cfg.grpo.kl_coef and grids.experts.size("ep") == 1 and not cfg.train.routing_replay)
