"""vLLM on an NPU: loading new weights into vllm-ascend 0.23.0, whose worker has no reload of its own.

Waking from a level 2 sleep restores the memory but not its content. A reload then has these steps, in this order: bring
the experts back to the layout of loading, with their loaders; load all tensors; run the processing that follows a load,
once; and recompute the tensors that are not loaded. Each step is in place, so addresses stay valid and there is never a
second copy of the weights.

Source: worker/worker.py, ops/fused_moe/fused_moe.py, ops/fused_moe/token_dispatcher.py and attention/mla_v1.py of that
release. tests/rollout/test_npu.py runs those functions.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from r1zero.config import UserError
from r1zero.rollout.loader_trace import Named

# Weights stay in plain format (not NZ), because they are loaded again after every update. torch.compile, on which
# npugraph_ex depends, does nothing in a process with MindSpeed.
ARGUMENTS: dict[str, Any] = {
    "enable_sleep_mode": True,
    "additional_config": {
        "weight_nz_mode": 0,
        "enable_cpu_binding": False,
        "ascend_compilation_config": {"enable_npugraph_ex": False},
    },
}
NOT_RECORDED = {"TASK_QUEUE_ENABLE": "2", "ASCEND_LAUNCH_BLOCKING": "1"}
"""Variables with values in which torch_npu or vllm-ascend refuses to record a graph."""
RETURN_EXPERTS: dict[str, Any] = {"enable_return_routed_experts": True}
"""Arguments with which vLLM itself returns the experts of each token (model_runner_v1.py and ops/fused_moe of
vllm-ascend, core/sched/scheduler.py of vLLM 0.23)."""


def arguments(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments for a model; none are needed."""
    return {}


def graph_mode() -> int | None:
    """Returns vLLM's CompilationMode in which decoding is recorded: vllm-ascend records in no other
    (NPUModelRunner._use_aclgraph).

    torch.compile itself does nothing in a process with MindSpeed, so the kernels are those of a step that is not
    recorded. Raises UserError if a variable rules graphs out.
    """
    for name, value in NOT_RECORDED.items():
        if os.environ.get(name) == value:
            raise UserError(
                f"{name} = {value} is set, and no graph can be recorded then; set another value, or "
                "rollout.graph = false"
            )
    return 3


@contextmanager
def while_alive() -> Iterator[None]:
    """A context for the life of an engine; nothing is patched."""
    yield


@contextmanager
def during_construction() -> Iterator[None]:
    """A context for the construction of LLM(); nothing is patched."""
    yield


def load(llm: Any, weights: Iterator[tuple[str, Tensor]]) -> None:
    """Load new weights."""
    llm.apply_model(lambda model: reload(model, llm.llm_engine.model_config, weights))


def sleep(llm: Any) -> bool:
    """Free the memory of weights and cache without keeping their content."""
    llm.sleep(level=2)
    return True


def reload(model: nn.Module, model_config: Any, weights: Iterable[tuple[str, Tensor]]) -> None:
    """Load new weights. Runs in the process that holds the model.

    weights: (Hugging Face checkpoint name, tensor) for the weights of this rank. While the iterator advances, some or
    all weights may be written in place instead of being yielded.
    """
    from vllm.model_executor.model_loader import utils
    from vllm_ascend.ops import rotary_embedding
    from vllm_ascend.ops.fused_moe.moe_comm_method import _MoECommMethods

    dispatchers = [method.token_dispatcher for method in _MoECommMethods.values()]
    # vllm-ascend replaces this function in its module, so it is looked up there at the time of the call.
    reload_in_order(model, model_config, weights, utils.process_weights_after_loading, dispatchers)
    renew_rotary_tables(rotary_embedding)


def reload_in_order(
    model: Any,
    model_config: Any,
    weights: Iterable[tuple[str, Tensor]],
    process: Callable[[nn.Module, Any, torch.device], None],
    dispatchers: list[Any],
) -> None:
    """`reload`, with the parts of the two vendors as arguments."""
    prepare_experts(model, model_config.hf_text_config.hidden_size)
    model.load_weights(weights)
    # Transposes the experts again and recomputes the absorbed weights of latent attention. Must run exactly once.
    process(model, model_config, next(model.parameters()).device)
    for dispatcher in dispatchers:
        renew_dispatcher(dispatcher)


def writable_in_place(model: nn.Module, model_config: Any, tensors: list[Named]) -> list[Named]:
    """Returns all tensors: the kernels use plain weights as they were loaded, and experts transposed in place.

    Leaves the model ready to load, so `reload` must follow.
    """
    prepare_experts(model, model_config.hf_text_config.hidden_size)
    return tensors


def prepare_experts(model: nn.Module, hidden_size: int) -> None:
    """Bring the experts to the layout of loading, (E, 2I, H) and (E, H, I), and attach the loader to each.

    Processing, and also waking, transposes them and replaces them with new Parameters that have no loader. Raises
    RuntimeError if the shapes do not reveal which layout the experts have.
    """
    for name, module in model.named_modules():
        if not isinstance(getattr(module, "w13_weight", None), nn.Parameter):
            continue
        for parameter, processed_axis in (("w13_weight", 1), ("w2_weight", 2)):
            held = getattr(module, parameter)
            others = {1, 2} - {processed_axis}
            if held.shape[1] == held.shape[2] or hidden_size not in held.shape[1:]:
                raise RuntimeError(
                    f"{name}.{parameter} has shape {tuple(held.shape)}: its layout cannot be told from hidden_size "
                    f"{hidden_size}"
                )
            if held.shape[processed_axis] == hidden_size:
                held = nn.Parameter(held.data.transpose(1, 2), requires_grad=False)
                setattr(module, parameter, held)
            assert held.shape[others.pop()] == hidden_size
            held.weight_loader = module.weight_loader


def renew_dispatcher(dispatcher: Any) -> None:
    """Recompute the all-to-all dispatcher's index of each expert on its rank.

    The index is a plain tensor, which a level 2 sleep erases. Prefill would then route tokens wrongly without an error.
    """
    numbers = getattr(dispatcher, "expert_ids_per_ep_rank", None)
    if numbers is not None:
        numbers.copy_(torch.arange(dispatcher.num_experts, dtype=numbers.dtype) % dispatcher.num_local_experts)


def renew_rotary_tables(module: Any) -> None:
    """Write vllm-ascend's tables of cosines and sines again, from the buffer that they were made of.

    Latent attention reads them. With plain rotary positions they are plain tensors of `module`
    (vllm_ascend.ops.rotary_embedding), so a deep sleep loses them and the engine then computes NaN. With YaRN they are
    buffers, which the worker restores, and the module does not have both.
    """
    both = module._cos_sin_cache
    if both is None or module._cos_cache is None:
        return
    for table, half in zip((module._cos_cache, module._sin_cache), both.chunk(2, -1), strict=True):
        table.copy_(half.repeat(1, 2))
