"""The plan's list of communicators against those that an update of the real trainer uses.

python -m pytest tests/plan/test_communicators.py
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from megatron.core import parallel_state
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from r1zero import config
from r1zero.batch import LossSize, MiniBatch
from r1zero.config import MegatronGrid
from r1zero.distributed import device, layout
from r1zero.model import families
from r1zero.plan import communicators
from tests import fast
from tests.model.cases import build_on, grid
from tests.oracles.transformers_model import Oracle
from tests.plan.test_plan_against_run import batch

CASES = {  # name: (model, ranks, grid)
    "dense, TP2, DP2": ("qwen2", 4, grid(tp=2)),
    "dense, PP2": ("qwen2", 2, grid(pp=2)),
    "experts, TP2, DP2": ("deepseek", 4, grid(tp=2)),
    "experts, EP2 of DP4": ("deepseek", 4, grid(ep=2)),
    "experts, PP2, EP2": ("deepseek", 4, grid(pp=2, ep=2)),
}


class Collectives(TorchDispatchMode):
    """`descriptions`: megatron-core's of the groups of more than one rank in which a collective ran."""

    def __init__(self) -> None:
        super().__init__()
        self.descriptions: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func.namespace == "c10d":
            for leaf in tree_leaves((args, kwargs)):
                if "ProcessGroup" in str(getattr(leaf, "_type", lambda: "")()):
                    group = dist.ProcessGroup.unbox(leaf)
                    self.descriptions |= {group.group_desc} if group.size() > 1 else set()
        return func(*args, **(kwargs or {}))


def used(rank: int, oracle: Oracle, place: MegatronGrid) -> set[str]:
    """Descriptions of the groups in which this rank's part of an update runs collectives."""
    from r1zero.policy import Policy

    built = build_on(oracle, place)
    policy = Policy(built.cfg, built.chunks, built.shape.vocab_size, [], built.optimizer, built.scheduler)
    mine = batch(1)
    mine = replace(mine, tokens_T=mine.tokens_T % built.shape.vocab_size)
    with Collectives() as seen:
        samples = float(len(mine.scored_B))
        policy.update(mine, [MiniBatch(mine.ids_B, LossSize(samples, samples, 1))])
    return seen.descriptions


def names() -> dict[str, str]:
    """Megatron-core's description of a group -> its name in tables of options."""
    source = Path(parallel_state.__file__).read_text(encoding="utf-8")
    pairs = re.findall(r'get_nccl_options\("(\w+)", nccl_comm_cfgs\)\s*\)?,\s+group_desc="(\w+)"', source)
    return {description: name for name, description in pairs}


@pytest.mark.parametrize("name", fast.only(["dense, PP2", "experts, TP2, DP2"], CASES))
def test_the_plan_lists_the_groups_that_an_update_uses_and_no_other(ranks: Any, models: Any, name: str) -> None:
    """A group that is not in the list takes buffers of which the plan knows nothing, and on NPUs larger ones."""
    model, size, place = CASES[name]
    oracle = models(model)
    found = {names()[text] for of_rank in ranks.run(used, oracle, place, size=size) for text in of_rank}
    place = layout.carve(config.Layout(train=place), size)
    listed = communicators.kinds(place, families.read_shape(oracle.folder), False, "npu")
    assert found == {kind.buffer for kind in listed if kind.name.startswith("train")}
    assert found <= device.BUFFERS_MB.keys()
