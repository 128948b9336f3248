"""Finds the rank that failed, became silent or is late, from what every rank last wrote to a store."""

import json
import time

import torch.distributed as dist

from r1zero.watchdog import verdict
from r1zero.watchdog.verdict import Failure, Stamp, Verdict

BEAT_S = 1.0
"""Seconds between two stamps of a rank."""
CONFIRM_S = 3.0
"""Seconds for which the same ranks must be late in the same phases before there is a verdict."""


class FailureDetector:
    """Judges by one store, from each rank's last stamp and when it arrived.

    Rank 0 judges by the first store, the last rank by the second.
    """

    def __init__(self, store: dist.Store, number: int, size: int, silence_limit_s: float):
        self.store, self.number, self.size, self.silence_limit_s = store, number, size, silence_limit_s
        self.heard: dict[int, tuple[bytes, float]] = {}
        self.looked = time.monotonic()
        self.first_failure = 0.0
        self.suspects: dict[int, int] = {}
        """Rank -> phases entered, for the ranks that were found late. `suspected`: when that last changed."""
        self.suspected = 0.0

    def judge(self, called: bool) -> Verdict | None:
        """Returns a verdict, or None. called: whether stamps with stacks were requested."""
        raw, now = self._look(), time.monotonic()
        if raw is None:
            return None
        silent_s = [now - self.heard[rank][1] for rank in range(self.size)]
        failures = [self._failure(n) for n in range(1, self.store.add("failures", 0) + 1)]
        self.first_failure = self.first_failure or now if failures else 0.0
        if self.number == 1 and silent_s[0] < (verdict.GONE_S if failures else self.silence_limit_s):
            return None  # rank 0 is alive, and judges
        if not failures and not called and max(silent_s) < self.silence_limit_s:
            return None
        stamps = [Stamp(**json.loads(text)) for text in raw]
        if failures:
            return verdict.of_failures(failures, stamps, silent_s, now - self.first_failure)
        return verdict.of_silence(stamps, silent_s, self.silence_limit_s) or self._of_lateness(stamps)

    def _look(self) -> list[bytes] | None:
        """Returns all stamps, or None if some rank has not begun yet or this process itself was suspended."""
        now = time.monotonic()
        stood_still, self.looked = now - self.looked > 5 * BEAT_S, now
        keys = [f"stamp/{rank}" for rank in range(self.size)]
        if len(self.heard) < self.size and not self.store.check(keys):
            return None
        raw = self.store.multi_get(keys)
        for rank, text in enumerate(raw):
            if stood_still or rank not in self.heard or self.heard[rank][0] != text:
                self.heard[rank] = (text, now)
        return None if stood_still else raw

    def _failure(self, number: int) -> Failure:
        fields = json.loads(self.store.get(f"failure/{number}"))
        return Failure(**fields | {"stamp": Stamp(**fields["stamp"])})

    def _of_lateness(self, stamps: list[Stamp]) -> Verdict | None:
        """Returns a verdict on late ranks after a second look.

        The stamps are not of the same moment, so a rank that seems late may just have continued.
        """
        if not any(s.seconds > s.limit for s in stamps):
            self.store.delete_key("call")
        late = {s.rank: s.entered for s in verdict.late(stamps)} if all(s.stack for s in stamps) else {}
        if late != self.suspects:
            self.suspects, self.suspected = late, time.monotonic()
        return verdict.of_lateness(stamps) if late and time.monotonic() - self.suspected > CONFIRM_S else None
