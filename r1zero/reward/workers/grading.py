"""The tasks of a worker as functions of texts. Runs in the supervisor and its workers."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from r1zero.reward.boxes import last_box
from r1zero.reward.equality import answers
from r1zero.reward.own_rules import load_rule
from r1zero.reward.rules import ALTERNATIVES, RULES
from r1zero.reward.workers.worker import Work


def work(rules: Sequence[str]) -> Work:
    """Returns the kinds of task: "grade" a response against a label by the given rules, check a "label" and its
    solution, or "group" equal answers.

    Raises:
        RewardError: a user's rule cannot be loaded, or has parameters that are never filled.
    """
    return {"grade": grader(rules), "label": check_label, "group": group_answers}


def grader(names: Sequence[str]) -> Callable[..., dict[str, Any]]:
    """Returns `grade(response, label, prompt, additional) -> {"equal": bool, "scores": {rule: value}}`."""
    rules = {name: RULES[name] for name in names if name in RULES}
    user_rules = {name: load_rule(name) for name in names if name not in RULES}

    def grade(response: str, label: str, prompt: str = "", additional: dict[str, Any] | None = None) -> dict[str, Any]:
        correct = _decided_once(label)
        box = last_box(response)
        equal = box is not None and correct(box.content)
        scores = {name: float(rule(response, correct)) for name, rule in rules.items()}
        offered = {"prompt": prompt, "additional": additional or {}, "equal": answers.equal}
        scores |= {name: rule(response, label, offered) for name, rule in user_rules.items()}
        return {"equal": equal, "scores": {name: scores[name] for name in names}}

    return grade


def check_label(label: str, solution: str | None) -> dict[str, Any]:
    """Check whether the label is readable, and whether the box of its worked solution, if any, equals it."""
    box, labels = last_box(solution or ""), label.split(ALTERNATIVES)
    agrees = box is not None and any(answers.equal(box.content, one) for one in labels)
    return {
        "parses": all(map(answers.parses, labels)),
        "box": None if box is None else box.content,
        "agrees": agrees,
        "choice": box is not None and not agrees and answers.is_choice(box.content) and not answers.is_choice(label),
    }


def group_answers(answers_given: Sequence[str]) -> list[int]:
    """The group of each answer, numbered in order of first appearance.

    An answer joins the first group whose first answer it equals; of answers spelt alike only one is compared.
    """
    known: dict[str, int] = {}
    first: list[str] = []
    for answer in answers_given:
        if answer in known:
            continue
        found = (g for g, other in enumerate(first) if answers.equal(answer, other))
        known[answer] = next(found, len(first))
        if known[answer] == len(first):
            first.append(answer)
    return [known[answer] for answer in answers_given]


def _decided_once(label: str) -> Callable[[str], bool]:
    """Returns a check that asks the solver only once per answer, as several rules ask about the same box."""
    labels = label.split(ALTERNATIVES)
    return lambda answer: any((_kept if len(answer) <= KEPT else answers.equal)(answer, one) for one in labels)


KEPT = 200
"""Largest number of characters of an answer whose result is kept. Most are shorter, and a worker has little memory."""


@lru_cache(maxsize=1024)
def _kept(answer: str, label: str) -> bool:
    """Like `answers.equal`, once per pair, because the responses to one prompt often give the same answer."""
    return answers.equal(answer, label)
