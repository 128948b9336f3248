r"""Is this answer equal to that label?

math-verify and sympy decide. What stands before them: exact arithmetic for plain numbers (the same decisions, a
thousand times faster), spellings that math-verify lacks, and refusals where it is too generous. The decisions, with
`label` on the left:

>>> both = [("0.5", r"\frac{1}{2}"), ("1000", "1,000"), ("1200", r"1.2 \times 10^3"), (r"2\frac12", "5/2")]
>>> [equal(answer, label) for label, answer in both]                        # numbers, however written
[True, True, True, True]
>>> [equal(answer, "1/3") for answer in ("0.333333", "0.3333", "0.3")]      # six decimals, as math-verify has it
[True, False, False]
>>> equal("0.1234567", "0.1234568")                  # but decimals that end are exact (math-verify: equal)
False
>>> [equal("50", r"50\%"), equal(r"50\%", "50"), equal("0.5", r"50\%"), equal(r"0.5\%", "0.5")]
[True, True, True, False]
>>> [equal("5", r"5\text{ cm}"), equal("5 m", r"5\text{ cm}"), equal("5 apples", "5"), equal("90", r"90^\circ")]
[True, False, True, True]
>>> [equal("x = 5", "5"), equal("y = 5", "x = 5"), equal("x + y = 5", "5")]  # a name for the value is no difference
[True, False, True]
>>> equal("2x + 3 = 7", "7")                         # an equation to solve is no answer (math-verify: equal)
False
>>> [equal("2+2", "4"), equal("5!", "120"), equal(r"\binom{4}{2}", "6")]  # nor is arithmetic left undone
[False, False, False]
>>> [equal("2^{10}", "1024"), equal(r"\sqrt{16}", "4"), equal(r"\log_2 8", "3")]  # one closed form is a value
[True, True, True]
>>> [equal(r"3 \text{ or } 4", "3"), equal("3", "3, 4"), equal("4, 3", "3, 4")]
[False, False, True]
>>> [equal("1, 2", "(1, 2)"), equal("2, 1", "(1, 2)"), equal(r"\{1, 2\}", "(1, 2)"), equal("[1, 2]", "(1, 2)")]
[True, False, False, False]
>>> [equal("x > 2", r"(2, \infty)"), equal(r"(2, \infty)", "x > 2")]  # math-verify: a set may answer a relation only
[False, True]
>>> [equal("(B)", r"\text{B}"), equal("west", r"\text{east}"), equal("neve", "even"), equal("y", "x")]
[True, False, False, False]
>>> [equal(r"\textbf{(B)}\ \frac{1}{6}", "1/6"), equal(r"\textbf{(B)}\ \frac{1}{7}", "1/6"), equal("(B)", "1/6")]
[True, False, False]
>>> [equal("3 4", "7"), equal("3(4)", "7"), equal("1:3:2", "1:2:3"), equal("A", "A'"), equal("11_3", "11_2")]
[False, False, False, False, False]
>>> [equal(r"\boxed{5}", "5"), equal(r"\boxed{5}+1", "5"), equal("1" * 2000, "1" * 2000), equal("", "5")]
[True, False, True, False]
"""

import re

from sympy import Rational

from r1zero.reward import bounds, solver, undone
from r1zero.reward.boxes import last_box
from r1zero.reward.numerals import Numeral, numeral, same
from r1zero.reward.units import Quantity, quantity

Tree = solver.Tree

