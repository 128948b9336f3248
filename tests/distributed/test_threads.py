import math
import os

import pytest
import torch

from r1zero.config import Run
from r1zero.distributed import host, threads

ALL = set(range(8))


@pytest.mark.parametrize(
    ("of_ranks", "mine", "quota", "expected"),
    [
        ([ALL], ALL, math.inf, 8),
        ([ALL, ALL], ALL, math.inf, 4),
        ([ALL] * 3, ALL, math.inf, 2),  # whole cores only
        ([ALL] * 16, ALL, math.inf, 1),  # more ranks than cores
        ([{0}, {1}], {1}, math.inf, 1),  # bound to a core each, as mpirun -np 2 does
        ([{0, 1, 2, 3}, {4, 5, 6, 7}], {4, 5, 6, 7}, math.inf, 4),  # bound to a socket each
        ([ALL, {0, 1}], ALL, math.inf, 7),  # six of its own and two shared
        ([ALL, {0, 1}], {0, 1}, math.inf, 1),
        ([set(range(64))] * 2, set(range(64)), 4.0, 2),  # a container that may use 4 of the host's 64 cores
        ([ALL], ALL, 0.5, 1),
    ],
)
def test_ranks_share_the_cores_that_they_may_use(of_ranks, mine, quota, expected):
    assert threads.share(of_ranks, mine, quota) == expected


@pytest.mark.parametrize(
    ("chosen", "variable", "expected"),
    [
        ("auto", None, None),
        ("auto", "3", 3),
        ("auto", "3,2", 3),  # OpenMP's list: one number per level of nesting
        ("auto", "", None),
        ("auto", "0", None),
        (5, "3", 5),
        (5, None, 5),
    ],
)
def test_the_config_precedes_the_environment_and_both_precede_the_machine(monkeypatch, chosen, variable, expected):
    monkeypatch.delenv(threads.VARIABLE, raising=False)
    if variable is not None:
        monkeypatch.setenv(threads.VARIABLE, variable)
    assert threads.given(Run(threads=chosen)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("max 100000\n", math.inf), ("250000 100000\n", 2.5), (None, math.inf), ("nonsense", math.inf)],
)
def test_the_quota_of_a_container_is_read(monkeypatch, tmp_path, text, expected):
    if text is not None:
        (tmp_path / "cpu.max").write_text(text)
    monkeypatch.setattr(host, "CGROUP", tmp_path)
    assert host.cpu_quota() == expected


def started(rank: int) -> list[int]:
    cores = sorted(os.sched_getaffinity(0))
    shared = threads.start(Run(), None, 256)
    small = threads.start(Run(), None, 128)
    os.sched_setaffinity(0, cores[rank : rank + 1])
    bound = threads.start(Run(), None, 256)
    return [len(cores), shared, small, bound, threads.start(Run(), 3, 128), torch.get_num_threads()]


def test_two_ranks_of_a_host_divide_its_cores(ranks):
    (cores, *first), (_, *second) = ranks.run(started, size=2)
    quota = host.cpu_quota()
    assert first == second == [max(1, int(min(cores, quota) / 2)), 1, 1, 3, 3]
