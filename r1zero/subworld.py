"""Make torch.distributed look like a world of only some ranks, while a library that spans the whole world builds its groups.

megatron-core's `initialize_model_parallel` and vLLM's `init_distributed_environment` both lay their grid over
`get_world_size()`. Inside `subworld(within)` they find just those ranks; afterwards nothing is patched, and the groups that
were made are ordinary ones. Only members enter: groups are made with local synchronisation (gloo and nccl).
"""

import hashlib
import os
from contextlib import contextmanager
from typing import Any, Iterator
from unittest import mock

import torch.distributed as dist
from torch.distributed import distributed_c10d

_made: dict[tuple[int, ...], int] = {}
"""How many groups of exactly these ranks this process has made, over all subworlds: members count alike."""


@contextmanager
def subworld(within: tuple[int, ...], *, renumber: bool) -> Iterator[None]:
    """`within`: world ranks, this one among them. The whole world: nothing is changed.

    renumber: get_rank() and the lists given to new_group() count from 0 (megatron-core); else they are world
    ranks (vLLM, whose GroupCoordinator keeps the world ranks it is given).
    """
    if len(within) == dist.get_world_size():
        yield
        return
    me = dist.get_rank()
    real = {name: getattr(dist, name) for name in ("get_world_size", "get_rank", "new_group", "all_gather_object", "barrier")}

    def new_group(ranks: Any = None, *args: Any, **kwargs: Any) -> Any:
        members = tuple(within if ranks is None else (within[r] for r in ranks) if renumber else ranks)
        if me not in members:
            return dist.GroupMember.NON_GROUP_MEMBER
        return real["new_group"](list(members), *args, **{**kwargs, "use_local_synchronization": True})

    def name_of(group_ranks: Any, use_hashed_name: bool) -> str:
        # torch counts all groups of this process, and members with different histories would not meet.
        key = tuple(group_ranks)
        _made[key] = _made.get(key, 0) + 1
        return hashlib.sha1(f"{key} {_made[key]}".encode()).hexdigest()

    def of_members(name: str) -> Any:
        def call(*args: Any, group: Any = None, **kwargs: Any) -> Any:
            return real[name](*args, group=group or whole, **kwargs)
        return call

    patches: dict[str, Any] = {
        "get_world_size": lambda group=None: real["get_world_size"](group) if group else len(within),
        "new_group": new_group,
        "all_gather_object": of_members("all_gather_object"),
        "barrier": of_members("barrier"),
    }
    if renumber:
        patches["get_rank"] = lambda group=None: real["get_rank"](group) if group else within.index(me)
    with mock.patch.object(distributed_c10d, "_process_group_name", name_of):
        whole = real["new_group"](list(within), use_local_synchronization=True)
        with (mock.patch.multiple(dist, **patches),
              mock.patch.dict(os.environ, RANK=str(within.index(me)), WORLD_SIZE=str(len(within)))):
            yield


@contextmanager
def as_world(group: Any) -> Iterator[None]:
    """`group`, made before, stands for the default one: calls that name no group mean it, and its ranks are counted from 0 in
    every group inside it. For libraries that coordinate over the whole world; only members enter."""
    default = dist.group.WORLD
    if group.size() == default.size():
        yield
        return
    numbers = {rank: i for i, rank in enumerate(dist.get_process_group_ranks(group))}
    held = distributed_c10d._world.pg_group_ranks
    inside = {member: {numbers[rank]: i for rank, i in ranks.items()} for member, ranks in held.items() if ranks.keys() <= numbers.keys()}
    with mock.patch.dict(held, inside):
        distributed_c10d._update_default_pg(group)
        try:
            yield
        finally:
            distributed_c10d._update_default_pg(default)
