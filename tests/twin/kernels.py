"""The kernels of model/kernels/npu.py on the twin's ranks."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch

from tests.twin import project, trainers
from tests.twin.project import MegatronGrid, Oracle

OVERLAP = "overlapped shared experts"


@contextmanager
def calls() -> Iterator[Counter[str]]:
    """Counts the calls of the vendor's operators."""
    from torch_npu.operators import CALLS

    before, found = CALLS.copy(), Counter[str]()
    yield found
    found.update(CALLS - before)


def compare(rank: int, name: str, dtype: torch.dtype) -> tuple[Any, Counter[str]]:
    """With plain torch on the CPU; name: a case."""
    with calls() as found:
        return project.compare_kernels(name, dtype), found


def gradients(
    rank: int,
    oracle: Oracle,
    place: MegatronGrid,
    without: tuple[str, ...] = (),
    recompute: str = "none",
    dtype: str = "float32",
) -> tuple[trainers.Gradients, Counter[str]]:
    """Of a model with this device's kernels but for those named; calls of operators, and of shared experts that were
    computed while tokens travelled."""
    from megatron.core.transformer.moe.shared_experts import SharedExpertMLP

    overlapped = mock.patch.object(SharedExpertMLP, "get_output", autospec=True, side_effect=SharedExpertMLP.get_output)
    with calls() as found, overlapped as output, project.without_kernels(*without):
        gradients = trainers.gradients(rank, oracle, place, 1, recompute, dtype)
    return gradients, found + Counter({OVERLAP: output.call_count})
