"""Matrix products by expert, and the ways of tokens to experts and back.

Read in op-plugin's pages of npu_grouped_matmul, npu_moe_token_permute_with_routing_map (and
_unpermute_), npu_moe_init_routing_v2, npu_moe_distribute_dispatch_v2,
npu_moe_distribute_combine_v2, npu_moe_gating_top_k and npu_transpose_batchmatmul. Those of vllm-ascend's own library
are the same under other names. Of npu_moe_token_permute and _unpermute, which have no page, the meaning is that of
megatron-core's permute (moe_utils.py)."""

import math

import torch
from torch import Tensor

from torch_npu.distributed import GROUPS, exchange
from torch_npu.operators.registry import refuse, stand_in


@stand_in("npu")
def npu_transpose_batchmatmul(
    input: Tensor,
    weight: Tensor,
    *,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    perm_x1: list[int] | None = None,
    perm_x2: list[int] | None = None,
    perm_y: list[int] | None = None,
    batch_split_factor: int = 1,
) -> Tensor:
    refuse("npu_transpose_batchmatmul", bias=bias, scale=scale, batch_split_factor=batch_split_factor - 1)
    product = torch.bmm(input.permute(perm_x1 or (0, 1, 2)), weight.permute(perm_x2 or (0, 1, 2)))
    return product.permute(perm_y or (1, 0, 2)).contiguous()


@stand_in("npu")
def npu_grouped_matmul(
    x: list[Tensor],
    weight: list[Tensor],
    *,
    bias: list[Tensor] | None = None,
    scale: list[Tensor] | None = None,
    group_list: Tensor | list[int],
    split_item: int = 0,
    group_type: int | None = None,
    group_list_type: int = 0,
    **others: object,
) -> list[Tensor]:
    """Rows of one x times the matrix of their expert. group_list: where each expert's rows end (type 0), or how many
    they are (1). group_type 2: along the second axis of x, which must be a transposed tensor, and the first of weight;
    that gives an expert's gradient. Rows of no expert are written by nobody. torch_npu has no derivative of it."""
    refuse(
        "npu_grouped_matmul",
        bias=bias,
        scale=scale,
        **{name: value for name, value in others.items() if name != "output_dtype"},
    )
    (rows,) = x
    _check_matrices(rows, weight, group_list, split_item)
    counts = group_list.tolist() if isinstance(group_list, Tensor) else list(group_list)
    if group_list_type == 0:
        counts = [end - begin for begin, end in zip([0, *counts[:-1]], counts, strict=True)]
    if group_type == 2:
        if rows.stride(0) != 1 or rows.shape[1] != sum(counts) or len(weight[0]) != sum(counts):
            raise RuntimeError(f"group_type 2 takes a transposed x and {sum(counts)} rows, not {tuple(rows.shape)}")
        parts = zip(rows.split(counts, 1), weight[0].split(counts), strict=True)
        return [torch.stack([a @ b for a, b in parts]).detach()]
    if sum(counts) > len(rows):
        raise RuntimeError(f"group_list ends at {sum(counts)}, and x has {len(rows)} rows")
    matrices = list(weight[0]) if len(weight) == 1 else weight
    out = torch.cat([part @ matrix for part, matrix in zip(rows[: sum(counts)].split(counts), matrices, strict=True)])
    return [torch.cat((out, out.new_empty((len(rows) - len(out), out.shape[1])))).detach()]


def _check_matrices(rows: Tensor, weight: list[Tensor], group_list: Tensor | list[int], split_item: int) -> None:
    """The page's limits for a group_list that is a tensor."""
    if split_item not in (2, 3):
        raise RuntimeError(f"split_item {split_item} gives several results")
    if not isinstance(group_list, Tensor):
        raise NotImplementedError("the twin's npu_grouped_matmul takes a group_list that is a tensor")
    if len(weight) > 128 or (len(weight) > 1 and rows.dtype == torch.float32):
        raise RuntimeError(f"npu_grouped_matmul takes no list of {len(weight)} matrices of {rows.dtype}")


# ---- which experts


