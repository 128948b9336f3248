"""python -m pytest tests/reward/test_scorer.py

The pool as a trainer meets it: deadlines, refills, rules of the user's own, and nothing left behind."""

import math
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from r1zero.reward import RewardError, Scorer, Submission
from r1zero.reward.rules import RULES
from r1zero.reward.workers.supervisor import Supervisor

RIGHT = r"<think>x</think><answer>\boxed{\frac12}</answer>"
WRONG = r"<think>x</think><answer>\boxed{3}</answer>"
SLOW_RULE = """
import os, time

def slow(response: str, label: str) -> float:
    if response.startswith("sleep"):
        time.sleep(60)
    if response.startswith("spin"):
        while True:
            pass
    if response.startswith("crash"):
        os.abort()
    if response.startswith("raise"):
        raise ValueError("no such response")
    if response.startswith("nan"):
        return float("nan")
    if response.startswith("huge"):
        return 1e308
    if response.startswith("memory"):
        return float(len(bytearray(8 << 30)))
    return float(response == label)
"""


@pytest.fixture(scope="module")
def scorer():
    with Scorer(rules={"base_acc": 1.0, "acc": 0.5}, workers=2, deadline_s=2.0) as scorer:
        yield scorer


@pytest.fixture(scope="module")
def rule_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("rules") / "mine.py"
    path.write_text(SLOW_RULE)
    return path


@pytest.fixture(scope="module")
def slow_scorer(rule_file):
    with Scorer(rules={f"{rule_file}:slow": 10.0}, workers=2, deadline_s=1.0) as scorer:
        yield scorer


def processes_of_session(leader: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[3]) == leader and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def supervisor_of(scorer: Scorer) -> int:
    return scorer._pool._process.pid


