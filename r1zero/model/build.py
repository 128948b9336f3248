"""Builds the megatron-core model of a shape on a grid.

Contract for callers of the pipeline schedules (`megatron.core.pipeline_parallel.get_forward_backward_func`):
 * The loss function returns `(loss, torch.tensor(0, dtype=torch.int), report)`, with a loss that is already divided by
   the global denominator. Gradients are plain sums over micro-batches and data-parallel ranks, without other scaling.
 * Each micro-batch may have its own length (`variable_seq_lengths`: pipeline stages first send the shapes). The
   schedule's `seq_length` and `micro_batch_size` are then ignored: pass 1 and 1.
 * The schedule divides a loss in place only if a pair is returned. Report `loss.detach().clone()` nevertheless.
"""

import logging
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.distributed.finalize_model_grads import finalize_model_grads
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from megatron.core.transformer.transformer_config import MLATransformerConfig, TransformerConfig
from megatron.core.utils import unwrap_model
from torch import Tensor

from r1zero import config, patches
from r1zero.distributed import device
from r1zero.distributed.layout import MegatronGrids
from r1zero.distributed.subworld import subworld
from r1zero.model import cpu_megatron, mapping, placement
from r1zero.model.kernels.choice import kernels_of
from r1zero.model.kernels.interface import Kernels
from r1zero.model.layers import layer_spec, use_packed_rotary
from r1zero.model.packing import PackedSequences
from r1zero.model.routing import follow_micro_batches
from r1zero.model.shape import Shape
from r1zero.patches import patched

log = logging.getLogger(__name__)

OVERLAPPING = ("cuda", "npu")
"""Devices that communicate while they compute."""
BUCKET_ELEMENTS: int | None = None
"""Number of gradients that are reduced together while the backward pass goes on; None: megatron-core's choice."""

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


class Model(GPTModel):
    """megatron-core's model, except that the last stage returns the hidden states from which its output layer would
    compute the logits: (T with padding, H). `logprobs.token_stats` computes them, for some rows and ids at a time."""

    def _postprocess(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not self.post_process:
            return hidden_states
        if self.config.sequence_parallel:  # the gradient is summed, as each rank has that of its part of the vocabulary
            hidden_states = gather_from_sequence_parallel_region(hidden_states, tensor_parallel_output_grad=True)
        return hidden_states.squeeze(1)


def output_weight(chunk: torch.nn.Module) -> Tensor:
    """Returns this rank's part of the output layer, (V / tp, H), on the last stage."""
    model = unwrap_model(chunk)
    tied = model.share_embeddings_and_output_weights
    return model.shared_embedding_or_output_weight() if tied else model.output_layer.weight


def reduces_during_backward(chunk: torch.nn.Module) -> bool:
    """Whether the chunk is trained, and its gradients are reduced during the backward pass."""
    return isinstance(chunk, DistributedDataParallel) and chunk.ddp_config.overlap_grad_reduce


def initialize(grids: MegatronGrids, kind: str, seed: int) -> torch.distributed.ProcessGroup:
    """Create megatron's process groups over the grid's ranks, and its random generators. Collective over those ranks.

    kind: the device. May be called once per process, because a process belongs to one megatron world. Returns a gloo
    group of all the grid's ranks, for communication between hosts.
    """
    if kind == "cpu":
        cpu_megatron.install()
    patches.apply({"megatron router gemm": lambda found: found})  # defines the name where the library does not
    ranks = grids.dense.ranks
    options = {"megatron group options": lambda _: lambda group, _: device.group_options(kind, group)}
    with subworld(ranks, renumber=True), patched(options):
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=grids.dense.size("tp"),
            pipeline_model_parallel_size=grids.dense.size("pp"),
            expert_model_parallel_size=grids.experts.size("ep"),
            expert_tensor_parallel_size=grids.experts.size("etp"),
        )
        hosts = torch.distributed.new_group(backend="gloo")
    if len(ranks) < torch.distributed.get_world_size():
        patches.apply({"megatron global ranks": lambda local: local and [ranks[r] for r in local]})
    model_parallel_cuda_manual_seed(seed, force_reset_rng=True)
    return hosts


