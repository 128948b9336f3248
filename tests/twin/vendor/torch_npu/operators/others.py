"""Formats, the vocabulary's cut and truncated sampling.

Read in op-plugin's pages of npu_format_cast and npu_top_k_top_p; get_masked_input_and_mask is vLLM's function of that
name (model_executor/layers/vocab_parallel_embedding.py), which vllm-ascend compiled; `_npu_matmul_add_fp32` is called
by vllm-ascend once, to see whether ATB is there (utils.py)."""

import math

import torch
from torch import Tensor

from torch_npu.operators.registry import refuse, stand_in

PLAIN_FORMATS = (0, 1, 2)
"""NCHW, NHWC, ND."""


@stand_in("npu")
def npu_format_cast(
    self: Tensor, acl_format: int, customize_dtype: int | None = None, input_dtype: int | None = None
) -> Tensor:
    refuse("npu_format_cast", acl_format=None if acl_format in PLAIN_FORMATS else acl_format)
    return self.view_as(self)


@stand_in("npu")
def get_npu_format(self: Tensor) -> int:
    return 2


@stand_in("_C_ascend")
def get_masked_input_and_mask(
    input: Tensor,
    org_vocab_start_index: int,
    org_vocab_end_index: int,
    num_org_vocab_padding: int,
    added_vocab_start_index: int,
    added_vocab_end_index: int,
) -> tuple[Tensor, Tensor]:
    """Ids within this rank's part of the vocabulary, 0 for others; and where there are others. Added ids follow the
    padding."""
    own = (input >= org_vocab_start_index) & (input < org_vocab_end_index)
    added = (input >= added_vocab_start_index) & (input < added_vocab_end_index)
    shift = added_vocab_start_index - (org_vocab_end_index - org_vocab_start_index) - num_org_vocab_padding
    return (own | added) * (input - org_vocab_start_index * own - shift * added), ~(own | added)


@stand_in("npu")
def npu_top_k_top_p(logits: Tensor, p: Tensor | None = None, k: Tensor | None = None) -> Tensor:
    """Logits outside the k largest, and outside the fewest whose probability is at least p, are -inf."""
    ordered, index = logits.sort(-1)
    if k is not None:
        edge = ordered.gather(1, (ordered.shape[1] - k.long()).clamp(min=0).unsqueeze(1))
        ordered = ordered.masked_fill(ordered < edge, -math.inf)
    if p is not None:
        beyond = ordered.softmax(-1).cumsum(-1) <= 1 - p.unsqueeze(1)
        beyond[:, -1] = False
        ordered = ordered.masked_fill(beyond, -math.inf)
    return torch.empty_like(logits).scatter_(1, index, ordered)


@stand_in("atb")
def _npu_matmul_add_fp32(x: Tensor, weight: Tensor, C: Tensor) -> None:
    C.add_(x.float().t() @ weight.float())
