"""Reports what does not fit, with a fix. Every fix is tried on the plan itself before it is proposed."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import reduce
from itertools import combinations

from r1zero.config import Config, UserError
from r1zero.distributed import layout as layouts
from r1zero.plan import communicators, memory, workload
from r1zero.plan.machine import machine_for
from r1zero.plan.memory import RankRoles, RolesMemory
from r1zero.plan.workload import MemoryInputs
from r1zero.weight_sync.routes import Routes

GB = 1e9


def problems(inputs: MemoryInputs, places: Sequence[RolesMemory], host: dict[str, int]) -> Iterator[str]:
    """Yields a sentence with a fix for everything that does not fit. host: kind -> bytes on the fullest node."""
    limit = inputs.machine.memory_gib * workload.GIB
    full = [(p, p.phase_memory.worst) for p in places if p.phase_memory.total(p.phase_memory.worst) > limit]
    if full:
        worst, phase = max(full, key=lambda pair: pair[0].phase_memory.total(pair[1]))
        total = worst.phase_memory.total(phase)
        biggest = ", ".join(
            f"{kind} {n / GB:.1f}"
            for kind, n in sorted(worst.phase_memory.device[phase].items(), key=lambda kv: -kv[1])[:4]
        )
        yield (
            f"phase {phase} needs {total / GB:.1f} GB on {sum(p.ranks for p, _ in full)} ranks, but only "
            f"{limit / GB:.1f} GB are usable "
            f"(plan.assume.memory_gib = {inputs.machine.memory_gib:g}); the largest parts are {biggest} GB. "
            f"{_find_fix(inputs, [p.place for p in places], limit)}"
        )
    pinned = sum(host.values())
    if pinned > inputs.machine.host_memory_gb * GB:
        parts = ", ".join(f"{kind} {n / GB:.0f}" for kind, n in host.items())
        yield (
            f"a node's host memory needs {pinned / GB:.0f} GB of {inputs.machine.host_memory_gb:g} "
            f"(plan.assume.host_memory_gb): {parts} GB. Use more nodes, or keep the optimizer on the device "
            "(optimizer.offload = false)"
        )
    shape, cfg = inputs.routes.shape, inputs.cfg
    if shape.moe and cfg.run.device == "npu" and inputs.routes.expert_parallel:
        need = communicators.mc2_buffer(shape, inputs.layout, cfg.rollout.max_num_seqs) / workload.MIB
        if need > inputs.machine.buffer_mb:
            fits = max(
                (
                    n
                    for n in range(8, cfg.rollout.max_num_seqs, 8)
                    if communicators.mc2_buffer(shape, inputs.layout, n) <= inputs.machine.buffer_mb * workload.MIB
                ),
                default=None,
            )
            yield (
                f"the engine's expert dispatch needs HCCL_BUFFSIZE of {need:.0f} MiB "
                f"for rollout.max_num_seqs = {cfg.rollout.max_num_seqs}, "
                f"but plan.assume.buffer_mb is {inputs.machine.buffer_mb:g}; raise both (launch/env-a3.sh)"
                + (f", or lower max_num_seqs to {fits}" if fits else "")
            )


def _find_fix(inputs: MemoryInputs, places: list[RankRoles], limit: float) -> str:
    """Returns, as a sentence, the smallest set of changes that makes every phase fit."""
    cfg = inputs.cfg
    longest = cfg.rollout.max_prompt_tokens + cfg.rollout.max_response_tokens
    changes: dict[str, Callable[[Config], Config]] = {}
    if not cfg.train.offload and not inputs.on_cpu:
        changes["train.offload = true"] = lambda c: replace(c, train=replace(c.train, offload=True))
    if not cfg.optimizer.offload and not inputs.on_cpu:
        changes["optimizer.offload = true"] = lambda c: replace(c, optimizer=replace(c.optimizer, offload=True))
    if cfg.run.dtype == "float32":
        changes['run.dtype = "bfloat16"'] = lambda c: replace(c, run=replace(c.run, dtype="bfloat16"))
    if cfg.train.recompute == "none":
        changes['train.recompute = "selective"'] = lambda c: replace(c, train=replace(c.train, recompute="selective"))
    if cfg.train.recompute != "full":
        changes['train.recompute = "full"'] = lambda c: replace(c, train=replace(c.train, recompute="full"))
    elif cfg.train.recompute_layers:
        changes["train.recompute_layers = []"] = lambda c: replace(c, train=replace(c.train, recompute_layers=()))
    if cfg.train.micro_batch_tokens > longest:
        changes[f"train.micro_batch_tokens = {longest}"] = lambda c: replace(
            c, train=replace(c.train, micro_batch_tokens=longest)
        )
    if cfg.grpo.kl_coef:
        changes["grpo.kl_coef = 0"] = lambda c: replace(c, grpo=replace(c.grpo, kl_coef=0.0))
    for count in range(len(changes) + 1):
        for names in combinations(changes, count):
            if sum(name.startswith("train.recompute") for name in names) > 1:
                continue
            changed = cfg
            for name in names:
                changed = changes[name](changed)
            for extra, tried in (("", changed), _smaller_cache(replace(inputs, cfg=changed), places, limit)):
                worst = _worst(replace(inputs, cfg=tried), places)
                if worst <= limit and (names or extra):
                    said = " and ".join([*names, extra] if extra else names)
                    return f"With {said} it would need {worst / GB:.1f} GB"
    changes.pop('train.recompute = "selective"', None)
    for names in ((), tuple(changes)) if inputs.on_cpu else ():
        changed = reduce(lambda c, name: changes[name](c), names, cfg)
        if fewer := _fewer_ranks(replace(inputs, cfg=changed)):
            return f"With {' and '.join([*names, f'{fewer} rank' + 's' * (fewer > 1)])} on this machine it fits"
    return (
        "No change of type, reference, offload, recomputation, cache or micro-batch makes it fit: use more ranks, or "
        "higher degrees of "
        "parallelism" + (", on more machines" if inputs.on_cpu else "")
    )


def fewest_recomputed(inputs: MemoryInputs, places: list[RankRoles], limit: float) -> list[int] | None:
    """Returns the smallest numbers of layers, one per pipeline stage, that have to be recomputed as a whole so that
    every phase of the ranks that train fits; None if it does not fit in any case."""
    layers = [stage.layers for stage in inputs.train]
    found = [0] * len(layers)
    for stage in range(len(layers)):
        mine = [place for place in places if place.train == stage]
        while _worst(_recomputing(inputs, found), mine) > limit:
            if found[stage] == layers[stage]:
                return None
            found[stage] += 1
    return found


def _recomputing(inputs: MemoryInputs, layers: list[int]) -> MemoryInputs:
    train = replace(inputs.cfg.train, recompute="full", recompute_layers=tuple(layers))
    return replace(inputs, cfg=replace(inputs.cfg, train=train))


def _fewer_ranks(inputs: MemoryInputs) -> int:
    """Returns the largest number of ranks for which this machine's memory suffices; 0 for none."""
    cfg = inputs.cfg
    for size in range(inputs.layout.size - 1, 0, -1):
        try:
            grids = layouts.carve(cfg.layout, size)
            layouts.check_batch(cfg, grids)
        except UserError:
            continue
        routes = Routes(grids, inputs.routes.shape, inputs.routes.expert_parallel, cfg.run.device)
        tried = workload.memory_inputs(cfg, grids, routes, machine_for(cfg, size))
        places = list({memory.roles_of(grids, rank, bool(tried.reference)) for rank in range(size)})
        if _worst(tried, places) <= tried.machine.memory_gib * workload.GIB:
            return size
    return 0


def _smaller_cache(inputs: MemoryInputs, places: list[RankRoles], limit: float) -> tuple[str, Config]:
    """Returns the largest cache, in quarters of a GiB, with which the phases that have a cache stay within the
    limit."""
    have = int(inputs.cfg.rollout.kv_cache_gib * workload.GIB)
    memory_by_roles = [memory.phase_memory(inputs, place) for place in places]
    rooms = [
        limit - one.total(phase) + have
        for one in memory_by_roles
        for phase in one.device
        if "KV cache" in one.device[phase]
    ]
    gib = int(min(rooms, default=0) / workload.GIB * 4) / 4
    if not 0 < gib < inputs.cfg.rollout.kv_cache_gib:
        return "", inputs.cfg
    return f"rollout.kv_cache_gib = {gib:g}", replace(inputs.cfg, rollout=replace(inputs.cfg.rollout, kv_cache_gib=gib))


def _worst(inputs: MemoryInputs, places: list[RankRoles]) -> int:
    made = [memory.phase_memory(inputs, place) for place in places]
    return max(one.total(one.worst) for one in made)
