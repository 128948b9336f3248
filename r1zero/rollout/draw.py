"""The random draw of tokens: a hash of the request's seed and the number of its tokens takes the place of a generator.

vLLM keeps a random generator for each request that has a seed. It draws from them one request after another, and must
set them back for a prompt that is prefilled in chunks. Here nothing is kept between steps: `Draw` is a logits processor
(vLLM's extension point), which draws the tokens of the whole batch at once and leaves each row only the drawn token.
Its requests are greedy for vLLM (temperature 0).

A token is found by inverting cumulative distributions of at most BLOCK entries: first over blocks of the vocabulary,
then inside the chosen block, each time with a uniform number of its own. One distribution over the whole vocabulary
would need sums and differences in double precision, which an NPU does not have, and would react more strongly to
rounding.

Equal logits give equal tokens, whatever else is in the batch. If two layouts round the logits differently, a token
changes where its uniform number lies between the old and the new boundary of two entries. The chance is therefore at
most the sum, over all boundaries, of |change of the cumulative distribution|, at each level. For independent normal
errors of 1e-6 in all logits it is 1e-8 to 7e-6 per token, for vocabularies of 48 to 151,936 ids and entropies of 0.03
to 11 nats (tests/rollout/test_draw.py). With one distribution over all ids it would be up to 2e-3.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.sampling_params import SamplingParams
    from vllm.v1.sample.logits_processor import BatchUpdate

BLOCK = 64
"""Number of entries of a cumulative distribution."""
MOST_LEVELS = 4
"""Uniform numbers that are set aside for a token: enough for BLOCK**4 = 16.8 million ids."""
SINGLE_PRECISION = ("npu",)
"""Device types without double precision. torch_npu would replace it silently."""


def request_arguments(seed: int, temperature: float = 1.0) -> dict[str, Any]:
    """Returns `extra_args` of a request whose tokens are to be drawn. A request without them is decoded greedily.

    seed: 0 <= seed < 2**64. temperature: relative to the logits that the model returns; greater than 0.
    """
    return {"seed": seed, "temperature": temperature}


def levels(vocabulary: int) -> int:
    """Returns the number of cumulative distributions, and of uniform numbers, that a token needs."""
    count = 1
    while BLOCK**count < vocabulary:
        count += 1
    return count


def uniforms(seeds_R: np.ndarray, counts_R: np.ndarray, levels: int) -> np.ndarray:
    """Returns uniform numbers in [0, 1), (R, levels) in double precision, each with 53 random bits.

    seeds_R, counts_R: uint64; a request's seed and the number of tokens that it has sampled. The numbers are the
    outputs MOST_LEVELS * count + 0, 1, .. of the generator SplitMix64 with this seed, each of which is a hash of its
    number. Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    number_RL = counts_R[:, None] * np.uint64(MOST_LEVELS) + np.arange(1, levels + 1, dtype=np.uint64)
    z = seeds_R[:, None] + number_RL * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)) * 2.0**-53


def choose(weights_RV: Tensor, uniforms_RL: Tensor) -> Tensor:
    """Returns one token id per row, (R,), drawn with probabilities proportional to the weights.

    weights_RV: not negative, in fp32. uniforms_RL: in [0, 1), L = levels(V). A token of weight 0 is never returned,
    unless a row has no other weight.
    """
    sums = [weights_RV]
    while sums[-1].shape[1] > BLOCK:
        sums.append(_block_sums(sums[-1]))
    index_R = _invert(sums.pop(), uniforms_RL[:, 0])
    for uniform_R in uniforms_RL.unbind(1)[1:]:
        entries_RN = sums.pop()
        index_RB = index_R[:, None] * BLOCK + torch.arange(BLOCK, device=entries_RN.device)
        last = entries_RN.shape[1] - 1
        block_RB = entries_RN.gather(1, index_RB.clamp(max=last)).masked_fill_(index_RB > last, 0.0)
        index_R = index_R * BLOCK + _invert(block_RB, uniform_R)
    return index_R


def _block_sums(entries_RN: Tensor) -> Tensor:
    """Returns the sum of each block of BLOCK entries; the last block may be shorter."""
    whole = entries_RN.shape[1] // BLOCK * BLOCK
    sums_RM = entries_RN[:, :whole].unflatten(1, (-1, BLOCK)).sum(-1)
    rest_RB = entries_RN[:, whole:]
    return torch.cat([sums_RM, rest_RB.sum(-1, keepdim=True)], 1) if rest_RB.shape[1] else sums_RM


