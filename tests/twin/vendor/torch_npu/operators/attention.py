"""Attention of inference and of training, sequence by sequence in fp32.

Read in op-plugin's pages of npu_fused_infer_attention_score (and _v2), npu_attention_update and npu_fusion_attention.
In layout TND sequences lie end to end and lengths are running sums; keys and values may be in the paged cache, whose
lengths are each request's own. Rows behind the last sequence are written by nobody."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torch_npu.operators.cache import read
from torch_npu.operators.registry import refuse, stand_in

MASK = (2048, 2048)
"""Shape of the compressed upper triangle that sparse modes 2 and 3 want."""


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float, hidden: Tensor | None) -> tuple[Tensor, Tensor]:
    """q (Q, H, D), k (K, N, D), v (K, N, V), hidden (Q, K) where a query does not see a key: (Q, H, V), and each row's
    logarithm of its sum, (Q, H). A row that sees nothing gives zero."""
    repeat = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
    scores = torch.einsum("qhd,khd->hqk", q.float(), k.float()) * scale
    if hidden is not None:
        scores = scores.masked_fill(hidden, -math.inf)
    total = scores.logsumexp(-1)
    weights = torch.exp(scores - total.masked_fill(total == -math.inf, 0.0).unsqueeze(-1))
    return torch.einsum("hqk,khv->qhv", weights, v.float()).to(q.dtype), total.transpose(0, 1)


def _hidden(mode: int, mask: Tensor | None, queries: int, keys: int, device: torch.device) -> Tensor | None:
    """Mode 0: the mask as it is, none without; 2: causal from the upper left corner; 3: from the lower right one."""
    if mode == 0:
        return None if mask is None else mask.bool().view(-1, mask.shape[-1])[:queries, :keys]
    if mode not in (2, 3):
        raise NotImplementedError(f"the twin's attention does not know sparse_mode {mode}")
    if mask is None:
        return None  # the mode is then ignored, and attention is full: npu_fusion_attention's page says so
    if tuple(mask.shape[-2:]) != MASK:
        raise RuntimeError(f"sparse_mode {mode} wants a mask of {MASK}, and was given {tuple(mask.shape)}")
    rows, columns = torch.arange(queries, device=device)[:, None], torch.arange(keys, device=device)[None]
    return columns > rows + (keys - queries if mode == 3 else 0)


@dataclass(frozen=True)
class _Inference:
    """The arguments that the two versions of one operator call by different names."""

    heads: int
    kv_heads: int
    layout: str
    scale: float
    query_lengths: list[int] | None
    kv_lengths: list[int] | None
    return_lse: bool
    atten_mask: Tensor | None = None
    block_table: Tensor | None = None
    query_rope: Tensor | None = None
    key_rope: Tensor | None = None
    sparse_mode: int = 0

    def queries(self, query: Tensor) -> tuple[Tensor, list[tuple[int, int]]]:
        """Rows (T, H, D), and where each sequence's begin and end."""
        if self.layout == "TND":
            ends = list(self.query_lengths)
            return query, list(zip([0, *ends[:-1]], ends, strict=True))
        if self.layout == "BNSD":
            query = query.transpose(1, 2)
        batch, length = query.shape[:2]
        lengths = self.query_lengths or [length] * batch
        return query.reshape(batch * length, self.heads, -1), [
            (i * length, i * length + n) for i, n in enumerate(lengths)
        ]

    def keys(self, tensor: Tensor | None, index: int) -> Tensor | None:
        """(K, N, D) of sequence `index`."""
        if tensor is None:
            return None
        if self.block_table is not None:
            if (
                tensor.dim() == 4 and tensor.shape[1] == self.kv_heads and tensor.shape[2] > 1
            ):  # (blocks, heads, block size, width)
                tensor = tensor.transpose(1, 2)
            rows = torch.arange(self.kv_lengths[index], device=tensor.device)
            found = read(tensor, self.block_table[index], rows)  # of a padded row none
            return found.reshape(len(rows), self.kv_heads, found.shape[1:].numel() // self.kv_heads)
        if self.layout == "TND":
            return tensor[self.kv_lengths[index - 1] if index else 0 : self.kv_lengths[index]]
        one = tensor[index].transpose(0, 1) if self.layout == "BNSD" else tensor[index]
        return one.reshape(one.shape[0], self.kv_heads, -1)[: self.kv_lengths[index] if self.kv_lengths else None]

    def parts(self, query: Tensor, key: Tensor, value: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        rows, spans = self.queries(query)
        rope = None if self.query_rope is None else self.queries(self.query_rope)[0]
        if spans[-1][1] > len(rows):
            raise RuntimeError(f"the sequences end at {spans[-1][1]}, and the query has {len(rows)} rows")
        for index, (begin, end) in enumerate(spans):
            q, k, v = rows[begin:end], self.keys(key, index), self.keys(value, index)
            if rope is not None:
                q, k = (
                    torch.cat((q, rope[begin:end].to(q.dtype)), -1),
                    torch.cat((k, self.keys(self.key_rope, index).to(k.dtype)), -1),
                )
            yield _attend(q, k, v, self.scale, _hidden(self.sparse_mode, self.atten_mask, len(q), len(k), q.device))

    def run(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        outs, totals = (torch.cat(found) for found in zip(*self.parts(query, key, value), strict=True))
        if self.layout == "TND":
            outs, totals = _longer(outs, len(query)), _longer(totals, len(query)).unsqueeze(-1)
        else:
            shape = query.shape[0], -1, self.heads
            outs, totals = outs.view(*shape, outs.shape[-1]), totals.view(*shape).transpose(1, 2).unsqueeze(-1)
            outs = outs.flatten(2) if self.layout == "BSH" else outs.transpose(1, 2) if self.layout == "BNSD" else outs
        return outs.contiguous(), totals.float() if self.return_lse else query.new_zeros(1, dtype=torch.float32)


def _longer(rows: Tensor, count: int) -> Tensor:
    return rows if len(rows) == count else torch.cat((rows, rows.new_empty((count - len(rows), *rows.shape[1:]))))


def _swapped(out: Tensor, layout: str) -> Tensor:
    """The output's layout stands behind an underscore where it is another one."""
    given, _, wanted = layout.partition("_")
    if wanted in ("", given):
        return out
    order = {
        ("TND", "NTD"): (1, 0, 2),
        ("BNSD", "BSND"): (0, 2, 1, 3),
        ("BSND", "NBSD"): (2, 0, 1, 3),
        ("BNSD", "NBSD"): (1, 0, 2, 3),
    }
    return out.permute(order[given, wanted]).contiguous()


IGNORED = {
    "pre_tokens",
    "next_tokens",
    "workspace",
    "block_size",
    "inner_precise",
    "antiquant_mode",
    "key_antiquant_mode",
    "value_antiquant_mode",
}
"""Of modes that are refused, or hints for the kernel."""


def _infer(
    query: Tensor, key: Tensor, value: Tensor, arguments: dict[str, Any], names: dict[str, str]
) -> tuple[Tensor, Tensor]:
    given = {names.get(name, name): content for name, content in arguments.items() if name not in IGNORED}
    layout = given.pop("layout", "BSH")
    heads = given.pop("heads", 1)
    known = {name: given.pop(name, None) for name in ("atten_mask", "block_table", "query_rope", "key_rope")}
    inference = _Inference(
        heads,
        given.pop("kv_heads", 0) or heads,
        layout.partition("_")[0],
        given.pop("scale", 1.0),
        given.pop("query_lengths", None),
        given.pop("kv_lengths", None),
        given.pop("return_lse", False),
        sparse_mode=given.pop("sparse_mode", 0),
        **known,
    )
    refuse("npu_fused_infer_attention_score", **given)
    out, total = inference.run(query, key, value)
    return _swapped(out, layout), total


@stand_in("npu")
def npu_fused_infer_attention_score(
    query: Tensor, key: Tensor, value: Tensor, **arguments: Any
) -> tuple[Tensor, Tensor]:
    return _infer(
        query,
        key,
        value,
        arguments,
        {
            "num_heads": "heads",
            "num_key_value_heads": "kv_heads",
            "input_layout": "layout",
            "actual_seq_lengths": "query_lengths",
            "actual_seq_lengths_kv": "kv_lengths",
            "softmax_lse_flag": "return_lse",
        },
    )


@stand_in("npu")
def npu_fused_infer_attention_score_v2(
    query: Tensor, key: Tensor, value: Tensor, **arguments: Any
) -> tuple[Tensor, Tensor]:
    return _infer(
        query,
        key,
        value,
        arguments,
        {
            "num_query_heads": "heads",
            "num_key_value_heads": "kv_heads",
            "input_layout": "layout",
            "softmax_scale": "scale",
            "actual_seq_qlen": "query_lengths",
            "actual_seq_kvlen": "kv_lengths",
            "return_softmax_lse": "return_lse",
        },
    )


@stand_in("npu", "npu_fused_infer_attention_score.out")
def _score_into(
    query: Tensor, key: Tensor, value: Tensor, *, out: list[Tensor], **arguments: Any
) -> tuple[Tensor, Tensor]:
    return _write(npu_fused_infer_attention_score(query, key, value, **arguments), out)


@stand_in("npu", "npu_fused_infer_attention_score_v2.out")
def _score_v2_into(
    query: Tensor, key: Tensor, value: Tensor, *, out: list[Tensor], **arguments: Any
) -> tuple[Tensor, Tensor]:
    return _write(npu_fused_infer_attention_score_v2(query, key, value, **arguments), out)


def _write(results: tuple[Tensor, Tensor], out: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The second result, the logarithms of the sums, is written only where the caller asks for it."""
    out[0].copy_(results[0])
    return out[0], out[1]


@stand_in("npu")
def _npu_fused_infer_attention_score_get_max_workspace(query: Tensor, *_: Any, **__: Any) -> Tensor:
    return query.new_empty(1)


@stand_in("npu")
def _npu_fused_infer_attention_score_v2_get_max_workspace(query: Tensor, *_: Any, **__: Any) -> Tensor:
    return query.new_empty(1)


@stand_in("npu")
def npu_attention_update(lse: list[Tensor], local_out: list[Tensor], update_type: int) -> tuple[Tensor, Tensor]:
    """Parts of one softmax, joined by the logarithms of their sums."""
    sums, outs = torch.stack([x.float() for x in lse]), torch.stack([x.float() for x in local_out])
    total = sums.logsumexp(0)
    weights = torch.exp(sums - total.masked_fill(total == -math.inf, 0.0))
    return (outs * weights.unsqueeze(-1)).sum(0).to(local_out[0].dtype), total


@stand_in("npu")
def npu_fusion_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    head_num: int,
    input_layout: str,
    pse: Tensor | None = None,
    padding_mask: Tensor | None = None,
    atten_mask: Tensor | None = None,
    scale: float = 1.0,
    keep_prob: float = 1.0,
    pre_tockens: int = 2147483647,
    next_tockens: int = 2147483647,
    inner_precise: int = 0,
    prefix: list[int] | None = None,
    actual_seq_qlen: list[int] | None = None,
    actual_seq_kvlen: list[int] | None = None,
    sparse_mode: int = 0,
    gen_mask_parallel: bool = True,
    sync: bool = False,
    softmax_layout: str = "",
    sink: Tensor | None = None,
    **others: Any,
) -> tuple[Any, ...]:
    """For training. Layout TND alone: the results of the others can be had from it. The page's limits: at most 1,024
    sequences, one type for all, and keys at least as wide as values."""
    refuse(
        "npu_fusion_attention",
        pse=pse,
        padding_mask=padding_mask,
        dropout=1.0 - keep_prob,
        prefix=prefix,
        sink=sink,
        input_layout="" if input_layout == "TND" else input_layout,
    )
    ends = actual_seq_qlen[-1], actual_seq_kvlen[-1]
    if len(actual_seq_qlen) > 1024 or ends != (len(query), len(key)):
        raise RuntimeError(f"{len(actual_seq_qlen)} sequences that end at {ends}")
    if len({query.dtype, key.dtype, value.dtype}) > 1 or value.shape[2] > key.shape[2] or head_num != query.shape[1]:
        raise RuntimeError(f"{head_num} heads of {[(x.dtype, tuple(x.shape)) for x in (query, key, value)]}")
    spans = zip([0, *actual_seq_qlen[:-1]], actual_seq_qlen, [0, *actual_seq_kvlen[:-1]], actual_seq_kvlen, strict=True)
    out = torch.cat(
        [
            _attend(
                query[a:b], key[c:d], value[c:d], scale, _hidden(sparse_mode, atten_mask, b - a, d - c, query.device)
            )[0]
            for a, b, c, d in spans
        ]
    )
    nothing = query.new_empty(0)
    return _longer(out, len(query)), nothing, nothing, nothing, 0, 0, 0
