r"""The reward rules: functions of text that return a number, in time linear in the text.

Each rule is `rule(response, correct) -> float`, where `correct(answer)` decides whether the content of a box equals the
label. Names and values are those of MindSpeed-RL (`models/rule_verifier.py`). Its regular expressions can backtrack
without bound; the functions here decide the same language by finding the tags in order.
"""

import re
from collections.abc import Callable

from r1zero.reward.boxes import last_box

Correct = Callable[[str], bool]
Rule = Callable[[str, Correct], float]

ALTERNATIVES = "\x1e"
"""Parts the answers of a label that has several, any of which is right: ASCII's record separator."""
THINK, END_THINK, ANSWER, END_ANSWER = "<think>", "</think>", "<answer>", "</answer>"

_ANSWER_AFTER_THINK = re.compile(r"</think>\s*<answer>")
_END_ANSWER_AT_LINE_END = re.compile(r"</answer>(?=\n|\Z)")
_STEP_MARKERS = re.compile(r"Step \d+:|^\d+\.|^[-*]|First,|Second,|Next,|Finally,", re.MULTILINE)


def has_format(response: str) -> bool:
    r"""Whether `re.match(r"^<think>.*?</think>\s*<answer>.*?</answer>$", response, DOTALL | MULTILINE)` finds anything.

    The first `.*?` may extend over any number of `</think>`, so only the earliest `</think> <answer>` matters. After it
    any `</answer>` at an end of line is sufficient.

    >>> has_format("<think>2+2</think> <answer>4</answer>\nand more")
    True
    >>> has_format("<think>2+2</think> so <answer>4</answer>")
    False
    """
    if not response.startswith(THINK):
        return False
    opened = _ANSWER_AFTER_THINK.search(response, len(THINK))
    return opened is not None and _END_ANSWER_AT_LINE_END.search(response, opened.end()) is not None


def has_base_format(response: str) -> bool:
    r"""Whether `re.fullmatch(r"<think>.*</think>.*<answer>.*\\boxed{.*}.*</answer>", response, DOTALL)` finds anything.

    Each tag is taken at its earliest position after the previous one, which leaves the most room for the rest. A
    single character before the first tag or after the last one is enough to fail.
    """
    if not (response.startswith(THINK) and response.endswith(END_ANSWER)):
        return False
    place = len(THINK)
    for tag in (END_THINK, ANSWER, "\\boxed{", "}"):
        found = response.find(tag, place)
        if found < 0:
            return False
        place = found + len(tag)
    return place <= len(response) - len(END_ANSWER)


def has_strict_format(response: str) -> bool:
    r"""Whether the text starts with <think>, ends with </answer>, and has each tag and a `\boxed{..}` once, in order.

    The box must be on one line.

    >>> has_strict_format(r"<think>2+2</think><answer>\boxed{4}</answer>")
    True
    >>> has_strict_format(r"<think>\boxed{4}</think><answer>\boxed{4}</answer>")
    False
    """
    if not (response.startswith(THINK) and response.endswith(END_ANSWER)):
        return False
    tags = (THINK, END_THINK, ANSWER, END_ANSWER)
    if any(response.count(tag) != 1 for tag in tags):
        return False
    boxes = _one_line_boxes(response)
    if len(boxes) != 1:
        return False
    places = [response.find(tag) for tag in tags]
    order = [*places[:3], boxes[0], places[3]]
    return order == sorted(order)


def _one_line_boxes(text: str) -> list[int]:
    r"""Returns the starts of at most two matches of `\\boxed\{.*?\}`, without a regular expression's quadratic time."""
    starts: list[int] = []
    place = 0
    for line in text.split("\n"):
        start = line.find("\\boxed{")
        while start >= 0 and len(starts) < 2:
            stop = line.find("}", start + len("\\boxed{"))
            if stop < 0:
                break
            starts.append(place + start)
            start = line.find("\\boxed{", stop + 1)
        place += len(line) + 1
    return starts


def format_reward(response: str, correct: Correct) -> float:
    """1.0 for the R1-Zero format, else 0.0."""
    return 1.0 if has_format(response) else 0.0


def strict_format(response: str, correct: Correct) -> float:
    """1.0 for the R1-Zero format with everything exactly once, else -0.5."""
    return 1.0 if has_strict_format(response) else -0.5


def acc(response: str, correct: Correct) -> float:
    """1.0 if the last box equals the label, -0.5 if it does not, -1.0 if nothing is boxed."""
    box = last_box(response)
    if box is None:
        return -1.0
    return 1.0 if correct(box.content) else -0.5


def base_acc(response: str, correct: Correct) -> float:
    r"""1.0 only if the whole response is in the format and its last box, inside the last answer block, is correct.

    A correct box that is followed by a wrong one, or that is before the last <answer>, earns nothing.
    """
    if not has_base_format(response):
        return 0.0
    box = last_box(response)
    if box is None:
        return 0.0
    inside = box.start >= response.rfind(ANSWER) + len(ANSWER) and box.stop <= len(response) - len(END_ANSWER)
    return 1.0 if inside and correct(box.content) else 0.0


def step(response: str, correct: Correct) -> float:
    """A third for each marker of stepwise thinking, at most 1.0.

    Every numbered or bulleted line counts, as in the published rule. The reference's code lacks the multi-line flag, so
    it counts a number only at the very start of the text.
    """
    markers = 0
    for _ in _STEP_MARKERS.finditer(response):
        markers += 1
        if markers == 3:
            return 1.0
    return markers / 3


def math_17k_acc(response: str, correct: Correct) -> float:
    """1.0 if the last box equals the label, whatever the format, else 0.0."""
    box = last_box(response)
    return 1.0 if box is not None and correct(box.content) else 0.0


RULES: dict[str, Rule] = {
    "format": format_reward,
    "strict_format": strict_format,
    "acc": acc,
    "base_acc": base_acc,
    "step": step,
    "math_17k_acc": math_17k_acc,
}
