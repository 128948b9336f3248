r"""Decides whether an answer is equal to a label.

A text is converted to a single spelling (spelling), divided into lists, tuples, sets and relations (meaning), and
compared by kind (comparison). math-verify reads the expressions in it (solver). Two expressions are equal if their
values are (scalars); if that cannot be decided, the answer is refused. Examples, with `label` on the left:

>>> both = [("0.5", r"\frac{1}{2}"), ("1000", "1,000"), ("1200", "1.2e3"), (r"2\frac12", "5/2"), ("√2", r"\sqrt2")]
>>> [equal(answer, label) for label, answer in both]                        # numbers, however written
[True, True, True, True, True]
>>> [equal(answer, "1/3") for answer in ("0.333333", "0.3333", "0.3")]      # rounded to six decimals at least
[True, False, False]
>>> [equal("0.1234567", "0.1234568"), equal("1/2^{61}", "1/2^{60}"), equal("10^{20}", r"\sqrt{10^{40}+1}")]
[False, False, False]
>>> [equal("50", r"50\%"), equal(r"50\ \%", "50"), equal("0.5", r"50\%"), equal(r"0.5\%", "0.5")]
[True, True, True, False]
>>> [equal("5", r"5\text{ cm}"), equal("5 m", r"5\text{ cm}"), equal("5 apples", "5"), equal("90", r"90\ ^\circ")]
[True, False, True, True]
>>> [equal("x = 5", "5"), equal("y = 5", "x = 5"), equal("x + y = 5", "5")]  # a name for the value is no difference
[True, False, True]
>>> [equal("2x + 3 = 7", "7"), equal("2x = 4", "x = 2"), equal("2+2", "4")]  # an echo of the question is no answer
[False, False, False]
>>> [equal("2^{10}", "1024"), equal(r"\log_2 8", "3"), equal("5!", "120"), equal(r"\binom{4}{2}", "6")]  # a value
[True, True, True, True]
>>> [equal("2^{2^{2}}", "16"), equal("2^{2^{2^{2}}}", "65536"), equal("9^{9^{9^{9}}}", "9^{9^{9^{9}}}+1")]
[True, True, False]
>>> [equal(r"3 \text{ or } 4", "3"), equal("3", "3, 4"), equal("4, 3", "3, 4"), equal("x_1=4, x_2=3", "3 or 4")]
[False, False, True, True]
>>> [equal("1, 2", "(1, 2)"), equal("2, 1", "(1, 2)"), equal(r"\{1, 2\}", "(1, 2)"), equal("[1, 2]", "(1, 2)")]
[True, False, False, False]
>>> [equal("x > 2", r"(2, \infty)"), equal(r"x<1 \text{ or } x>2", "(-∞,1)∪(2,∞)"), equal(r"\{x: x \ge 2\}", "(2,∞)")]
[True, True, False]
>>> [equal("(B)", r"\text{B}"), equal("west", r"\text{east}"), equal("neve", "even"), equal("y", "x"), equal("r", "R")]
[True, False, False, False, False]
>>> [equal(r"\textbf{(B)}\ \frac{1}{6}", "1/6"), equal(r"\textbf{(B)}\ \frac{1}{7}", "1/6"), equal("(B)", "1/6")]
[True, False, False]
>>> [equal("2:4", "1:2"), equal("1:3:2", "1:2:3"), equal("6:00", "12:00"), equal("3:30 AM", r"3:30 \text{ p.m.}")]
[True, False, False, False]
>>> [equal("3 4", "7"), equal("3(4)", "7"), equal("A", "A'"), equal("11_3", "11_2")]
[False, False, False, False]
>>> [equal(r"\boxed{5}", "5"), equal(r"\boxed{5}+1", "5"), equal("1" * 2000, "1" * 2000), equal("", "5")]
[True, False, True, False]
"""

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache

from r1zero.reward.boxes import last_box
from r1zero.reward.equality import comparison, size_limits
from r1zero.reward.equality.spelling import plain

