"""Bytes of an engine on a rank's device."""

from r1zero.plan.sizes import Pass, absorbed_elements, layer_size
from r1zero.plan.workload import GIB, MIB, MemoryInputs
from r1zero.rollout.arguments import records_graphs
from r1zero.rollout.engine_limits import graph_sizes


def weights_and_cache(inputs: MemoryInputs) -> tuple[int, int]:
    plain, fp32 = inputs.engine
    if inputs.cfg.run.device == "npu":
        plain += absorbed_elements(inputs.routes.shape, inputs.layout)
    if inputs.on_cpu and inputs.routes.shape.tied:  # the head is packed for its kernel, in addition to the embedding
        plain += head_elements(inputs)
    return plain * inputs.itemsize + 4 * fp32, int(inputs.cfg.rollout.kv_cache_gib * GIB)


def head_elements(inputs: MemoryInputs) -> int:  # of the output layer on a rank of the engine
    return inputs.routes.shape.vocab_size * inputs.routes.shape.hidden_size // inputs.layout.rollout.size("tp")


def graphs(inputs: MemoryInputs) -> int:
    """Returns the bytes of the engine's graphs, with the activations of the largest, which all of them share.

    They stay while the engine sleeps, because vLLM takes their memory from no pool that sleeps.
    """
    rollout = inputs.cfg.rollout
    if inputs.on_cpu or not records_graphs(inputs.cfg):
        return 0
    own = len(graph_sizes(rollout.max_num_seqs)) * int(inputs.machine.graph_mib * MIB)
    return own + int(rollout.max_num_seqs * _engine_layer(inputs) * inputs.itemsize)


def workspace(inputs: MemoryInputs) -> int:
    """Returns the bytes of one layer's forward pass over a scheduler step and of the sampler's fp32 logits."""
    rollout = inputs.cfg.rollout
    logits = 3 * 4 * rollout.max_num_seqs * inputs.routes.shape.vocab_size
    return int(rollout.max_num_batched_tokens * _engine_layer(inputs) * inputs.itemsize) + logits


def _engine_layer(inputs: MemoryInputs) -> float:
    """Returns the elements per token that are alive at the same time in the engine's largest layer."""
    shape, grid = inputs.routes.shape, inputs.layout.rollout
    tp = grid.size("tp")
    spread = inputs.routes.expert_parallel and tp * grid.size("dp") > 1
    on = Pass(
        tp,
        1 if inputs.routes.expert_parallel else tp,
        inputs.machine.expert_imbalance if spread else 1.0,
        inputs.itemsize,
        0,
        1.0,
    )
    return max(layer_size(shape, i, on).forward for i in (0, shape.layers - 1))
