"""No silent hang: every rank says once a second where it is, and what is past its deadline, silent or failed ends the job by name.

Each rank has two lines, threads with a connection of their own to a store: the job's rendezvous store, and one that lives in
the last rank, so that no single process is both the culprit and the only witness. Rank 0 judges; the last rank does where
rank 0 is silent. A verdict travels the same lines and ends every rank, whatever its main thread is stuck in.

What it cannot see: a rank that never joined the world (torch's rendezvous has its own deadline), and a device that hangs
with all ranks alike in their waiting: then the deadline ends the job, and every rank's stack is shown in place of a name.
"""

import faulthandler
import json
import logging
import math
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from datetime import timedelta
from types import TracebackType
from typing import IO

import torch.distributed as dist

from r1zero import verdict, world
from r1zero.config import Run
from r1zero.verdict import Failure, Stamp, Verdict

log = logging.getLogger(__name__)

BEAT_S = 1.0
FLOOR_S, MULTIPLE = 120.0, 5.0
"""A phase that was seen before may take so many times its longest so far, at least so many seconds, at most run.phase_timeout_s."""
CONFIRM_S = 3.0
"""The same ranks are late in the same phases so long, before that is a verdict."""
UNHEARD_S = 12.0
"""A rank that failed, or lost both lines, waits so long for a verdict before it ends the job itself."""
OBEY_S = 2.0
"""From reading a verdict to one's own end: the judge prints meanwhile."""
LAST_S = 10
"""So long after that the kernel ends this process."""
FRAMES = 12
WAITING = ("/torch/distributed/distributed_c10d.py", "/torch/distributed/_functional_collectives.py", "/vllm/distributed/")
"""Files in which a rank waits for others; elsewhere it does where the line that runs calls wait()."""
THROUGH = "/torch/_ops.py"
"""Between a rank's own code and a native operator."""


class Watchdog:
    """This rank's account of itself."""

    def __init__(self, cfg: Run, launch: world.Launch, log_file: IO[str]):
        self.cfg, self.launch, self.log_file = cfg, launch, log_file
        self.name, self.iteration, self.entered, self.began = "start", 0, 0, time.monotonic()
        self.longest: dict[str, float] = {}
        self.failure: Failure | None = None
        self.renewals: list[Callable[[], None]] = []
        """Called about once a second while this process lives, from any thread."""
        self.ending = threading.Event()
        self.main = threading.main_thread().ident
        self.host = socket.gethostname()
        self.lines: list[Line] = []
        self._one = threading.Lock()

    def phase(self, name: str, iteration: int) -> None:
        """Told of every phase that begins, by its name, or ends, by ""."""
        now = time.monotonic()
        self.longest[self.name] = max(self.longest.get(self.name, 0.0), now - self.began)
        self.name, self.iteration, self.began = name or "between", iteration, now
        self.entered += 1
        if name:   # or one that is stopped right away would be blamed for an earlier phase
            for line in self.lines:
                line.wake.set()

    def stamp(self) -> Stamp:
        return Stamp(self.launch.rank, self.host, os.getpid(), self.name, self.iteration, self.entered, time.monotonic() - self.began,
                     self._limit(), self.log_file.name)

    def _limit(self) -> float:
        most = (self.cfg.timeout_s if self.name == "start" else self.cfg.phase_timeout_s) or math.inf
        return min(most, max(FLOOR_S, MULTIPLE * self.longest[self.name])) if self.name in self.longest else most

    def stamp_with_stack(self) -> Stamp:
        top = traceback.extract_stack(sys._current_frames()[self.main])[-FRAMES:]
        last = next(f for f in reversed(top) if not f.filename.endswith(THROUGH))
        waiting = any(part in last.filename for part in WAITING) or "wait(" in (last.line or "")
        return replace(self.stamp(), waiting=waiting, stack="".join(traceback.format_list(top)))

    def alive(self) -> None:
        """If this is not called again in time, the stack goes to the log, by a thread that needs no interpreter."""
        for renew in self.renewals:
            renew()
        if self.cfg.silence_timeout_s:
            faulthandler.dump_traceback_later(self.cfg.silence_timeout_s, file=self.log_file)

    def fail(self, text: str, code: int, echo: bool) -> None:
        """Tell the others, and be ended by the verdict; where none comes, by oneself."""
        log.error("failed in phase %s: %s", self.name, text)
        self.failure = Failure(self.stamp(), text, code, echo)
        for line in self.lines:
            line.wake.set()
        time.sleep(UNHEARD_S)
        self.end(Verdict(verdict.failed(self.failure, self.launch.size), code), speak=True)

    def end(self, found: Verdict, speak: bool, tell: "Sequence[Line]" = ()) -> None:
        """The end of this process, by the first of its threads that comes here; where it speaks, of the job. Does not return.

        tell: lines by which the others hear of it; only from here, as this process's own lines hear it, too, and could be first.
        """
        self._one.acquire()
        signal.alarm(LAST_S)   # whatever stands in the way below
        log.error("the job ends: %s", found.text)
        if speak:
            with suppress(OSError):   # the launcher may be gone, and its pipe with it
                sys.__stderr__.write(found.text)
                sys.__stderr__.flush()
        # After the words: what the others do now may end the job. A line's store may be what is stuck: nobody waits for these threads.
        for line in tell:
            threading.Thread(target=line.store.set, args=("verdict", json.dumps(asdict(found))), daemon=True).start()
        time.sleep(BEAT_S)   # meanwhile the others read it and write it to their logs
        for rank, host, pid in found.silent:
            # One that is stopped hears no launcher's SIGTERM. MPI's daemons see to that themselves.
            if host == self.host and rank != self.launch.rank and self.launch.launcher not in world.MPI_LAUNCHERS:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        if speak:
            world.abort(self.launch, found.code)
        time.sleep(OBEY_S)
        os._exit(found.code)


