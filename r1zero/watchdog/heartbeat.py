"""The heartbeat of every rank, which turns a hang into an error: a rank that is late, silent or failed ends the job.

Each rank reports its phase once a second through two threads, each with its own connection to a store: the job's
rendezvous store, and one in the last rank, so that no single process is both the culprit and the only witness. Rank 0
judges; if it is silent, the last rank does. The verdict is sent through the same stores, and ends every rank whatever
its main thread is doing.

Not covered: a rank that never joins the world (torch's rendezvous has its own deadline), and a device that hangs while
all ranks wait alike. In the latter case the deadline ends the job, and the stacks of all ranks are printed instead of a
name.
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

from r1zero.config import Run
from r1zero.distributed import launcher, world
from r1zero.watchdog import verdict
from r1zero.watchdog.detector import BEAT_S, FailureDetector
from r1zero.watchdog.verdict import Failure, Stamp, Verdict

log = logging.getLogger(__name__)

FLOOR_S, MULTIPLE = 120.0, 5.0
"""A known phase may take MULTIPLE times its longest duration so far: at least FLOOR_S seconds, and at most
run.phase_timeout_s."""
UNHEARD_S = 12.0
"""Seconds after which a rank that failed, or lost both stores, ends the job itself if it gets no verdict."""
OBEY_S = 2.0
"""Seconds between reading a verdict and exiting, in which the judge prints it."""
LAST_S = 10
"""Seconds after which the kernel ends this process if exiting does not succeed."""
FRAMES = 12
WAITING = (
    "/torch/distributed/distributed_c10d.py",
    "/torch/distributed/_functional_collectives.py",
    "/vllm/distributed/",
)
"""Files in which a rank waits for others. In other files it waits if the current line calls wait()."""
THROUGH = "/torch/_ops.py"
"""A file that appears between a rank's own code and a native operator."""


class Watchdog:
    """What this rank reports of itself, and how it ends."""

    def __init__(self, cfg: Run, launch: launcher.Launch, log_file: IO[str]):
        self.cfg, self.launch, self.log_file = cfg, launch, log_file
        self.name, self.iteration, self.entered, self.began = "start", 0, 0, time.monotonic()
        self.longest: dict[str, float] = {}
        self.failure: Failure | None = None
        self.renewals: list[Callable[[], None]] = []
        """Functions to call about once a second while this process lives, from any thread."""
        self.ending = threading.Event()
        main = threading.main_thread().ident
        assert main is not None  # a thread that runs has a number
        self.main = main
        self.host = socket.gethostname()
        self.threads: list[HeartbeatThread] = []
        self._one = threading.Lock()

    def phase(self, name: str, iteration: int) -> None:
        """Note that the phase `name` begins, or, with an empty name, that a phase ends."""
        now = time.monotonic()
        self.longest[self.name] = max(self.longest.get(self.name, 0.0), now - self.began)
        self.name, self.iteration, self.began = name or "between", iteration, now
        self.entered += 1
        if name:  # report it at once: if this process is stopped now, it must not be blamed for an earlier phase
            for thread in self.threads:
                thread.wake.set()

    def stamp(self) -> Stamp:
        """Returns this rank's current stamp, without its stack."""
        return Stamp(
            self.launch.rank,
            self.host,
            os.getpid(),
            self.name,
            self.iteration,
            self.entered,
            time.monotonic() - self.began,
            self._limit(),
            self.log_file.name,
        )

    def _limit(self) -> float:
        most = (self.cfg.timeout_s if self.name == "start" else self.cfg.phase_timeout_s) or math.inf
        return min(most, max(FLOOR_S, MULTIPLE * self.longest[self.name])) if self.name in self.longest else most

    def stamp_with_stack(self) -> Stamp:
        """Returns this rank's current stamp, with the stack of the main thread."""
        top = traceback.extract_stack(sys._current_frames()[self.main])[-FRAMES:]
        last = next(f for f in reversed(top) if not f.filename.endswith(THROUGH))
        waiting = any(part in last.filename for part in WAITING) or "wait(" in (last.line or "")
        return replace(self.stamp(), waiting=waiting, stack="".join(traceback.format_list(top)))

    def alive(self) -> None:
        """Renew the deadline after which faulthandler, which needs no interpreter, writes the stack to the log."""
        for renew in self.renewals:
            renew()
        if self.cfg.silence_timeout_s:
            faulthandler.dump_traceback_later(self.cfg.silence_timeout_s, file=self.log_file)

    def fail(self, text: str, code: int, echo: bool) -> None:
        """Report a failure to the other ranks, and wait for the verdict; without one, end the job."""
        log.error("failed in phase %s: %s", self.name, text)
        self.failure = Failure(self.stamp(), text, code, echo)
        for thread in self.threads:
            thread.wake.set()
        time.sleep(UNHEARD_S)
        self.end(Verdict(verdict.failed(self.failure, self.launch.size), code), speak=True)

    def end(self, found: Verdict, speak: bool, tell: "Sequence[HeartbeatThread]" = ()) -> None:
        """End this process, in the first thread that calls this, and if `speak` the whole job. Does not return.

        tell: threads through which the other ranks are told. They are told only here, because this process's own
        threads read the verdict as well and could otherwise be the first.
        """
        self._one.acquire()
        signal.alarm(LAST_S)  # ends this process even if something below blocks
        log.error("the job ends: %s", found.text)
        if speak:
            with suppress(OSError):  # the launcher and its pipe may be gone
                world.write_stderr(found.text)
        # After the output, because the other ranks may now end the job. A store may be what blocks, so separate threads
        # write to them, for which nobody waits.
        for thread in tell:
            threading.Thread(target=thread.store.set, args=("verdict", json.dumps(asdict(found))), daemon=True).start()
        time.sleep(BEAT_S)  # lets the others read the verdict and write it to their logs
        for rank, host, pid in found.silent:
            # A stopped process does not act on a launcher's SIGTERM. MPI's daemons handle that themselves.
            if host == self.host and rank != self.launch.rank and self.launch.launcher not in launcher.MPI_LAUNCHERS:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        if speak:
            world.abort(self.launch, found.code)
        time.sleep(OBEY_S)
        os._exit(found.code)


