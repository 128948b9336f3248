"""The modules for which megatron-core uses transformer-engine: norm, replicated linear layer, attention and rotary
positions of packed sequences. The router is in routing.py."""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
from megatron.core.transformer.mlp import MLPSubmodules
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.moe.experts import SequentialMLP
from megatron.core.transformer.moe.moe_layer import MoESubmodules
from megatron.core.transformer.multi_latent_attention import MLASelfAttentionSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from r1zero import patches
from r1zero.model.kernels.interface import GroupedLinear, Kernels
from r1zero.model.packing import PackedSequences
from r1zero.model.rope import Llama3Rope
from r1zero.model.routing import Router


class RmsNorm(torch.nn.Module):
    """The weight of an RMSNorm, which `kernels` computes."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float, *, kernels: Kernels, **kwargs: Any):
        super().__init__()
        self.eps, self.rms_norm = eps, kernels.rms_norm
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        # With sequence parallelism each tensor rank has only its tokens' part of the gradient. megatron sums the
        # gradients of weights that are marked like this.
        weight: Any = self.weight
        weight.sequence_parallel = config.sequence_parallel

    def forward(self, x: Tensor) -> Tensor:
        return self.rms_norm(x, self.weight, self.eps)


class LatentNorm(RmsNorm):
    """A norm inside latent attention. Its epsilon is 1e-6 in DeepSeek's code and in Hugging Face, not rms_norm_eps."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float, **kwargs: Any):
        super().__init__(config, hidden_size, 1e-6, **kwargs)


class ReplicatedLinear(MegatronModule):
    """A linear layer that every tensor rank holds in full and applies to its own tokens.

    megatron-core's own spec splits the down projections of latent attention and gathers their output without summing
    the gradient of the rotary key over the tensor ranks. The gradients are then wrong by up to 0.7 %, without an error.
    """

    def __init__(self, input_size: int, output_size: int, *, config: TransformerConfig, **kwargs: Any):
        super().__init__(config)
        self.weight = torch.nn.Parameter(torch.empty(output_size, input_size, dtype=config.params_dtype))
        weight: Any = self.weight
        weight.sequence_parallel = config.sequence_parallel

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return torch.nn.functional.linear(x, self.weight), None


class PackedAttention(MegatronModule):
    """Core attention over packed sequences: (T, heads, d) to (T, 1, heads * value dim)."""

    def __init__(
        self,
        config: TransformerConfig,
        *,
        softmax_scale: float | None = None,
        k_channels: int | None = None,
        kernels: Kernels,
        **kwargs: Any,
    ):
        super().__init__(config)
        self.attend = kernels.attend
        self.scale = softmax_scale or (k_channels or config.kv_channels) ** -0.5

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: None,
        *,
        packed_seq_params: PackedSequences,
        **kwargs: Any,
    ) -> Tensor:
        return self.attend(query, key, value, self.scale, packed_seq_params).unsqueeze(1)


class PackedRotary(torch.nn.Module):
    """Rotary frequencies for each token's position in its own sequence, gathered once per micro-batch.

    megatron-core first asks for a length, then for the frequencies of that length, and then slices them sequence by
    sequence in a loop. Here the packed sequences are passed as the length, so nothing is left to slice.
    """

    def __init__(self, frequencies: torch.nn.Module):
        super().__init__()
        self.of_length = frequencies

    def get_rotary_seq_len(
        self, inference: None, block: Any, hidden: Any, config: Any, packed: PackedSequences, **kwargs: Any
    ) -> PackedSequences:
        return packed

    def forward(self, packed: PackedSequences, packed_seq: bool = True, cp_group: Any = None) -> Any:
        found = self.of_length(packed.longest, packed_seq=True)
        frequencies, *mscale = found if isinstance(found, tuple) else (found,)  # yarn also returns its magnitude
        if packed.frequencies is None:
            packed.frequencies = frequencies.index_select(0, packed.positions_T)
        return (packed.frequencies, *mscale) if mscale else packed.frequencies


LINEARS = ("linear_fc1", "linear_fc2")


class GroupedExperts(SequentialMLP):
    """The experts of a rank, multiplied together. Their parameters have the names that they have one after another."""

    def __init__(
        self, *args: Any, linear: GroupedLinear, weighted_swiglu: Callable[[Tensor, Tensor], Tensor], **kwargs: Any
    ):
        super().__init__(*args, **kwargs)
        self.linear, self.weighted_swiglu = linear, weighted_swiglu
        # megatron-core lays the weights of a trained model into one buffer, the last ones first. With the last expert
        # as the first one, they lie there in the order in which a kernel that takes one tensor wants them.
        self.local_experts._modules = dict(reversed(self.local_experts._modules.items()))

    def forward(
        self, permuted_local_hidden_states: Tensor, tokens_per_expert: Tensor, permuted_probs: Tensor
    ) -> tuple[Tensor, None]:
        """(R, H) and the rows' probabilities (R,) to (R, H), weighted by them. R: rows, sorted by expert."""
        rows = permuted_local_hidden_states
        experts = [self.local_experts[number] for number in range(len(self.local_experts))]  # by name, not by place
        first, second = ([getattr(expert, name).weight for expert in experts] for name in LINEARS)
        weighted = self.weighted_swiglu(self.linear(rows, first, tokens_per_expert), permuted_probs.unsqueeze(-1))
        return self.linear(weighted, second, tokens_per_expert), None