def build_model(shape: Shape, cfg: config.Config, grids: MegatronGrids, trainable: bool) -> list[torch.nn.Module]:
    """Build this rank's chunks of the model (always one: there is no interleaving), with weights not yet set.

    trainable: wrap the model in megatron's data parallelism with fp32 gradient buffers; otherwise it is bare and has no
    gradients. Raises UserError if the degrees do not divide the model evenly.
    """
    placement.check(shape, grids)
    kernels = kernels_of(cfg.run.device)
    log.info("kernels for %s in %s: %s", cfg.run.device, cfg.run.dtype, kernels.described())
    training = _training_settings(shape, cfg, grids, kernels) if trainable else {}
    settings = _settings(shape, cfg, grids, kernels, training)
    model = Model(
        settings,
        layer_spec(settings, kernels),
        vocab_size=shape.vocab_size,
        max_sequence_length=shape.max_positions,
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
        share_embeddings_and_output_weights=shape.tied,
        position_embedding_type="rope",
        rotary_base=shape.rope_theta,
    )
    model.to(device.torch_device(cfg.run.device))
    use_packed_rotary(model, shape.llama3_rope)
    follow_micro_batches(model, shape)
    _mark_what_is_cut(model, shape, grids)
    if cfg.run.device == "cpu":
        cpu_megatron.look_like_cuda(model)
    if not trainable:
        return [model.requires_grad_(False).eval()]
    overlap = cfg.train.overlap_grad_reduce and cfg.run.device in OVERLAPPING
    if cfg.run.device == "cpu" and model.pre_process:
        cpu_megatron.add_gradient_of_the_embedding_by_rows(model, overlap)
    ddp = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        use_distributed_optimizer=True,
        overlap_grad_reduce=overlap,
        bucket_size=BUCKET_ELEMENTS,
    )
    chunk = DistributedDataParallel(settings, ddp, model)
    if overlap:
        settings.no_sync_func = chunk.no_sync  # the schedules reduce in the backward pass of the last micro-batch only
    return [chunk]


def _mark_what_is_cut(model: torch.nn.Module, shape: Shape, grids: MegatronGrids) -> None:
    """Mark the parameters of which the tensor ranks hold different parts, or different experts.

    The norm of the gradient counts the other parameters on the first tensor rank only. megatron-core sets this mark
    where it initialises weights, which does not happen here.
    """
    for local in mapping.local_tensors([model], shape, grids).values():
        parameter: Any = local.parameter
        parameter.tensor_model_parallel = local.weight.cut is not None or local.weight.expert is not None


def _settings(
    shape: Shape, cfg: config.Config, grids: MegatronGrids, kernels: Kernels, training: dict[str, Any]
) -> TransformerConfig:
    dtype, on_cpu = DTYPES[cfg.run.dtype], cfg.run.device == "cpu"
    tp, pp = grids.dense.size("tp"), grids.dense.size("pp")
    common: dict[str, Any] = dict(
        num_layers=shape.layers,
        hidden_size=shape.hidden_size,
        ffn_hidden_size=shape.ffn_hidden_size,
        num_attention_heads=shape.heads,
        num_query_groups=shape.kv_heads,
        kv_channels=shape.head_dim,
        layernorm_epsilon=shape.rms_norm_eps,
        normalization="RMSNorm",
        activation_func=torch.nn.functional.silu,
        gated_linear_unit=True,
        add_bias_linear=False,
        add_qkv_bias=shape.qkv_bias,
        qk_layernorm=shape.qk_norm or bool(shape.mla),
        hidden_dropout=0.0,
        attention_dropout=0.0,
        tensor_model_parallel_size=tp,
        sequence_parallel=tp > 1,
        pipeline_model_parallel_size=pp,
        expert_model_parallel_size=grids.experts.size("ep"),
        expert_tensor_parallel_size=grids.experts.size("etp"),
        pipeline_dtype=dtype,
        params_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
        variable_seq_lengths=True,
        moe_token_dispatcher_type="alltoall",
        pipeline_model_parallel_layout=_pipeline_layout(shape, grids) if pp > 1 else None,
        # Weights are always loaded. Initialising them on a CPU would need memory for the full, unsplit tensor.
        use_cpu_initialization=on_cpu,
        perform_initialization=False,
        use_te_activation_func=True,  # the layer spec's activation, which need not be transformer-engine's
        # These fusions need kernels of apex or transformer-engine.
        gradient_accumulation_fusion=False,
        bias_activation_fusion=False,
        masked_softmax_fusion=False,
        bias_dropout_fusion=False,
        apply_rope_fusion=False,
        persist_layer_norm=False,
        # Gradients are sums; see the contract above.
        calculate_per_token_loss=True,
        finalize_model_grads_func=_finalize,
    )
    common |= training
    if shape.moe:
        common |= _moe_settings(shape, kernels)
    return MLATransformerConfig(**common, **_mla_settings(shape)) if shape.mla else TransformerConfig(**common)


