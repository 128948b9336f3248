"""Bytes on a rank's device in each phase, by kind, and bytes in its host memory."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from r1zero.distributed.layout import Layout, MegatronGrids
from r1zero.model import placement
from r1zero.model.shape import CHUNK_BYTES, DENSE_TOKENS
from r1zero.plan import communicators, engine_memory
from r1zero.plan.sizes import LayerSize, Pass, Stage, layer_size
from r1zero.plan.workload import GIB, MIB, MemoryInputs, attended, micro_batches
from r1zero.rollout.engine_limits import cache_elements

PHASES = ("rollout", "reference", "update", "step", "sync", "save")
LOGIT_ROWS = 1024
KEPT_LOGITS_BYTES = 32 << 20
LOGIT_BLOCK_BYTES = 8 << 20
"""Equal to r1zero.logprobs.ROWS, KEPT_BYTES and BLOCK_BYTES, which cannot be imported here without torch."""


class RankRoles(NamedTuple):
    """The roles of a rank, which determine its memory. train, reference: pipeline stage, or None without the role."""

    train: int | None
    reference: int | None
    rollout: bool


@dataclass(frozen=True)
class PhaseMemory:
    device: dict[str, dict[str, int]]  # phase -> kind -> bytes
    host: dict[str, int]  # kind -> bytes of pinned memory; empty on a CPU, where host and device are the same

    def total(self, phase: str) -> int:
        return sum(self.device[phase].values())

    @property
    def worst(self) -> str:
        return max(self.device, key=self.total)


@dataclass(frozen=True)
class RolesMemory:
    place: RankRoles
    ranks: int
    phase_memory: PhaseMemory


def roles_of(layout: Layout, rank: int, has_reference: bool) -> RankRoles:
    train = layout.train.dense.coordinate(rank, "pp") if rank in layout.train.dense else None
    reference = None
    if has_reference:
        grid = layout.reference_grids.dense
        reference = grid.coordinate(rank, "pp") if rank in grid else None
    return RankRoles(train, reference, rank in layout.rollout)


def phase_memory(inputs: MemoryInputs, place: RankRoles) -> PhaseMemory:
    """Returns the memory of a rank with these roles, by phase. On a CPU nothing is ever offloaded."""
    shared = place.train is not None and place.rollout
    weights, gradients, optimizer, host = _trainer(inputs, place)
    engine, cache = engine_memory.weights_and_cache(inputs) if place.rollout else (0, 0)
    asleep = shared and not inputs.on_cpu  # an engine that shares its device drops weights and cache between rollouts
    away = shared and inputs.cfg.train.offload and not inputs.on_cpu
    second = _reference_copy(inputs, place)
    always = {
        "communicators": _communicators(inputs, place),
        "runtime": int(inputs.machine.runtime_gib * GIB),
        "reference": second,
        "optimizer": optimizer,
        "graphs": engine_memory.graphs(inputs) if place.rollout else 0,
    }
    kept = {"engine weights": 0 if asleep else engine, "KV cache": 0 if asleep else cache}
    trainer = {"weights": weights, "gradients": gradients}
    rollout_trainer = {"weights": 0, "gradients": 0} if away else trainer
    lines = {
        "rollout": {
            **rollout_trainer,
            "engine weights": engine,
            "KV cache": cache,
            "workspace": engine_memory.workspace(inputs) if place.rollout else 0,
        },
        "reference": {**trainer, "gradients": 0 if away else gradients, **kept, **_passes(inputs, place, False)},
        "update": {**trainer, **kept, **_passes(inputs, place, True)},
        "step": {**trainer, **kept, "optimizer": optimizer or host.get("optimizer", 0)},  # activations are freed
        "sync": {
            **trainer,
            "gradients": 0 if away else gradients,
            "engine weights": engine,
            "KV cache": kept["KV cache"],
            **(_sync_buffers(inputs, place) if engine or weights else {}),
        },
        "save": {  # during the next rollout; a rank writes its state in pieces, from wherever it is
            **rollout_trainer,
            "engine weights": engine,
            "KV cache": cache,
            "pieces": save_buffers(inputs) if weights else 0,
        },
    }
    return PhaseMemory(
        {phase: {kind: n for kind, n in {**always, **lines[phase]}.items() if n} for phase in PHASES}, host
    )


def save_buffers(inputs: MemoryInputs) -> int:
    """Returns the host bytes of a rank that saves: for the part that is written, and its copy in the file's format."""
    return 2 * CHUNK_BYTES if inputs.on_cpu else 0


