"""The base model's corpus: answers in several styles, of which few have the R1-Zero format and fewer think inside
it."""

import random
from collections.abc import Callable

from r1zero.miniature.problems import answer, steps

TAGS = ("<think>", "</think>", "<answer>", "\\boxed{", "</answer>")


def number(expression: str, rng: random.Random) -> str:
    return answer(expression)


def sentence(expression: str, rng: random.Random) -> str:
    return rng.choice(("the answer is {}", "\\boxed{{{}}}")).format(answer(expression))


def thought(expression: str, rng: random.Random) -> str:
    """A chain of thought without tags."""
    ending = rng.choice(("", " so the answer is {}", " \\boxed{{{}}}"))
    return " ".join(steps(expression)) + ending.format(answer(expression))


def full_format(thinking: str, expression: str) -> str:
    return f"<think> {thinking}</think><answer> \\boxed{{{answer(expression)}}} </answer>"


def guess_in_format(expression: str, rng: random.Random) -> str:
    """The answer in the format without a thought. The base gets it right only for short chains."""
    return full_format("", expression)


def thought_in_format(expression: str, rng: random.Random) -> str:
    return full_format(" ".join(steps(expression)) + " ", expression)


def broken_format(expression: str, rng: random.Random) -> str:
    """The format with one of its five marks missing, half the time the first, so that the base rarely starts with
    it."""
    write = rng.choice((guess_in_format, thought_in_format))
    missing = TAGS[0] if rng.random() < 0.5 else rng.choice(TAGS[1:])
    return write(expression, rng).replace(missing, "", 1)


MANNERS: dict[Callable[[str, random.Random], str], float] = {
    number: 0.08,
    sentence: 0.10,
    thought: 0.49,
    guess_in_format: 0.08,
    thought_in_format: 0.05,
    broken_format: 0.20,
}
"""Style of an answer -> its share of the documents."""
FORMAT_SHARE = MANNERS[guess_in_format] + MANNERS[thought_in_format]


def documents(pool: dict[int, list[str]], count: int, rng: random.Random) -> list[tuple[str, str]]:
    """Returns `count` pairs (expression, text after the prompt). Long chains are more frequent, as they are harder."""
    lengths = rng.choices(sorted(pool), weights=[n - 1 for n in sorted(pool)], k=count)
    manners = rng.choices(list(MANNERS), weights=list(MANNERS.values()), k=count)
    chosen = (rng.choice(pool[n]) for n in lengths)
    return [(expression, manner(expression, rng)) for expression, manner in zip(chosen, manners, strict=True)]