_DOLLARS = re.compile(r"(?<!\\)\$\$?")
_TRAILING = re.compile(r"(?:(?<![\\.])[.,;]|\\\\|\s)+$")  # three dots mean that more follows
_LEADING = re.compile(r"(?:=|\\approx(?![A-Za-z])|\s)+")
_CHOICE = re.compile(
    r"(?:\\text\s*\{\s*\(?[A-H]\)?\s*[.:]?\s*\}|\([A-H]\))\s*(?:=\s*)?(?P<value>[^\s,;.].*)"
    r"|\\text\s*\{\s*\([A-H]\)\s*(?P<inside>[^{}\s][^{}]*)\}"
    r"|(?P<before>.*?[^\s,;=])\s*\\(?:Long)?[Rr]ightarrow\s*(?:\\text\s*\{)?\s*\(?[A-H]\)?\s*\}?"
    r"|(?P<beside>.*[^\s,;=])\s*(?:\\text\s*\{\s*\([A-H]\)\s*\}|(?<=\s)\([A-H]\))",
    re.DOTALL,
)
_OTHER_CHOICE = re.compile(r"\([A-H]\)")
_ONLY_CHOICE = re.compile(r"(?:\\text\s*\{)?\s*\(?[A-H]\)?\s*\}?")
_SENTENCE = re.compile(r"\\text\s*\{(?P<inside>(?:[^{}\\]|\\[$%])*[0-9](?:[^{}\\]|\\[$%])*)\}")
_NAMED_CHOICE = re.compile(r"(?:\\text\s*\{)?\s*(?:option|choice|answer)\s*\(?([A-H])\)?\s*\}?", re.IGNORECASE)
_PRIMES = re.compile(r"[A-Za-z}]\s*((?:'|\\prime|\^\s*\{\s*\\prime\s*\})+)")


def equal(answer: str, label: str) -> bool:
    """Whether the content of a box is mathematically equal to the label. False if either cannot be read."""
    answer, label = tidy(answer), tidy(label)
    if not answer or not label:
        return False
    if answer == label:
        return True
    if "\\boxed" in answer:
        return _equal_inside_box(answer, label)
    if not size_limits.readable(answer) or not size_limits.readable(label) or _marks(answer) != _marks(label):
        return False
    if choice := _CHOICE.fullmatch(answer):
        value = next(filter(None, choice.groups()))
        return _OTHER_CHOICE.search(value) is None and equal(value, label)
    return comparison.same(answer, label)


def warm(samples: Iterable[str | tuple[str, str]]) -> Iterator[None]:
    """Read one sample per step, or read and compare a pair, so that the parser and sympy load what such answers
    need."""
    for sample in samples:
        texts = (sample,) if isinstance(sample, str) else sample
        for text in texts:
            parses(text)
        equal(texts[0], texts[-1])
        yield


def _equal_inside_box(answer: str, label: str) -> bool:
    r"""Compare a box in a box by its content. Beside anything else, as in `\boxed{5}+1`, it is not an answer."""
    box = last_box(answer) if len(answer) <= size_limits.MAX_CHARACTERS else None
    return box is not None and len(answer) == box.stop - box.start and equal(box.content, label)


def parses(label: str) -> bool:
    """Whether the label is understood as more than its letters: a number, words, an expression, or a combination."""
    label = tidy(label)
    return bool(label) and size_limits.readable(label) and comparison.is_read(label)


def is_choice(text: str) -> bool:
    r"""Whether the text is only a choice letter.

    >>> is_choice(r"\textbf{(B)}"), is_choice("D"), is_choice(r"\textbf{(B)}\ 5")
    (True, True, False)
    """
    return _ONLY_CHOICE.fullmatch(tidy(text)) is not None


def tidy(text: str) -> str:
    r"""Returns the text in the single spelling, without TeX's dollars and surrounding white space and punctuation.

    >>> tidy(r" $\dfrac{1}{2}$. "), tidy("$18"), tidy("$1$ or $2$")
    ('\\frac{1}{2}', '$18', '1  or  2')
    """
    text = text.strip()
    return text if len(text) > size_limits.MAX_CHARACTERS else _tidied(text)


@lru_cache(maxsize=4096)
def _tidied(text: str) -> str:
    text = plain(text)
    if (dollars := len(_DOLLARS.findall(text))) and dollars % 2 == 0:
        text = _DOLLARS.sub(" ", text).strip()
    text = _TRAILING.sub("", text)
    if leading := _LEADING.match(text):
        text = text[leading.end() :]
    if sentence := _SENTENCE.fullmatch(text):
        text = sentence["inside"].strip()
    return _NAMED_CHOICE.sub(r"\\text{\1}", text) if _NAMED_CHOICE.fullmatch(text) else text


def _marks(text: str) -> tuple[str, ...]:
    """Returns the primes of names, which math-verify's normalisation drops although they matter."""
    return tuple("'" * len(re.findall(r"'|prime", marks)) for marks in _PRIMES.findall(text))
