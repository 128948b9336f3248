"""From the names of rules to one function that grades a sample; runs in the supervisor and its workers."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from r1zero.reward import accuracy
from r1zero.reward.boxes import last_box
from r1zero.reward.rules import RULES
from r1zero.reward.worker import Work

Grade = Callable[[str, str], dict[str, Any]]


def grader(names: list[str]) -> Grade:
    """`grade(response, label) -> {"equal": bool, "scores": {rule: value}}` for the rules named."""
    rules = {name: RULES[name] for name in names if name in RULES}
    user_rules = {name: load_rule(name) for name in names if name not in RULES}

    def grade(response: str, label: str) -> dict[str, Any]:
        correct = _decided_once(label)
        box = last_box(response)
        equal = box is not None and correct(box.content)
        scores = {name: float(rule(response, correct)) for name, rule in rules.items()}
        scores |= {name: float(rule(response, label)) for name, rule in user_rules.items()}
        return {"equal": equal, "scores": {name: scores[name] for name in names}}

    return grade


def _decided_once(label: str) -> Callable[[str], bool]:
    """Several rules ask about the same box; the solver is asked once."""
    known: dict[str, bool] = {}

    def correct(answer: str) -> bool:
        if answer not in known:
            known[answer] = accuracy.equal(answer, label)
        return known[answer]

    return correct


def load_rule(name: str) -> Callable[[str, str], float]:
    """The function behind `path.py:function`, its file run once, before any worker is forked."""
    path, function = name.rsplit(":", 1)
    spec = importlib.util.spec_from_file_location(f"user_rule_{Path(path).stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, function)


def work(names: list[str]) -> Work:
    """What a worker can be asked to do."""
    return {"grade": grader(names)}