def layer_spec(config: TransformerConfig, kernels: Kernels) -> TransformerBlockSubmodules:
    """Returns the spec of this pipeline stage's layers: megatron-core's, with the modules above and these kernels."""
    _patch(kernels)
    block = get_gpt_decoder_block_spec(config, use_transformer_engine=False, normalization="RMSNorm")
    norm = block.layer_norm = ModuleSpec(module=RmsNorm, params={"kernels": kernels})
    for layer in block.layer_specs:
        layer.submodules.input_layernorm = layer.submodules.pre_mlp_layernorm = norm
        layer.submodules.sharded_state_dict_keys_map = {}
        _use_kernels(layer.submodules.mlp.submodules, kernels)
        attention = layer.submodules.self_attention.submodules
        attention.core_attention = ModuleSpec(module=PackedAttention, params={"kernels": kernels})
        if isinstance(attention, MLASelfAttentionSubmodules):
            attention.linear_q_down_proj = attention.linear_kv_down_proj = ReplicatedLinear
            latent_norm = ModuleSpec(module=LatentNorm, params={"kernels": kernels})
            attention.q_layernorm = attention.kv_layernorm = latent_norm
        elif config.qk_layernorm:
            attention.q_layernorm = attention.k_layernorm = norm
        if isinstance(layer.submodules.mlp.submodules, MoESubmodules):
            layer.submodules.mlp.submodules.router = Router
    return block


def _patch(kernels: Kernels) -> None:
    """Replace the functions of megatron-core for which its specs have no place."""
    patches.apply({"megatron replicated linear": lambda _: ReplicatedLinear})
    if kernels.accumulate:
        module = SimpleNamespace(wgrad_gemm_accum_fp32=kernels.accumulate)
        patches.apply({"megatron weight gradient": lambda _: module, "megatron has weight gradient": lambda _: True})
    if kernels.rotate:
        rotate = partial(_rotate_packed, kernels.rotate)
        patches.apply({"megatron packed rotary": lambda _: rotate})
    if kernels.permute:
        patches.apply(
            {
                "megatron token permute": lambda _: kernels.permute,
                "megatron token unpermute": lambda _: kernels.unpermute,
            }
        )


def _use_kernels(mlp: MLPSubmodules | MoESubmodules, kernels: Kernels) -> None:
    if isinstance(mlp, MLPSubmodules):
        mlp.activation_func = kernels.swiglu
        return
    mlp.experts.submodules.activation_func = mlp.shared_experts.submodules.activation_func = kernels.swiglu
    if kernels.grouped_linear:
        weighted = kernels.weighted_swiglu or partial(_swiglu_and_product, kernels.swiglu)
        functions = {"linear": kernels.grouped_linear, "weighted_swiglu": weighted}
        mlp.experts = ModuleSpec(module=GroupedExperts, submodules=mlp.experts.submodules, params=functions)


def _swiglu_and_product(swiglu: Callable[[Tensor], Tensor], rows: Tensor, weights: Tensor) -> Tensor:
    return (swiglu(rows) * weights).to(rows.dtype)


def _rotate_packed(
    rotate: Callable[[Tensor, Tensor, Tensor], Tensor],
    t: Tensor,
    cu_seqlens: Tensor,
    freqs: Tensor,
    *,
    multi_latent_attention: bool,
    mscale: float,
    **kwargs: Any,
) -> Tensor:
    """megatron-core's `_apply_rotary_pos_emb_thd` for the frequencies of PackedRotary, which are those of each token.

    t: (T, h, d), of which the first elements are rotated. freqs: (T, 1, 1, width). mscale is yarn's factor for cosines
    and sines; the rotated vector is scaled instead, because kernels may demand values in [-1, 1].
    """
    width = freqs.shape[-1]
    turned, kept = t[..., :width], t[..., width:]
    if multi_latent_attention:  # pairs are neighbours
        turned = torch.cat((turned[..., 0::2], turned[..., 1::2]), -1)
    angles = freqs.squeeze(1)
    turned = rotate(turned.contiguous(), angles.cos().to(t.dtype), angles.sin().to(t.dtype))
    if mscale != 1.0:
        turned = turned * mscale
    return torch.cat((turned, kept), -1) if kept.shape[-1] else turned


def use_packed_rotary(model: torch.nn.Module, scaling: Llama3Rope | None) -> None:
    """Wrap the model's rotary frequencies in PackedRotary: once for the model, or once per latent attention."""
    for module in list(model.modules()):
        rotary = getattr(module, "rotary_pos_emb", None)
        if isinstance(rotary, torch.nn.Module):
            if scaling:
                _scale(rotary, scaling)
            module.rotary_pos_emb = PackedRotary(rotary)


def _scale(rotary: Any, scaling: Llama3Rope) -> None:
    """Scale the frequencies by megatron-core's formula. Only the factor is an option of GPTModel."""
    rotary.inv_freq = rotary._apply_scaling(
        rotary.inv_freq,
        scaling.factor,
        scaling.low_freq_factor,
        scaling.high_freq_factor,
        scaling.original_max_positions,
    )