_DOLLARS = re.compile(r"\$\$?(?P<body>[^$]+)\$\$?|\\\((?P<body1>.+)\\\)|\\\[(?P<body2>.+)\\\]", re.DOTALL)
_TRAILING = re.compile(r"(?:(?<!\\)[.,;]|\\\\|\\quad|\\qquad|\\[,;:! ]|~|\s)+$")
_LEADING = re.compile(r"(?:\\displaystyle(?![a-z])|\\[,;:! ]|\\q?quad(?![a-z])|~|\s)+")
_CHOICE = re.compile(
    r"\\(?:text[a-z]*|mathrm|mathbf)\s*\{\s*\(?[A-H]\)"
    r"(?:(?:\s|~|\\ )*\}(?:~|\\[ ,;:]|\\quad|\s)*(?P<value>.+)|(?:\s|~|\\ )+(?P<inside>[^{}]+)\})"
    r"|\([A-H]\)(?:~|\\[ ,;:]|\\quad|\s)+(?P<bare>.+)",
    re.DOTALL,
)
_OTHER_CHOICE = re.compile(r"\([A-H]\)")
_ONLY_CHOICE = re.compile(r"(?:\\[a-z]+\s*\{)?\s*\(?[A-H]\)?\s*\}?")
_SENTENCE = re.compile(r"\\(?:text[a-z]*|mathrm|mbox)\s*\{(?P<inside>[^{}\\]*[0-9][^{}\\]*)\}")
_SPELLINGS = (
    (re.compile(r"\\[bB]igg?[lr]?(?![a-z])|\\displaystyle(?![a-z])"), ""),
    (re.compile(r"\{\s*([-+])\s*\}"), r"\1"),
    (re.compile(r"\\varnothing"), r"\\emptyset"),
    (re.compile(r"\\[lr]angle"), lambda match: "(" if match.group() == r"\langle" else ")"),
    (re.compile(r"(?<=[0-9])(?:\{,\}|,\\!|\\,|~)(?=[0-9]{3}(?![0-9]))"), ","),
    (re.compile(r"(?<![A-Za-z0-9.])([0-9]+(?:\.[0-9]+)?)[eE]([-+]?[0-9]{1,3})(?![A-Za-z0-9.])"), r"\1\\times 10^{\2}"),
)
_WORDS = re.compile(
    r"\\(?:text[a-z]*|mathrm|mathbf|mathit|mbox|hbox)\s*\{\s*(?P<wrapped>[^{}\\$]*?)\s*\}|(?P<bare>[^{}\\$]*)"
)
_LETTERS = re.compile(r"[A-Za-z][A-Za-z .'-]*")
_JUXTAPOSED = re.compile(
    r"(?<![_^0-9])(?<!frac)(?<!frac )[0-9]+(?:\s+[0-9]|\s*\(\s*[-+]?[0-9.]+\s*\))|\(\s*[-+]?[0-9.]+\s*\)\s*[0-9]"
)
_PRIMES = re.compile(r"[A-Za-z}]\s*((?:'|\\prime|\^\s*\{\s*\\prime\s*\})+)")
_BASE = re.compile(r"[0-9]_\s*\{?\s*([0-9]+)\s*\}?\s*$")
_COMPUTED_ON_READING = re.compile(r"\\[dt]?binom|\\choose|\\gcd|\\lcm|\\det|vmatrix|operatorname")
_LEFT_RIGHT = re.compile(r"\\m?(?:left|right)|\s+")


def equal(answer: str, label: str) -> bool:
    """Whether the content of a box is mathematically equal to the label; False where either cannot be read."""
    answer, label = tidy(answer), tidy(label)
    if not answer or not label:
        return False
    if answer == label:
        return True
    if "\\boxed" in answer:
        return _equal_inside_box(answer, label)
    if not bounds.readable(answer) or not bounds.readable(label) or _marks(answer) != _marks(label):
        return False
    if choice := _CHOICE.fullmatch(answer):
        value = next(filter(None, choice.groups()))
        return _OTHER_CHOICE.search(value) is None and equal(value, label)
    return _same_quantity(quantity(answer), quantity(label))


def _equal_inside_box(answer: str, label: str) -> bool:
    r"""A box in a box is the box; beside anything else it is no answer (math-verify would read the 5 of `\boxed{5}+1`)."""
    box = last_box(answer) if len(answer) <= bounds.MAX_CHARACTERS else None
    return box is not None and len(answer) == box.stop - box.start and equal(box.content, label)


def parses(label: str) -> bool:
    """Whether the label means something beyond its letters: a number, words, or a tree."""
    label = tidy(label)
    if not label or not bounds.readable(label):
        return False
    body = quantity(label).body
    return numeral(body) is not None or bool(_words(body)) or _same_ratio(body, body) or _tree(body) is not None


def is_choice(text: str) -> bool:
    r"""Whether the text is a choice letter and nothing more.

    >>> is_choice(r"\textbf{(B)}"), is_choice("D"), is_choice(r"\textbf{(B)}\ 5")
    (True, True, False)
    """
    return _ONLY_CHOICE.fullmatch(tidy(text)) is not None


def tidy(text: str) -> str:
    r"""Without dollars around it, white space, and punctuation after it.

    >>> tidy(r" $\frac{1}{2}$. ")
    '\\frac{1}{2}'
    """
    text = text.strip().replace("\xa0", " ")
    if len(text) > bounds.MAX_CHARACTERS:
        return text
    text = _TRAILING.sub("", text)
    if wrapped := _DOLLARS.fullmatch(text):
        text = _TRAILING.sub("", (wrapped["body"] or wrapped["body1"] or wrapped["body2"]).strip())
    if leading := _LEADING.match(text):
        text = text[leading.end() :]
    if sentence := _SENTENCE.fullmatch(text):
        text = sentence["inside"].strip()
    return text


def _marks(text: str) -> tuple[str, ...]:
    """What math-verify's normalisation drops though it matters: the primes of names."""
    return tuple("'" * len(re.findall(r"'|prime", marks)) for marks in _PRIMES.findall(text))


