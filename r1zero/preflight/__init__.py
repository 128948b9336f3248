"""Checks before a run: what all ranks must agree on, the links between them, and with --check a trial of each part."""

import socket
from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist
from rich.console import Console
from rich.text import Text

from r1zero.config import CollectiveError, Config
from r1zero.distributed.launcher import Launch
from r1zero.distributed.layout import Layout
from r1zero.observability.console import Terminal
from r1zero.preflight.agree import compare
from r1zero.preflight.facts import Facts, gather, record_environment
from r1zero.preflight.requirements import needs
from r1zero.preflight.rows import CheckResult
from r1zero.preflight.timings import judge, measure
from r1zero.preflight.trials import trial

__all__ = ["before", "links", "record_environment", "show", "stop_if_failed", "trial", "warn"]

COLOURS = {"ok": "green", "warning": "yellow", "failed": "bold red"}


def before(cfg: Config, layout: Layout, launch: Launch) -> list[CheckResult]:
    """Run the checks that need no model. Collective over the world; returns the same rows on every rank."""
    dist.barrier()  # so that all ranks read their clocks at the same time
    mine = gather(cfg, launch.rank, launch.local_rank == 0)
    every: list[Facts] = [mine] * launch.size
    dist.all_gather_object(every, mine)
    return compare(every, needs(cfg, layout))


def links(groups: dict[str, dist.ProcessGroup], size: int, device: torch.device) -> list[CheckResult]:
    """Time the communicators. Collective over the world; returns the same rows on every rank.

    groups: this rank's process groups, by the names of timings.KINDS.
    """
    names = [""] * size
    dist.all_gather_object(names, socket.gethostname())
    everyone = dist.group.WORLD
    assert everyone is not None  # None only before the process joins the world
    return judge(measure({"world": everyone, **groups}, device), dict(enumerate(names)))


def stop_if_failed(rows: list[CheckResult]) -> None:
    """Raises CollectiveError with one line per failed row."""
    failed = [f"preflight: {row.line}" for row in rows if row.grade == "failed"]
    if failed:
        raise CollectiveError("\n".join(failed))


def warn(rows: list[CheckResult], rank: int) -> None:
    """Print the rows with warnings, on rank 0."""
    console = Console(stderr=True, highlight=False)
    for row in rows:
        if row.grade == "warning" and rank == 0:
            console.print(f"preflight: {row.line}", soft_wrap=True, markup=False)


def show(rows: Iterable[CheckResult], rank: int) -> Iterator[CheckResult]:
    """Yield the rows; rank 0 prints each at once, so that earlier results are visible if a trial ends the process."""
    terminal = Terminal()
    for row in rows:
        if rank == 0:
            line = Text(f"{row.grade:<8}", style=COLOURS[row.grade]).append(
                f"{row.what}: found {row.found}, expected {row.expected}", ""
            )
            terminal.print(line)
        yield row
