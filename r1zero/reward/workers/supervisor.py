"""The process that owns the grading workers: forks them, gives them tasks, and kills those that exceed the deadline.

It is started as a fresh interpreter before MPI and the device, so that neither it nor a worker inherits their state. It
loads the solver once; a worker is a fork of it and ready in milliseconds. It runs a single loop in one thread that
never blocks, so deadlines are kept even while the trainer is busy in its engine for minutes.

    trainer -- socket --> supervisor -- socket --> worker 1, 2, ...
"""

import gc
import os
import selectors
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

from r1zero.config.errors import RewardError
from r1zero.reward.workers.handle import PATIENCE_S, Worker
from r1zero.reward.workers.protocol import Frames, frame, receive
from r1zero.reward.workers.worker import Task, Work, die_with_parent, failure, killed, serve

PATIENCE_WALL_S = 1.0  # like PATIENCE_S in wall time, for a sample that sleeps; at most a quarter of the deadline
LOOK_S = 0.1  # seconds between two checks of a worker whose patience may be exceeded
ASIDE = 3  # largest number of samples set aside, per worker of the pool
HAND = 8  # largest number of tasks that a worker holds, so that it need not be woken for each
PARENT_CHECK_S = 1.0
REASONS = 20  # largest number of different reasons that are written
BOX = "\\boxed"  # a response without it has no answer to compare