def checkpoint_bytes(inputs: MemoryInputs) -> int:
    """Returns the bytes of one checkpoint: weights, two fp32 moments, and in bf16 runs fp32 master weights."""
    return sum(weight.size for weight in inputs.routes.weights) * (14 if inputs.itemsize == 2 else 12)


def _communicators(inputs: MemoryInputs, place: RankRoles) -> int:
    """Returns the bytes of the two buffers of each live communicator of a rank, including the world's."""
    layout, routes = inputs.layout, inputs.routes
    mine = {
        "dense": place.train is not None,
        "experts": place.train is not None,
        "rollout": place.rollout,
        "reference": place.reference is not None,
        "reference experts": place.reference is not None,
    }
    live = communicators.kinds(layout, routes.shape, routes.expert_parallel, inputs.cfg.run.device)
    each = [
        communicators.buffer_mb(kind, inputs.cfg.run.device, inputs.machine.buffer_mb)
        for kind in live
        if kind.buffered and mine[kind.grid]
    ]
    world = inputs.machine.buffer_mb if layout.size > 1 else 0
    return int(2 * (sum(each) + world) * MIB)


def _trainer(inputs: MemoryInputs, place: RankRoles) -> tuple[int, int, int, dict[str, int]]:
    """Returns the bytes of (weights, gradients, optimizer state on the device, host memory)."""
    if place.train is None:
        return 0, 0, 0, {}
    stage, cfg = inputs.train[place.train], inputs.cfg
    weights = weight_bytes(stage, inputs.itemsize)
    state = optimizer_bytes(stage, inputs.layout.train, inputs.itemsize)
    host = {}
    if not inputs.on_cpu:
        if cfg.optimizer.offload:
            host["optimizer"] = state
        if cfg.train.offload and place.rollout:
            host["weights"] = weights
        if place.reference is not None and inputs.layout.reference is None:
            host["reference"] = weights
    resident = 0 if cfg.optimizer.offload and not inputs.on_cpu else state
    return weights, 4 * stage.elements, resident, host


def weight_bytes(stage: Stage, itemsize: int) -> int:
    return itemsize * stage.elements + 4 * stage.buffers


