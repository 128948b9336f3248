"""The hint about an unknown name: the nearest known name only if it is similar, otherwise all that are allowed.

python -m pytest tests/config/test_suggestions.py
"""

import pytest

from r1zero.config import suggest

KNOWN = ("seed", "name", "seed", "iterations")


@pytest.mark.parametrize(
    "name, known, hint",
    [
        ("sed", KNOWN, "the nearest known one is 'seed'"),
        ("iteration", KNOWN, "the nearest known one is 'iterations'"),
        ("zzz", KNOWN, "the known ones are 'seed', 'name', 'iterations'"),
        ("zzz", ("seed", "seed"), "the only known one is 'seed'"),
        ("zzz", (), "there is no known one"),
        ("zzz", map(str, range(50)), "none of the 50 known ones is similar"),
        ("", KNOWN, "the known ones are 'seed', 'name', 'iterations'"),
    ],
)
def test_a_hint_names_the_nearest_or_all(name, known, hint):
    assert suggest(name, known) == hint


def test_the_names_are_spelt_as_in_the_message():
    assert suggest("sed", KNOWN, "key", "run.{}".format) == "the nearest key is run.seed"
    assert suggest("zzz", KNOWN, "key", "run.{}".format) == "the keys are run.seed, run.name, run.iterations"
