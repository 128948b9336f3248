"""One loaded solver for all tests that ask it directly."""

import pytest


@pytest.fixture(scope="session")
def equal():
    from r1zero.reward.equality import answers, solver

    solver.load()
    return answers.equal
