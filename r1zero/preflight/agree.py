"""Compares the facts of all ranks, as a pure function.

The expected value is that of most ranks; of equally large parties, that of the party with the lowest rank.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

from r1zero.preflight.facts import Facts
from r1zero.preflight.rows import CheckResult, format_ranks

GB, MB = 1e9, 1e6
SKEW_S = 30.0
"""Largest acceptable difference of clocks in seconds; a larger one confuses logs and shared folders."""


@dataclass(frozen=True)
class Needs:
    """What a run needs, according to the plan."""

    checkpoint: int
    """Bytes of one checkpoint."""
    checkpoints: int
    """Largest number of checkpoints in the run's folder at once, including one that is being written."""
    memory: tuple[int, ...]
    """Bytes that each rank needs in its fullest phase."""
    on_host: bool
    """Whether that is host memory."""
    shared: tuple[int, ...]
    """Bytes of the host's shared memory that each rank's engine needs ..."""
    queue: int
    """... and bytes of it that must be free in addition at its start; 0: no engine has more than one rank."""


def compare(facts: Sequence[Facts], needs: Needs) -> list[CheckResult]:
    """Returns the rows of the table from the facts of all ranks."""
    hosts = {f.rank: f.host for f in facts}
    rows = [*_same("code", {f.rank: f.code[:12] for f in facts}, hosts, "copy the same r1zero folder to all hosts")]
    rows += _each(
        "config", {f.rank: f.settings for f in facts}, hosts, "start all ranks with the same file and arguments"
    )
    rows += _each("package", {f.rank: f.packages for f in facts}, hosts, "install the same requirements on all hosts")
    rows += _same(
        "data (data.path)",
        {f.rank: f.data[:12] for f in facts},
        hosts,
        "copy the same folder to all hosts, or run preprocess.py once",
    )
    rows += _same(
        "weights (model.path, model.checkpoint)",
        {f.rank: f.weights[:12] for f in facts if f.weights},
        hosts,
        "copy the same folders to all hosts",
        "host",
    )
    return [
        *rows,
        *_clock(facts, hosts),
        *_folder(facts, hosts, needs),
        *_memory(facts, hosts, needs),
        *_shared(facts, needs),
    ]


def _same(what: str, values: dict[int, str], hosts: dict[int, str], cure: str, each: str = "rank") -> list[CheckResult]:
    """Returns one row if all values are equal, otherwise one per deviating party. each: what has a value, as a word."""
    (expected, count), *others = Counter(values.values()).most_common()
    if not others:
        return [CheckResult(what, expected, f"the same on {len(values)} {each}{'s' * (len(values) > 1)}")]
    parties = {value: [rank for rank, v in values.items() if v == value] for value, _ in others}
    return [
        CheckResult(
            what,
            value,
            f"{expected} as on {count} other {each}{'s' * (count > 1)}",
            "failed",
            format_ranks(ranks, hosts),
            cure,
        )
        for value, ranks in parties.items()
    ]


def _each(what: str, values: dict[int, dict[str, str]], hosts: dict[int, str], cure: str) -> list[CheckResult]:
    """Returns the rows of `_same` for every key whose values differ."""
    keys = list(dict.fromkeys(key for of_rank in values.values() for key in of_rank))
    rows = [
        row
        for key in keys
        for row in _same(f"{what} {key}", {r: v.get(key, "nothing") for r, v in values.items()}, hosts, cure)
        if row.grade != "ok"
    ]
    return rows or [
        CheckResult(what, f"{len(keys)} entries", f"the same on {len(values)} rank{'s' * (len(values) > 1)}")
    ]


def _clock(facts: Sequence[Facts], hosts: dict[int, str]) -> list[CheckResult]:
    middle = median(f.clock for f in facts)
    off = [f.rank for f in facts if abs(f.clock - middle) > SKEW_S]
    widest = max(abs(f.clock - middle) for f in facts)
    if not off:
        return [CheckResult("clock", f"within {widest:.1f} s", f"within {SKEW_S:g} s")]
    return [
        CheckResult(
            "clock",
            f"{widest:.0f} s off",
            f"within {SKEW_S:g} s of the others",
            "warning",
            format_ranks(off, hosts),
            "synchronise it by NTP",
        )
    ]


