"""The plan as data: everything that `train.py CONFIG --plan` prints, from the config and a number of ranks."""

import dataclasses
from collections import Counter
from dataclasses import dataclass
from typing import Any

from r1zero.config import Config, UserError
from r1zero.distributed import layout as layouts
from r1zero.distributed.layout import Layout
from r1zero.model import families, placement
from r1zero.model.shape import CHUNK_BYTES
from r1zero.plan import communicators, duration, fixes, memory, workload
from r1zero.plan.communicators import Group
from r1zero.plan.machine import RATES, Machine, machine_for
from r1zero.plan.memory import RankRoles, RolesMemory
from r1zero.plan.traffic import Traffic
from r1zero.plan.workload import MemoryInputs
from r1zero.weight_sync.routes import Routes

GB = 1e9


@dataclass(frozen=True)
class Plan:
    """Everything that --plan reports."""

    config: str
    device: str
    """run.device."""
    world: int
    nodes: int
    parameters: int
    """Total number, without multi-token prediction. A router's bias counts, as in the published number."""
    active_parameters: float
    """Number used per token. The embedding, which is looked up, does not count."""
    stages: tuple[tuple[int, int], ...]
    """First layer and number of layers of each pipeline stage of the trainer."""
    groups: tuple[Group, ...]
    batch: dict[str, float]
    places: tuple[RolesMemory, ...]
    host: dict[str, int]
    """Kind -> bytes of host memory on the fullest node."""
    checkpoint: dict[str, float]
    """Bytes of one checkpoint, host bytes that a rank needs to write it, and seconds."""
    traffic: Traffic
    seconds: dict[str, float]
    """Phase -> seconds of one iteration, at the expected rates."""
    tokens_per_second: float
    """Tokens of prompts and responses, over all ranks, at the expected rates."""
    durations: dict[str, dict[str, float]]
    """Name of a set of rates (see machine.RATES) -> phase -> seconds of one iteration."""
    machine: Machine
    problems: tuple[str, ...]
    """Why the run would fail, each with a fix; empty: it fits."""
    notes: tuple[str, ...]

    @property
    def worst(self) -> RolesMemory:
        """The roles whose ranks need the most memory in any phase."""
        return max(self.places, key=lambda p: p.phase_memory.total(p.phase_memory.worst))


