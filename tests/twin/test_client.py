"""A case that gets stuck, or takes its process down, is one failure and not the end of the tests.

python -m pytest tests/twin/test_client.py
"""

import os
import signal
import threading

import pytest

from tests.twin.client import Twin

pytestmark = pytest.mark.long  # each failure costs the twin's imports


def wait_for_ever(rank: int) -> None:
    threading.Event().wait()


def kill_the_server(rank: int) -> None:
    os.kill(os.getppid(), signal.SIGKILL)


def answer(rank: int) -> int:
    return rank


@pytest.mark.parametrize("accident, text", [(wait_for_ever, "makes no progress"), (kill_the_server, "died of")])
def test_the_next_case_runs(twin: Twin, accident: object, text: str) -> None:
    with pytest.raises(AssertionError, match=text):
        twin.run(accident, idle_s=10.0)
    assert twin.run(answer, size=2) == [0, 1]
