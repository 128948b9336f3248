"""Who is named: worked cases of four ranks.

python -m pytest tests/watchdog/test_verdict.py
"""

import dataclasses

import pytest

from r1zero.watchdog import verdict
from r1zero.watchdog.verdict import Failure, Stamp


def stamp(rank: int, **fields) -> Stamp:
    stamp = Stamp(
        rank,
        "node",
        100 + rank,
        "update",
        3,
        20,
        5.0,
        60.0,
        f"rank_{rank}.log",
        waiting=True,
        stack="  File a, line 1\n    all_reduce()\n",
    )
    return dataclasses.replace(stamp, **fields)


BUSY = dict(waiting=False, stack="  File b, line 2\n    sleep()\n")
LATE = dict(seconds=61.0)


@pytest.mark.parametrize(
    "stamps, named",
    [
        ([stamp(0, **LATE), stamp(1, **LATE), stamp(2, **LATE, **BUSY), stamp(3, **LATE)], [2]),
        # Past its limit, but only as it waits for one that is not past its own: a long rollout is not late.
        (
            [
                stamp(0, **LATE, entered=22),
                stamp(1, entered=21, seconds=50.0, **BUSY),
                stamp(2, **LATE, entered=22),
                stamp(3, **LATE, entered=22),
            ],
            [],
        ),
        # Behind in phase, whatever it does there.
        ([stamp(0, entered=22), stamp(1, entered=22, **BUSY), stamp(2, **LATE, **BUSY), stamp(3, entered=22)], [2]),
        # Among those that are behind one waits for the other.
        ([stamp(0, entered=22), stamp(1, **LATE), stamp(2, **LATE, **BUSY), stamp(3, entered=22)], [2]),
        # All wait: a message was lost, or a device hangs. Nobody can be told from the others.
        ([stamp(r, **LATE) for r in range(4)], [0, 1, 2, 3]),
        ([stamp(r, **BUSY) for r in range(4)], []),
    ],
)
def test_the_late_rank_is_the_one_for_which_the_others_wait(stamps, named):
    assert [s.rank for s in verdict.late(stamps)] == named
    if named:
        text = verdict.of_lateness(stamps).text
        assert [
            r
            for r in range(4)
            if f"rank {r} of 4 on node (process {100 + r}) is late: 61 s in phase update of iteration 3" in text
        ] == named


def test_the_stack_of_the_late_and_of_the_waiting_is_shown_once_each():
    text = verdict.of_lateness([stamp(0, **LATE), stamp(1, **LATE), stamp(2, **LATE, **BUSY), stamp(3, **LATE)]).text
    assert "rank 2 is not in a collective; it stands at:\n  File b, line 2\n    sleep()" in text
    assert "each of ranks 0, 1, 3 waits inside a collective, phase update of iteration 3:\n  File a, line 1" in text
    assert text.count("all_reduce") == text.count("sleep") == 1


def failure(rank: int, text: str = "Traceback", code: int = 1, echo: bool = False) -> Failure:
    return Failure(stamp(rank), text, code, echo)


STAMPS = [stamp(r) for r in range(4)]


def judged(failures, silent_s=(0, 0, 0, 0), since_s=1.0):
    found = verdict.of_failures(failures, STAMPS, list(silent_s), since_s)
    return found and (found.code, found.text.splitlines()[0])


def test_the_first_failure_that_is_not_the_echo_of_another_is_the_cause():
    echoes = [failure(0, echo=True), failure(3, echo=True)]
    assert judged([*echoes, failure(1), failure(2)]) == (
        1,
        "rank 1 of 4 on node (process 101) failed in phase update of iteration 3. Its log: rank_1.log",
    )
    assert judged([failure(2, "make room\n", code=2)]) == (2, "make room")
    assert judged(echoes) is None, "the cause may still come"
    assert judged(echoes, silent_s=(0, 0, 6, 0))[1].startswith(
        "rank 2 of 4 on node (process 102) has given no sign of life for 6 s; it was in phase update"
    )
    assert judged(echoes, silent_s=(9, 0, 0, 0)) is None, "rank 0 is silent as it has failed"
    assert judged(echoes, since_s=9.0)[1].startswith("rank 0 of 4"), "a network that failed by itself"
    assert judged([]) is None


def test_silence_is_named_with_the_process_that_a_neighbour_ends():
    found = verdict.of_silence(STAMPS, [0.0, 130.0, 0.0, 0.0], 120.0)
    assert found.silent == ((1, "node", 101),) and "has given no sign of life for 130 s" in found.text
    assert verdict.of_silence(STAMPS, [0.0, 100.0, 0.0, 0.0], 120.0) is None


@pytest.mark.parametrize(
    "error, echo",
    [
        (RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:4"), True),
        (RuntimeError("Timed out waiting 1800000ms for recv operation to complete"), True),
        (ConnectionResetError("Connection reset by peer"), True),
        (RuntimeError("shape mismatch"), False),
        (ValueError("connection"), False),
    ],
)
def test_a_lost_connection_is_an_echo(error, echo):
    assert verdict.is_echo(error) == echo