def plan(cfg: Config, world: int, name: str = "") -> Plan:
    """Compute the plan. Raises UserError if degrees, ranks, batch and model do not fit together.

    If the memory does not suffice, the plan lists it under `problems` instead, so that its numbers can be seen.
    """
    if world < 1:
        raise UserError(f"--world {world}; it must be at least 1")
    layout = layouts.carve(cfg.layout, world)
    layouts.check_batch(cfg, layout)
    machine, shape = machine_for(cfg, world), families.model_shape(cfg.model)
    if layout.reference:
        placement.check(shape, layout.reference)
    routes = Routes(layout, shape, cfg.layout.rollout.enable_expert_parallel, cfg.run.device)
    inputs = workload.memory_inputs(cfg, layout, routes, machine)
    places = memory_by_roles(inputs)
    host = fullest_node(inputs)
    durations = {
        name: duration.seconds(dataclasses.replace(inputs, machine=machine_for(cfg, world, name)))
        for name in RATES[cfg.run.device]
    }
    seconds = durations["expected"]
    tokens = duration.samples(inputs) * workload.mean_tokens(inputs)
    runs = placement.stages(shape, layout.train)
    found = communicators.groups(layout, shape, routes.expert_parallel, cfg.run.device, int(machine.node_ranks))
    return Plan(
        config=name or cfg.run.name,
        device=cfg.run.device,
        world=world,
        nodes=-(-world // int(machine.node_ranks)),
        parameters=sum(w.size for w in routes.weights),
        active_parameters=sum(s.work for s in inputs.train),
        stages=tuple((run.start, len(run)) for run in runs),
        groups=tuple(found),
        batch=batch_sizes(inputs),
        places=places,
        host=host,
        checkpoint={
            "bytes": memory.checkpoint_bytes(inputs),
            "host bytes per rank": 2 * CHUNK_BYTES,
            "seconds": memory.checkpoint_bytes(inputs) / GB / machine.storage_gbs,
        },
        traffic=inputs.traffic,
        seconds=seconds,
        tokens_per_second=tokens / sum(seconds.values()),
        durations=durations,
        machine=machine,
        problems=tuple(fixes.problems(inputs, places, host)),
        notes=tuple(notes(inputs, layout)),
    )


def memory_by_roles(inputs: MemoryInputs) -> tuple[RolesMemory, ...]:
    """Returns the memory of each distinct combination of roles, and how many ranks have it."""
    counted = Counter(
        memory.roles_of(inputs.layout, rank, bool(inputs.reference)) for rank in range(inputs.layout.size)
    )
    return tuple(RolesMemory(place, n, memory.phase_memory(inputs, place)) for place, n in counted.items())


def fullest_node(inputs: MemoryInputs) -> dict[str, int]:
    """Returns kind -> bytes of pinned host memory on the node that needs the most."""
    per_node: dict[int, Counter[str]] = {}
    made: dict[RankRoles, dict[str, int]] = {}
    for rank in range(inputs.layout.size):
        place = memory.roles_of(inputs.layout, rank, bool(inputs.reference))
        if place not in made:
            made[place] = memory.phase_memory(inputs, place).host
        per_node.setdefault(rank // int(inputs.machine.node_ranks), Counter()).update(made[place])
    fullest = max(per_node.values(), key=lambda kinds: sum(kinds.values()))
    return dict(fullest)


def batch_sizes(inputs: MemoryInputs) -> dict[str, float]:
    """Returns the sizes of the batch and its parts, by description."""
    cfg, layout = inputs.cfg, inputs.layout
    at_once, cache = memory.cache_need(inputs)
    samples = duration.samples(inputs)
    return {
        "prompts per iteration": cfg.grpo.prompts_per_iteration,
        "responses per prompt": cfg.grpo.group_size,
        "responses per iteration": samples,
        "engines": layout.engines,
        "prompts per engine": cfg.grpo.prompts_per_iteration // layout.engines,
        "responses that an engine decodes at a time": at_once,
        "waves of decoding": -(-(samples // layout.engines) // at_once),
        "cache for that many full sequences, GB per rank": round(cache / GB, 1),
        "data-parallel ranks": layout.train.dense.size("dp"),
        "responses per data-parallel rank": samples / layout.train.dense.size("dp"),
        "tokens that the trainer computes per response (estimate)": round(
            workload.computed_tokens(inputs, layout.train), 1
        ),
        "micro-batches per data-parallel rank (estimate)": workload.micro_batches(inputs),
        "updates per iteration": cfg.grpo.mini_batches * cfg.grpo.epochs,
    }


def notes(inputs: MemoryInputs, layout: Layout) -> list[str]:
    """Returns warnings about a plan that fits."""
    cfg = inputs.cfg
    at_once, cache = memory.cache_need(inputs)
    have = cfg.rollout.kv_cache_gib * workload.GIB
    found = []
    if have < cache:
        found.append(
            f"rollout.kv_cache_gib = {cfg.rollout.kv_cache_gib:g} holds {have / cache:.0%} of {at_once} full sequences "
            f"({cache / workload.GIB:.1f} GiB): if responses become that long, vLLM queues or recomputes some"
        )
    found += _less_recomputation(inputs, layout)
    slow = [
        f"{group.kind.name} groups span {group.nodes} nodes"
        for group in communicator_groups(inputs)
        if group.kind.name in ("train tp", "engine tp") and group.nodes > 1
    ]
    return found + [f"{text}: tensor parallelism between nodes is slow; keep tp within the node" for text in slow]


MARGIN = 0.1
"""Share of the memory that a proposal to recompute less leaves free."""


def _less_recomputation(inputs: MemoryInputs, layout: Layout) -> list[str]:
    """Returns a sentence with the fewest recomputed layers for which the memory suffices, if the config has more."""
    chosen = placement.recomputed_layers(inputs.cfg.train, inputs.routes.shape, layout.train)
    places = {memory.roles_of(layout, rank, bool(inputs.reference)) for rank in range(layout.size)}
    limit = (1 - MARGIN) * inputs.machine.memory_gib * workload.GIB
    fewest = fixes.fewest_recomputed(inputs, list(places), limit)
    if fewest is None or sum(fewest) >= sum(chosen):
        return []
    advice = f"train.recompute_layers = {fewest}" if any(fewest) else 'train.recompute = "none"'
    return [
        f"{advice} recomputes {sum(fewest)} layers instead of {sum(chosen)} and leaves {MARGIN:.0%} of the memory free"
    ]


def communicator_groups(inputs: MemoryInputs) -> list[Group]:
    """Returns the process groups that communicate on the device."""
    return communicators.groups(
        inputs.layout,
        inputs.routes.shape,
        inputs.routes.expert_parallel,
        inputs.cfg.run.device,
        int(inputs.machine.node_ranks),
    )


def as_data(made: Plan) -> dict[str, Any]:
    """Returns the plan as plain lists, dicts and numbers, for --json."""
    data = dataclasses.asdict(made)
    for row in data["places"]:
        row["place"] = dict(zip(RankRoles._fields, row["place"], strict=True))
    data["fits"] = not made.problems
    return data