def _folder(facts: Sequence[Facts], hosts: dict[int, str], needs: Needs) -> list[CheckResult]:
    troubles: dict[str, list[int]] = {}
    for f in facts:
        troubles.setdefault(f.trouble, []).append(f.rank)
    rows = [
        CheckResult(
            "run folder",
            trouble,
            "a folder that can be written",
            "failed",
            format_ranks(ranks, hosts),
            "change run.dir, or its permissions",
        )
        for trouble, ranks in troubles.items()
        if trouble
    ]
    if rows:
        return rows
    least = min(facts, key=lambda f: f.free_disk)
    wanted = f"{needs.checkpoint / GB:.3f} GB per checkpoint, {needs.checkpoints} of them"
    found, where = f"{least.free_disk / GB:.3f} GB free", format_ranks([least.rank], hosts)
    if least.free_disk < needs.checkpoint:
        return [
            CheckResult("run folder", "writable", "writable"),
            CheckResult("disk", found, wanted, "failed", where, "make room, or put run.dir on a larger disk"),
        ]
    if least.free_disk < needs.checkpoint * needs.checkpoints:
        return [
            CheckResult("run folder", "writable", "writable"),
            CheckResult(
                "disk",
                found,
                wanted,
                "warning",
                where,
                "make room, lower checkpoint.keep, or put run.dir on a larger disk",
            ),
        ]
    return [CheckResult("run folder", "writable", "writable"), CheckResult("disk", found, wanted)]


def _memory(facts: Sequence[Facts], hosts: dict[int, str], needs: Needs) -> list[CheckResult]:
    """Check the host with the least memory to spare. Memory of other devices is left to the plan and the allocator."""
    if not needs.on_host:
        return [
            CheckResult(
                "device memory",
                "not checked",
                f"{max(needs.memory) / GB:.2f} GB in the fullest phase, according to the plan",
            )
        ]
    by_host = _by_host(facts)
    spare = {
        host: (min(f.free_memory for f in few), sum(needs.memory[f.rank] for f in few)) for host, few in by_host.items()
    }
    host = min(spare, key=lambda h: spare[h][0] - spare[h][1])
    free, wanted = spare[host]
    found, expected = (
        f"{free / GB:.2f} GB available",
        f"{wanted / GB:.2f} GB for its {len(by_host[host])} ranks, according to the plan",
    )
    if free < wanted:
        return [
            CheckResult(
                "memory", found, expected, "warning", host, "start fewer ranks per host, or lower rollout.kv_cache_gib"
            )
        ]
    return [CheckResult("memory", found, expected)]


def _shared(facts: Sequence[Facts], needs: Needs) -> list[CheckResult]:
    """Check the host with the least shared memory to spare. Without enough, vLLM fails at its start or gets SIGBUS."""
    if not needs.queue:
        return []
    free = {host: min(f.free_shared for f in few) for host, few in _by_host(facts).items()}
    wanted = {host: sum(needs.shared[f.rank] for f in few) + needs.queue for host, few in _by_host(facts).items()}
    host = min(free, key=lambda h: free[h] - wanted[h])
    row = CheckResult(
        "shared memory",
        f"{free[host] / MB:,.1f} MB free in /dev/shm",
        f"{wanted[host] / MB:,.1f} MB for the engines' tensor groups",
    )
    if free[host] >= wanted[host]:
        return [row]
    return [
        replace(
            row,
            grade="failed",
            where=host,
            cure="give the container more (--shm-size, --ipc=host), remount /dev/shm with a larger "
            "size, or lower layout.rollout.tensor_parallel_size",
        )
    ]


def _by_host(facts: Sequence[Facts]) -> dict[str, list[Facts]]:
    found: dict[str, list[Facts]] = {}
    for f in facts:
        found.setdefault(f.host, []).append(f)
    return found
