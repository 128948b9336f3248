"""The arguments with which this project constructs vLLM's LLM."""

from typing import Any

from r1zero.config import Config
from r1zero.rollout.engine_limits import graph_sizes


def _overrides(model_config: dict[str, Any]) -> dict[str, Any]:
    """Returns the fields of config.json that vLLM must see with other values than the file has."""
    # The weights come from the trainer unquantised, even if the model was published in FP8.
    plain = {"quantization_config": None} if "quantization_config" in model_config else {}
    return plain | _routing(model_config)


def _routing(model_config: dict[str, Any]) -> dict[str, Any]:
    kind = model_config.get("model_type")
    if kind == "deepseek_v3":
        # transformers 5 leaves both fields out, because it supports only this routing. Without them vLLM would use a
        # softmax without the bias.
        return {"scoring_func": "sigmoid", "topk_method": "noaux_tc"}
    if kind == "deepseek_v2" and model_config.get("topk_method", "greedy") == "greedy":
        # vLLM does not read topk_method, and limits the choice to the best groups in any case.
        return {"n_group": 1, "topk_group": 1}
    return {}


def engine_arguments(cfg: Config, model_config: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments that do not come from the device's adapter.

    They are valid for vLLM 0.23.0 (NPU) and 0.32.0 (CPU and CUDA).

    model_config: the model's config.json.
    """
    # score() passes a prompt together with its response as a prompt, and vLLM requires room for one token more.
    max_model_len = cfg.rollout.max_prompt_tokens + cfg.longest_response + 1
    return {
        "model": cfg.model.path,
        "skip_tokenizer_init": True,
        "hf_overrides": _overrides(model_config),
        "load_format": "dummy",
        "dtype": cfg.run.dtype,
        "seed": cfg.run.seed % 2**32,  # numpy's range; tokens are drawn with all of run.seed
        "distributed_executor_backend": "external_launcher",
        "tensor_parallel_size": cfg.layout.rollout.tensor_parallel_size,
        "enable_expert_parallel": cfg.layout.rollout.enable_expert_parallel,
        "enforce_eager": True,
        "max_model_len": max_model_len,
        "max_num_seqs": cfg.rollout.max_num_seqs,
        "enable_chunked_prefill": True,
        "max_num_batched_tokens": max(cfg.rollout.max_num_batched_tokens, cfg.rollout.max_num_seqs),
        "enable_prefix_caching": True,
        "kv_cache_memory_bytes": int(cfg.rollout.kv_cache_gib * 2**30),
        "async_scheduling": schedules_ahead(cfg),
        "logprobs_mode": "raw_logits",  # see return_logprobs in models.py
        "generation_config": "vllm",
    }


ASYNCHRONOUS = ("cuda", "npu")
"""Devices that compute while Python goes on."""


def schedules_ahead(cfg: Config) -> bool:
    """Returns whether vLLM schedules a step while the device computes the one before it.

    The number of tokens that a request has sampled, which the draw depends on, is known then as well. Engines that
    share experts are excluded: they have to run their forward passes together, and with steps in a queue one of them
    may run a step more than the others. With train.routing_replay the choice of experts is read after each step, before
    the next one overwrites it.
    """
    alone = cfg.layout.rollout.data_parallel_size == 1
    return cfg.run.device in ASYNCHRONOUS and alone and not cfg.train.routing_replay


def records_graphs(cfg: Config) -> bool:
    """Returns whether decoding steps may be recorded. With train.routing_replay only vllm-ascend may: elsewhere the
    routers begin to report their choices after vLLM has recorded (rollout/routing.py)."""
    return cfg.rollout.graph and (cfg.run.device == "npu" or not cfg.train.routing_replay)


def graph_arguments(max_num_seqs: int, mode: int) -> dict[str, Any]:
    """Returns the arguments with which vLLM records decoding steps in graphs. Steps with a prefill are not recorded.

    mode: vLLM's CompilationMode.
    """
    graphs = {"cudagraph_mode": "FULL_DECODE_ONLY", "cudagraph_capture_sizes": graph_sizes(max_num_seqs)}
    return {"enforce_eager": False, "compilation_config": {"mode": mode, **graphs}}
