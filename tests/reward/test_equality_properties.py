r"""python -m pytest tests/reward/test_equality_properties.py

Equality is reflexive, symmetric where it should be, and blind to how LaTeX is spelled."""

import re

import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reward.reward_data import read_labels, read_pairs

LABELS = sorted({label for _, _, label in read_labels() if not re.fullmatch(r"-?[0-9]+", label)})
PAIRS = read_pairs()
# x = 5 may answer 5, and 5 answer x = 5; 1, 2 may answer (1, 2); x = 2 may answer 2x = 4; 8:10 may answer 4:5, which is
# no time of day; only what a label leaves undone may an answer leave undone.
ONE_WAY = {
    "equations",
    "names and products",
    "tuples",
    "solutions",
    "times",
    "echoes and undone work",
    "choice letters",
}

SPELLINGS = {
    "dfrac": lambda text: text.replace(r"\frac", r"\dfrac"),
    "tfrac": lambda text: text.replace(r"\frac", r"\tfrac"),
    "dollars": lambda text: f"${text}$" if "$" not in text else text,
    "parentheses": lambda text: rf"\({text}\)" if "$" not in text else text,
    "space around": lambda text: f"  {text} \n",
    "full stop": lambda text: text if text.endswith(".") else text + ".",
    "left and right": lambda text: re.sub(r"(?<!\\left)(?<!right)([()])", _sized, text) if _balanced(text) else text,
    "display style": lambda text: text if "text" in text else r"\displaystyle " + text,
    "spaces after commas": lambda text: re.sub(r",(?=[^0-9\\])", r",\\ ", text) if "text" not in text else text,
    "braced digits": lambda text: re.sub(r"\^([0-9a-z])", r"^{\1}", text),
    "mathrm": lambda text: text if "and" in text else text.replace(r"\text{", r"\mathrm{"),
    "boxed": lambda text: rf"\boxed{{{text}}}",
}


def _sized(match: re.Match) -> str:
    return (r"\left" if match[1] == "(" else r"\right") + match[1]


def _balanced(text: str) -> bool:
    return "text" not in text and "left" not in text and text.count("(") == text.count(")") and "[" not in text + "]"


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_the_spelling_of_a_label_does_not_matter(equal, spelling):
    changed = [(SPELLINGS[spelling](label), label) for label in LABELS[::3]]
    changed = [(answer, label) for answer, label in changed if answer != label]
    assert changed and [(answer, label) for answer, label in changed if not equal(answer, label)] == []


def test_every_label_equals_itself_by_its_meaning_and_not_only_by_its_letters(equal):
    """The letters are changed by a space in front of every command, which TeX does not see."""
    spaced = {label: re.sub(r"(?<!\\)\\(?=[a-z])", r" \\", label) for label in LABELS[::2] if "text" not in label}
    assert [label for label, answer in spaced.items() if not equal(answer, label)] == []


def test_what_equals_is_equalled_unless_the_other_side_leaves_work_undone(equal):
    from r1zero.reward.equality import leaves, unevaluated
    from r1zero.reward.equality.answers import tidy

    one_sided = [pair for pair in PAIRS if equal(pair.label, pair.answer) != equal(pair.answer, pair.label)]
    one_sided = [pair for pair in one_sided if pair.category not in ONE_WAY]
    trees = [(leaves.tree_of(tidy(pair.label)), leaves.tree_of(tidy(pair.answer))) for pair in one_sided]
    assert all(None not in pair and unevaluated.is_unevaluated(*pair) for pair in trees), one_sided


numbers = st.integers(-30, 30)
leaves = st.one_of(
    numbers.map(sympy.Integer), st.sampled_from(sympy.symbols("x y n", real=True)), st.sampled_from([sympy.pi]),
    st.builds(sympy.Rational, numbers, st.integers(1, 12)),
    st.builds(sympy.sqrt, st.integers(2, 12)),
)  # fmt: skip
expressions = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.builds(lambda a, b: a + b, inner, inner),
        st.builds(lambda a, b: a * b, inner, inner),
        st.builds(lambda a, n: a**n, inner, st.integers(2, 3)),
    ),
    max_leaves=5,
)


@settings(max_examples=60, deadline=None)
@given(expressions)
def test_an_expression_equals_its_expansion_and_not_its_successor(equal, expression):
    label, expanded, successor = (
        sympy.latex(e, mul_symbol="dot") for e in (expression, sympy.expand(expression), expression + 1)
    )
    assert equal(label, label)
    assert equal(expanded, label) and equal(label, expanded)
    assert not equal(successor, label) and not equal(label, successor)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-20, 20), min_size=2, max_size=5, unique=True), st.randoms(use_true_random=False))
def test_sets_have_no_order_and_tuples_have(equal, elements, random):
    shuffled = random.sample(elements, len(elements))
    one, other = (", ".join(map(str, order)) for order in (elements, shuffled))
    assert equal(other, one)
    assert equal(rf"\{{{other}\}}", rf"\{{{one}\}}")
    assert equal(f"({other})", f"({one})") == (elements == shuffled)
    assert not equal(", ".join(map(str, elements[:-1])), one)


@settings(max_examples=80, deadline=None)
@given(st.text(alphabet="0123456789xyabe+-*/^_{}()[]|!,.=<>\\$%&'~ \n", max_size=30))
def test_no_text_makes_equality_fail(equal, text):
    assert equal(text, "1/7") in (True, False)
    assert equal("1/7", text) in (True, False)
