"""`[rollout.engine]`: the options of vLLM that a user must not set, with the reasons.

This module imports neither torch nor vLLM, so that a config can be checked without them.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from r1zero.config import UserError, suggest

_SAMPLING = "the engine's logprobs would no longer be those of the distribution that it samples from"
_PRECISION = "the engine would compute in another precision than the trainer, so their logprobs would differ"
_EXECUTOR = "the engine runs inside the ranks of the job, and [layout.rollout] sets its parallel degrees"
_WEIGHTS = "the engine must use the same model, tokenizer and lengths as the trainer, and gets its weights from it"
_DRAW = "each token is drawn by its number in the response, and these would have to guess the tokens before it"
_AHEAD = "it is on where that is safe"
_CHUNKS = "vllm-ascend's latent attention ignores the prefix cache if prompts are not prefilled in chunks"
_OWN_KEY = "this project has its own key for it, {}"

REFUSED: dict[str, str] = {
    **dict.fromkeys(
        ("logprobs_mode", "generation_config", "override_generation_config", "logits_processors"), _SAMPLING
    ),
    **dict.fromkeys(("kv_cache_dtype", "quantization", "calculate_kv_scales"), _PRECISION),
    **dict.fromkeys(
        (
            "distributed_executor_backend",
            "pipeline_parallel_size",
            "data_parallel_size",
            "data_parallel_rank",
            "data_parallel_backend",
            "nnodes",
            "node_rank",
            "worker_cls",
            "worker_extension_cls",
            "prefill_context_parallel_size",
            "decode_context_parallel_size",
        ),
        _EXECUTOR,
    ),
    **dict.fromkeys(
        (
            "model",
            "tokenizer",
            "tokenizer_mode",
            "skip_tokenizer_init",
            "load_format",
            "hf_overrides",
            "hf_config_path",
            "config_format",
            "max_model_len",
            "enable_lora",
            "model_impl",
            "enable_sleep_mode",
            "trust_remote_code",
        ),
        _WEIGHTS,
    ),
    "async_scheduling": _AHEAD,
    "speculative_config": _DRAW,
    "enable_chunked_prefill": _CHUNKS,
    "enforce_eager": _OWN_KEY.format("rollout.graph"),
    "seed": _OWN_KEY.format("run.seed"),
    "dtype": _OWN_KEY.format("run.dtype"),
    "tensor_parallel_size": _OWN_KEY.format("layout.rollout.tensor_parallel_size"),
    "enable_expert_parallel": _OWN_KEY.format("layout.rollout.enable_expert_parallel"),
    "max_num_seqs": _OWN_KEY.format("rollout.max_num_seqs"),
    "max_num_batched_tokens": _OWN_KEY.format("rollout.max_num_batched_tokens"),
    **dict.fromkeys(
        ("enable_return_routed_experts", "aux_output_config", "scheduler_cls"), _OWN_KEY.format("train.routing_replay")
    ),
    "kv_cache_memory_bytes": _OWN_KEY.format("rollout.kv_cache_gib"),
}


def check(options: Mapping[str, Any]) -> None:
    """Raises UserError if a user sets an option of REFUSED. options: vLLM's name of the option -> value."""
    for name in options:
        if name in REFUSED:
            raise UserError(f"rollout.engine.{name} cannot be set: {REFUSED[name]}; remove it")


def check_known(options: Mapping[str, Any], known: Iterable[str]) -> None:
    """Raises UserError if the installed vLLM does not have one of the options. known: the names of all its options."""
    names = sorted(set(known) - set(REFUSED))
    for name in options:
        if name not in names:
            hint = suggest(name, names, "option", "rollout.engine.{}".format)
            raise UserError(f"rollout.engine.{name}: the installed vLLM has no such option; {hint}")
