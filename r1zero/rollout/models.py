"""Which experts a rank of vLLM holds, and two changes to the models that vLLM builds: they return logprobs in place of
logits, and the norms inside latent attention have an epsilon of 1e-6."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from r1zero.distributed.layout import Layout
from r1zero.rollout.distribution import normalise


def return_logprobs(model: Any, temperature: float, forbidden_ids: list[int]) -> None:
    """Make the model return logprobs in place of logits: fp32, divided by the temperature, masked and normalised.

    Doing this once, before vLLM's sampler, covers the drawn tokens and their logprobs (draw.py) as well as prompt
    logprobs, to which vLLM applies neither temperature nor mask, and which it is configured to report as they are here
    (`logprobs_mode`).
    """
    plain = model.compute_logits
    forbidden = torch.tensor(forbidden_ids, dtype=torch.long, device=next(model.parameters()).device)

    def compute_logits(*args: Any, **kwargs: Any) -> Tensor:
        return normalise(plain(*args, **kwargs), temperature, forbidden)

    model.compute_logits = compute_logits


def set_latent_epsilon_after(load_weights: Callable[..., None]) -> Callable[..., None]:
    """Set the epsilon of the norms inside latent attention to 1e-6, as in DeepSeek's code and in Hugging Face.

    vLLM uses the model's rms_norm_eps. A graph keeps the number that it was recorded with, so it is changed before
    that.
    """

    def load(self: Any, model: nn.Module, model_config: Any) -> None:
        load_weights(self, model, model_config)
        for name, module in model.named_modules():
            if name.endswith(("q_a_layernorm", "kv_a_layernorm")):
                module.variance_epsilon = 1e-6

    return load


def owned_experts(experts: int, layout: Layout, rank: int) -> range:
    """Returns the rank's experts under vLLM's linear placement, where consecutive ranks of a replica hold consecutive
    experts. If the division leaves a remainder, the first ranks hold one expert more."""
    replica = layout.rollout.group(rank, "tp", "dp")
    position, (share, rest) = replica.index(rank), divmod(experts, len(replica))
    first = position * share + min(position, rest)
    return range(first, first + share + (position < rest))