class HeartbeatThread(threading.Thread):
    """A thread that writes stamps to one store, reads its verdict, and on the judging rank runs the detector."""

    def __init__(self, watch: Watchdog, store: dist.Store, number: int):
        super().__init__(name=f"watchdog-{number}", daemon=True)
        self.watch, self.store, self.number = watch, store, number
        self.rank, self.size = watch.launch.rank, watch.launch.size
        self.wake = threading.Event()
        self.broken = 0.0
        self.told = False
        self.detector = (
            FailureDetector(store, number, self.size, watch.cfg.silence_timeout_s or math.inf)
            if (self.rank == (0 if number == 0 else self.size - 1))
            else None
        )

    def run(self) -> None:
        try:
            while not self.watch.ending.is_set():
                self._beat()
                self._rest()
        except RuntimeError as error:  # raised by torch's stores if the process that hosts them is gone
            self.broken = time.monotonic()
            log.info("the connection to watchdog store %d is lost: %s", self.number, str(error).partition("\n")[0])
        while not self.watch.ending.wait(BEAT_S):
            if all(thread.broken and time.monotonic() - thread.broken > UNHEARD_S for thread in self.watch.threads):
                self.watch.end(
                    Verdict(
                        f"rank {self.rank} of {self.size} on {self.watch.host} has lost ranks 0 and {self.size - 1}\n",
                        1,
                    ),
                    speak=True,
                )

    def _rest(self) -> None:
        """Wait until the next beat. New phases are reported in between, at most ten times a second; a failure returns
        at once."""
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
        if self.detector and (found := self.detector.judge(called)):
            watch.end(found, speak=True, tell=watch.threads)

    def _stamp(self, stamp: Stamp) -> None:
        self.store.set(f"stamp/{self.rank}", json.dumps(asdict(stamp)))


@contextmanager
def watch_rank(
    cfg: Run, launch: launcher.Launch, log_file: IO[str], sentences: tuple[type[Exception], ...]
) -> Iterator[Watchdog]:
    """Watch this rank from joining the world to leaving it. An exception inside ends all ranks.

    sentences: exceptions of which only the text is shown.
    """
    watch = Watchdog(cfg, launch, log_file)
    stores, server = _stores(launch)
    watch.threads = [HeartbeatThread(watch, store, number) for number, store in enumerate(stores)]
    for thread in watch.threads:
        thread.start()

    def on_exit(kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if launch.size == 1:  # leave the exception to Python, or to a debugger
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


def _stores(launch: launcher.Launch) -> tuple[list[dist.Store], dist.Store | None]:
    """Returns connections for the watchdog's threads, and the store that this process hosts, if any.

    A connection on which a thread waits cannot be used by another, so these are separate from the job's.
    """
    host, port, attempt = world.rendezvous()
    wait = timedelta(seconds=60)

    def connect(host: str, port: int) -> dist.Store:
        return dist.PrefixStore(
            f"watchdog/{attempt}", dist.TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=wait)
        )

    first, server = connect(host, port), None
    if launch.size == 1:
        return [first], None
    if launch.rank == launch.size - 1:
        here = world.address_towards(host, port)
        server = dist.TCPStore(here, 0, is_master=True, wait_for_workers=False, timeout=wait)
        first.set("second", json.dumps([here, server.port]))
    return [first, connect(*json.loads(first.get("second")))], server
