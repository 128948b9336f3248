"""Scores responses by the rules named in the config, in killable processes beside the trainer."""

import math
import os
import socket
import subprocess
import sys
import time
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, TypeVar

from r1zero.config.errors import RewardError
from r1zero.config.suggestions import suggest
from r1zero.reward.own_rules import check_rule
from r1zero.reward.rules import RULES
from r1zero.reward.workers.protocol import Frames, frame, receive

Key = TypeVar("Key", bound=Hashable)

LEAST_MEMORY_MIB = 16
MEMORY_MIB = 512  # address space that a worker may use beyond its initial size
# Environment variables that the supervisor inherits, enough for the interpreter to start. No variable of a launcher or
# a device may reach it, so the allowed ones are listed.
_ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "PYTHONHOME", "VIRTUAL_ENV")
_PATIENT_SEND_S = 0.1
_CLOSE_S = 5.0


@dataclass(frozen=True)
class Score:
    """The result of grading one response.

    scored: `reward` is the weighted sum of `scores` ({rule: value}), and `equal` tells whether the last box equals the
    label, regardless of the format. timeout (past the deadline) and failed (the worker died or a rule raised): no
    scores, `equal` None and `reward` NaN, so that they are never mistaken for a zero. `ms` is the time in the worker.
    """

    outcome: Literal["scored", "timeout", "failed"]
    reward: float
    scores: dict[str, float]
    equal: bool | None
    ms: float


class Submission(NamedTuple):
    """A response to grade. `prompt` and `additional` are for the user's rules."""

    response: str
    label: str
    prompt: str = ""
    additional: dict[str, Any] | None = None


def check_rules(names: Iterable[str]) -> None:
    """Check that each name is in the table or is `path.py:function`, without running anything.

    Raises:
        RewardError: with the nearest rule, or what the file lacks.
    """
    names = list(names)
    if not names:
        raise RewardError(f"no reward rule is given; choose from {', '.join(RULES)}, or write path.py:function")
    for name in names:
        if name in RULES:
            continue
        path, colon, function = name.rpartition(":")
        if not (colon and path.endswith(".py") and function):
            hint = suggest(name, RULES, spell='"{}"'.format)
            raise RewardError(
                f'there is no reward rule "{name}"; {hint}; a rule of your own is written path.py:function'
            )
        check_rule(name)


