"""Turns responses into HTML with highlighted parts and formulas. All of their text is escaped."""

import re
from typing import Any

from markupsafe import Markup, escape

from r1zero.report import formulas
from r1zero.reward.boxes import last_box

_TAGS = re.compile(r"</?(?:think|answer)>")


def highlighted(response: str) -> Markup:
    """Returns the response as HTML, with its thought dimmed, its tags coloured and its last box framed.

    Formulas are shown as such, with their LaTeX as tooltip. One that contains a tag of the response is left as text.
    """
    tags = [(match.start(), match.end(), "tag", escape(match[0])) for match in _TAGS.finditer(response)]
    marks = [*tags, *(one for one in _formulas(response) if not _TAGS.search(response, one[0], one[1]))]
    if (box := last_box(response)) and not any(start <= box.start < stop for start, stop, *_ in marks):
        marks.append((box.start, box.stop, "box", escape(response[box.start : box.stop])))
    return _joined(response, marks)


def with_formulas(text: str) -> Markup:
    """Returns a text as HTML with its formulas."""
    return _joined(text, _formulas(text))


Mark = tuple[int, int, str, Markup]
"""A part of a text: begin, end, CSS class, and its HTML."""


def _formulas(text: str) -> list[Mark]:
    return [
        (start, stop, "math", Markup('<span title="{}">{}</span>').format(text[start:stop], mathml))
        for start, stop, mathml in formulas.find(text)
    ]


def _joined(text: str, marks: list[Mark]) -> Markup:
    """Returns a text as HTML in which each mark that does not overlap an earlier one has its own element."""
    pieces: list[Markup] = []
    at, inside_thought = 0, False
    for start, stop, kind, content in [*sorted(marks), (len(text), len(text), "", Markup(""))]:
        if start < at:
            continue
        thought = "thought" if inside_thought else "said"
        if start > at:
            pieces.append(Markup('<span class="{}">{}</span>').format(thought, text[at:start]))
        if kind:
            both = f"{kind} {thought}" if kind == "math" else kind
            pieces.append(Markup('<span class="{}">{}</span>').format(both, content))
        at = stop
        if kind == "tag":
            inside_thought = text[start:stop] == "<think>"
    return Markup("").join(pieces)


def chosen(samples: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Returns the `count` best and the `count` worst of the last 20 * count samples that have a reward, best first.

    Each row gets `html`, the highlighted response.
    """
    graded = [row for row in samples if isinstance(row.get("reward"), int | float)][-20 * count :]
    graded.sort(key=lambda row: -row["reward"])
    picked = graded if len(graded) <= 2 * count else [*graded[:count], *graded[-count:]]
    return [
        {**row, "html": highlighted(str(row["response"])), "prompt": with_formulas(row["prompt"])} for row in picked
    ]
