"""Seconds of one iteration by stage: arithmetic over the machine's supposed rates, a guide and no promise."""

from r1zero.rollout.engine_limits import cache_elements
from r1zero.plan.memory import Books, cache_need, mean_tokens, micro_batches, optimizer_bytes, weight_bytes
from r1zero.plan.sizes import Stage, absorbed_elements, attention_operations


def seconds(books: Books) -> dict[str, float]:
    """Stage -> seconds. Grading runs beside the rollout, and the exchange of samples is not worth a line."""
    prefill, decode = _rollout(books)
    found = {"prefill": prefill, "decode": decode}
    if books.reference:
        found["reference"] = _passes(books, books.reference, forward=True)
    found["update"] = _passes(books, books.train, forward=False) + _gradients(books) + _optimizer(books)
    found["sync"] = max(books.traffic.most_sent, books.traffic.most_received) / books.machine.link_gbs / 1e9
    found["host copies"] = _host_copies(books)
    return found


def samples(books: Books) -> int:
    return books.cfg.grpo.prompts_per_iteration * books.cfg.grpo.group_size


def _rollout(books: Books) -> tuple[float, float]:
    """(prefill, decode). One of so many samples is nearly always truncated, so decoding lasts for the longest response."""
    cfg, m, shape = books.cfg, books.machine, books.routes.shape
    at_once, _ = cache_need(books)
    share = samples(books) // books.layout.engines
    waves = -(-share // at_once)
    mean_prompt, mean_response = m.prompt_share * cfg.rollout.max_prompt_tokens, m.response_share * cfg.rollout.max_response_tokens
    tp = books.layout.rollout.size("tp")
    # All responses to a prompt share its prefill.
    prompt_tokens = share / cfg.grpo.group_size * mean_prompt
    prefill = prompt_tokens * operations(books, mean_prompt) / (tp * m.tflops * 1e12 * m.mfu_forward)
    weights = (books.engine[0] + (absorbed_elements(shape, books.layout) if cfg.run.device == "npu" else 0)) * books.itemsize
    cache = at_once * (mean_prompt + mean_response / 2) * cache_elements(shape, books.layout) * books.itemsize
    compute = at_once * operations(books, mean_prompt + mean_response / 2) / (tp * m.tflops * 1e12 * m.mfu_forward)
    step = max((weights + cache) / (m.memory_gbs * 1e9 * m.decode_share), compute) + m.decode_overhead_ms / 1e3 + at_once * m.seed_us / 1e6
    return prefill, waves * cfg.rollout.max_response_tokens * step


def operations(books: Books, length: float) -> float:
    """Of a forward pass, for one token of a sequence of `length`: two for each weight it meets, and attention to half of it."""
    return 2 * sum(stage.work for stage in books.train) + attention_operations(books.routes.shape, length / 2)


def _passes(books: Books, model: list[Stage], forward: bool) -> float:
    """All samples through a pipeline whose slowest stage sets the pace; backward is two forwards, recomputation a third."""
    m, grids = books.machine, books.layout.train if not forward else books.layout.reference or books.layout.train
    ranks, pp = len(grids.dense.ranks), grids.dense.size("pp")
    slowest = max(stage.work for stage in model) * pp / sum(stage.work for stage in model)
    bubble = 1 + (pp - 1) / micro_batches(books)
    times, mfu = (1, m.mfu_forward) if forward else (3 + (books.cfg.train.recompute == "full"), m.mfu_update)
    length = mean_tokens(books)
    work = samples(books) * length * operations(books, length) * times
    return work * slowest * bubble / (ranks * m.tflops * 1e12 * mfu)


def _gradients(books: Books) -> float:
    """fp32 gradients scattered and weights gathered over data-parallel ranks, once an iteration."""
    dense, experts = books.layout.train.dense.size("dp"), books.layout.train.experts.size("edp")
    moved = max((s.dense * (1 - 1 / dense) + s.experts * (1 - 1 / experts)) * (4 + books.itemsize) for s in books.train)
    return moved / books.machine.link_gbs / 1e9


def _optimizer(books: Books) -> float:
    """State to the device and back when it lives on the host."""
    if not books.cfg.optimizer.offload or books.on_cpu:
        return 0.0
    return max(2 * optimizer_bytes(s, books.layout.train, books.itemsize) for s in books.train) / books.machine.host_link_gbs / 1e9


def _host_copies(books: Books) -> float:
    """Weights out and in around the rollout, the reference in, the weights in again."""
    if books.on_cpu:
        return 0.0
    colocated = set(books.layout.train.dense.ranks) == set(books.layout.rollout.ranks)
    times = (2 if books.cfg.train.offload and colocated else 0) + (2 if books.reference and books.layout.reference is None else 0)
    return times * max(weight_bytes(s, books.itemsize) for s in books.train) / books.machine.host_link_gbs / 1e9
