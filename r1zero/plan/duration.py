"""Seconds of one iteration by stage: arithmetic over the machine's supposed rates, a guide and no promise."""

from r1zero.distributed.layout import MegatronGrids
from r1zero.plan.memory import MemoryInputs, cache_need, mean_tokens, micro_batches, optimizer_bytes, weight_bytes
from r1zero.plan.sizes import Stage, absorbed_elements, attention_operations
from r1zero.rollout.engine_limits import cache_elements


def seconds(inputs: MemoryInputs) -> dict[str, float]:
    """Stage -> seconds. Grading runs beside the rollout, and the exchange of samples is not worth a line."""
    prefill, decode = _rollout(inputs)
    found, trained = {"prefill": prefill, "decode": decode}, inputs.layout.train
    if inputs.reference:
        found["reference"] = _passes(inputs, inputs.reference, inputs.layout.reference or trained, forward=True)
    recipe = inputs.cfg.grpo
    updates = recipe.mini_batches * recipe.epochs
    if recipe.old_logprobs == "trainer" and (updates > 1 or recipe.kl_in == "reward"):
        found["old logprobs"] = _passes(inputs, inputs.train, trained, forward=True)
    found["update"] = recipe.epochs * _passes(inputs, inputs.train, trained, forward=False)
    found["update"] += updates * (_gradients(inputs) + _optimizer(inputs))
    found["sync"] = max(inputs.traffic.most_sent, inputs.traffic.most_received) / inputs.machine.link_gbs / 1e9
    found["host copies"] = _host_copies(inputs)
    return found


def samples(inputs: MemoryInputs) -> int:
    return inputs.cfg.grpo.prompts_per_iteration * inputs.cfg.grpo.group_size


def _rollout(inputs: MemoryInputs) -> tuple[float, float]:
    """(prefill, decode). One of so many samples is nearly always truncated, so decoding lasts for the longest
    response."""
    cfg, m, shape = inputs.cfg, inputs.machine, inputs.routes.shape
    at_once, _ = cache_need(inputs)
    share = samples(inputs) // inputs.layout.engines
    waves = -(-share // at_once)
    mean_prompt, mean_response = (
        m.prompt_share * cfg.rollout.max_prompt_tokens,
        m.response_share * cfg.rollout.max_response_tokens,
    )
    tp = inputs.layout.rollout.size("tp")
    # All responses to a prompt share its prefill.
    prompt_tokens = share / cfg.grpo.group_size * mean_prompt
    prefill = prompt_tokens * operations(inputs, mean_prompt) / (tp * m.tflops * 1e12 * m.mfu_forward)
    weights = (
        inputs.engine[0] + (absorbed_elements(shape, inputs.layout) if cfg.run.device == "npu" else 0)
    ) * inputs.itemsize
    cache = at_once * (mean_prompt + mean_response / 2) * cache_elements(shape, inputs.layout) * inputs.itemsize
    compute = at_once * operations(inputs, mean_prompt + mean_response / 2) / (tp * m.tflops * 1e12 * m.mfu_forward)
    step = (
        max((weights + cache) / (m.memory_gbs * 1e9 * m.decode_share), compute)
        + m.decode_overhead_ms / 1e3
        + at_once * m.seed_us / 1e6
    )
    return prefill, waves * cfg.rollout.max_response_tokens * step


def operations(inputs: MemoryInputs, length: float) -> float:
    """Of a forward pass, for one token of a sequence of `length`: two for each weight it meets, and attention to half
    of it."""
    return 2 * sum(stage.work for stage in inputs.train) + attention_operations(inputs.routes.shape, length / 2)


def _passes(inputs: MemoryInputs, model: list[Stage], grids: MegatronGrids, forward: bool) -> float:
    """All samples through a pipeline whose slowest stage sets the pace; backward is two forwards, recomputation a
    third."""
    m = inputs.machine
    ranks, pp = len(grids.dense.ranks), grids.dense.size("pp")
    slowest = max(stage.work for stage in model) * pp / sum(stage.work for stage in model)
    bubble = 1 + (pp - 1) / micro_batches(inputs)
    times, mfu = (1, m.mfu_forward) if forward else (3 + (inputs.cfg.train.recompute == "full"), m.mfu_update)
    length = mean_tokens(inputs)
    work = samples(inputs) * length * operations(inputs, length) * times
    return work * slowest * bubble / (ranks * m.tflops * 1e12 * mfu)


def _gradients(inputs: MemoryInputs) -> float:
    """fp32 gradients scattered and weights gathered over data-parallel ranks, once an iteration."""
    dense, experts = inputs.layout.train.dense.size("dp"), inputs.layout.train.experts.size("edp")
    moved = max(
        (s.dense * (1 - 1 / dense) + s.experts * (1 - 1 / experts)) * (4 + inputs.itemsize) for s in inputs.train
    )
    return moved / inputs.machine.link_gbs / 1e9


def _optimizer(inputs: MemoryInputs) -> float:
    """State to the device and back when it lives on the host."""
    if not inputs.cfg.optimizer.offload or inputs.on_cpu:
        return 0.0
    return (
        max(2 * optimizer_bytes(s, inputs.layout.train, inputs.itemsize) for s in inputs.train)
        / inputs.machine.host_link_gbs
        / 1e9
    )


def _host_copies(inputs: MemoryInputs) -> float:
    """Weights out and in around the rollout, the reference in, the weights in again."""
    if inputs.on_cpu:
        return 0.0
    colocated = set(inputs.layout.train.dense.ranks) == set(inputs.layout.rollout.ranks)
    times = (2 if inputs.cfg.train.offload and colocated else 0) + (
        2 if inputs.reference and inputs.layout.reference is None else 0
    )
    return times * max(weight_bytes(s, inputs.itemsize) for s in inputs.train) / inputs.machine.host_link_gbs / 1e9