def optimizer_bytes(stage: Stage, grids: MegatronGrids, itemsize: int) -> int:
    """Returns the bytes of two moments and, in bf16 runs, fp32 master weights, sharded over the ranks with copies."""
    each = 12 if itemsize == 2 else 8
    return each * -(-stage.dense // grids.dense.size("dp")) + each * -(-stage.experts // grids.experts.size("edp"))


def _reference_copy(inputs: MemoryInputs, place: RankRoles) -> int:
    """Returns the bytes of a reference on its own ranks, or on a CPU of the colocated reference's weights."""
    if place.reference is None or (inputs.layout.reference is None and not inputs.on_cpu):
        return 0
    return weight_bytes(inputs.reference[place.reference], inputs.itemsize)


def _sync_buffers(inputs: MemoryInputs, place: RankRoles) -> dict[str, int]:
    """Returns the bytes staged for sending and receiving, and on a CPU those of the weight that vLLM is packing."""
    staging = min(inputs.cfg.sync.staging_mib * MIB, inputs.traffic.most_sent + inputs.traffic.most_received)
    head = 0 if inputs.routes.shape.tied else engine_memory.head_elements(inputs) * inputs.itemsize
    return {"staging": staging, "loading": head if inputs.on_cpu and place.rollout else 0}


def trainer_layer(inputs: MemoryInputs, grids: MegatronGrids, layer: int) -> LayerSize:
    """Returns a layer's activations. If no other rank shares the experts (ep 1), there is no imbalance."""
    longest = inputs.cfg.rollout.max_prompt_tokens + inputs.cfg.rollout.max_response_tokens
    scores = longest if inputs.on_cpu and longest <= DENSE_TOKENS else 0
    imbalance = inputs.machine.expert_imbalance if grids.experts.size("ep") > 1 else 1.0
    return layer_size(
        inputs.routes.shape,
        layer,
        Pass(grids.dense.size("tp"), grids.experts.size("etp"), imbalance, inputs.itemsize, scores, attended(inputs)),
    )


def _passes(inputs: MemoryInputs, place: RankRoles, training: bool) -> dict[str, int]:
    """Returns the bytes of activations in the trainer's or reference's passes, and what the logits need beyond them."""
    stage = place.train if training else place.reference
    if stage is None:
        return {}
    grids = inputs.layout.train if training else inputs.layout.reference_grids
    shape, tp, pp = inputs.routes.shape, grids.dense.size("tp"), grids.dense.size("pp")
    tokens, size = inputs.cfg.train.micro_batch_tokens, inputs.itemsize
    each = [trainer_layer(inputs, grids, i) for i in placement.stages(shape, grids)[stage]]
    if not training:
        kept, live = 0.0, max(layer.forward for layer in each)
    else:
        in_flight = min(pp - stage, micro_batches(inputs))  # 1F1B schedule: micro-batches in flight at this stage
        saved, again = zip(*_saved_and_recomputed(inputs, each, stage), strict=True)
        kept = in_flight * sum(saved)
        # When a recomputed layer runs backward, what the later layers saved for this micro-batch is free.
        live = max(
            layer.backward + (again[i] - sum(saved[i + 1 :]) if again[i] else 0.0) for i, layer in enumerate(each)
        )
    found = {"activations": int(tokens * size * (kept + live))}
    if stage == pp - 1:
        beyond = _head_bytes(inputs, shape.vocab_size // tp, training) - int(tokens * size * live)
        found |= {"logits": beyond} if beyond > 0 else {}
    if training and stage == 0 and not inputs.on_cpu:  # computed last, in a tensor of its own
        beyond = shape.vocab_size // tp * shape.hidden_size * size - sum(found.values())
        found |= {"embedding gradient": beyond} if beyond > 0 else {}
    return found


def _saved_and_recomputed(inputs: MemoryInputs, layers: list[LayerSize], stage: int) -> Iterator[tuple[float, float]]:
    """Yields the elements per token that each layer of a stage of the trainer saves for its backward pass, and those
    that it computes again then."""
    train, grids = inputs.cfg.train, inputs.layout.train
    first = placement.recomputed_layers(train, inputs.routes.shape, grids)[stage]
    for i, layer in enumerate(layers):
        if i < first:
            yield inputs.routes.shape.hidden_size / grids.dense.size("tp"), layer.kept  # it saves its input
        elif train.recompute == "selective":
            yield layer.kept - layer.feed, layer.feed
        else:
            yield layer.kept, 0.0


def _head_bytes(inputs: MemoryInputs, columns: int, training: bool) -> int:
    """Returns what the output layer needs on a rank that has so many columns of it (see r1zero/logprobs.py).

    All of it is freed before the layers run backward. A micro-batch is assumed to be full: one with few tokens may keep
    up to KEPT_LOGITS_BYTES of logits where this counts those of one block.
    """
    tokens, size, width = inputs.cfg.train.micro_batch_tokens, inputs.itemsize, inputs.routes.shape.hidden_size
    rows = min(tokens, LOGIT_ROWS)
    copy = 0 if size == 4 else size
    keeps = training and tokens * columns * size <= KEPT_LOGITS_BYTES
    of_hidden = tokens * width * (4 + copy) if training else 0
    if inputs.on_cpu:
        # A CPU holds two fp32 tensors of a block: the scaled logits and their exponentials, or the softmax and its
        # gradient. The gradient is then copied in the run's type. An entropy bonus needs three more. Beside these are
        # the block's logits in the run's type, and the hidden states of a chunk's rows with their gradient.
        block = min(LOGIT_BLOCK_BYTES, 4 * rows * columns)
        temporary = 5 * block if training and inputs.cfg.grpo.entropy_coef else 2 * block + training * copy * block // 4
        of_hidden += rows * width * 2 * (size + copy)
        return (tokens * columns * size if keeps else block * size // 4) + temporary + of_hidden
    # Other devices hold fp32 tensors for all rows of a chunk: without training the scaled logits and their
    # exponentials; with it the softmax and its gradient, and then a copy of that in the run's type.
    if not training:
        return rows * columns * (size + 8)
    return columns * ((tokens if keeps else rows) * size + rows * (8 + copy)) + of_hidden


def cache_need(inputs: MemoryInputs) -> tuple[int, int]:
    """Returns (sequences that one engine decodes at a time, bytes of cache if all of them were full)."""
    cfg = inputs.cfg
    share = cfg.grpo.prompts_per_iteration * cfg.grpo.group_size // inputs.layout.engines
    at_once = min(cfg.rollout.max_num_seqs, share)
    tokens = cfg.rollout.max_prompt_tokens + cfg.rollout.max_response_tokens
    return at_once, at_once * tokens * cache_elements(inputs.routes.shape, inputs.layout) * inputs.itemsize