class Line(threading.Thread):
    """A thread that stamps into one store, asks it for a verdict, and judges where it is the judge's."""

    def __init__(self, watch: Watchdog, store: dist.Store, number: int):
        super().__init__(name=f"watchdog-{number}", daemon=True)
        self.watch, self.store, self.number = watch, store, number
        self.rank, self.size = watch.launch.rank, watch.launch.size
        self.wake = threading.Event()
        self.broken = 0.0
        self.told = False
        self.bench = Bench(self) if self.rank == (0 if number == 0 else self.size - 1) else None

    def run(self) -> None:
        try:
            while not self.watch.ending.is_set():
                self._beat()
                self._rest()
        except RuntimeError as error:   # of torch's stores: the process that has it is gone
            self.broken = time.monotonic()
            log.info("line %d is lost: %s", self.number, str(error).partition("\n")[0])
        while not self.watch.ending.wait(BEAT_S):
            if all(line.broken and time.monotonic() - line.broken > UNHEARD_S for line in self.watch.lines):
                self.watch.end(Verdict(f"rank {self.rank} of {self.size} on {self.watch.host} "
                                       f"has lost ranks 0 and {self.size - 1}\n", 1), speak=True)

    def _rest(self) -> None:
        """Until the next beat. A phase that begins is told in between, at most ten times a second; a failure is a reason to beat."""
        due = time.monotonic() + BEAT_S
        while (left := due - time.monotonic()) > 0 and self.wake.wait(left):
            self.wake.clear()
            if self.watch.failure:
                return
            self._stamp(self.watch.stamp())
            time.sleep(BEAT_S / 10)

    def _beat(self) -> None:
        watch, store = self.watch, self.store
        called = store.check(["call"])
        stamp = watch.stamp_with_stack() if called else watch.stamp()
        self._stamp(stamp)
        watch.alive()
        if stamp.seconds > stamp.limit and not called:
            store.set("call", "")
        if watch.failure and not self.told:
            self.told = True
            store.set(f"failure/{store.add('failures', 1)}", json.dumps(asdict(watch.failure)))
        if store.check(["verdict"]):
            watch.end(Verdict(**json.loads(store.get("verdict"))), speak=False)
        if self.bench and (found := self.bench.judge(called)):
            watch.end(found, speak=True, tell=watch.lines)

    def _stamp(self, stamp: Stamp) -> None:
        self.store.set(f"stamp/{self.rank}", json.dumps(asdict(stamp)))


