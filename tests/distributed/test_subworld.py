"""Inside a subworld torch.distributed counts only its members; afterwards nothing is left of it but ordinary groups."""

import inspect
import os
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.distributed as dist

from r1zero.distributed.subworld import PATCHED, subworld
from r1zero.patches import PATCHES
from tests.without import without


def inside(rank, within, renumber):
    if rank not in within:
        return None
    # Histories differ: one member has made a group of its own before. torch's own group names would then not meet.
    with subworld(within, renumber=renumber):
        if rank == within[0]:
            dist.new_group([0] if renumber else [within[0]])
        seen = (dist.get_world_size(), dist.get_rank(), os.environ["RANK"])
        members = [0, 2] if renumber else [within[0], within[2]]
        group = dist.new_group(ranks=members)
        everyone = [None] * len(within)
        dist.all_gather_object(everyone, rank)
    total = torch.tensor([float(rank)])
    if group is not dist.GroupMember.NON_GROUP_MEMBER:
        dist.all_reduce(total, group=group)
    return seen, total.item(), everyone, (dist.get_world_size(), dist.get_rank(), os.environ["RANK"])


def test_members_are_renumbered_and_groups_meet_whatever_was_made_before(ranks):
    assert ranks.run(inside, (1, 2, 3), True, size=4) == [
        None,
        ((3, 0, "0"), 4.0, [1, 2, 3], (4, 1, "1")),
        ((3, 1, "1"), 2.0, [1, 2, 3], (4, 2, "2")),
        ((3, 2, "2"), 4.0, [1, 2, 3], (4, 3, "3")),
    ]


def test_without_renumbering_ranks_stay_the_worlds(ranks):
    results = ranks.run(inside, (0, 1, 3), False, size=4)
    assert results[3] == ((3, 3, "2"), 3.0, [0, 1, 3], (4, 3, "3")) and results[2] is None


def whole(rank):
    before = dist.get_world_size
    with subworld(tuple(range(dist.get_world_size())), renumber=True):
        return dist.get_world_size is before


def test_the_whole_world_is_left_as_it_is(ranks):
    assert ranks.run(whole, size=2) == [True, True]


def by_position_and_by_name(rank, within):
    """Calls every patched function in both ways that a library may use; returns what differs from torch's own
    signatures."""
    signatures = {name: inspect.signature(getattr(dist, name)) for name in PATCHED}
    if rank not in within:
        return None
    with subworld(within, renumber=True):
        different = [name for name in PATCHED if inspect.signature(getattr(dist, name)) != signatures[name]]
        pair = dist.new_group([0, 1], None, "gloo", None, True, "pair")
        same = dist.new_group(ranks=[0, 1], backend="gloo", use_local_synchronization=True)
        everyone, again = [None] * 2, [None] * 2
        dist.all_gather_object(everyone, rank, pair)
        dist.all_gather_object(object_list=again, obj=rank, group=same)
        dist.barrier(pair)
        dist.barrier(group=pair)
        dist.barrier(None, False, None)
        counts = [
            dist.get_world_size(pair),
            dist.get_world_size(group=pair),
            dist.get_rank(pair),
            dist.get_rank(group=None),
        ]
    return different, everyone, again, counts


def test_every_patched_function_takes_its_arguments_as_torchs_own_does(ranks):
    assert ranks.run(by_position_and_by_name, (1, 2), size=3) == [
        None,
        ([], [1, 2], [1, 2], [2, 2, 0, 0]),
        ([], [1, 2], [1, 2], [2, 2, 1, 1]),
    ]


def inside_without(rank, *names):
    with without(*names):
        return inside(rank, (1, 2, 3), True), by_position_and_by_name(rank, (1, 2))


def test_without_a_patch_members_see_another_world_or_wait_for_ever(ranks):
    """All at once, as most of them only wait."""

    def see(*names):
        try:
            return ranks.run(inside_without, *names, size=4, idle_s=5.0)
        except AssertionError as error:
            return str(error)

    right = ranks.run(inside_without, size=4)
    names = [name for name, patch in PATCHES.items() if "test_subworld.py" in patch.test]
    with ThreadPoolExecutor() as pool:
        assert [name for name, seen in zip(names, pool.map(see, names), strict=True) if seen == right] == []


def leave_a_group_behind(rank):
    """What a case that fails in the middle leaves in a library: a group of a world that is no more."""
    inspect.left_behind = dist.new_group([0])
    raise ValueError("this case fails")


def use_what_is_left(rank):
    return getattr(inspect, "left_behind", None)


def test_a_failed_case_leaves_nothing_to_the_next(ranks):
    try:
        ranks.run(leave_a_group_behind, size=2)
    except AssertionError as error:
        assert "this case fails" in str(error)
    assert ranks.run(use_what_is_left, size=2) == [None, None]
