"""Tiny models of every family in Hugging Face's format, and what plain transformers computes with them in fp32."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

LENGTHS = [23, 40, 7, 31, 12, 18, 40, 29]
"""Tokens of the sequences; 200 in all."""

DENSE = dict(
    hidden_size=64,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=96,
    vocab_size=128,
    max_position_embeddings=512,
    rms_norm_eps=1e-6,
    rope_theta=10000.0,
)
LATENT = dict(
    DENSE,
    num_key_value_heads=4,
    q_lora_rank=48,
    kv_lora_rank=32,
    qk_nope_head_dim=16,
    qk_rope_head_dim=16,
    v_head_dim=24,
    n_routed_experts=8,
    num_experts_per_tok=4,
    n_group=4,
    topk_group=2,
    moe_intermediate_size=32,
    n_shared_experts=2,
    first_k_dense_replace=1,
    routed_scaling_factor=2.5,
    norm_topk_prob=True,
    rope_interleave=True,
)
LATENT_V2 = dict(
    {key: value for key, value in LATENT.items() if key != "rope_interleave"},
    norm_topk_prob=False,
    topk_method="group_limited_greedy",
)
# As in the published DeepSeek-V2-Lite and Moonlight, but small.
LITE = dict(
    LATENT_V2,
    q_lora_rank=None,
    topk_method="greedy",
    n_group=1,
    topk_group=1,
    num_experts_per_tok=3,
    max_position_embeddings=320,
)
MOONLIGHT = dict(
    LATENT,
    q_lora_rank=None,
    n_group=1,
    topk_group=1,
    num_experts_per_tok=3,
    rms_norm_eps=1e-5,
    rope_theta=50000.0,
    routed_scaling_factor=2.446,
)
ROUTED = dict(DENSE, head_dim=24, num_experts=8, num_experts_per_tok=4, moe_intermediate_size=32)
FAR = dict(LATENT, max_position_embeddings=320)
YARN = dict(
    rope_type="yarn", rope_theta=10000.0, factor=40.0, beta_fast=32.0, beta_slow=1.0, original_max_position_embeddings=8
)
LLAMA3 = dict(
    rope_type="llama3",
    rope_theta=10000.0,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=32,
)

# name: (architecture, config). The yarn and Llama models see positions far beyond their original range.
MODELS = {
    "qwen2": ("Qwen2", dict(DENSE, tie_word_embeddings=False)),
    "qwen2_tied": ("Qwen2", dict(DENSE, tie_word_embeddings=True)),
    "qwen3": ("Qwen3", dict(DENSE, head_dim=24, tie_word_embeddings=False)),
    "llama": ("Llama", dict(DENSE, rope_parameters=LLAMA3)),
    "llama_tied": ("Llama", dict(DENSE, head_dim=24, tie_word_embeddings=True)),
    "mistral": ("Mistral", dict(DENSE, head_dim=24, sliding_window=None)),
    "qwen3_moe": ("Qwen3Moe", dict(ROUTED, norm_topk_prob=True)),
    "qwen3_moe_plain": ("Qwen3Moe", dict(ROUTED, norm_topk_prob=False, tie_word_embeddings=True)),
    "deepseek": ("DeepseekV3", LATENT),
    "deepseek_no_q_lora": ("DeepseekV3", dict(LATENT, q_lora_rank=None)),
    "deepseek_v2": ("DeepseekV2", LATENT_V2),
    "deepseek_v2_lite": ("DeepseekV2", dict(LITE, rope_parameters=dict(YARN, mscale=0.707, mscale_all_dim=0.707))),
    "moonlight": ("DeepseekV3", MOONLIGHT),
    "deepseek_yarn": ("DeepseekV3", dict(FAR, rope_parameters=dict(YARN, mscale=1.0, mscale_all_dim=1.0))),
    "deepseek_yarn_half": ("DeepseekV3", dict(FAR, rope_parameters=dict(YARN, mscale=1.0, mscale_all_dim=0.5))),
    "deepseek_yarn_plain": ("DeepseekV3", dict(FAR, rope_parameters=dict(YARN))),
}


@dataclass(frozen=True)
class Oracle:
    folder: Path
    """config.json and model.safetensors, fp32."""

    @property
    def tokens(self) -> torch.Tensor:
        return torch.randint(0, DENSE["vocab_size"], (sum(LENGTHS),), generator=torch.Generator().manual_seed(7))

    def weights(self) -> dict[str, torch.Tensor]:
        return load_file(self.folder / "model.safetensors")

    def logits(self) -> torch.Tensor:
        """(T, V), each sequence on its own."""
        return load_file(self.folder / "oracle" / "logits.safetensors")["logits"]

    def gradients(self) -> dict[str, torch.Tensor]:
        """Of the sum over sequences of next-token cross entropies, divided by the number of targets, by HF name."""
        return load_file(self.folder / "oracle" / "gradients.safetensors")


def make(name: str, folder: Path) -> Oracle:
    """Random weights, large enough that attention and routing are far from flat."""
    import transformers

    architecture, settings = MODELS[name]
    torch.manual_seed(3)
    model = getattr(transformers, f"{architecture}ForCausalLM")._from_config(
        getattr(transformers, f"{architecture}Config")(**settings), attn_implementation="eager", dtype=torch.float32
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.1) if parameter.dim() > 1 else parameter.normal_(mean=1.0, std=0.2)
        for key, buffer in model.named_buffers():
            if key.endswith("e_score_correction_bias"):
                buffer.uniform_(-0.1, 0.1)
    model.save_pretrained(folder)
    oracle = Oracle(folder)
    _compute(model, oracle)
    return oracle


def forced(oracle: Oracle, folder: Path, experts: torch.Tensor) -> Oracle:
    """The same model, computed with the given experts (T, layers with experts, experts per token) in place of the
    router's own; -1: its own."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        oracle.folder, attn_implementation="eager", dtype=torch.float32
    )
    routers = [m.gate for m in model.modules() if hasattr(m, "gate") and hasattr(m, "experts")]
    for layer, router in enumerate(routers):
        router.register_forward_hook(_force(model.config, experts[:, layer].split(LENGTHS)))
    for file in oracle.folder.glob("*.*"):
        (folder / file.name).symlink_to(file)
    _compute(model, Oracle(folder))
    return Oracle(folder)


