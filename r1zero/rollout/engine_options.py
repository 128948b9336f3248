"""`[rollout.engine]`: the options of vLLM that a user must not set, with the reasons.

This module imports neither torch nor vLLM, so that a config can be checked without them.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from r1zero.config import UserError, suggest

_SAMPLING = "the engine's logprobs would no longer be those of the distribution that it samples from"
_PRECISION = "the engine would compute in another precision than the trainer, so their logprobs would differ"
_EXECUTOR = "the engine runs inside the ranks of the job, and [layout.rollout] sets its parallel degrees"
_WEIGHTS = "the engine must use the same model, tokenizer and lengths as the trainer, and gets its weights from it"
_EXPERTS = "the weights of an expert are sent to the rank on which vLLM places it by default"
_GENERATES = "the engine must generate"
_SHARDED = "each token is drawn by the seed of its request, and a rank would draw those of a part of the requests only"
_DRAW = "each token is drawn by its number in the response, and these would have to guess the tokens before it"
_AHEAD = "it is on where that is safe"
_CHUNKS = "vllm-ascend's latent attention ignores the prefix cache if prompts are not prefilled in chunks"
_OWN_KEY = "this project has its own key for it, {}"

REFUSED: dict[str, str] = {
    **dict.fromkeys(
        ("logprobs_mode", "generation_config", "override_generation_config", "logits_processors", "watermark_config"),
        _SAMPLING,
    ),
    **dict.fromkeys(("kv_cache_dtype", "quantization", "quantization_config", "calculate_kv_scales"), _PRECISION),
    **dict.fromkeys(
        (
            "distributed_executor_backend",
            "pipeline_parallel_size",
            "data_parallel_size",
            "data_parallel_size_local",
            "data_parallel_rank",
            "data_parallel_start_rank",
            "data_parallel_backend",
            "data_parallel_address",
            "data_parallel_rpc_port",
            "data_parallel_hybrid_lb",
            "data_parallel_external_lb",
            "data_parallel_multi_port_external_lb",
            "enable_elastic_ep",
            "elastic_ep_max_dp_size",
            "nnodes",
            "node_rank",
            "master_addr",
            "master_port",
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
            "model_weights",
            "model_class_overrides",
            "revision",
            "code_revision",
            "tokenizer_revision",
            "enable_sleep_mode",
            "trust_remote_code",
            "weight_transfer_config",
        ),
        _WEIGHTS,
    ),
    **dict.fromkeys(("enable_eplb", "eplb_config", "expert_placement_strategy"), _EXPERTS),
    **dict.fromkeys(("runner", "convert", "pooler_config"), _GENERATES),
    "async_scheduling": _AHEAD,
    **dict.fromkeys(("speculative_config", "spec_method", "spec_model", "spec_tokens"), _DRAW),
    "enable_batch_sharded_sampling": _SHARDED,
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


def merge(arguments: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns vLLM's arguments with the user's options.

    An option that is an object, such as `compilation_config`, may add keys to the object that this project passes.
    Raises UserError if it contradicts one of that object's own keys.
    """
    return {**arguments, **{name: _merge(name, arguments.get(name), value) for name, value in options.items()}}


def _merge(name: str, own: Any, given: Any) -> Any:
    if not (isinstance(own, Mapping) and isinstance(given, Mapping)):
        return given
    merged = dict(own)
    for key, value in given.items():
        merged[key] = _merge(f"{name}.{key}", own.get(key), value)
        if key in own and not isinstance(own[key], Mapping) and value != own[key]:
            raise UserError(
                f"rollout.engine.{name}.{key} = {json.dumps(value)}: this project sets it to "
                f"{json.dumps(own[key])}, and depends on it; remove it"
            )
    return merged
