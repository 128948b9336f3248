r"""LaTeX in the samples of a report becomes MathML; whatever the model wrote, the page has only known elements.

python -m pytest tests/report/test_formulas.py        (needs latex2mathml, which requirements.txt names)
"""

import re
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1zero.report import formulas, samples
from r1zero.report.__main__ import main
from tests.report.test_report import check, write_run


def plain(mathml) -> str:
    """The structure of MathML without rows, which have no effect of their own."""
    return re.sub(r'</?mrow>|<math display="inline">|</math>', "", str(mathml))


@pytest.mark.parametrize(
    "latex, expected",
    [
        ("x^2", "<msup><mi>x</mi><mn>2</mn></msup>"),
        (r"\frac{1}{2}", "<mfrac><mn>1</mn><mn>2</mn></mfrac>"),
        (r"\sqrt[3]{a_i}", "<mroot><msub><mi>a</mi><mi>i</mi></msub><mn>3</mn></mroot>"),
        (r"a \leq b", "<mi>a</mi><mo>≤</mo><mi>b</mi>"),
        (r"\text{if } x<3", "<mtext>if\xa0</mtext><mi>x</mi><mo>&lt;</mo><mn>3</mn>"),
        (r"\boxed{7}", '<mrow class="frame"><mn>7</mn>'),
        (r"\href{javascript:alert(1)}{x}", "<mi>x</mi>"),
        (r"\text{<script>}", "<mtext>&lt;script&gt;</mtext>"),
        (r"\text{&lt;b&gt;}", "<mtext>&amp;lt;b&amp;gt;</mtext>"),
        (r"\unicode{x3c}", "<mi>&lt;</mi>"),
    ],
)
def test_latex_is_this_mathml(latex, expected):
    assert plain(formulas.convert(latex, is_block=False)) == expected


def test_an_aligned_block_is_a_table():
    found = formulas.convert(r"\begin{aligned}a&=b\\c&=d\end{aligned}", is_block=True)
    assert '<math display="block">' in found and found.count("<mtr>") == 2 and "&amp;" not in found


@pytest.mark.parametrize(
    "latex",
    [
        r"\frac{1}",
        r"\left( x",
        r"x^2^3",
        r"\nosuchcommand{x}",
        r"\begin{nosuch}a&b\end{nosuch}",
        r"\def\a{\b\b}\def\b{\c\c}\a",
        r"\newcommand{\a}{x}\a",
        "a\n\nb",
        "{" * 900,
        r"\abovewithdelims",
    ],
)
def test_what_cannot_be_converted_is_left_as_text(latex):
    assert formulas.convert(latex, is_block=False) is None
    assert samples.with_formulas(f"${latex}$").striptags() == f"${latex}$".replace("\n\n", " ")


@pytest.mark.parametrize(
    "text, found",
    [
        ("a $x$ b $$y$$ c \\(z\\) d \\[w\\] e", ["$x$", "$$y$$", "\\(z\\)", "\\[w\\]"]),
        ("it costs $5 and $6, or 5 $ and 6 $", []),
        (r"\$x\$ and $\$5$", [r"$\$5$"]),
        ("$ x $ and $$ and \\(\\) and $x", []),
        ("$" + "x" * 1001 + "$", []),
        ("$a$b$c$", ["$a$", "$c$"]),
    ],
)
def test_these_parts_of_a_text_are_formulas(text, found):
    assert [text[one.start : one.stop] for one in formulas.find(text)] == found


def test_a_response_has_formulas_beside_its_tags_and_its_box():
    html = samples.highlighted(r"<think>$x<2$</think><answer>so \(y\) is \boxed{\frac12}</answer>")
    assert html.count("<math") == 2 and '<span class="math thought"><span title="$x&lt;2$">' in html
    assert '<span class="math said">' in html and r'<span class="box">\boxed{\frac12}</span>' in html
    html = samples.highlighted(r"<answer>$x=\boxed{3}$</answer> $a</answer>b$")
    assert '<mrow class="frame">' in html and '"box"' not in html and html.count("<math") == 1


class Elements(HTMLParser):
    """The elements and attributes of a page, which must be balanced."""

    def __init__(self, page: str):
        super().__init__()
        self.open, self.tags, self.attributes = [], set(), set()
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


PIECES = r"""
\frac \left \right \over \sqrt \begin{matrix} \end{matrix} \\ \text{<b> \href{javascript:x} \style{x:y} & < > \root
\unicode{x3c} \color{red} \limits \sum \operatorname{f} \boxed \not \genfrac \verb|<i>| \rule{9999em}{1em} \middle
\mathchoice \skew \hbox \fcolorbox{a}{b} \begin{array}{c|c} \end{array} $ $$ \( \) \[ \] { } ^ _ ' " ( ) | % x 1 ~
</math> <script> &lt; <think> </think> onload= \boxed{
"""


@settings(deadline=None, max_examples=300)
@given(st.lists(st.sampled_from(PIECES.split()), max_size=40).map("".join))
def test_no_response_brings_anything_but_mathml_into_the_page(response):
    found = Elements(samples.highlighted(response))
    assert found.tags <= {"span", *formulas._ELEMENTS} - {"menclose"}
    assert found.attributes <= {"class", "title", *formulas._ATTRIBUTES}


def test_the_report_has_the_formulas_of_prompt_and_response(tmp_path):
    folder = write_run(tmp_path / "one", 2)
    line = (
        '{"iteration": 2, "prompt": "What is $1+1$?", "response": "\\\\(2\\\\) $\\\\bad$", "label": "2", "reward": 1}\n'
    )
    with (folder / "samples.jsonl").open("a") as file:
        file.write(line)
    assert main([str(folder)]) == 0
    check(folder / "report.html")
    assert (folder / "report.html").read_text().count("<math") == 2