def _same_quantity(answer: Quantity, label: Quantity) -> bool:
    if answer.unit and label.unit and answer.unit != label.unit:
        return False
    if {"am", "pm"} & {answer.unit, label.unit} and ":" in label.body:
        return re.findall("[0-9]+", answer.body) == re.findall("[0-9]+", label.body)
    if answer.percent == label.percent:
        return _same_body(answer.body, label.body)
    percent, plain = (answer, label) if answer.percent else (label, answer)
    hundredth = _hundredth(percent.body)
    if hundredth is not None and (other := numeral(plain.body)) is not None and same(hundredth, other):
        return True
    value = numeral(plain.body)
    if value is not None and value.value.denominator != 1 and abs(value.value) < 1:
        return False  # 0.5 is 50 %, not 0.5 %
    return _same_body(answer.body, label.body)


def _hundredth(body: str) -> Numeral | None:
    value = numeral(body)
    return Numeral(value.value / 100, value.rounded) if value is not None else None


def _same_body(answer: str, label: str) -> bool:
    """Numbers exactly, words as words, ratios as ratios, all else by the solver."""
    if answer == label:
        return True
    ours, theirs = numeral(answer), numeral(label)
    if ours is not None and theirs is not None:
        return same(ours, theirs)
    if (words := _words(label)) and (other := _words(answer)):
        return words == other
    if ":" in answer and ":" in label:
        return _same_ratio(answer, label)
    if _different_bases(answer, label) or _brackets_differ(answer, label):
        return False
    gold, pred = _tree(label), _tree(answer)
    if gold is None or pred is None or undone.left_undone(pred, gold):
        return False
    if _COMPUTED_ON_READING.search(answer) and not _COMPUTED_ON_READING.search(label) and not pred.free_symbols:
        return False
    return solver.same(gold, pred)


def _tree(text: str) -> Tree | None:
    for pattern, replacement in _SPELLINGS:
        text = pattern.sub(replacement, text)
    value = numeral(text)
    if value is not None and not value.rounded:
        return Rational(value.value.numerator, value.value.denominator)
    if _JUXTAPOSED.search(text):
        return None  # math-verify adds numbers that stand side by side, as in a mixed number
    return solver.parse_label(text)


def _words(text: str) -> frozenset[str]:
    r"""Choice letters and words, in any order; empty where the text is mathematics.

    Bare letters are words from four on, or in a list of single capitals; fewer may be a product of variables.

    >>> sorted(_words(r"\text{B, C}")), sorted(_words("Monday")), sorted(_words("(D)")), sorted(_words("xy"))
    (['b', 'c'], ['monday'], ['d'], [])
    """
    match = _WORDS.fullmatch(text)
    if match is None:
        return frozenset()
    wrapped = match["wrapped"] is not None
    parts = [
        part.strip(" ().") for part in re.split(r",|;|\band\b|\bor\b", match["wrapped"] if wrapped else match["bare"])
    ]
    parts = [part for part in parts if part]
    if not parts or not all(_LETTERS.fullmatch(part) for part in parts):
        return frozenset()
    bare_word = all(len(part) >= 4 or re.fullmatch("[A-H]", part) for part in parts)
    if not wrapped and not bare_word:
        return frozenset()
    return frozenset(re.sub(r"[\s.'-]", "", part).lower() for part in parts)


def _same_ratio(answer: str, label: str) -> bool:
    """1:2 is 2:4; every term counts, where math-verify divides from the left."""
    ours, theirs = ([numeral(term.replace(r"\!", "").strip()) for term in text.split(":")] for text in (answer, label))
    if None in ours or None in theirs or len(ours) != len(theirs) or not theirs[0].value:
        return False
    scale = ours[0].value / theirs[0].value
    return scale != 0 and all(a.value == scale * b.value for a, b in zip(ours, theirs, strict=True))


def _different_bases(answer: str, label: str) -> bool:
    """11_2 and 11_3; math-verify drops the base. A base missing on one side is like a unit missing."""
    ours, theirs = _BASE.search(answer), _BASE.search(label)
    return ours is not None and theirs is not None and ours[1] != theirs[1]


def _brackets_differ(answer: str, label: str) -> bool:
    r"""A point in parentheses is no set in braces, as math-verify's documentation has it, though not its code."""
    ends = [(text[:1] + text[-1:], r"\{" == text[:2] and r"\}" == text[-2:]) for text in map(_bare, (answer, label))]
    return any(a[1] and b[0] in ("()", "[]", "[)", "(]") for a, b in (ends, ends[::-1]))


def _bare(text: str) -> str:
    return _LEFT_RIGHT.sub("", text)