class Pool:
    """The trainer's connection to the supervisor. Submits tasks and collects results without a thread of its own."""

    def __init__(self, rules: list[str], workers: int, deadline_s: float, memory_mib: int = MEMORY_MIB) -> None:
        if workers < 1 or not deadline_s > 0 or memory_mib < LEAST_MEMORY_MIB:
            raise RewardError(
                f"grading needs a worker, a deadline above 0 s and {LEAST_MEMORY_MIB} MiB of memory for each worker, "
                f"not {workers}, {deadline_s} s and {memory_mib} MiB"
            )
        self._sock, child = socket.socketpair()
        kept = {name: value for name in _ENVIRONMENT if (value := os.getenv(name)) is not None}
        path = [str(Path(__file__).resolve().parents[2]), *(str(Path(entry or ".").absolute()) for entry in sys.path)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "r1zero.reward.workers.supervisor", str(child.fileno())],
            env=kept | {"PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
            pass_fds=[child.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=2,  # output of a user's rule must not reach this process's standard output
            start_new_session=True,  # the terminal's Ctrl-C must not reach it
        )
        child.close()
        self._frames, self._outbox = Frames(), bytearray()
        self._results: dict[int, list[Any]] = {}
        self._started = False
        config = {"rules": rules, "workers": workers, "deadline_s": deadline_s, "memory_mib": memory_mib}
        self._outbox += frame(config)
        self._send()

    def submit(self, tasks: list[list[Any]]) -> None:
        """Send tasks [number, kind, *arguments]. Waits at most 0.1 s; the next call sends what is left."""
        self._outbox += frame(tasks)
        self._send()

    def wait_started(self) -> None:
        """Wait until the supervisor has loaded the rules.

        Raises:
            RewardError: a user's rule could not be loaded.
        """
        self._sock.settimeout(None)
        while not self._started:
            self._take()

    def collect(self, numbers: Iterable[int]) -> dict[int, list[Any]]:
        """Wait for the given tasks and return `{number: [outcome, result, ms]}`."""
        missing = {number for number in numbers if number not in self._results}
        while missing:
            self._send()
            self._sock.settimeout(_PATIENT_SEND_S if self._outbox else None)
            missing.difference_update(self._take())
        return {number: self._results.pop(number) for number in numbers}

    def _take(self) -> list[int]:
        """Read once from the supervisor. Returns the numbers of the results that arrived."""
        try:
            messages = receive(self._sock, self._frames)
        except TimeoutError:
            return []
        if messages is None:
            when = "while grading" if self._started else "while loading the rules"
            raise RewardError(
                f"the reward supervisor ended {when}, exit status {self._process.wait()}; its error output says why"
            )
        numbers = []
        for message in messages:
            if isinstance(message, dict):
                if "refused" in message:
                    raise RewardError(message["refused"])
                self._started = True
                continue
            self._results[message[0]] = message[1:]
            numbers.append(message[0])
        return numbers

    def _send(self) -> None:
        self._sock.settimeout(_PATIENT_SEND_S)
        try:
            while self._outbox:
                del self._outbox[: self._sock.send(self._outbox)]
        except TimeoutError:
            pass  # the supervisor is still loading; the next call sends the rest
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has ended, which the next read reports

    def close(self) -> None:
        """End the supervisor and all workers. May be called twice."""
        self._sock.close()
        try:
            self._process.wait(_CLOSE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Scorer:
    """Grades responses while others are still being decoded.

    Create it before MPI, torch or a device is started. `submit` starts grading and returns at once; `collect` waits for
    the results and adds the waiting time to `waited_s`. `rules` maps each rule, one of `RULES` or `path.py:function`,
    to its weight in the reward. A function of your own has the signature

        def rule(response: str, label: str, *, prompt: str, additional: dict, equal) -> float

    and may declare any of the three keywords: the prompt's text, the row's additional columns, and
    `equal(answer, label) -> bool`, the check behind `acc`. Its file is executed once, in the supervisor. The function
    runs in the workers with the same deadline and at most `memory_mib` MiB of additional memory. An exception, or a
    value that is not a finite number, makes the sample `failed`.

    Raises:
        RewardError: a rule does not exist, cannot be loaded, or has a weight that is not finite; or there is no worker.
    """

    def __init__(self, rules: dict[str, float], workers: int, deadline_s: float, memory_mib: int = MEMORY_MIB) -> None:
        check_rules(rules)
        for name, weight in rules.items():
            if not math.isfinite(weight):
                raise RewardError(f'the weight of reward rule "{name}" is {weight}; it must be a finite number')
        self.rules = dict(rules)
        self.waited_s = 0.0
        self._keys: dict[int, Hashable] = {}
        self._next = 0
        self._pool = Pool(list(rules), workers, deadline_s, memory_mib)
        self._own = any(name not in RULES for name in rules)
        if self._own:
            self._pool.wait_started()  # only running the file shows whether it can be run

    def submit(
        self, key: Hashable, response: str, label: str, prompt: str = "", additional: dict[str, Any] | None = None
    ) -> None:
        """Start grading a response; `collect` returns it as `key`.

        `prompt` and `additional` are for the user's rules.
        """
        self.submit_all({key: Submission(response, label, prompt, additional)})

    def submit_all(self, submissions: Mapping[Any, Submission]) -> None:
        """Like `submit` for several responses, which wakes the supervisor only once. Each has its key."""
        tasks: list[list[Any]] = []
        for key, one in submissions.items():
            self._keys[self._next] = key
            context = [one.prompt, one.additional] if self._own else []
            tasks.append([self._next, "grade", one.response, one.label, *context])
            self._next += 1
        self._pool.submit(tasks)

    def collect(self) -> dict[Hashable, Score]:
        """Returns the scores of everything submitted since the last call, in the order of submission."""
        started = time.monotonic()
        results = self._pool.collect(list(self._keys))
        self.waited_s += time.monotonic() - started
        scores = {key: self._score(*results[number]) for number, key in self._keys.items()}
        self._keys.clear()
        return scores

    def group(self, answers: dict[Key, list[str]]) -> dict[Key, list[int]]:
        """Returns the group of each answer of every list: answers that the reward finds equal have the same number.

        Called while nothing is being graded. A list that takes longer than the deadline of one response is grouped
        by spelling.
        """
        numbers: dict[Key, int] = {}
        for key, given in answers.items():
            numbers[key] = self._next
            self._pool.submit([[self._next, "group", given]])
            self._next += 1
        results = self._pool.collect(list(numbers.values()))
        found = {key: results[number] for key, number in numbers.items()}
        return {
            key: result if outcome == "scored" else [answers[key].index(answer) for answer in answers[key]]
            for key, (outcome, result, _) in found.items()
        }

    def _score(
        self, outcome: Literal["scored", "timeout", "failed"], result: dict[str, Any] | None, ms: float
    ) -> Score:
        if outcome != "scored":
            return Score(outcome, math.nan, {}, None, ms)
        assert result is not None  # the worker has sent it, since the outcome is "scored"
        scores = result["scores"]
        reward = sum(weight * scores[name] for name, weight in self.rules.items())
        if not all(map(math.isfinite, (*scores.values(), reward))):  # the sum of finite scores may overflow
            return Score("failed", math.nan, {}, None, ms)
        return Score("scored", reward, scores, result["equal"], ms)

    def close(self) -> None:
        """End the workers."""
        self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
