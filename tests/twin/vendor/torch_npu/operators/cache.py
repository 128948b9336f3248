"""The paged key-value cache: (blocks, block size, heads, width), addressed by slots, block * block size + row; -1 is no
slot.

Read in op-plugin's page of npu_kv_rmsnorm_rope_cache; ATB's operators have no page: read from their callers
(vllm_ascend/attention/attention_v1.py, mla_v1.py, device/device_op.py).
"""

import torch
from torch import Tensor

from torch_npu.operators.elementwise import npu_interleave_rope, npu_rms_norm
from torch_npu.operators.registry import refuse, stand_in


def _write(cache: Tensor, slots: Tensor, rows: Tensor) -> None:
    kept = slots >= 0
    width = cache[0, 0].numel()
    cache.view(-1, width)[slots[kept].long()] = rows.reshape(-1, width)[: len(slots)][kept].to(cache.dtype)


def read(cache: Tensor, table: Tensor, rows: Tensor) -> Tensor:
    """Rows of one request, (len(rows), heads, width). table: its blocks."""
    size = cache.shape[1]
    return cache.flatten(0, 1)[table.long()[rows // size] * size + rows % size]


@stand_in("atb")
def _npu_reshape_and_cache(
    key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slot_indices: Tensor
) -> None:
    _write(key_cache, slot_indices, key)
    _write(value_cache, slot_indices, value)


@stand_in("npu")
def npu_kv_rmsnorm_rope_cache(
    kv: Tensor,
    gamma: Tensor,
    cos: Tensor,
    sin: Tensor,
    index: Tensor,
    k_cache: Tensor,
    ckv_cache: Tensor,
    *,
    k_rope_scale: Tensor | None = None,
    c_kv_scale: Tensor | None = None,
    k_rope_offset: Tensor | None = None,
    c_kv_offset: Tensor | None = None,
    v: Tensor | None = None,
    epsilon: float = 1e-5,
    cache_mode: str = "Norm",
    is_output_kv: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """kv (B, 1, S, latent + rope): the latent part is normed, the rest rotated, both written to their slots. Returns
    the caches, and what was written (rope, latent), which is defined only with is_output_kv. The kernel knows 512 + 64
    alone; any latent width here."""
    refuse(
        "npu_kv_rmsnorm_rope_cache",
        k_rope_scale=k_rope_scale,
        c_kv_scale=c_kv_scale,
        k_rope_offset=k_rope_offset,
        c_kv_offset=c_kv_offset,
        v=v,
        cache_mode="" if cache_mode == "PA" else cache_mode,
    )
    width = gamma.shape[-1]
    latent, _ = npu_rms_norm(kv[..., :width], gamma, epsilon)
    rope = npu_interleave_rope(kv[..., width:], cos, sin)
    _write(k_cache, index.flatten(), rope)
    _write(ckv_cache, index.flatten(), latent)
    if not is_output_kv:
        return k_cache, ckv_cache, torch.empty_like(rope), torch.empty_like(latent)
    return k_cache, ckv_cache, rope, latent


@stand_in("atb", "npu_paged_cache_load.out")
def npu_paged_cache_load(
    key_cache: Tensor,
    value_cache: Tensor,
    block_table: Tensor,
    context_lens: Tensor,
    *,
    seq_starts: Tensor | None,
    cumsum: bool = False,
    key: Tensor,
    value: Tensor,
) -> tuple[Tensor, Tensor]:
    """Rows start .. start + length of each request, end to end, into `key` and `value`."""
    refuse("npu_paged_cache_load", cumsum=cumsum)
    done = 0
    starts = [0] * len(context_lens) if seq_starts is None else seq_starts.tolist()
    for table, start, length in zip(block_table, starts, context_lens.tolist(), strict=True):
        rows = torch.arange(start, start + length, device=key_cache.device)
        for cache, out in ((key_cache, key), (value_cache, value)):
            out[done : done + length] = read(cache, table, rows).view(length, *out.shape[1:])
        done += length
    return key, value
