"""Makes torch.distributed look like a world of a subset of the ranks while a library builds its process groups.

megatron-core's `initialize_model_parallel` and vLLM's `init_distributed_environment` both lay their grid over
`get_world_size()` ranks. Inside `subworld(within)` they see only the given ranks. Afterwards nothing is patched, and
the new groups are ordinary ones. Only members enter: groups are created with local synchronisation (gloo and nccl).
"""

import functools
import hashlib
import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist

from r1zero.patches import patched

PATCHED = ("get_world_size", "get_rank", "new_group", "all_gather_object", "barrier")
"""Functions of torch.distributed that refer to the whole world if no group is given."""

_made: dict[tuple[int, ...], int] = {}
"""How many groups of exactly these ranks this process has created, over all subworlds. All members count alike."""


@contextmanager
def subworld(within: tuple[int, ...], *, renumber: bool) -> Iterator[None]:
    """within: world ranks, including this one. If it is the whole world, nothing is changed.

    renumber: whether get_rank() and the lists passed to new_group() count from 0 (megatron-core) or are world ranks
    (vLLM, whose GroupCoordinator keeps the world ranks that it is given).
    """
    if len(within) == dist.get_world_size():
        yield
        return
    me = dist.get_rank()
    real = {name: getattr(dist, name) for name in PATCHED}

    def new_group(bound: inspect.BoundArguments) -> Any:
        ranks = bound.arguments.get("ranks")
        members = tuple(within if ranks is None else (within[r] for r in ranks) if renumber else ranks)
        if me not in members:
            return dist.GroupMember.NON_GROUP_MEMBER
        bound.arguments |= {"ranks": list(members), "use_local_synchronization": True}
        return real["new_group"](*bound.args, **bound.kwargs)

    def name_of(group_ranks: Any, use_hashed_name: bool) -> str:
        # torch names a group by the number of groups in this process, so members with different histories would never
        # find each other.
        key = tuple(group_ranks)
        _made[key] = _made.get(key, 0) + 1
        return hashlib.sha1(f"{key} {_made[key]}".encode()).hexdigest()

    def over_members(name: str) -> Callable[[inspect.BoundArguments], Any]:
        def call(bound: inspect.BoundArguments) -> Any:
            bound.arguments["group"] = bound.arguments.get("group") or whole
            return real[name](*bound.args, **bound.kwargs)

        return call

    def unless_grouped(name: str, value: int) -> Callable[[inspect.BoundArguments], Any]:
        return lambda bound: real[name](group) if (group := bound.arguments.get("group")) else value

    replacements = {
        "get_world_size": unless_grouped("get_world_size", len(within)),
        "get_rank": unless_grouped("get_rank", within.index(me)),
        "new_group": new_group,
        "all_gather_object": over_members("all_gather_object"),
        "barrier": over_members("barrier"),
    }
    # Libraries pass the same argument sometimes by position and sometimes by name; the signature resolves that.
    patches = {f"torch {name}": _maker(replacements[name]) for name in PATCHED if renumber or name != "get_rank"}
    outside = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE")}
    with patched({"torch group names": lambda _: name_of}):
        whole = real["new_group"](list(within), use_local_synchronization=True)
        with patched(patches):
            os.environ.update(RANK=str(within.index(me)), WORLD_SIZE=str(len(within)))
            try:
                yield
            finally:
                for name, value in outside.items():
                    os.environ.pop(name) if value is None else os.environ.update({name: value})


def _maker(replacement: Callable[[inspect.BoundArguments], Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Returns a maker of functions with the original's signature that pass the bound arguments to `replacement`."""

    def make(function: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            return replacement(signature.bind(*args, **kwargs))

        return call

    return make
