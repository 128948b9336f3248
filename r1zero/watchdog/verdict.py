"""Decides which rank is at fault when ranks fail, become silent or wait, as pure functions of each rank's last stamp.

A rank that waits is not the one that is late: ranks inside a collective wait for one that is not. Kernel launches on a
device are asynchronous, so there a rank may wait in any call that needs a result. In that case all ranks are shown,
grouped by their stacks.
"""

from dataclasses import dataclass

GONE_S = 5.0
"""Seconds without a stamp after which a rank is gone, if others have lost a connection."""
ECHO_S = 8.0
"""Seconds to wait for the cause when ranks report only lost connections, which follow from the end of another rank."""
ECHOES = ("connection", "closed by peer", "broken pipe", "socket", "timed out", "timeout", "communicat")
"""Words in the errors of collectives whose other ranks are gone."""


@dataclass(frozen=True)
class Stamp:
    """What a rank reports of itself once a second."""

    rank: int
    host: str
    pid: int
    phase: str
    iteration: int
    entered: int
    """Number of phases begun and ended since the start. All ranks have the same sequence."""
    seconds: float
    """Seconds in the current phase."""
    limit: float
    """Seconds that this rank allows for the phase."""
    log: str
    waiting: bool = False
    """Whether the main thread is inside a collective. Set only on request, like the stack."""
    stack: str = ""

    @property
    def top(self) -> str:
        """Returns the innermost three calls."""
        return "".join(self.stack.splitlines(keepends=True)[-6:])


@dataclass(frozen=True)
class Failure:
    """An uncaught exception. code: the exit status, 2 for an error that the user can fix. echo: see `is_echo`."""

    stamp: Stamp
    text: str
    code: int
    echo: bool


@dataclass(frozen=True)
class Verdict:
    """The reason to end the job. silent: (rank, host, process id) of ranks that may not receive the verdict."""

    text: str
    code: int
    silent: tuple[tuple[int, str, int], ...] = ()


def is_echo(error: BaseException) -> bool:
    """Whether an error is only the consequence of another rank's end."""
    return isinstance(error, (RuntimeError, OSError)) and any(word in str(error).lower() for word in ECHOES)


def of_failures(failures: list[Failure], stamps: list[Stamp], silent_s: list[float], since_s: float) -> Verdict | None:
    """Returns a verdict on the first rank that failed by itself, or None if it is too early.

    If all ranks only lost a connection, the rank that is gone is at fault. silent_s: seconds since the last stamp, by
    rank. since_s: seconds since the first failure.
    """
    for failure in failures:
        if not failure.echo:
            return Verdict(failed(failure, len(stamps)), failure.code)
    if not failures:
        return None
    told = {f.stamp.rank for f in failures}
    if found := of_silence(stamps, [0.0 if rank in told else s for rank, s in enumerate(silent_s)], GONE_S):
        return found
    return Verdict(failed(failures[0], len(stamps)), failures[0].code) if since_s >= ECHO_S else None


def of_silence(stamps: list[Stamp], silent_s: list[float], limit_s: float) -> Verdict | None:
    """Returns a verdict on the ranks that gave no sign of life for `limit_s` seconds, or None."""
    gone = [s for s in stamps if silent_s[s.rank] > limit_s]
    lines = [
        f"{_name(s, len(stamps))} has given no sign of life for {silent_s[s.rank]:.0f} s; it was in {_where(s)}: its "
        f"process was stopped or killed, or native code holds its interpreter. Its log: {s.log}\n"
        for s in gone
    ]
    return Verdict("".join(lines), 1, tuple((s.rank, s.host, s.pid) for s in gone)) if gone else None


def late(stamps: list[Stamp]) -> list[Stamp]:
    """Returns the ranks for which all others wait, if one of them is past its own limit; otherwise none."""
    found = behind(stamps)
    return found if any(s.seconds > s.limit for s in found) else []


def of_lateness(stamps: list[Stamp]) -> Verdict:
    """Returns a verdict that names the late ranks and shows each distinct stack once."""
    found = late(stamps)
    lines = []
    for group in _alike(found):
        lines += [
            f"{_name(s, len(stamps))} is late: {s.seconds:.0f} s in {_where(s)}, which may take {s.limit:.0f} s. Its "
            f"log: {s.log}"
            for s in group
        ]
        stands = (
            "stands inside a collective that not all have joined"
            if group[0].waiting
            else "is not in a collective; it stands at"
        )
        lines.append(f"{_list(group)} {stands}:\n{group[0].stack.rstrip()}")
    for group in _alike([s for s in stamps if s not in found]):
        state = "waits inside a collective" if group[0].waiting else "is elsewhere"
        lines.append(f"{_list(group)} {state}, {_where(group[0])}:\n{group[0].top.rstrip()}")
    return Verdict("\n".join(lines) + "\n", 1)


def behind(stamps: list[Stamp]) -> list[Stamp]:
    """Returns the ranks with the fewest phases that are not waiting for another; if all are waiting, all of these."""
    least = min(s.entered for s in stamps)
    last = [s for s in stamps if s.entered == least]
    return [s for s in last if not s.waiting] or last


def _alike(stamps: list[Stamp]) -> list[list[Stamp]]:
    """Returns the stamps grouped by stack, the rarest stack first."""
    groups: dict[str, list[Stamp]] = {}
    for stamp in stamps:
        groups.setdefault(stamp.stack, []).append(stamp)
    return sorted(groups.values(), key=len)


def failed(failure: Failure, size: int) -> str:
    """Returns the text of a verdict on a rank that failed."""
    if failure.code == 2:
        return failure.text
    s = failure.stamp
    return f"{_name(s, size)} failed in {_where(s)}. Its log: {s.log}\n{failure.text}"


def _name(s: Stamp, size: int) -> str:
    return f"rank {s.rank} of {size} on {s.host} (process {s.pid})"


def _where(s: Stamp) -> str:
    return f"phase {s.phase}" + (f" of iteration {s.iteration}" if s.iteration else "")


def _list(stamps: list[Stamp]) -> str:
    names = ", ".join(str(s.rank) for s in stamps[:8]) + (f" and {len(stamps) - 8} more" if len(stamps) > 8 else "")
    return f"rank {names}" if len(stamps) == 1 else f"each of ranks {names}"
