"""vLLM on CUDA."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from r1zero.rollout.loader_trace import Named

ARGUMENTS: dict[str, Any] = {"enable_sleep_mode": True}
RETURN_EXPERTS: dict[str, Any] = {}
"""Arguments with which vLLM itself returns the experts of each token; empty: rollout/routing.py does it."""
EXPERT = re.compile(r"\.mlp\.experts\.(\d+)\.")
"""Matches the Hugging Face name of a routed expert's tensor."""


def arguments(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments for a model; none are needed."""
    return {}


def graph_mode() -> int | None:
    """Returns vLLM's CompilationMode in which decoding is recorded: without torch.compile, so that the kernels are
    those of a step that is not recorded."""
    return 0


@contextmanager
def while_alive() -> Iterator[None]:
    """A context for the life of an engine; nothing is patched."""
    yield


@contextmanager
def during_construction() -> Iterator[None]:
    """A context for the construction of LLM(); nothing is patched."""
    yield


def writable_in_place(model: nn.Module, model_config: Any, tensors: list[Named]) -> list[Named]:
    """Returns all tensors but those of experts, which a kernel may store in a different order."""
    return [named for named in tensors if not EXPERT.search(named[0])]


def load(llm: Any, weights: Iterator[tuple[str, Tensor]]) -> None:
    """Load new weights."""
    llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})


def sleep(llm: Any) -> bool:
    """Free the memory of weights and cache without keeping their content."""
    llm.sleep(level=2)
    return True
