"""Which of many cases that differ in family or layout run in launch/test.sh --fast."""

from collections.abc import Container, Iterable
from typing import Any

import pytest


def only(fast: Container[Any], cases: Iterable[Any]) -> list[Any]:
    """The cases as parameters of a test, of which those that are not in `fast` are marked as slow."""
    return [
        case if case in fast else pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow)
        for case in cases
    ]
