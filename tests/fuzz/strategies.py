"""Bad input of every kind: noise, good input with a little of it changed, and well-formed input with wrong values in
known places."""

import json
import random
from typing import Any

from hypothesis import strategies as st

# A text of letters that mean something somewhere: hypothesis works out all of Unicode, slowly, where none are named.
LETTERS = "abXY019 _-.,:;=#\"'\\/{}[]<>\n\t\r\x07é中😀"
TEXT = st.text(LETTERS, max_size=12) | st.sampled_from(
    ["", " ", "\x00", "\ud800", "é", "{{content}}", "{{other}}", "9" * 5000, "[" * 3000, "a.b", "1e999"]
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-10, 10**20) | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def damaged(draw: Any, good: bytes) -> bytes:
    """Good bytes with a few flipped, cut out, doubled or put in."""
    data = bytearray(good)
    chance = random.Random(draw(st.integers(0, 2**32)))
    for _ in range(draw(st.integers(1, 4))):
        at = chance.randrange(len(data) + 1)
        kind = chance.randrange(5)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del data[at : at + chance.randrange(1, 40)]
        elif kind == 2:
            data[at:at] = data[max(0, at - chance.randrange(1, 40)) : at]
        elif kind == 3:
            data[at:at] = chance.choice(
                [b"\n", b'"', b"[", b"]", b"{", b"}", b"=", b",", b"\\ud800", b"\x00", b"\xff", b"nan", b"1e999", b"#"]
            )
        else:
            del data[at:]
    return bytes(data)


@st.composite
def replaced(draw: Any, tree: Any) -> Any:
    """A tree of dicts and lists with one of its values, or keys, replaced by anything."""
    tree = json.loads(json.dumps(tree))
    chance = random.Random(draw(st.integers(0, 2**32)))
    inner = tree
    while True:
        keys = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
        if not keys:
            return tree
        key = chance.choice(keys)
        if isinstance(inner[key], dict | list) and inner[key] and chance.random() < 0.8:
            inner = inner[key]
            continue
        if isinstance(inner, dict) and chance.random() < 0.2:
            inner[draw(TEXT)] = inner.pop(key)
        else:
            inner[key] = draw(VALUES)
        return tree
