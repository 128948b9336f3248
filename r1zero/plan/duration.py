"""Estimate of the seconds of one iteration by phase, from the assumed rates of the machine."""

from r1zero.distributed.layout import MegatronGrids, reference_runs_ahead
from r1zero.model import placement
from r1zero.plan.memory import cache_need, optimizer_bytes, weight_bytes
from r1zero.plan.sizes import Stage, absorbed_elements, attention_operations
from r1zero.plan.workload import MemoryInputs, computed_tokens, mean_lengths, mean_tokens, micro_batches
from r1zero.rollout.engine_limits import cache_elements


def seconds(inputs: MemoryInputs) -> dict[str, float]:
    """Returns phase -> seconds. Grading overlaps the rollout, and so does the reference on ranks that do not generate.
    The exchange of samples is negligible."""
    prefill, decode = _rollout(inputs)
    found, trained = {"prefill": prefill, "decode": decode}, inputs.layout.train
    if inputs.reference:
        reference = _passes(inputs, inputs.reference, inputs.layout.reference_grids, forward=True)
        beside = prefill + decode if reference_runs_ahead(inputs.cfg, inputs.layout) else 0.0
        found["reference"] = max(0.0, reference - beside)
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
    """Returns the number of responses per iteration."""
    return inputs.cfg.grpo.prompts_per_iteration * inputs.cfg.grpo.group_size


def _rollout(inputs: MemoryInputs) -> tuple[float, float]:
    """Returns the seconds of (prefill, decode). With many samples, decoding lasts as long as the longest response."""
    cfg, m, shape = inputs.cfg, inputs.machine, inputs.routes.shape
    at_once, _ = cache_need(inputs)
    share = samples(inputs) // inputs.layout.engines
    waves = -(-share // at_once)
    mean_prompt, mean_response = mean_lengths(inputs)
    tp = inputs.layout.rollout.size("tp")
    # All responses to a prompt share its prefill.
    prompt_tokens = share / cfg.grpo.group_size * mean_prompt
    prefill = prompt_tokens * operations(inputs, mean_prompt) / (tp * m.tflops * 1e12 * m.mfu_forward)
    weights = (
        inputs.engine[0] + (absorbed_elements(shape, inputs.layout) if cfg.run.device == "npu" else 0)
    ) * inputs.itemsize
    cache = at_once * (mean_prompt + mean_response / 2) * cache_elements(shape, inputs.layout) * inputs.itemsize
    compute = at_once * operations(inputs, mean_prompt + mean_response / 2) / (tp * m.tflops * 1e12 * m.mfu_forward)
    step = max((weights + cache) / (m.memory_gbs * 1e9 * m.decode_share), compute) + m.decode_overhead_ms / 1e3
    return prefill, waves * cfg.rollout.max_response_tokens * step


def operations(inputs: MemoryInputs, length: float) -> float:
    """Returns the operations per token of a forward pass over a sequence of `length`: two per active weight, and
    attention to half of the sequence on average."""
    return weight_operations(inputs) + attention_operations(inputs.routes.shape, length / 2)


def weight_operations(inputs: MemoryInputs) -> float:
    """Returns the operations per token of a forward pass without attention: two per active weight."""
    return 2 * sum(stage.work for stage in inputs.train)


def _passes(inputs: MemoryInputs, model: list[Stage], grids: MegatronGrids, forward: bool) -> float:
    """Returns the seconds for all samples in a pipeline that its slowest stage limits. A backward pass counts as two
    forward passes, recomputation as its share of one more. Attention is computed for each sample with its prompt,
    everything else once for a shared prompt."""
    m = inputs.machine
    ranks, pp = len(grids.dense.ranks), grids.dense.size("pp")
    times = [1.0] * pp if forward else [3 + share for share in _recomputed(inputs)]
    slowest = max(stage.work * n for stage, n in zip(model, times, strict=True)) * pp
    slowest /= sum(stage.work for stage in model)
    bubble, mfu = 1 + (pp - 1) / micro_batches(inputs), m.mfu_forward if forward else m.mfu_update
    length = mean_tokens(inputs)
    attention = length * attention_operations(inputs.routes.shape, length / 2)
    work = samples(inputs) * (computed_tokens(inputs, grids) * weight_operations(inputs) + attention)
    return work * slowest * bubble / (ranks * m.tflops * 1e12 * mfu)


def _recomputed(inputs: MemoryInputs) -> list[float]:
    """Returns the share of each pipeline stage's forward pass that the backward pass computes again."""
    if inputs.cfg.train.recompute == "selective":
        return [stage.feed / stage.work for stage in inputs.train]
    layers = placement.recomputed_layers(inputs.cfg.train, inputs.routes.shape, inputs.layout.train)
    return [count / stage.layers for count, stage in zip(layers, inputs.train, strict=True)]


def _gradients(inputs: MemoryInputs) -> float:
    """Returns the seconds to reduce-scatter fp32 gradients and all-gather weights over data-parallel ranks, once."""
    dense, experts = inputs.layout.train.dense.size("dp"), inputs.layout.train.experts.size("edp")
    moved = max(
        (s.dense * (1 - 1 / dense) + s.experts * (1 - 1 / experts)) * (4 + inputs.itemsize) for s in inputs.train
    )
    return moved / inputs.machine.link_gbs / 1e9


def _optimizer(inputs: MemoryInputs) -> float:
    """Returns the seconds to move the optimizer state to the device and back, if it is offloaded."""
    if not inputs.cfg.optimizer.offload or inputs.on_cpu:
        return 0.0
    return (
        max(2 * optimizer_bytes(s, inputs.layout.train, inputs.itemsize) for s in inputs.train)
        / inputs.machine.host_link_gbs
        / 1e9
    )


def _host_copies(inputs: MemoryInputs) -> float:
    """Returns the seconds to copy weights: out and in around the rollout, and the reference in and the policy back."""
    if inputs.on_cpu:
        return 0.0
    colocated = set(inputs.layout.train.dense.ranks) == set(inputs.layout.rollout.ranks)
    times = (2 if inputs.cfg.train.offload and colocated else 0) + (
        2 if inputs.reference and inputs.layout.reference is None else 0
    )
    return times * max(weight_bytes(s, inputs.itemsize) for s in inputs.train) / inputs.machine.host_link_gbs / 1e9
