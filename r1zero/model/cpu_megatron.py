"""Replacements for what megatron-core 0.16.1 needs of torch.cuda, so that it runs on a CPU, and for what it does
slowly there. Used only on that device.

The library refers to CUDA in three ways: through the module `torch` that its files import, through methods of tensors,
and through functions of its own. For the first, a facade replaces the global name `torch` in the library's own modules,
and torch itself is not changed (replacing torch.empty and similar functions for everybody breaks transformers
silently).
"""

import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from megatron.core.tensor_parallel import mappings

from r1zero import patches

# Loaded before the facade is installed. The library would otherwise import some of these later, without it.
_MODULES = (
    "distributed",
    "optimizer",
    "optimizer_param_scheduler",
    "parallel_state",
    "pipeline_parallel",
    "models.gpt.gpt_model",
    "models.gpt.gpt_layer_specs",
    "transformer.moe.moe_layer",
    "transformer.moe.token_dispatcher",
    "transformer.multi_latent_attention",
    "tensor_parallel.random",
    "distributed.finalize_model_grads",
    "dist_checkpointing.strategies.torch",
    "dist_checkpointing.strategies.common",
    "dist_checkpointing.strategies.filesystem_async",
    "dist_checkpointing.strategies.fully_parallel",
)


def install() -> None:
    """Apply the patches; a second call does nothing. Raises UserError for a version that they were not checked with."""
    for name in _MODULES:
        importlib.import_module(f"megatron.core.{name}")
    if isinstance(sys.modules["megatron.core.distributed.distributed_data_parallel"].torch, _Facade):
        return
    facade = _facade()
    patches.apply(
        {
            "megatron torch": lambda found: facade if found is torch else found,
            "megatron Tensor.cuda": lambda _: lambda tensor, *args, **kwargs: tensor,
            "megatron get generator": lambda _: lambda *args, **kwargs: torch.get_rng_state(),
            "megatron token_dispatcher to host": lambda _: _to_numbers,
            "megatron exchange with itself": _unless_alone,
            "megatron clip": lambda _: _clip,
        }
    )


def look_like_cuda(model: torch.nn.Module) -> None:
    """Give parameters CUDA type names, because the distributed optimizer sorts them by `param.type()`."""
    for parameter in model.parameters():
        _name_as_cuda(parameter)


def _name_as_cuda(tensor: Any) -> None:
    name = f"torch.cuda.{torch.Tensor.type(tensor).removeprefix('torch.')}"
    tensor.type = lambda: name


def add_gradient_of_the_embedding_by_rows(model: Any, reports: bool) -> None:
    """Let the embedding add its gradient to `main_grad` itself, in the rows of the tokens that occur.

    torch's derivative would be a tensor as large as the whole weight, almost all zeros, which megatron-core adds then.
    reports: give autograd a gradient of zeros. If megatron-core reduces gradients during the backward pass, it learns
    from it that the weight is ready.
    """
    embedding = model.embedding.word_embeddings

    def forward(tokens: torch.Tensor) -> torch.Tensor:
        """As VocabParallelEmbedding.forward: (1, T) to (T / tp, 1, H) on several tensor ranks, (1, T, H) on one."""
        if embedding.tp_group.size() == 1:
            return _Embedding.apply(embedding.weight, tokens, reports)
        rows = tokens - embedding.vocab_start_index
        others = (rows < 0) | (rows >= len(embedding.weight))
        found = _Embedding.apply(embedding.weight, rows.masked_fill(others, 0), reports)
        found = found.masked_fill(others.unsqueeze(-1), 0.0).transpose(0, 1).contiguous()
        return mappings.reduce_scatter_to_sequence_parallel_region(found, group=embedding.tp_group)

    embedding.forward = forward


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, rows: torch.Tensor, reports: bool) -> torch.Tensor:
        ctx.save_for_backward(weight, rows)
        ctx.reports = reports
        return torch.nn.functional.embedding(rows, weight)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, None, None]:
        weight, rows = ctx.saved_tensors
        total = weight.main_grad
        total.index_add_(0, rows.flatten(), grad.flatten(0, -2).to(total.dtype))
        return weight.new_zeros(()).expand_as(weight) if ctx.reports else None, None, None


class _Idle:
    """A stream or event that has nothing to wait for."""

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __getattr__(self, name: str) -> Callable[..., "_Idle"]:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: self

    def __enter__(self) -> "_Idle":
        return self

    def __exit__(self, *args: Any) -> None:
        pass


class _Facade(ModuleType):
    """A module with the attributes of `original`, except for those set on the facade itself."""

    def __init__(self, original: ModuleType):
        super().__init__(original.__name__)
        self._original = original

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)


def _facade() -> ModuleType:
    facade: Any = _Facade(torch)
    for name in ("tensor", "zeros", "ones", "empty", "full", "arange", "empty_like", "zeros_like"):
        setattr(facade, name, _on_cpu(getattr(torch, name)))
    facade.cuda = _Facade(torch.cuda)
    for name in ("synchronize", "set_device", "empty_cache"):
        setattr(facade.cuda, name, lambda *args, **kwargs: None)
    for name in ("Stream", "Event", "current_stream", "default_stream", "stream"):
        setattr(facade.cuda, name, _Idle)
    facade.cuda.current_device = lambda: torch.device("cpu")
    facade.cuda.get_rng_state = lambda *args: torch.get_rng_state()
    facade.cuda.set_rng_state = lambda state, *args: torch.set_rng_state(state)
    facade.cuda.manual_seed = torch.manual_seed
    return facade


def _on_cpu(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def made(*args: Any, **kwargs: Any) -> torch.Tensor:
        if str(kwargs.get("device")).startswith("cuda"):
            kwargs["device"] = "cpu"
        return make(*args, **kwargs)

    return made


def _unless_alone(collective: Callable[..., Any]) -> Callable[..., Any]:
    """The collective, except in a group of one rank, where megatron-core gives it two views of the same memory."""

    def communicate(target: torch.Tensor, source: torch.Tensor, *args: Any, group: Any, **kwargs: Any) -> Any:
        if group.size() > 1:
            return collective(target, source, *args, group=group, **kwargs)
        assert target.data_ptr() == source.data_ptr() and target.shape == source.shape
        return None

    return communicate


def _clip(parameters: list[torch.Tensor], max_norm: float, total_norm: float, use_decoupled_grad: bool = False) -> None:
    """Scale the gradients in place. The library would make a scaled copy of each gradient first.

    use_decoupled_grad: the library's argument, True only for an optimizer that this program does not use.
    """
    assert not use_decoupled_grad
    factor = max_norm / (total_norm + 1e-6)
    for parameter in parameters if factor < 1.0 else ():
        if parameter.grad is not None:
            parameter.grad.mul_(factor)


def _to_numbers(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
    return tensor.numpy() if as_numpy and torch.is_tensor(tensor) else tensor