class Bench:
    """Where a line is judged: what was last heard of every rank, and when. Rank 0's on the first line; the last rank's on the second."""

    def __init__(self, line: Line):
        self.line, self.store, self.size = line, line.store, line.size
        self.heard: dict[int, tuple[bytes, float]] = {}
        self.looked = time.monotonic()
        self.first_failure = 0.0
        self.suspects: dict[int, int] = {}
        """Rank -> phases entered, of those found late, and since when they have been the same."""
        self.suspected = 0.0

    def judge(self, called: bool) -> Verdict | None:
        raw, now = self._look(), time.monotonic()
        if raw is None:
            return None
        silent_s = [now - self.heard[rank][1] for rank in range(self.size)]
        limit_s = self.line.watch.cfg.silence_timeout_s or math.inf
        failures = [self._failure(n) for n in range(1, self.store.add("failures", 0) + 1)]
        self.first_failure = self.first_failure or now if failures else 0.0
        if self.line.number == 1 and silent_s[0] < (verdict.GONE_S if failures else limit_s):
            return None   # rank 0 is there, and judges
        if not failures and not called and max(silent_s) < limit_s:
            return None
        stamps = [Stamp(**json.loads(text)) for text in raw]
        if failures:
            return verdict.of_failures(failures, stamps, silent_s, now - self.first_failure)
        return verdict.of_silence(stamps, silent_s, limit_s) or self._of_lateness(stamps)

    def _look(self) -> list[bytes] | None:
        """All stamps; None while some rank has not yet begun, or after this process itself stood still."""
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
        """Confirmed by a second look: the stamps are not of one moment, and who is seen late may just have gone on."""
        if not any(s.seconds > s.limit for s in stamps):
            self.store.delete_key("call")
        late = {s.rank: s.entered for s in verdict.late(stamps)} if all(s.stack for s in stamps) else {}
        if late != self.suspects:
            self.suspects, self.suspected = late, time.monotonic()
        return verdict.of_lateness(stamps) if late and time.monotonic() - self.suspected > CONFIRM_S else None


@contextmanager
def standing(cfg: Run, launch: world.Launch, log_file: IO[str], sentences: tuple[type[Exception], ...]) -> Iterator[Watchdog]:
    """From joining the world to leaving it. What is raised inside ends all ranks; of `sentences` only the text is shown."""
    watch = Watchdog(cfg, launch, log_file)
    stores, server = _stores(launch)
    watch.lines = [Line(watch, store, number) for number, store in enumerate(stores)]
    for line in watch.lines:
        line.start()

    def on_exit(kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if launch.size == 1:   # a debugger may want it
            return
        if isinstance(error, sentences):
            watch.fail(f"{error}\n", 2, echo=False)
        elif error is not None:
            watch.fail("".join(traceback.format_exception(kind, error, trace)), 1, verdict.is_echo(error))

    with ExitStack() as stack:
        stack.push(on_exit)
        yield watch
    watch.ending.set()
    faulthandler.cancel_dump_traceback_later()
    del server


def _stores(launch: world.Launch) -> tuple[list[dist.Store], dist.Store | None]:
    """Connections of the watchdog's own, as one that a thread waits on is not usable from another; and the store that lives here,
    if one does."""
    host, port, attempt = world.rendezvous()
    wait = timedelta(seconds=60)

    def connect(host: str, port: int) -> dist.Store:
        return dist.PrefixStore(f"watchdog/{attempt}", dist.TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=wait))

    first, server = connect(host, port), None
    if launch.size == 1:
        return [first], None
    if launch.rank == launch.size - 1:
        here = world.address_towards(host, port)
        server = dist.TCPStore(here, 0, is_master=True, wait_for_workers=False, timeout=wait)
        first.set("second", json.dumps([here, server.port]))
    return [first, connect(*json.loads(first.get("second")))], server
