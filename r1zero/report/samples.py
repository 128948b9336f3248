"""Turns responses into HTML with highlighted parts. All of their text is escaped."""

import re
from typing import Any

from markupsafe import Markup, escape

from r1zero.reward.boxes import last_box

_TAGS = re.compile(r"</?(?:think|answer)>")


def highlighted(response: str) -> Markup:
    """Returns the response as HTML, with its thought dimmed, its tags coloured and its last box framed."""
    box = last_box(response)
    pieces: list[Markup] = []
    at, inside_thought = 0, False

    def text(until: int) -> None:
        nonlocal at
        if until > at:
            kind = "thought" if inside_thought else "said"
            pieces.append(Markup('<span class="{}">{}</span>').format(kind, response[at:until]))
        at = until

    marks = [(match.start(), match.end(), "tag") for match in _TAGS.finditer(response)]
    marks += [(box.start, box.stop, "box")] if box else []
    for start, stop, kind in sorted(marks):
        if start < at:
            continue
        text(start)
        pieces.append(Markup('<span class="{}">{}</span>').format(kind, response[start:stop]))
        at = stop
        inside_thought = response[start:stop] == "<think>" or (inside_thought and kind == "box")
    text(len(response))
    return Markup("").join(pieces)


def chosen(samples: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Returns the `count` best and the `count` worst of the last 20 * count samples that have a reward, best first.

    Each row gets `html`, the highlighted response.
    """
    graded = [row for row in samples if isinstance(row.get("reward"), int | float)][-20 * count :]
    graded.sort(key=lambda row: -row["reward"])
    picked = graded if len(graded) <= 2 * count else [*graded[:count], *graded[-count:]]
    return [{**row, "html": highlighted(str(row["response"])), "prompt": escape(row["prompt"])} for row in picked]