def _force(config: Any, pieces: Sequence[torch.Tensor]) -> Callable[..., Any]:
    """A hook on a router, which is called once for each sequence."""
    turn = iter(pieces)

    def hook(router: Any, inputs: Any, output: Any) -> Any:
        logits, _, own = output
        given = next(turn)
        chosen = torch.where(given >= 0, given.long(), own)
        scores = logits.sigmoid() if config.model_type == "deepseek_v3" else logits.softmax(-1)
        weights = scores.gather(1, chosen)
        if config.norm_topk_prob:
            weights = weights / weights.sum(-1, keepdim=True)
        return logits, weights * getattr(config, "routed_scaling_factor", 1.0), chosen

    return hook


def _compute(model: torch.nn.Module, oracle: Oracle) -> None:
    (oracle.folder / "oracle").mkdir()
    pieces = oracle.tokens.split(LENGTHS)
    logits = [model(piece[None]).logits[0] for piece in pieces]
    loss = sum(
        torch.nn.functional.cross_entropy(x[:-1], t[1:], reduction="sum") for x, t in zip(logits, pieces, strict=True)
    )
    (loss / (sum(LENGTHS) - len(LENGTHS))).backward()
    save_file({"logits": torch.cat(logits).detach()}, oracle.folder / "oracle" / "logits.safetensors")
    gradients = {}
    for name, parameter in model.named_parameters():
        grad = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
        gradients |= dict(_by_checkpoint_name(name, grad))
    save_file(
        {k: v.contiguous().clone() for k, v in gradients.items()}, oracle.folder / "oracle" / "gradients.safetensors"
    )


def _by_checkpoint_name(name: str, grad: torch.Tensor):
    """transformers 5 keeps a layer's experts in two tensors, but writes them expert by expert."""
    base = name.removesuffix("gate_up_proj").removesuffix("down_proj")
    if name.endswith("experts.gate_up_proj"):
        for e, both in enumerate(grad):
            gate, up = both.chunk(2)
            yield f"{base}{e}.gate_proj.weight", gate
            yield f"{base}{e}.up_proj.weight", up
    elif name.endswith("experts.down_proj"):
        for e, down in enumerate(grad):
            yield f"{base}{e}.down_proj.weight", down
    else:
        yield name, grad
