"""The hint in the error about an unknown name: the nearest known name, or all of them if none is similar."""

import difflib
from collections.abc import Callable, Iterable

LISTED = 40
"""A hint lists at most this many names."""


def suggest(name: str, known: Iterable[str], noun: str = "known one", spell: Callable[[str], str] = repr) -> str:
    """Returns a clause such as "the nearest known one is 'seed'", or "the known ones are 'seed', 'name'".

    noun: what is named, in the singular. spell: writes a known name for the message.
    """
    names = list(dict.fromkeys(known))
    nearest = difflib.get_close_matches(name, names, n=1)
    if nearest:
        return f"the nearest {noun} is {spell(nearest[0])}"
    if len(names) > LISTED:
        return f"none of the {len(names)} {noun}s is similar"
    listed = ", ".join(map(spell, names))
    if len(names) > 1:
        return f"the {noun}s are {listed}"
    return f"the only {noun} is {listed}" if names else f"there is no {noun}"