class Supervisor:
    """The state of the pool between two events."""

    def __init__(self, trainer: socket.socket, work: Work, warming: Iterator[None], config: dict[str, Any]) -> None:
        self.trainer, self.work = trainer, work
        self.warming: Iterator[None] | None = warming
        self.compares = False
        """Whether an answer was to be compared. Until then the warm-up would only take time from the job's start."""
        self.size, self.deadline_s = config["workers"], config["deadline_s"]
        self.memory_mib = config["memory_mib"]
        self.parent = os.getppid()
        self.frames, self.outbox = Frames(), bytearray()
        self.queue: deque[Task] = deque()
        self.workers: list[Worker] = []
        self.told: set[str] = set()
        self.selector = selectors.DefaultSelector()
        self.selector.register(trainer, selectors.EVENT_READ)

    def run(self, tasks: list[Task]) -> None:
        """Run until the trainer closes its end or dies. tasks: those that arrived with the configuration."""
        self.trainer.setblocking(False)
        self._queue(tasks)
        alive = True
        while alive and os.getppid() == self.parent:
            self._dispatch()
            idle = not self.queue and all(worker.task is None for worker in self.workers)
            warming = idle and self._warm()
            for key, events in self.selector.select(0 if warming else self._patience()):
                if key.fileobj is self.trainer:
                    alive = (not events & selectors.EVENT_READ or self._receive_tasks()) and alive
                    continue
                if events & selectors.EVENT_WRITE:
                    self._flush(key.data.sock, key.data.outbox, key.data)
                if events & selectors.EVENT_READ:
                    self._receive_result(key.data)
            self._enforce(time.monotonic())
            if self.outbox:
                self._flush(self.trainer, self.outbox, None)
        for worker in list(self.workers):
            self._end(worker)

    def _warm(self) -> bool:
        """Run one step of the warm-up, in an idle pool. After the last one the workers are forked anew."""
        if self.warming is None or not self.compares:
            return False
        try:
            next(self.warming)
            return True
        except StopIteration:
            self.warming = None
        for worker in list(self.workers):
            self._end(worker)
        _freeze()
        self._dispatch()
        return False

    # The trainer's side.

    def _receive_tasks(self) -> bool:
        tasks = receive(self.trainer, self.frames)
        if tasks is None:
            return False
        for batch in tasks:
            self._queue(batch)
        return True

    def _queue(self, tasks: list[Task]) -> None:
        self.queue.extend(tasks)
        self.compares = self.compares or any(kind != "grade" or BOX in given[0] for _, kind, *given in tasks)

    def _report(self, number: int, outcome: str, result: object, ms: float) -> None:
        self.outbox += frame([number, outcome, result, ms])

    def _flush(self, sock: socket.socket, outbox: bytearray, data: Worker | None) -> None:
        """Send what the socket accepts now. The rest waits until it is writable, so that a slow peer never blocks."""
        try:
            while outbox:
                del outbox[: sock.send(outbox)]
        except (BlockingIOError, BrokenPipeError, ConnectionResetError):
            pass  # full or closed; the next read shows which
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if outbox else 0)
        if self.selector.get_key(sock).events != events:
            self.selector.modify(sock, events, data)

    # The workers' side.

    def _dispatch(self) -> None:
        """Give queued tasks to the free workers, and fork missing workers."""
        crew = self._crew()
        while len(crew) < self.size and len(self.workers) < self.size * (1 + ASIDE):
            crew.append(self._fork())
        free = [worker for worker in crew[: self.size] if worker.task is None] if self.queue else []
        hand = min(HAND, -(-len(self.queue) // self.size))
        for worker in free:
            if not self.queue:
                break
            worker.tasks.extend(self.queue.popleft() for _ in range(min(hand, len(self.queue))))
            worker.begin()
            worker.outbox += b"".join(map(frame, worker.tasks))
            self._flush(worker.sock, worker.outbox, worker)

    def _fork(self) -> Worker:
        here, there = socket.socketpair()
        supervisor = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._become_worker(here, there, supervisor)
        there.close()
        here.setblocking(False)
        worker = Worker(pid, here)
        self.workers.append(worker)
        self.selector.register(here, selectors.EVENT_READ, worker)
        return worker

    def _become_worker(self, here: socket.socket, there: socket.socket, supervisor: int) -> None:
        """In the child process: close all sockets of others, then grade until the end. Never returns."""
        try:
            die_with_parent(supervisor)
            for sock in (here, self.trainer, *(worker.sock for worker in self.workers)):
                sock.close()
            self.selector.close()
            serve(there, self.work, self.deadline_s, self.memory_mib << 20)
        finally:
            _, error, trace = sys.exc_info()
            try:
                if error is not None:
                    there.sendall(frame([None, failure(error, trace, self.memory_mib), 0.0]))
            finally:  # whatever happens, this process must not go on in the supervisor's code
                os._exit(0 if error is None else 1)

    def _receive_result(self, worker: Worker) -> None:
        answers = receive(worker.sock, worker.frames)
        if answers is None:
            if worker.task is not None:
                elapsed = time.monotonic() - worker.started
                self._report(worker.task[0], "failed", None, 1000 * elapsed)
            status = self._end(worker)
            if os.WIFSIGNALED(status) and worker.task is not None:
                self._tell(killed(os.WTERMSIG(status), self.memory_mib))
            return
        for number, result, ms in answers:
            if number is None:  # the last words of a worker, whose end the next read shows
                self._tell(result)
                continue
            self._report(number, "scored", result, ms)
            worker.tasks.popleft()
            worker.aside = False
            if worker.robbed:
                self._end(worker)
                break
            if worker.tasks:
                worker.begin()
        self._retire()

    def _rob(self, worker: Worker) -> None:
        """Give the tasks that a worker has received, but not begun, back to the queue, in their order."""
        while len(worker.tasks) > 1:
            self.queue.appendleft(worker.tasks.pop())
            worker.robbed = True

    def _tell(self, why: str) -> None:
        """Write why a response was not graded, each reason once: a faulty rule fails for every response."""
        if why not in self.told and len(self.told) <= REASONS:
            sys.stderr.write(why if len(self.told) < REASONS else "why other responses were not graded is not shown\n")
            self.told.add(why)

    def _retire(self) -> None:
        """End idle workers beyond the pool's size, the youngest first, as older ones have learnt more of the
        grammar."""
        crew = self._crew()
        while len(crew) > self.size and crew[-1].task is None:
            self._end(crew.pop())

    def _crew(self) -> list[Worker]:
        """Returns the workers that take the next tasks, the oldest first."""
        return [worker for worker in self.workers if not worker.aside]

    def _enforce(self, now: float) -> None:
        """Kill workers that are past their deadline, and set slow samples aside so that others do not wait."""
        for worker in list(self.workers):
            elapsed = now - worker.started
            if worker.task is None:
                continue
            if elapsed >= self.deadline_s:
                self._report(worker.task[0], "timeout", None, 1000 * elapsed)
                self._end(worker)
            elif not worker.aside and len(self.workers) < self.size * (1 + ASIDE):
                slow = elapsed >= min(PATIENCE_WALL_S, self.deadline_s / 4)
                worker.aside = slow or (elapsed >= PATIENCE_S and worker.processor_s() >= worker.patience)
                if worker.aside:
                    self._rob(worker)

    def _patience(self) -> float:
        """Returns the seconds until some worker's time may be up, at most until the next check of the parent."""
        now, waits = time.monotonic(), [PARENT_CHECK_S]
        for worker in self.workers:
            if worker.task is None:
                continue
            elapsed = now - worker.started
            waits.append(self.deadline_s - elapsed)
            if not worker.aside:
                waits.append(PATIENCE_S - elapsed if elapsed < PATIENCE_S else LOOK_S)
        return max(0.0, min(waits))

    def _end(self, worker: Worker) -> int:
        """Kill, reap and forget a worker, whose other tasks go back to the queue. Returns its wait status, which may be
        that of an earlier end."""
        self._rob(worker)
        self.selector.unregister(worker.sock)
        worker.sock.close()
        self.workers.remove(worker)
        os.kill(worker.pid, signal.SIGKILL)  # it is not reaped yet, so its process id cannot have been reused
        return os.waitpid(worker.pid, 0)[1]


def main() -> None:
    """Run `python -m r1zero.reward.workers.supervisor FD`. The first message on the socket is the configuration."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the trainer handles Ctrl-C; its closed socket ends this process
    trainer = socket.socket(fileno=int(sys.argv[1]))
    frames = Frames()
    messages: list[Any] = []
    while not messages:
        received = receive(trainer, frames)
        if received is None:
            return
        messages = received
    config, batches = messages[0], messages[1:]

    from r1zero.reward.equality import answers, solver
    from r1zero.reward.workers import grading, warmup

    solver.load()
    work: Work | None = None
    answer: dict[str, Any] = {"started": True}
    try:
        work = grading.work(config["rules"])
    except RewardError as error:
        answer = {"refused": str(error)}
    try:
        trainer.sendall(frame(answer))
    except (BrokenPipeError, ConnectionResetError):
        return  # the trainer has ended meanwhile
    if work is None:
        return
    for _ in answers.warm(warmup.FIRST):
        pass
    _freeze()
    supervisor = Supervisor(trainer, work, answers.warm(warmup.EQUAL + warmup.REST), config)
    supervisor.frames = frames
    supervisor.run([task for batch in batches for task in batch])


def _freeze() -> None:
    """Exclude everything that is loaded from garbage collection, so that forks keep sharing its memory."""
    gc.collect()
    gc.freeze()


if __name__ == "__main__":
    main()
