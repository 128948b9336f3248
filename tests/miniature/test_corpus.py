"""pytest tests/miniature/test_corpus.py"""

import random

import pytest

from r1zero.miniature import corpus, problems
from r1zero.reward.rules import has_base_format

DOCUMENTS = 20_000


@pytest.fixture(scope="module")
def documents() -> list[tuple[str, str]]:
    return corpus.documents(problems.split()["corpus"], DOCUMENTS, random.Random(1))


def test_no_document_asks_what_reinforcement_or_judgement_will_ask(documents):
    parts = problems.split()
    kept = {e for name in ("train", "heldout") for pool in parts[name].values() for e in pool}
    assert not kept & {expression for expression, _ in documents}


def test_the_format_shows_up_only_sometimes_and_thinking_inside_it_rarely(documents):
    whole = [(expression, text) for expression, text in documents if has_base_format(text)]
    thinking = [1 for expression, text in whole if problems.steps(expression)[0] in text]
    assert len(whole) / DOCUMENTS == pytest.approx(corpus.FORMAT_SHARE, abs=0.01)
    assert len(thinking) / DOCUMENTS == pytest.approx(corpus.MANNERS[corpus.thought_in_format], abs=0.005)


def test_every_manner_gives_the_true_answer_and_shares_add_up_to_one():
    assert sum(corpus.MANNERS.values()) == pytest.approx(1)
    for manner in corpus.MANNERS:
        for seed in range(20):
            assert "12" in manner("7+8-3", random.Random(seed)), manner.__name__


def test_a_broken_format_is_never_whole():
    assert not any(has_base_format(corpus.broken_format("7+8-3", random.Random(seed))) for seed in range(200))


def test_the_full_format_is_written_as_it_is_rewarded():
    text = corpus.thought_in_format("7+8-3", random.Random(0))
    assert text == "<think> 7+8=15 15-3=12 </think><answer> \\boxed{12} </answer>"