def wait_until(condition, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return bool(condition())


def test_scores_come_back_under_their_keys_with_the_weighted_sum(scorer):
    scorer.submit(("group", 1), RIGHT, "0.5")
    scorer.submit("wrong", WRONG, "0.5")
    scores = scorer.collect()
    assert list(scores) == [("group", 1), "wrong"]
    right = scores["group", 1]
    assert (right.outcome, right.reward, right.equal) == ("scored", 1.5, True)
    assert right.scores == {"base_acc": 1.0, "acc": 1.0}
    assert scores["wrong"].reward == -0.25 and scores["wrong"].equal is False
    assert scorer.collect() == {}


def test_a_burst_larger_than_the_socket_is_graded_whole(scorer):
    filler = "x" * 20_000
    for i in range(200):
        scorer.submit(i, rf"<think>{filler}</think><answer>\boxed{{{i}}}</answer>", str(i % 100))
    scores = scorer.collect()
    assert [scores[i].equal for i in range(200)] == [True] * 100 + [False] * 100


def test_text_that_is_no_unicode_survives_the_way(scorer):
    scorer.submit(0, "\ud800\x00" + r"\boxed{1}", "1")
    assert scorer.collect()[0].equal is True


def test_what_fails_is_no_score_and_harms_no_other(slow_scorer):
    kinds = {
        "sleep": "timeout", "spin": "timeout", "crash": "failed", "raise": "failed",
        "nan": "failed", "huge": "failed", "memory": "failed", "right": "scored",
    }  # fmt: skip
    kinds_twice = list(kinds) * 2
    for number, kind in enumerate(kinds_twice):
        slow_scorer.submit((number, kind), kind, "right")
    scores = slow_scorer.collect()
    for (_, kind), score in scores.items():
        assert score.outcome == kinds[kind], kind
        if score.outcome != "scored":
            assert math.isnan(score.reward) and score.scores == {} and score.equal is None
        if score.outcome == "timeout":
            assert score.ms >= 1000
    assert scores[kinds_twice.index("right"), "right"].reward == 10.0


def test_honest_samples_do_not_queue_behind_hanging_ones(rule_file):
    with Scorer(rules={f"{rule_file}:slow": 1.0}, workers=2, deadline_s=30.0) as scorer:
        for number in range(5):
            scorer.submit(("bad", number), "sleep" if number % 2 else "spin", "")
        scorer.submit("honest", "right", "right")
        while not scorer._pool._results:
            scorer._pool._take()
        assert [scorer._keys[number] for number in scorer._pool._results] == ["honest"]


def test_tasks_behind_one_that_fails_or_hangs_are_graded_by_others(rule_file):
    """A worker holds several tasks. Here it waits with a limit, because `collect` would wait for a lost one forever."""
    kinds = ["right", "crash", "right", "sleep", "right", "crash", "right", "right"]
    with Scorer(rules={f"{rule_file}:slow": 1.0}, workers=1, deadline_s=60.0) as scorer:
        scorer._pool.wait_started()
        scorer.submit_all({number: Submission(kind, "right") for number, kind in enumerate(kinds)})
        scorer._pool._sock.settimeout(0.1)
        assert wait_until(lambda: scorer._pool._take() is None or len(scorer._pool._results) == len(kinds) - 1, 40)
        found = {number: result[0] for number, result in scorer._pool._results.items()}
    assert found == {n: {"right": "scored", "crash": "failed"}[kind] for n, kind in enumerate(kinds) if kind != "sleep"}


def test_no_worker_is_left_as_a_zombie_or_beyond_the_pool(slow_scorer):
    for number in range(6):
        slow_scorer.submit(number, "crash" if number % 2 else "sleep", "")
    slow_scorer.collect()
    slow_scorer.submit("after", "right", "right")
    assert slow_scorer.collect()["after"].reward == 10.0
    supervisor = supervisor_of(slow_scorer)
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    states = [Path(f"/proc/{child}/stat").read_text().rsplit(")", 1)[1].split()[0] for child in children]
    assert len(children) == 2 and "Z" not in states


@pytest.mark.parametrize("name, nearest", [("bas_acc", "base_acc"), ("strictformat", "strict_format"), ("xyz", None)])
def test_a_misspelt_rule_is_refused_and_the_nearest_named(name, nearest):
    with pytest.raises(RewardError, match=f'no reward rule "{name}"') as error:
        Scorer(rules={name: 1.0}, workers=1, deadline_s=1.0)
    every = "the known ones are " + ", ".join(map('"{}"'.format, RULES)) + ";"
    assert (f'nearest known one is "{nearest}"' if nearest else every) in str(error.value)


def test_a_misspelt_function_of_the_users_own_is_refused_unrun(rule_file):
    with pytest.raises(RewardError, match='defines no function "slwo"; the nearest defined name is "slow"'):
        Scorer(rules={f"{rule_file}:slwo": 1.0}, workers=1, deadline_s=1.0)
    with pytest.raises(RewardError, match="there is no file"):
        Scorer(rules={f"{rule_file}x.py:slow": 1.0}, workers=1, deadline_s=1.0)


def test_no_rules_no_workers_and_no_deadline_are_refused():
    wrong = (
        {"rules": {}},
        {"workers": 0},
        {"deadline_s": 0.0},
        {"deadline_s": math.nan},
        {"memory_mib": 0},
        {"rules": {"acc": math.inf}},
    )
    for arguments in wrong:
        with pytest.raises(RewardError):
            Scorer(**{"rules": {"acc": 1.0}, "workers": 1, "deadline_s": 1.0} | arguments)


def test_importing_the_package_loads_the_standard_library_and_the_reader_of_the_config_only():
    code = "import sys, r1zero.reward; print(sorted({m.split('.')[0] for m in sys.modules} - sys.stdlib_module_names))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    loaded = {name for name in eval(out) if not name.endswith("__mypyc")}  # compiled parts of tomli
    ours = {"r1zero", "__main__", "tomli", "tomli_w"}
    assert loaded <= ours | {"_virtualenv", "_distutils_hack", "sitecustomize", "usercustomize"}


def test_workers_hold_neither_torch_nor_the_launchers_variables(tmp_path):
    path = tmp_path / "spy.py"
    path.write_text(
        textwrap.dedent(
            """
            import os, sys

            def spy(response, label):
                launcher = [name for name in os.environ if name.startswith(("OMPI_", "PMIX_", "PMI_", "SLURM_"))]
                launcher += [name for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR") if name in os.environ]
                heavy = [name for name in ("torch", "numpy", "mpi4py", "vllm", "transformers") if name in sys.modules]
                return float(len(launcher) + len(heavy))
            """
        )
    )
    code = f"""
from r1zero.reward import Scorer
with Scorer(rules={{"{path}:spy": 1.0}}, workers=1, deadline_s=5.0) as scorer:
    scorer.submit(0, "x", "x")
    print(scorer.collect()[0].reward)
"""
    launcher = {"OMPI_COMM_WORLD_RANK": "0", "PMIX_RANK": "0", "PMI_RANK": "0", "RANK": "0", "WORLD_SIZE": "1"}
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ) | launcher
    )
    assert out.stdout == "0.0\n", out.stderr