@stand_in("_C_ascend")
def moe_gating_top_k(
    x: Tensor,
    k: int,
    k_group: int,
    group_count: int,
    group_select_mode: int,
    renorm: int,
    norm_type: int,
    out_flag: bool,
    routed_scaling_factor: float,
    eps: float,
    bias_opt: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Scores by softmax (norm_type 0) or sigmoid (1). Groups by their best score (mode 0) or the sum of their two best
    (1), bias included, experts likewise; their weights are the scores without it, to sum one, scaled."""
    scores = x.float().softmax(-1) if norm_type == 0 else x.float().sigmoid()
    choice = scores if bias_opt is None else scores + bias_opt.float()
    if group_count > 1:
        groups = choice.view(len(x), group_count, -1)
        worth = groups.amax(-1) if group_select_mode == 0 else groups.topk(2, -1)[0].sum(-1)
        kept = torch.zeros_like(worth, dtype=torch.bool).scatter_(1, worth.topk(k_group, -1)[1], True)
        choice = groups.masked_fill(~kept.unsqueeze(-1), -math.inf).flatten(1)
    chosen = choice.topk(k, -1)[1]
    weights = scores.gather(1, chosen)
    if norm_type == 1 or renorm:
        weights = weights / (weights.sum(-1, keepdim=True) + eps)
    return (weights * routed_scaling_factor).to(x.dtype), chosen.to(torch.int32), scores


# ---- on one rank


@stand_in("_C_ascend")
def npu_moe_init_routing_custom(
    x: Tensor,
    expert_idx: Tensor,
    *,
    scale: Tensor | None = None,
    offset: Tensor | None = None,
    active_num: int = -1,
    expert_capacity: int = -1,
    expert_num: int = -1,
    drop_pad_mode: int = 0,
    expert_tokens_num_type: int = 0,
    expert_tokens_num_flag: bool = False,
    quant_mode: int = 0,
    active_expert_range: list[int] | None = None,
    row_idx_type: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tokens once for each of their choices within the range of experts, sorted by expert; where each choice went
    (row_idx_type 0, -1 for none); how many each expert has (type 1). Rows behind the last are written by nobody."""
    refuse(
        "npu_moe_init_routing",
        scale=scale,
        offset=offset,
        drop_pad_mode=drop_pad_mode,
        quant_mode=quant_mode + 1,
        row_idx_type=row_idx_type,
        expert_tokens_num_type=expert_tokens_num_type - 1,
    )
    first, last = active_expert_range or (0, expert_num)
    choices = expert_idx.flatten().long()
    here = (choices >= first) & (choices < last)
    order = torch.where(here, choices, last).argsort(stable=True)[: int(here.sum())]
    rows = x.new_empty((len(choices), x.shape[1]))
    rows[: len(order)] = x[order // expert_idx.shape[-1]]
    went = torch.full_like(choices, -1)
    went[order] = torch.arange(len(order), device=x.device)
    counts = torch.bincount(choices[order] - first, minlength=last - first)
    return rows, went.to(torch.int32), counts, x.new_empty(0, dtype=torch.float32)


@stand_in("npu")
def npu_moe_token_permute(
    tokens: Tensor, indices: Tensor, num_out_tokens: int | None = None, padded_mode: bool = False
) -> tuple[Tensor, Tensor]:
    """Tokens once for each of their choices, sorted by expert; and where each choice went."""
    refuse("npu_moe_token_permute", padded_mode=padded_mode)
    choices = indices.shape[1] if indices.dim() == 2 else 1
    order = indices.flatten().argsort(stable=True)
    return tokens[order[: num_out_tokens or len(order)] // choices], order.argsort(stable=True).to(torch.int32)


@stand_in("npu")
def npu_moe_token_unpermute(
    permuted_tokens: Tensor,
    sorted_indices: Tensor,
    probs: Tensor | None = None,
    padded_mode: bool = False,
    restore_shape: list[int] | None = None,
) -> Tensor:
    """Each token's rows, weighted and summed; a choice that went nowhere counts as zero."""
    refuse("npu_moe_token_unpermute", padded_mode=padded_mode)
    index = sorted_indices.long().flatten()
    rows = permuted_tokens[index.clamp(min=0)].masked_fill((index < 0)[:, None], 0.0)
    if probs is None:
        return rows
    return (rows.view(*probs.shape, -1).float() * probs.float().unsqueeze(-1)).sum(1).to(permuted_tokens.dtype)


@stand_in("npu")
def npu_moe_token_permute_with_routing_map(
    tokens: Tensor,
    routing_map: Tensor,
    *,
    probs: Tensor | None = None,
    num_out_tokens: int | None = None,
    drop_and_pad: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens once for each expert of their row of the map, sorted by expert; the probabilities of these; and where each
    token's rows are, token by token. All tokens must have the same number of experts."""
    refuse("npu_moe_token_permute_with_routing_map", drop_and_pad=drop_and_pad)
    choices = (num_out_tokens or len(tokens)) // len(tokens)
    if (routing_map.sum(1) != choices).any():
        raise RuntimeError(f"every row of routing_map must have {choices} experts")
    if probs is not None and probs.dtype not in (tokens.dtype, torch.float32):
        raise RuntimeError(f"npu_moe_token_permute_with_routing_map was given {tokens.dtype} and {probs.dtype}")
    token, expert = routing_map.bool().nonzero(as_tuple=True)
    order = expert.argsort(stable=True)
    chosen = tokens.new_empty(0) if probs is None else probs.t().masked_select(routing_map.bool().t())
    return tokens[token[order]], chosen, order.argsort(stable=True).to(torch.int32)


@stand_in("npu")
def npu_moe_token_unpermute_with_routing_map(
    permuted_tokens: Tensor,
    sorted_indices: Tensor,
    restore_shape: list[int],
    *,
    probs: Tensor | None = None,
    routing_map: Tensor | None = None,
    drop_and_pad: bool = False,
) -> Tensor:
    """The sum of each token's rows."""
    refuse("npu_moe_token_unpermute_with_routing_map", drop_and_pad=drop_and_pad, probs=probs, routing_map=routing_map)
    rows = permuted_tokens[sorted_indices.long()].view(restore_shape[0], -1, restore_shape[1])
    return rows.float().sum(1).to(permuted_tokens.dtype)


# ---- over the ranks of a group


def _active(expert_ids: Tensor, mask: Tensor | None, group: str, size: int, global_bs: int) -> Tensor:
    """(n, K) choices on the host, those of the tokens that take part. Checks what the page forbids."""
    chosen = expert_ids.cpu().long()
    counts = exchange(GROUPS[group], torch.full((size,), len(chosen)), [1] * size, [1] * size).tolist()
    if len(set(counts)) > 1 and (global_bs == 0 or mask is not None):
        raise RuntimeError(
            f"ranks bring {counts} tokens: global_bs must say how many at most, and every token must take part"
        )
    if mask is not None:
        flags = mask.cpu().tolist()
        if flags != sorted(flags, reverse=True):
            raise RuntimeError("x_active_mask: tokens that take part must stand before those that do not")
        chosen = chosen[: sum(flags)]
    if any(len(set(row)) < len(row) for row in chosen.tolist()):
        raise RuntimeError("a token chose an expert twice")
    return chosen


def _sent(chosen: Tensor, experts: int) -> tuple[Tensor, Tensor]:
    """Choices in the order in which they are sent, and how many go to each expert."""
    return chosen.flatten().argsort(stable=True), torch.bincount(chosen.flatten(), minlength=experts)


@stand_in("npu")
def npu_moe_distribute_dispatch_v2(
    x: Tensor,
    expert_ids: Tensor,
    group_ep: str,
    ep_world_size: int,
    ep_rank_id: int,
    moe_expert_num: int,
    *,
    x_active_mask: Tensor | None = None,
    shared_expert_rank_num: int = 0,
    quant_mode: int = 0,
    global_bs: int = 0,
    expert_token_nums_type: int = 1,
    tp_world_size: int = 0,
    **others: object,
) -> tuple[Tensor, ...]:
    """Tokens to the ranks of their experts; there they lie by expert, then by the rank they came from.

    Returns rows (A, H), of which those behind the last are written by nobody; no scales; what combine needs to know;
    how many rows each expert has (type 1) or where they end (0); where those of each (expert, rank) end; and two
    results that are not used. The kernel takes H from 1,024 to 8,192, at most 512 tokens and no fp32; any of that here.
    """
    refuse(
        "npu_moe_distribute_dispatch_v2",
        quant_mode=quant_mode,
        shared_expert_rank_num=shared_expert_rank_num,
        tp_world_size=tp_world_size > 1,
        **{
            name: others.get(name)
            for name in (
                "scales",
                "expert_scales",
                "elastic_info",
                "comm_alg",
                "zero_expert_num",
                "copy_expert_num",
                "const_expert_num",
            )
        },
    )
    group, local = GROUPS[group_ep], moe_expert_num // ep_world_size
    chosen = _active(expert_ids, x_active_mask, group_ep, ep_world_size, global_bs)
    order, to_expert = _sent(chosen, moe_expert_num)
    from_rank = exchange(group, to_expert, [local] * ep_world_size, [local] * ep_world_size).view(ep_world_size, local)
    rows = exchange(
        group,
        x.cpu()[order // expert_ids.shape[1]],
        to_expert.view(ep_world_size, local).sum(1).tolist(),
        from_rank.sum(1).tolist(),
    )
    expert_of_row = torch.arange(local).repeat(ep_world_size).repeat_interleave(from_rank.flatten())
    arrived = expert_of_row.argsort(stable=True)
    most = (global_bs or len(x) * ep_world_size) * min(local, expert_ids.shape[1])
    expanded, assist = x.new_empty((most, x.shape[1])), torch.zeros(most * 128, dtype=torch.int32)
    expanded[: len(rows)] = rows[arrived].to(x.device)
    assist[: len(rows)] = arrived
    counts = from_rank.sum(0)
    nums = counts if expert_token_nums_type == 1 else counts.cumsum(0)
    ends = from_rank.t().flatten().cumsum(0).to(torch.int32)
    nothing = x.new_empty(0, dtype=torch.float32)
    return expanded, nothing, assist.to(x.device), nums.to(x.device), ends.to(x.device), nothing.int(), nothing


@stand_in("npu")
def npu_moe_distribute_combine_v2(
    expand_x: Tensor,
    expert_ids: Tensor,
    assist_info_for_combine: Tensor,
    ep_send_counts: Tensor,
    expert_scales: Tensor,
    group_ep: str,
    ep_world_size: int,
    ep_rank_id: int,
    moe_expert_num: int,
    *,
    x_active_mask: Tensor | None = None,
    shared_expert_rank_num: int = 0,
    global_bs: int = 0,
    comm_quant_mode: int = 0,
    tp_world_size: int = 0,
    **others: object,
) -> Tensor:
    """The way of dispatch back: each token's rows, weighted in fp32 and summed. Tokens that took no part are written by
    nobody."""
    refuse(
        "npu_moe_distribute_combine_v2",
        comm_quant_mode=comm_quant_mode,
        shared_expert_rank_num=shared_expert_rank_num,
        tp_world_size=tp_world_size > 1,
        **{name: others.get(name) for name in ("shared_expert_x", "elastic_info", "ori_x", "comm_alg")},
    )
    local, choices = moe_expert_num // ep_world_size, expert_ids.shape[1]
    chosen = _active(expert_ids, x_active_mask, group_ep, ep_world_size, global_bs)
    order, to_expert = _sent(chosen, moe_expert_num)
    to_rank = ep_send_counts.cpu().diff(prepend=torch.zeros(1, dtype=torch.int32)).view(local, ep_world_size).sum(0)
    count = int(to_rank.sum())
    rows = torch.empty((count, expand_x.shape[1]), dtype=expand_x.dtype)
    rows[assist_info_for_combine[:count].cpu().long()] = expand_x[:count].cpu()
    back = exchange(GROUPS[group_ep], rows, to_rank.tolist(), to_expert.view(ep_world_size, local).sum(1).tolist())
    of_choice = torch.empty_like(back)
    of_choice[order] = back
    weights = expert_scales.cpu()[: len(chosen)].float()
    out = expand_x.new_empty((len(expert_ids), expand_x.shape[1]))
    out[: len(chosen)] = (
        (of_choice.view(-1, choices, back.shape[1]).float() * weights.unsqueeze(-1)).sum(1).to(out.dtype).to(out.device)
    )
    return out
