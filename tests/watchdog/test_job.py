"""The watchdog under the real launchers, with an accident on one rank: tests/failure/phases.py is the job.

python -m pytest tests/watchdog/test_job.py -m "long or not long"
"""

import os
import re
import subprocess
import sys
import time
from math import ceil
from pathlib import Path

import pytest

from tests import jobs, patience

ROOT = Path(__file__).parents[2]
SLOWNESS = ceil(patience.slowness())
DEADLINE_S, SILENCE_S, PROMISE_S = 5 * SLOWNESS, 6 * SLOWNESS, 15 * SLOWNESS
"""phase_timeout_s, silence_timeout_s, and what may pass beyond them to the job's end: longer where others use the same
cores."""
LAUNCHERS = {
    "mpirun": ["mpirun", "-np", "{size}", "--oversubscribe", sys.executable],
    "torchrun": ["torchrun", "--standalone", "--nproc-per-node", "{size}"],
}


def start(launcher: str, size: int, accident: str, folder: Path) -> subprocess.Popen:
    folder.mkdir()
    environment = {
        **os.environ,
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "R1ZERO_ACCIDENT": accident,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    with open(folder / "out", "w", encoding="utf-8") as out:
        return subprocess.Popen(
            [
                *(word.format(size=size) for word in LAUNCHERS[launcher]),
                "tests/failure/phases.py",
                str(folder),
                f"phase_timeout_s={DEADLINE_S}",
                f"silence_timeout_s={SILENCE_S}",
            ],
            cwd=ROOT,
            env=environment,
            stdout=out,
            stderr=out,
        )


def wait(process: subprocess.Popen, folder: Path) -> tuple[int, str, float]:
    """Exit status, what was said, and seconds from the accident to the end."""
    patience.finish(process)
    ended = time.time()
    out = (folder / "out").read_text(encoding="utf-8")
    happened = re.search(r"ACCIDENT (\S+)", out)
    return process.returncode, out, ended - float(happened[1]) if happened else 0.0


def check(size: int, accident: tuple[str, int, str], found: tuple[int, str, float], folder: Path) -> None:
    (kind, rank, phase), (status, out, seconds) = accident, found
    assert status != 0, out
    name = rf"rank {rank} of {size} on \S+ \(process \d+\)"
    if kind == "exception":
        assert len(re.findall(rf"{name} failed in phase {phase} of iteration 2", out)) == 1, out
        # torchrun adds one of its own, about a child that failed.
        assert out.count(f"Accident: in {phase}") == 1 and out.count("Traceback") == 1 + ("ChildFailedError" in out), (
            out
        )
        assert seconds < PROMISE_S, out
    elif kind == "hang":
        assert (
            len(
                re.findall(
                    rf"{name} is late: \d+ s in phase {phase} of iteration 2, which may take {DEADLINE_S} s", out
                )
            )
            == 1
        ), out
        assert len(re.findall("is late:", out)) == 1 and f"rank {rank} is not in a collective; it stands at:" in out, (
            out
        )
        assert "in hang" in out and "time.sleep(1e6)" in out and "waits inside a collective" in out, out
        assert seconds < DEADLINE_S + PROMISE_S, out
    elif kind == "stop":
        assert (
            len(re.findall(rf"{name} has given no sign of life for \d+ s; it was in phase {phase} of iteration 2", out))
            == 1
        ), out
        assert out.count("no sign of life") == 1 and seconds < SILENCE_S + PROMISE_S, out
    log = (folder / f"rank_{rank:04d}.log").read_text()
    assert kind == "stop" or (f"in {phase}" if kind == "exception" else "is late") in log
    assert not jobs.alive(f"{folder}\0")


SHORT = [
    ("mpirun", "exception", 1, "update"),
    ("mpirun", "stop", 0, "save"),
    ("torchrun", "hang", 1, "rollout"),
    ("torchrun", "stop", 1, "dispatch"),
]


@pytest.mark.slow
def test_the_culprit_is_named_and_all_ranks_end(tmp_path):
    """Two jobs at a time: they mostly wait."""
    for pair in zip(SHORT[::2], SHORT[1::2], strict=True):
        running = [
            (
                start(launcher, 2, f"{kind} {rank} {phase} 2 0", tmp_path / f"{launcher}-{kind}"),
                tmp_path / f"{launcher}-{kind}",
            )
            for launcher, kind, rank, phase in pair
        ]
        for (process, folder), (_, kind, rank, phase) in zip(running, pair, strict=True):
            check(2, (kind, rank, phase), wait(process, folder), folder)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["exception", "hang", "stop"])
@pytest.mark.parametrize(
    "launcher, rank, phase",
    [
        ("mpirun", 0, "rollout"),
        ("torchrun", 3, "non_overlap_rule_reward"),
        ("torchrun", 0, "reference_model"),
        ("mpirun", 3, "update"),
        ("torchrun", 1, "resharding_to_infer"),
        ("mpirun", 2, "save"),
    ],
)
def test_the_culprit_is_named_in_every_phase(tmp_path, launcher, rank, phase, kind):
    folder = tmp_path / "logs"
    ended = wait(start(launcher, 4, f"{kind} {rank} {phase} 2 0", folder), folder)
    check(4, (kind, rank, phase), ended, folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher, said",
    [("mpirun", r"process rank 1 with PID \d+ .*\s*exited on\s+signal 9"), ("torchrun", r"rank\s*: 1 [\s\S]*Signal 9")],
)
def test_a_killed_rank_is_named_by_its_launcher_and_nobody_else_is_blamed(tmp_path, launcher, said):
    status, out, _ = wait(start(launcher, 3, "kill 1 update 2 0", tmp_path / "logs"), tmp_path / "logs")
    assert status != 0 and re.search(said, out), out
    assert not re.search(r"rank [02] of 3", out) and "is late" not in out


LAST_WORDS = """
import logging, sys, threading, time
from r1zero import config
from r1zero.distributed import launcher
from r1zero.watchdog import heartbeat
from r1zero.watchdog.verdict import Verdict

class Thread:
    store = property(lambda self: self)

    def set(self, key, text):   # the judge's own other line reads at once what it was told
        watch.end(Verdict("heard", 3), speak=False)

logging.disable()
watch = heartbeat.Watchdog(config.Run(), launcher.Launch(0, 2, 0, 2, "torchrun"), open(sys.argv[1], "w"))
threading.Thread(target=watch.end, args=(Verdict("rank 1 is to blame\\n", 1), True, [Thread()])).start()
time.sleep(60)
"""


def test_a_judge_speaks_before_it_is_heard_and_ends_where_nobody_listens(tmp_path):
    """The verdict reaches the judge's own process, too, and its launcher may be gone with the pipe that it writes
    to."""
    program = [sys.executable, "-W", "ignore", "-c", LAST_WORDS, str(tmp_path / "log")]
    told = patience.run(program, cwd=ROOT)
    assert (told.returncode, told.stderr) == (1, "rank 1 is to blame\n")
    deaf = subprocess.Popen(program, cwd=ROOT, stderr=subprocess.PIPE)
    deaf.stderr.close()
    assert patience.finish(deaf) == 1
