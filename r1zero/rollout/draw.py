"""The random draw of tokens: a hash of the request's seed and the number of its tokens takes the place of a generator.

vLLM keeps a random generator for each request that has a seed. It draws from them one request after another, and must
set them back for a prompt that is prefilled in chunks. Here nothing is kept between steps: `Draw` is a logits processor
(vLLM's extension point), which draws the tokens of the whole batch at once and makes each the largest logit of its row.
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

from r1zero.rollout.distribution import BLOCK, block_sums, kept_sums, weight_sums

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.sampling_params import SamplingParams
    from vllm.v1.sample.logits_processor import BatchUpdate

MOST_LEVELS = 4
"""Uniform numbers that are set aside for a token: enough for BLOCK**4 = 16.8 million ids."""
SINGLE_PRECISION = ("npu",)
"""Device types without double precision. torch_npu would replace it silently."""


def request_arguments(number: int, seed: int, temperature: float = 1.0) -> dict[str, Any]:
    """Returns `extra_args` of a request whose tokens are to be drawn. vLLM chooses the token of any other request.

    number: its number in the journal. seed: 0 <= seed < 2**64. temperature: relative to the logits that the model
    returns; 0 for the likeliest token.
    """
    return {"number": number, "seed": seed, "temperature": temperature}


class Journal:
    """The logprobs of drawn tokens. They stay on the device until they are taken, so that no step waits for them."""

    def __init__(self) -> None:
        self._steps: list[tuple[np.ndarray, np.ndarray, Tensor]] = []

    def add(self, numbers_R: np.ndarray, counts_R: np.ndarray, logprobs_R: Tensor) -> None:
        """Keep the logprobs of one step. counts_R: the number of tokens that each request had sampled before."""
        self._steps.append((numbers_R, counts_R, logprobs_R))

    def clear(self) -> None:
        """Forget all logprobs."""
        self._steps = []

    def take(self, lengths_N: Sequence[int]) -> list[list[float]]:
        """Returns the logprobs of the tokens of requests 0 .. N - 1, and forgets all.

        A token that was drawn more than once, as happens while a prompt is prefilled in chunks, has its last logprob; a
        token that was not drawn has NaN. What was drawn beyond the end of a response is left out.
        """
        table_NT = np.full((len(lengths_N), max(lengths_N, default=0)), np.nan, np.float32)
        if self._steps:
            numbers, counts, values = zip(*self._steps, strict=True)
            number, count, value = (
                np.concatenate(numbers),
                np.concatenate(counts),
                torch.cat(values).float().cpu().numpy(),
            )
            inside = count < table_NT.shape[1]
            table_NT[number[inside], count[inside]] = value[inside]
        self.clear()
        return [row_T[:length].tolist() for row_T, length in zip(table_NT, lengths_N, strict=True)]


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


def choose(logprobs_RV: Tensor, uniforms_RL: Tensor, sums_RM: Tensor | None = None) -> Tensor:
    """Returns one token id per row, (R,), drawn with probabilities proportional to exp(logprobs).

    logprobs_RV: need not be normalised. uniforms_RL: in [0, 1), L = levels(V). sums_RM: the sums of exp(logprobs) over
    blocks, up to a factor for each row, if they are known (`distribution.kept_sums`). A token of logprob -inf is never
    returned, unless a row has no other.
    """
    entries = [logprobs_RV]
    if logprobs_RV.shape[1] > BLOCK:
        entries.append(weight_sums(logprobs_RV) if sums_RM is None else sums_RM)
    while entries[-1].shape[1] > BLOCK:
        entries.append(block_sums(entries[-1]))
    index_R: Tensor | None = None
    for uniform_R in uniforms_RL.unbind(1):
        part_RB = entries.pop()
        if index_R is not None:
            part_RB = _block(part_RB, index_R, 0.0 if entries else -torch.inf)
        if not entries:
            # The largest weight becomes 1: all others could otherwise round to 0.
            part_RB = (part_RB - part_RB.amax(1, keepdim=True)).exp_()
        inner_R = _invert(part_RB, uniform_R)
        index_R = inner_R if index_R is None else index_R * BLOCK + inner_R
    assert index_R is not None
    return index_R


def _block(entries_RN: Tensor, block_R: Tensor, padding: float) -> Tensor:
    """Returns the entries of one block of each row, (R, BLOCK); the last block may be shorter and is padded."""
    index_RB = block_R[:, None] * BLOCK + torch.arange(BLOCK, device=entries_RN.device)
    last = entries_RN.shape[1] - 1
    if (last + 1) % BLOCK == 0:
        return entries_RN.gather(1, index_RB)
    return entries_RN.gather(1, index_RB.clamp(max=last)).masked_fill_(index_RB > last, padding)


def _invert(weights_RN: Tensor, uniforms_R: Tensor) -> Tensor:
    """Returns the first index of each row at which the cumulative weight exceeds the given share of the whole weight.

    Rounding cannot lead outside: an index of weight 0 is passed over, and if no index is left, the last one with a
    weight is returned, or 0 if there is none.
    """
    total_RN = weights_RN.to(uniforms_R.dtype).cumsum(-1)
    aim_R1 = uniforms_R[:, None] * total_RN[:, -1:]
    N = weights_RN.shape[1]
    if total_RN.device.type == "cpu" and total_RN.dtype == torch.float64:
        # Weights are added one after another, so totals never decrease, and an index of weight 0 has the total of the
        # one before. A uniform number is at most 1 - 2**-53, which makes the aim less than the whole weight, unless
        # that is 0 or NaN: N is found then.
        return torch.searchsorted(total_RN, aim_R1, right=True)[:, 0].remainder_(N)
    positive_RN = weights_RN > 0
    index_N = torch.arange(N, device=weights_RN.device)
    first_R = torch.where(positive_RN & (total_RN > aim_R1), index_N, N).amin(-1)
    last_R = torch.where(positive_RN, index_N, 0).amax(-1)
    return torch.minimum(first_R, last_R)


@dataclass(frozen=True)
class _Request:
    number: int
    seed: int
    temperature: float
    output: Sequence[int]
    """The sampled tokens. vLLM appends to this list."""


class Draw:
    """A logits processor of vLLM, the same on all devices. vLLM makes one for each engine and calls its methods."""

    journal: Journal
    """Takes the logprobs of the drawn tokens (`as_logits_processor`)."""

    @classmethod
    def validate_params(cls, sampling_params: "SamplingParams") -> None:
        """Accepts all requests: their arguments come from `request_arguments`."""

    def __init__(self, vllm_config: "VllmConfig", device: torch.device, is_pin_memory: bool):
        self._device = device
        self._dtype = torch.float32 if device.type in SINGLE_PRECISION else torch.float64
        self._requests: dict[int, _Request] = {}
        """Row of the batch -> request, for the requests whose tokens are drawn, in the order of the rows."""
        self._outputs: list[Sequence[int]] = []
        self._numbers_R = np.zeros(0, np.int64)
        self._seeds_R = np.zeros(0, np.uint64)
        self._tempered: dict[int, float] = {}
        """Number of a request in this order -> its temperature, for those with another temperature than 0 and 1."""
        self._greedy: list[int] = []
        """Numbers of the requests of temperature 0."""

    def is_argmax_invariant(self) -> bool:
        """Returns False, so that vLLM calls `apply` for greedy requests."""
        return False

    def update_state(self, batch_update: "BatchUpdate | None") -> None:
        """Follow the requests to their rows, before each forward pass. None: no request has come, gone or moved."""
        from vllm.v1.sample.logits_processor.builtin import process_dict_updates

        if process_dict_updates(self._requests, batch_update, _request):
            self._requests = dict(sorted(self._requests.items()))
            requests = list(self._requests.values())
            self._outputs = [request.output for request in requests]
            self._numbers_R = np.array([request.number for request in requests], np.int64)
            self._seeds_R = np.array([request.seed for request in requests], np.uint64)
            self._tempered = {
                r: request.temperature for r, request in enumerate(requests) if request.temperature not in (0.0, 1.0)
            }
            self._greedy = [r for r, request in enumerate(requests) if request.temperature == 0.0]

    def apply(self, logits: Tensor) -> Tensor:
        """Draw a token in each row of a request with `request_arguments`, and set its logit to infinity, in place.

        logits: (R, V) in fp32; each row is normalised, as the model returns it (`distribution.normalise`). vLLM takes
        the largest logit of a row.
        """
        if not self._requests:
            return logits
        sums_RM = kept_sums(logits)
        if len(self._requests) == len(logits):
            return logits.scatter_(1, self._tokens(logits, sums_RM), torch.inf)
        rows_R = torch.tensor(list(self._requests), device=self._device)
        tokens_R1 = self._tokens(logits[rows_R], None if sums_RM is None else sums_RM[rows_R])
        logits[rows_R[:, None], tokens_R1] = torch.inf
        return logits

    def _tokens(self, logprobs_RV: Tensor, sums_RM: Tensor | None) -> Tensor:
        """Returns the next token of each request, (R, 1), whose logprob goes to the journal."""
        counts_R = np.fromiter(map(len, self._outputs), np.int64, len(self._outputs))
        drawn_RL = uniforms(self._seeds_R, counts_R.view(np.uint64), levels(logprobs_RV.shape[1]))
        uniforms_RL = torch.from_numpy(drawn_RL).to(self._dtype).to(self._device)
        tokens_R = choose(logprobs_RV, uniforms_RL, sums_RM)
        if self._tempered:
            rows_N = torch.tensor(list(self._tempered), device=self._device)
            scale_N = torch.tensor(list(self._tempered.values()), device=self._device)
            tokens_R[rows_N] = choose(logprobs_RV[rows_N] / scale_N[:, None], uniforms_RL[rows_N])
        if self._greedy:
            rows_N = torch.tensor(self._greedy, device=self._device)
            tokens_R[rows_N] = logprobs_RV[rows_N].argmax(-1)
        tokens_R1 = tokens_R[:, None]
        self.journal.add(self._numbers_R, counts_R, logprobs_RV.gather(1, tokens_R1)[:, 0])
        return tokens_R1


def as_logits_processor(journal: Journal) -> type[Draw]:
    """Returns `Draw` with its journal. It is registered with vLLM's base class, which is imported only here because
    importing vLLM is slow."""
    from vllm.v1.sample.logits_processor import LogitsProcessor

    LogitsProcessor.register(Draw)
    return type("Draw", (Draw,), {"journal": journal})


def _request(params: "SamplingParams", prompt: list[int] | None, output: list[int]) -> _Request | None:
    arguments = params.extra_args
    return _Request(**arguments, output=output) if arguments else None
