"""The results of checks as data: the rows of the table that --check prints, and the lines of those that are not ok."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Grade = Literal["ok", "warning", "failed"]


@dataclass(frozen=True)
class CheckResult:
    """The result of one check."""

    what: str
    found: str
    expected: str
    grade: Grade = "ok"
    where: str = ""
    """Ranks and hosts; empty: everywhere."""
    cure: str = ""

    @property
    def line(self) -> str:
        """The result as a sentence with its fix, for a check that is not ok."""
        place = f"{self.what} of {self.where}" if self.where else self.what
        return f"{place}: found {self.found}, expected {self.expected}; {self.cure}"


def format_ranks(ranks: Sequence[int], hosts: Mapping[int, str]) -> str:
    """Returns ranks grouped by host, with consecutive ones as ranges: "rank 3 on node7, ranks 8-11 on node9"."""
    by_host: dict[str, list[int]] = {}
    for rank in sorted(ranks):
        by_host.setdefault(hosts[rank], []).append(rank)
    return ", ".join(f"rank{'s' * (len(few) > 1)} {_ranges(few)} on {host}" for host, few in by_host.items())


def _ranges(ranks: Sequence[int]) -> str:
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and rank == runs[-1][-1] + 1:
            runs[-1][1:] = [rank]
        else:
            runs.append([rank])
    return ",".join("-".join(map(str, run)) for run in runs)