def _invert(weights_RN: Tensor, uniforms_R: Tensor) -> Tensor:
    """Returns the first index of each row at which the cumulative weight exceeds the given share of the whole weight.

    Rounding cannot lead outside: an index of weight 0 is passed over, and if no index is left, the last one with a
    weight is returned.
    """
    total_RN = weights_RN.to(uniforms_R.dtype).cumsum(-1)
    positive_RN = weights_RN > 0
    beyond_RN = positive_RN & (total_RN > (uniforms_R * total_RN[:, -1])[:, None])
    index_N = torch.arange(weights_RN.shape[1], device=weights_RN.device)
    first_R = torch.where(beyond_RN, index_N, len(index_N)).amin(-1)
    last_R = torch.where(positive_RN, index_N, 0).amax(-1)
    return torch.minimum(first_R, last_R)


@dataclass(frozen=True)
class _Request:
    seed: int
    temperature: float
    output: Sequence[int]
    """The sampled tokens. vLLM appends to this list."""


class Draw:
    """A logits processor of vLLM, the same on all devices. vLLM makes one for each engine and calls its methods."""

    @classmethod
    def validate_params(cls, sampling_params: "SamplingParams") -> None:
        """Accepts all requests: their arguments come from `request_arguments`."""

    def __init__(self, vllm_config: "VllmConfig", device: torch.device, is_pin_memory: bool):
        self._device = device
        self._dtype = torch.float32 if device.type in SINGLE_PRECISION else torch.float64
        self._requests: dict[int, _Request] = {}
        """Row of the batch -> request, for the requests whose tokens are drawn, in the order of the rows."""
        self._seeds_R = np.zeros(0, np.uint64)

    def is_argmax_invariant(self) -> bool:
        """Returns False, so that vLLM calls `apply` for greedy requests."""
        return False

    def update_state(self, batch_update: "BatchUpdate | None") -> None:
        """Follow the requests to their rows, before each forward pass. None: no request has come, gone or moved."""
        from vllm.v1.sample.logits_processor.builtin import process_dict_updates

        if process_dict_updates(self._requests, batch_update, _request):
            self._requests = dict(sorted(self._requests.items()))
            self._seeds_R = np.array([request.seed for request in self._requests.values()], np.uint64)

    def apply(self, logits: Tensor) -> Tensor:
        """Draw a token in each row of a request with a seed, and set all other logits of the row to -inf, in place.

        logits: (R, V); each row is normalised, as the model returns it (`return_logprobs` in models.py).
        """
        if not self._requests:
            return logits
        counts_R = np.array([len(request.output) for request in self._requests.values()], np.uint64)
        drawn_RL = uniforms(self._seeds_R, counts_R, levels(logits.shape[1]))
        uniforms_RL = torch.from_numpy(drawn_RL).to(self._dtype).to(self._device)
        temperatures = [request.temperature for request in self._requests.values()]
        if len(self._requests) == len(logits):
            return _leave_one(logits, temperatures, uniforms_RL)
        rows = torch.tensor(list(self._requests), device=self._device)
        return logits.index_copy_(0, rows, _leave_one(logits[rows], temperatures, uniforms_RL))


def as_logits_processor() -> type[Draw]:
    """Returns `Draw`, registered with vLLM's base class, which is imported only here because importing vLLM is slow."""
    from vllm.v1.sample.logits_processor import LogitsProcessor

    LogitsProcessor.register(Draw)
    return Draw


def _request(params: "SamplingParams", prompt: list[int] | None, output: list[int]) -> _Request | None:
    arguments = params.extra_args
    return _Request(arguments["seed"], arguments["temperature"], output) if arguments else None


def _leave_one(logprobs_RV: Tensor, temperatures: Sequence[float], uniforms_RL: Tensor) -> Tensor:
    """Draw a token in each row, and leave 0 at the token and -inf elsewhere, in place."""
    other = [row for row, temperature in enumerate(temperatures) if temperature != 1.0]
    if other:
        rows = torch.tensor(other, device=logprobs_RV.device)
        scale_R = torch.tensor([temperatures[row] for row in other], device=logprobs_RV.device)
        part_RV = logprobs_RV[rows]
        # The largest logit becomes 0: at a low temperature all weights would otherwise round to 0.
        part_RV -= part_RV.amax(-1, keepdim=True)
        logprobs_RV[rows] = part_RV / scale_R[:, None]
    tokens_R = choose(logprobs_RV.float().exp_(), uniforms_RL)  # fp32 logits in place, as they are replaced below
    return logprobs_RV.fill_(-torch.inf).scatter_(1, tokens_R[:, None], 0.0)