@pytest.mark.parametrize("end", ["close", "kill", "exit"])
def test_nothing_is_left_when_the_trainer_ends(end):
    code = f"""
import os, signal, time
from r1zero.reward import Scorer
scorer = Scorer(rules={{"acc": 1.0}}, workers=2, deadline_s=600.0)
scorer.submit(0, r"\\boxed{{1/2}}", "0.5")
scorer.collect()
for i in range(4):
    scorer.submit(i, r"\\boxed{{9^{{9^{{9^{{9^{{9}}}}}}}}}}", "0.5")
print(scorer._pool._process.pid, flush=True)
if "{end}" == "close":
    scorer.close()
    time.sleep(30)
if "{end}" == "kill":
    time.sleep(30)
"""
    trainer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        supervisor = int(trainer.stdout.readline())
        if end == "kill":
            assert len(processes_of_session(supervisor)) >= 3
            trainer.kill()
        assert wait_until(lambda: not processes_of_session(supervisor), 60.0)
    finally:
        trainer.kill()
        trainer.wait()
        trainer.stdout.close()


def test_workers_die_with_a_killed_supervisor(rule_file):
    with Scorer(rules={f"{rule_file}:slow": 1.0}, workers=2, deadline_s=600.0) as scorer:
        supervisor = supervisor_of(scorer)
        scorer.submit(0, "spin", "")
        assert wait_until(lambda: len(processes_of_session(supervisor)) >= 3, 60.0)
        os.kill(supervisor, signal.SIGKILL)
        with pytest.raises(RewardError, match="ended while grading"):
            scorer.collect()
        assert wait_until(lambda: not processes_of_session(supervisor), 60.0)


def test_the_terminals_interrupt_does_not_reach_the_workers(scorer):
    supervisor = supervisor_of(scorer)
    assert os.getsid(supervisor) == supervisor != os.getsid(0)
    os.kill(supervisor, signal.SIGINT)
    scorer.submit(0, RIGHT, "0.5")
    assert scorer.collect()[0].reward == 1.5


@pytest.mark.parametrize("task", [["grade", r"so \boxed{3}", "3"], ["label", "3", ""], ["group", ["3", "4"]]])
def test_the_grammar_is_warmed_only_when_there_is_something_to_compare(task):
    """Of a model that gives no answers yet, nothing is compared; the warm-up would delay the start of its job."""
    here, there = socket.socketpair()
    steps = iter([None] * 3)
    pool = Supervisor(here, {}, steps, {"workers": 1, "deadline_s": 1.0, "memory_mib": 64})
    pool._queue([[0, "grade", "no answer", "3"]])
    assert not pool._warm() and len(list(steps)) == 3
    pool.warming = iter([None] * 3)
    pool._queue([[1, *task]])
    assert pool._warm()
    for end in (here, there, pool.selector):
        end.close()
