"""What a config asks of its machine: everything from which memory and time are computed, and the numbers of tokens."""

from dataclasses import dataclass

from r1zero.config import Config
from r1zero.distributed.layout import Layout, MegatronGrids
from r1zero.division import ATTENDED
from r1zero.plan.machine import Machine
from r1zero.plan.sizes import Stage, engine_elements, stages
from r1zero.plan.traffic import Traffic, sync_traffic
from r1zero.weight_sync.routes import Routes

GIB = 1 << 30
MIB = 1 << 20
ITEMSIZES = {"bfloat16": 2, "float16": 2, "float32": 4}


@dataclass(frozen=True)
class MemoryInputs:
    """Everything from which the memory of any rank is computed. Created once per config."""

    cfg: Config
    layout: Layout
    routes: Routes
    machine: Machine
    train: list[Stage]
    reference: list[Stage]
    engine: tuple[int, int]
    traffic: Traffic

    @property
    def itemsize(self) -> int:
        return ITEMSIZES[self.cfg.run.dtype]

    @property
    def on_cpu(self) -> bool:
        return self.cfg.run.device == "cpu"


def memory_inputs(cfg: Config, layout: Layout, routes: Routes, machine: Machine) -> MemoryInputs:
    grids = layout.reference_grids
    reference = stages(routes, grids) if cfg.grpo.kl_coef else []
    traffic = sync_traffic(routes, ITEMSIZES[cfg.run.dtype], int(machine.node_ranks))
    return MemoryInputs(
        cfg, layout, routes, machine, stages(routes, layout.train), reference, engine_elements(routes), traffic
    )


def attended(inputs: MemoryInputs) -> float:
    """Returns the tokens of a micro-batch that attention works on, relative to the tokens in it.

    With shared prompts each response is attended to together with its prompt. The estimate is for the longest ones.
    """
    if not inputs.cfg.train.share_prompts:
        return 1.0
    prompt, response = inputs.cfg.rollout.max_prompt_tokens, inputs.cfg.rollout.max_response_tokens
    return min(ATTENDED, (prompt + response) / (prompt / inputs.cfg.grpo.group_size + response))


def micro_batches(inputs: MemoryInputs) -> int:
    """Returns an estimate of the micro-batches per data-parallel rank and iteration, each at least 90 % full."""
    cfg = inputs.cfg
    tokens = max(computed_tokens(inputs, inputs.layout.train), mean_tokens(inputs) / ATTENDED)
    mine = cfg.grpo.prompts_per_iteration * cfg.grpo.group_size * tokens / inputs.layout.train.dense.size("dp")
    return max(1, -(-int(mine) // int(0.9 * cfg.train.micro_batch_tokens)))


def mean_lengths(inputs: MemoryInputs) -> tuple[float, float]:
    """Returns the mean numbers of tokens of (a prompt, a response)."""
    r, m = inputs.cfg.rollout, inputs.machine
    return m.prompt_share * r.max_prompt_tokens, m.response_share * r.max_response_tokens


def mean_tokens(inputs: MemoryInputs) -> float:
    """Returns the mean number of tokens of a sample, with prompt and response."""
    return sum(mean_lengths(inputs))


def computed_tokens(inputs: MemoryInputs, grids: MegatronGrids) -> float:
    """Returns the mean number of tokens that trainer or reference computes for a sample.

    A prompt is computed once in each micro-batch that has a response to it. A group begins in the middle of a
    micro-batch and continues in the next ones, and is divided if there are fewer prompts than data-parallel ranks.
    """
    recipe, (prompt, response) = inputs.cfg.grpo, mean_lengths(inputs)
    if not inputs.cfg.train.share_prompts:
        return prompt + response
    parts = 1 + recipe.group_size * response / max(1.0, inputs.cfg.train.micro_batch_tokens - prompt)
    parts = max(parts, grids.dense.size("dp") / recipe.prompts_per_iteration)
    return prompt * min(parts, recipe.group_size) / recipe.group_size + response
