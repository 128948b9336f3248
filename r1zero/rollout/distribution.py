"""From logits to logprobs, in as few passes over memory as torch's operators allow.

The sums of the weights over blocks of the vocabulary serve twice: their sum normalises a row, and the draw of a token
(draw.py) begins with them. They are therefore kept with the logprobs. A few rows are computed at a time, so that their
weights stay in the cache and no second tensor of the size of the logits is needed.

The weights are added block by block, and so a row's sum depends neither on the other rows nor on the number of rows or
threads. A sum of all weights, one after another in fp32, would also be less exact: vLLM's log_softmax shifts all
logprobs upwards by the same error, 1.9e-5 for 151,936 ids.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK = 64
"""Number of ids whose weights are added first."""
CHUNK_BYTES = {"cpu": 2 << 20}
"""Size in fp32 of the rows that are computed at a time, by device type."""
OTHER_CHUNK_BYTES = 64 << 20
"""The same for devices that are not named: small beside all logits, and large beside the cost of starting kernels."""


def normalise(logits_RV: Tensor, temperature: float, forbidden: Tensor) -> Tensor:
    """Returns log_softmax(logits / temperature) in fp32, in place if the logits are fp32. `kept_sums` finds its sums.

    forbidden: ids that are masked before the softmax, int64 on the same device. No logprob is above 0: the maximum is
    subtracted first, and then the logarithm of a sum that is at least 1, because the maximum adds 1 to it.
    """
    logprobs_RV = logits_RV if logits_RV.dtype == torch.float32 else torch.empty_like(logits_RV, dtype=torch.float32)
    sums = []
    for rows, buffer in _chunks(logprobs_RV):
        part = logprobs_RV[rows]
        if logprobs_RV is not logits_RV:
            part.copy_(logits_RV[rows])
        if temperature != 1.0:
            part.div_(temperature)
        if len(forbidden):
            part.index_fill_(1, forbidden, -torch.inf)
        part.sub_(part.amax(1, keepdim=True))
        sums.append(block_sums(torch.exp(part, out=buffer)))
        part.sub_(sums[-1].sum(1, keepdim=True).log_())
    logprobs_RV.sums_of_blocks = torch.cat(sums) if len(sums) > 1 else sums[0]  # type: ignore[attr-defined]
    return logprobs_RV


def kept_sums(logprobs_RV: Tensor) -> Tensor | None:
    """Returns the `weight_sums` of a tensor that `normalise` has returned, and None for any other, also if it shares
    its memory: the sums are an attribute of the tensor itself. It must not have been changed since."""
    return getattr(logprobs_RV, "sums_of_blocks", None)


def weight_sums(logits_RV: Tensor) -> Tensor:
    """Returns the sums over blocks of exp(logits - the row's maximum), (R, number of blocks)."""
    sums = [
        block_sums(torch.sub(logits_RV[rows], logits_RV[rows].amax(1, keepdim=True), out=buffer).exp_())
        for rows, buffer in _chunks(logits_RV)
    ]
    return torch.cat(sums) if len(sums) > 1 else sums[0]


def block_sums(entries_RN: Tensor) -> Tensor:
    """Returns the sum of each block of BLOCK entries; the last block may be shorter."""
    whole = entries_RN.shape[1] // BLOCK * BLOCK
    if not whole:
        return entries_RN.sum(1, keepdim=True)
    sums_RM = entries_RN[:, :whole].unflatten(1, (-1, BLOCK)).sum(-1)
    rest_RB = entries_RN[:, whole:]
    return torch.cat([sums_RM, rest_RB.sum(-1, keepdim=True)], 1) if rest_RB.shape[1] else sums_RM


def _chunks(logits_RV: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yields at least one slice of rows, with memory in fp32 for as many."""
    R, V = logits_RV.shape
    size = max(1, CHUNK_BYTES.get(logits_RV.device.type, OTHER_CHUNK_BYTES) // (4 * V))
    buffer = torch.empty(min(R, size), V, device=logits_RV.device)
    for begin in range(0, max(R, 1), size):
        yield slice(begin, begin + size), buffer[: R - begin]
