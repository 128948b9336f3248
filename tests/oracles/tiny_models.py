"""Tiny random models on disk, and Hugging Face's logprobs of them: the oracle."""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

COMMON = dict(
    hidden_size=128,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=192,
    vocab_size=512,
    max_position_embeddings=512,
    tie_word_embeddings=False,
)
DENSE = dict(COMMON, num_key_value_heads=2)
LLAMA = dict(
    DENSE,
    head_dim=64,
    rope_parameters=dict(
        rope_type="llama3",
        rope_theta=500000.0,
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=32,
    ),
)
ROUTED = dict(DENSE, head_dim=32, num_experts=8, num_experts_per_tok=2, moe_intermediate_size=96, norm_topk_prob=True)
EXPERTS = dict(
    COMMON,
    num_key_value_heads=4,
    q_lora_rank=96,
    kv_lora_rank=256,
    qk_rope_head_dim=64,
    qk_nope_head_dim=32,
    v_head_dim=32,
    moe_intermediate_size=96,
    first_k_dense_replace=1,
    n_routed_experts=8,
    n_shared_experts=1,
    num_experts_per_tok=2,
    n_group=2,
    topk_group=1,
)
# As in DeepSeek-V2, DeepSeek-V2-Lite and Moonlight.
GROUPED = dict(
    EXPERTS,
    n_group=4,
    topk_group=2,
    num_experts_per_tok=4,
    topk_method="group_limited_greedy",
    routed_scaling_factor=2.0,
)
LITE = dict(
    EXPERTS,
    q_lora_rank=None,
    topk_method="greedy",
    num_experts_per_tok=3,
    n_shared_experts=2,
    rope_parameters=dict(
        rope_type="yarn",
        rope_theta=10000.0,
        factor=40.0,
        original_max_position_embeddings=8,
        beta_fast=32.0,
        beta_slow=1.0,
        mscale=0.707,
        mscale_all_dim=0.707,
    ),
    max_position_embeddings=320,
)
MOONLIGHT = dict(
    EXPERTS,
    q_lora_rank=None,
    n_group=1,
    topk_group=1,
    num_experts_per_tok=3,
    n_shared_experts=2,
    rms_norm_eps=1e-5,
    routed_scaling_factor=2.446,
    rope_parameters=dict(rope_type="default", rope_theta=50000.0),
)


def write(folder: Path, kind: str, seed: int, **changes: Any) -> str:
    """A checkpoint of kind "dense" (Qwen2), "qwen3", "llama", "mistral", "qwen3_moe", "deepseek_v2",
    "deepseek_v2_lite", "moonlight" or "experts" (DeepSeek-V3).

    The weights are wide enough to tell apart.
    """
    import transformers

    torch.manual_seed(seed)
    if kind == "dense":
        model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**{**DENSE, **changes}))
    elif kind == "qwen3":
        model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**{**DENSE, "head_dim": 32, **changes}))
    elif kind == "llama":
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**LLAMA, **changes}))
    elif kind == "mistral":
        model = transformers.MistralForCausalLM(
            transformers.MistralConfig(**{**DENSE, "head_dim": 64, "sliding_window": None, **changes})
        )
    elif kind == "qwen3_moe":
        model = transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(**{**ROUTED, **changes}))
    elif kind in ("deepseek_v2", "deepseek_v2_lite"):
        shape = GROUPED if kind == "deepseek_v2" else LITE
        model = transformers.DeepseekV2ForCausalLM(transformers.DeepseekV2Config(**{**shape, **changes}))
    elif kind == "moonlight":
        model = transformers.DeepseekV3ForCausalLM(transformers.DeepseekV3Config(**{**MOONLIGHT, **changes}))
    else:
        model = transformers.DeepseekV3ForCausalLM(transformers.DeepseekV3Config(**{**EXPERTS, **changes}))
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if tensor.dim() > 1 or name.endswith("bias"):
                tensor.normal_(0.0, 0.05)
        for name, tensor in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                tensor.uniform_(0.0, 0.1)
    model.save_pretrained(folder)
    return str(folder)


def weights(folder: str) -> Iterator[tuple[str, Tensor]]:
    """What a trainer would send: checkpoint names and full tensors, layer by layer."""
    from safetensors.torch import load_file

    tensors = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        tensors.update(load_file(path))
    yield from sorted(tensors.items())


@lru_cache(maxsize=8)
def _model(folder: str) -> Any:
    """transformers' model in fp32. What a test changes in a folder it changes before it asks for the model."""
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")


@torch.no_grad()
def logprobs(
    folder: str, sequences: list[list[int]], temperature: float, forbidden_ids: list[int]
) -> list[list[float]]:
    """Of tokens 1.. of each sequence, by transformers in fp32."""
    rows = distributions(folder, sequences, temperature, forbidden_ids)
    return [
        of_all.gather(1, torch.tensor(tokens[1:])[:, None])[:, 0].tolist()
        for tokens, of_all in zip(sequences, rows, strict=True)
    ]


@torch.no_grad()
def distributions(
    folder: str, sequences: list[list[int]], temperature: float, forbidden_ids: list[int]
) -> list[Tensor]:
    """Logprobs of all ids at tokens 1.. of each sequence, (T - 1, V), by transformers in fp32."""
    model = _model(folder)
    of_each = []
    for tokens in sequences:
        logits = model(torch.tensor([tokens])).logits[0, :-1] / temperature
        logits[:, forbidden_ids] = -torch.inf
        of_each.append(logits.log_softmax(-1))
    return of_each


@torch.no_grad()
def chosen_experts(folder: str, sequences: list[list[int]]) -> list[Tensor]:
    """The experts of each token in each layer that has them, (T, L, K) in ascending order, by transformers in fp32."""
    model = _model(folder)
    found: list[Tensor] = []
    hooks = [
        module.gate.register_forward_hook(lambda router, inputs, output: found.append(output[2]))
        for module in model.modules()
        if hasattr(module, "gate") and hasattr(module, "experts")
    ]
    of_each = []
    for tokens in sequences:
        found.clear()
        model(torch.tensor([tokens]))
        of_each.append(torch.stack(found, 1).sort(-1).values)
    for hook in hooks:
        hook.remove()
    return of_each