def _training_settings(shape: Shape, cfg: config.Config, grids: MegatronGrids, kernels: Kernels) -> dict[str, Any]:
    """Returns the settings that matter for a backward pass."""
    return dict(gradient_accumulation_fusion=kernels.accumulate is not None) | _recomputation(shape, cfg, grids)


def _recomputation(shape: Shape, cfg: config.Config, grids: MegatronGrids) -> dict[str, Any]:
    """Returns the settings of recomputation for this rank's pipeline stage."""
    if cfg.train.recompute == "selective":
        return dict(recompute_granularity="selective", recompute_modules=["mlp", "moe"])
    layers = placement.recomputed_layers(cfg.train, shape, grids)[parallel_state.get_pipeline_model_parallel_rank()]
    if not layers:
        return {}
    return dict(recompute_granularity="full", recompute_method="block", recompute_num_layers=layers)


def _pipeline_layout(shape: Shape, grids: MegatronGrids) -> list[list[str]]:
    rows = [["decoder"] * len(layers) for layers in placement.stages(shape, grids)]
    rows[0].insert(0, "embedding")
    rows[-1].append("loss")
    return rows


def _moe_settings(shape: Shape, kernels: Kernels) -> dict[str, Any]:
    moe = shape.require_moe()
    # If all groups are eligible there is no choice of groups. Otherwise routing.ExpertChoice makes it.
    limited = moe.topk_groups < moe.groups
    return dict(
        num_moe_experts=moe.experts,
        moe_ffn_hidden_size=moe.ffn_hidden_size,
        moe_router_topk=moe.topk,
        moe_shared_expert_intermediate_size=moe.shared_experts * moe.ffn_hidden_size or None,
        moe_shared_expert_overlap=moe.shared_experts > 0 and kernels.shared_expert_overlap,
        moe_layer_freq=[int(shape.is_moe(layer)) for layer in range(shape.layers)],
        moe_router_num_groups=moe.groups if limited else None,
        moe_router_group_topk=moe.topk_groups if limited else None,
        moe_router_topk_scaling_factor=moe.routed_scaling_factor,
        moe_router_score_function=moe.score_function,
        # The softmax over the chosen experts only equals the normalised softmax over all of them.
        moe_router_pre_softmax=moe.score_function == "softmax" and not moe.norm_topk_prob,
        moe_router_dtype="fp32",
        moe_router_enable_expert_bias=moe.score_function == "sigmoid",
        # Routing changes only by gradients: there is no balancing loss, and the bias stays as loaded (the default
        # updates it).
        moe_router_bias_update_rate=0.0,
        moe_router_load_balancing_type="none",
        moe_aux_loss_coeff=0.0,
        moe_grouped_gemm=False,  # the layer spec's experts need no transformer-engine
    )


def _mla_settings(shape: Shape) -> dict[str, Any]:
    mla, yarn = shape.require_mla(), shape.yarn
    found = dict(
        q_lora_rank=mla.q_lora_rank,
        kv_lora_rank=mla.kv_lora_rank,
        qk_head_dim=mla.qk_nope_head_dim,
        qk_pos_emb_head_dim=mla.qk_rope_head_dim,
        v_head_dim=mla.v_head_dim,
        rotary_base=shape.rope_theta,
    )
    if yarn is None:
        # This factor (40 by default) enters the softmax scale even with plain rotary positions.
        return found | dict(rope_type="rope", rotary_scaling_factor=1.0, mscale_all_dim=0.0)
    return found | dict(
        rope_type="yarn",
        rotary_scaling_factor=yarn.factor,
        beta_fast=yarn.beta_fast,
        beta_slow=yarn.beta_slow,
        original_max_position_embeddings=yarn.original_max_positions,
        mscale=yarn.mscale,
        mscale_all_dim=yarn.mscale_all_dim,
    )


def _finalize(model: list[torch.nn.Module], num_tokens: Tensor | None = None, **kwargs: Any) -> None:
    finalize_model_grads(model, None, **kwargs)


def forward(chunk: torch.nn.Module, tokens_T: Tensor, packed: PackedSequences) -> Tensor:
    """Returns hidden states: on the last stage (T, H), those that the output layer reads.

    tokens_T: without the padding. Later stages use only its length.
    """
    tokens = torch.nn.functional.pad(tokens_T, (0, len(packed.positions_T) - len(tokens_T)))
    out = chunk(
        input_ids=tokens[None], position_ids=packed.positions_T[None], attention_mask=None, packed_seq_params=packed
    )
    return out[: len(tokens_T)] if parallel_state.is_pipeline_last_stage() else out
