"""python -m pytest tests/reward/test_reward_rules.py

The six rules' values, and their languages against the regular expressions they replace, on all short strings."""

import itertools
import re

import pytest

from r1zero.reward.boxes import last_box
from r1zero.reward.rules import RULES, has_base_format, has_format, has_strict_format

TAGS = ["<think>", "</think>", "<answer>", "</answer>"]
FORMAT = re.compile(r"^<think>.*?</think>\s*<answer>.*?</answer>$", re.DOTALL | re.MULTILINE)
BASE = re.compile(r"<think>.*</think>.*<answer>.*\\boxed{.*}.*</answer>", re.DOTALL)
BOX = re.compile(r"\\boxed\{.*?\}")
GOOD = r"<think>so</think><answer>\boxed{4}</answer>"


def value(rule: str, response: str, label: str = "4") -> float:
    return RULES[rule](response, lambda answer: answer.strip() == label)


def short_strings(words: list[str], length: int):
    for n in range(length + 1):
        for letters in itertools.product(words, repeat=n):
            yield "".join(letters)


def strict_by_regular_expressions(text: str) -> bool:
    if not (text.startswith("<think>") and text.endswith("</answer>")):
        return False
    if any(len(re.findall(tag, text)) != 1 for tag in TAGS) or len(BOX.findall(text)) != 1:
        return False
    places = [re.search(tag, text).start() for tag in TAGS]
    places.insert(3, BOX.search(text).start())
    return places == sorted(places)


@pytest.mark.parametrize(
    "ours, theirs, words, length",
    [
        (has_format, lambda text: FORMAT.match(text) is not None, [*TAGS, " ", "\n", "x"], 6),
        (has_format, lambda text: FORMAT.match(text) is not None, [*TAGS, "\n"], 7),
        (has_base_format, lambda text: BASE.fullmatch(text) is not None, [*TAGS, "\\boxed{", "}", "\n"], 6),
        (has_base_format, lambda text: BASE.fullmatch(text) is not None, [*TAGS, "\\boxed{", "}"], 7),
        (has_strict_format, strict_by_regular_expressions, [*TAGS, "\\boxed{", "}", "\n"], 6),
        (has_strict_format, strict_by_regular_expressions, [*TAGS, "\\boxed{", "}"], 7),
    ],
    ids=["format", "format-long", "base", "base-long", "strict", "strict-long"],
)
def test_the_linear_decision_is_the_regular_expression_on_all_short_strings(ours, theirs, words, length):
    accepted = 0
    for text in short_strings(words, length):
        verdict = ours(text)
        assert verdict == theirs(text), text
        accepted += verdict
    assert accepted > 0


@pytest.mark.parametrize(
    "unit", ["<think></think><answer>\\boxed{", "\\boxed{", "</answer>", "<think>", "\\boxed{}\n", "{"]
)
def test_a_megabyte_of_repeated_tags_is_decided(unit):
    text = "<think>" + unit * (1_000_000 // len(unit))
    for rule in RULES:
        assert value(rule, text) <= 0.0 or rule == "step"


@pytest.mark.parametrize(
    "response, values",
    [
        (GOOD, {"format": 1, "strict_format": 1, "acc": 1, "base_acc": 1, "step": 0, "math_17k_acc": 1}),
        ("", {"format": 0, "strict_format": -0.5, "acc": -1, "base_acc": 0, "step": 0, "math_17k_acc": 0}),
        (r"\boxed{4}", {"format": 0, "strict_format": -0.5, "acc": 1, "base_acc": 0, "math_17k_acc": 1}),
        (r"\boxed{5}", {"acc": -0.5, "base_acc": 0, "math_17k_acc": 0}),
        ("4", {"acc": -1, "base_acc": 0, "math_17k_acc": 0}),
        (r"\boxed{}", {"acc": -0.5, "math_17k_acc": 0}),
        (GOOD + "\n", {"format": 1, "strict_format": -0.5, "acc": 1, "base_acc": 0}),
        (" " + GOOD, {"format": 0, "strict_format": -0.5, "acc": 1, "base_acc": 0}),
        (GOOD.replace("</think>", "</think> so "), {"format": 0, "strict_format": 1, "base_acc": 1}),
        (GOOD.replace("4", "5"), {"format": 1, "strict_format": 1, "acc": -0.5, "base_acc": 0}),
        (GOOD + r"<answer>\boxed{5}</answer>", {"strict_format": -0.5, "acc": -0.5, "base_acc": 0}),
        (GOOD + "<answer>5</answer>", {"acc": 1, "base_acc": 0}),
        (r"<think>\boxed{4}</think><answer>\boxed{}</answer>", {"acc": -0.5, "base_acc": 0, "strict_format": -0.5}),
        (r"<think>\boxed{4}</think><answer>4</answer>", {"acc": 1, "base_acc": 0, "strict_format": -0.5}),
        (r"<think>x</think><answer>\boxed{4} \boxed{5}</answer>", {"acc": -0.5, "base_acc": 0}),
        (r"<think>x</think><answer>\boxed{5} \boxed{4}</answer>", {"acc": 1, "base_acc": 1}),
        (r"<think>x</think><answer>\boxed{4} \boxed{4</answer>", {"acc": -1, "base_acc": 0}),
        ("<think>x</think><answer>\\boxed{\n4}</answer>", {"acc": 1, "base_acc": 1, "strict_format": -0.5}),
        ("Step 1: a\nStep 2: b\nStep 3: c\nStep 4: d", {"step": 1}),
        ("1. a\n2. b\nx 3. c", {"step": 2 / 3}),
        ("- a\n* b\nFirst, c", {"step": 1}),
        ("Finally, a", {"step": 1 / 3}),
        ("First a. Next b. step 1: c. 1) d", {"step": 0}),
    ],
)
def test_the_values_are_those_of_the_table(response, values):
    assert {rule: value(rule, response) for rule in values} == pytest.approx(values)


@pytest.mark.parametrize(
    "text, content",
    [
        (r"\boxed{1} and \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed {3}", "3"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
        (r"\boxed{\boxed{3}}", r"\boxed{3}"),
        (r"\boxed{1} } {", "1"),
        (r"{\boxed{1}", "1"),
        (r"\boxed{ \boxed{5}", "5"),
        (r"\boxed{1} \boxed{2", None),
        (r"\boxed 5", None),
        ("boxed{5}", None),
        ("", None),
    ],
)
def test_the_last_box_is_the_last_that_closes_and_none_is_open_after_it(text, content):
    box = last_box(text)
    assert (box and box.content) == content
    assert box is None or text[box.start : box.stop].endswith(content + "}")
