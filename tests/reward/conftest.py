"""One loaded solver for all tests that ask it directly."""

import pytest


@pytest.fixture(scope="session")
def equal():
    from r1zero.reward import accuracy, solver

    solver.load()
    return accuracy.equal
