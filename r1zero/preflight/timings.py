"""Warms up and times every communicator that a step uses, to name groups that a bad cable or a distant peer slows."""

import time
from collections.abc import Mapping
from statistics import median

import torch
import torch.distributed as dist

from r1zero.preflight.rows import CheckResult, format_ranks

KINDS = ("world", "train tp", "train pp", "train dp", "train ep", "rollout tp", "rollout ep")
"""All ranks time these kinds in this order."""
BYTES, TIMES = 1 << 20, 3
SLOW, FLOOR_S = 4.0, 0.02
"""A group is slow if it takes SLOW times the median of its kind and FLOOR_S seconds longer."""

Timing = tuple[tuple[int, ...], float]
"""World ranks of a group, and the seconds of an all-reduce of BYTES over it, the best of TIMES."""


def measure(groups: Mapping[str, dist.ProcessGroup], device: torch.device) -> dict[str, list[Timing]]:
    """Returns kind -> timings of all groups of more than one rank. Collective over the world. groups: this rank's."""
    mine: dict[str, Timing] = {}
    for kind in KINDS:
        dist.barrier()
        group = groups.get(kind)
        if group is not None and dist.get_world_size(group) > 1:
            mine[kind] = tuple(dist.get_process_group_ranks(group)), _seconds(group, device)
    every: list[dict[str, Timing]] = [{}] * dist.get_world_size()
    dist.all_gather_object(every, mine)
    found: dict[str, dict[tuple[int, ...], float]] = {}
    for of_rank in every:
        for kind, (ranks, seconds) in of_rank.items():
            of_kind = found.setdefault(kind, {})
            of_kind[ranks] = max(of_kind.get(ranks, 0.0), seconds)
    return {kind: sorted(of_kind.items()) for kind, of_kind in found.items()}


def _seconds(group: dist.ProcessGroup, device: torch.device) -> float:
    tensor, taken = torch.zeros(BYTES // 4, device=device), []
    for _ in range(1 + TIMES):  # the first one establishes the connections
        began = time.perf_counter()
        dist.all_reduce(tensor, group=group)
        tensor[0].item()  # waits for the device
        taken.append(time.perf_counter() - began)
    return min(taken[1:])


def judge(found: Mapping[str, list[Timing]], hosts: Mapping[int, str]) -> list[CheckResult]:
    """Returns a row for each slow group, and for each kind without one."""
    rows = []
    for kind, timings in found.items():
        middle = median(seconds for _, seconds in timings)
        slow = [
            (ranks, seconds) for ranks, seconds in timings if seconds > SLOW * middle and seconds > middle + FLOOR_S
        ]
        rows += [
            CheckResult(
                f"link {kind}",
                f"{1e3 * seconds:.1f} ms for 1 MiB",
                f"{1e3 * middle:.1f} ms as in the median group",
                "warning",
                format_ranks(ranks, hosts),
                "check the network of these hosts, and whether something else runs there",
            )
            for ranks, seconds in slow
        ]
        if not slow:
            shape = f"{len(timings)} group{'s' * (len(timings) > 1)} of {len(timings[0][0])}"
            rows.append(
                CheckResult(
                    f"link {kind}",
                    f"{shape}, {1e3 * middle:.1f} ms for 1 MiB",
                    f"no group over {SLOW:g} times the median",
                )
            )
    return rows
