"""vLLM on CUDA."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from r1zero.rollout.loader_trace import Named

ARGUMENTS: dict[str, Any] = {"enable_sleep_mode": True}
EXPERT = re.compile(r"\.mlp\.experts\.(\d+)\.")
"""In the Hugging Face name of a tensor of a routed expert."""


def arguments(config: dict[str, Any]) -> dict[str, Any]:
    return {}


@contextmanager
def while_alive() -> Iterator[None]:
    yield


@contextmanager
def during_construction() -> Iterator[None]:
    yield


def writable_in_place(model: nn.Module, model_config: Any, tensors: list[Named]) -> list[Named]:
    """All but the experts, which a kernel may want in an order of its own."""
    return [named for named in tensors if not EXPERT.search(named[0])]


def load(llm: Any, weights: Iterator[tuple[str, Tensor]]) -> None:
    llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})


def sleep(llm: Any) -> bool:
    """Drop weights and cache."""
    llm.sleep(level=2)
    return True
