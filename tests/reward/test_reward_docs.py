"""python -m pytest tests/reward/test_reward_docs.py

The decisions stand in the docstrings, an example each, and are true."""

import doctest
import importlib
import pkgutil

import pytest

import r1zero.reward

MODULES = sorted(module.name for module in pkgutil.iter_modules(r1zero.reward.__path__))


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_the_docstrings_hold(name, equal):
    module = importlib.import_module(f"r1zero.reward.{name}")
    assert doctest.testmod(module).failed == 0


def test_equality_documents_its_decisions(equal):
    from r1zero.reward.equality import answers

    assert len(doctest.DocTestFinder().find(answers)[0].examples) >= 15
