"""`[rollout.engine]`: which of vLLM's own options a user may set, and why the others are refused. No torch, no vLLM."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from r1zero.config import UserError

_SAMPLING = "the engine's logprobs would no longer be those that it samples with, on which the loss depends"
_EXECUTOR = "the engine runs inside the ranks of the job, whose grid [layout.rollout] describes"
_WEIGHTS = "the engine's weights, tokenizer and lengths are the trainer's, which sends them in its own format"
_SEEDS = "sampled tokens would depend on batching, or no longer on each request's own seed"
_OWN_KEY = "it has a key of its own: {}"

REFUSED: dict[str, str] = {
    **dict.fromkeys(
        ("logprobs_mode", "generation_config", "override_generation_config", "logits_processors"), _SAMPLING
    ),
    **dict.fromkeys(("kv_cache_dtype", "quantization", "calculate_kv_scales"), _SAMPLING),
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
    **dict.fromkeys(("async_scheduling", "speculative_config", "enable_chunked_prefill", "seed"), _SEEDS),
    "dtype": _OWN_KEY.format("run.dtype"),
    "tensor_parallel_size": _OWN_KEY.format("layout.rollout.tensor_parallel_size"),
    "enable_expert_parallel": _OWN_KEY.format("layout.rollout.enable_expert_parallel"),
    "max_num_seqs": _OWN_KEY.format("rollout.max_num_seqs"),
    "max_num_batched_tokens": _OWN_KEY.format("rollout.max_num_batched_tokens"),
    "kv_cache_memory_bytes": _OWN_KEY.format("rollout.kv_cache_gib"),
}


def check(options: Mapping[str, Any]) -> None:
    """Raises UserError where an option would break correctness."""
    for name in options:
        if name in REFUSED:
            raise UserError(f"rollout.engine.{name} cannot be set: {REFUSED[name]}; remove it")


def check_known(options: Mapping[str, Any], known: Iterable[str]) -> None:
    """Raises UserError where vLLM has no such option. known: the names of its options."""
    names = sorted(set(known) - set(REFUSED))
    for name in options:
        if name not in names:
            nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
            hint = f"; the nearest one is rollout.engine.{nearest[0]}" if nearest else ""
            raise UserError(f"rollout.engine.{name}: this vLLM has no such option{hint}")
