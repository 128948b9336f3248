r"""The arguments of TeX's commands in braces: \frac12 and \sqrt 2 as a parser wants them, sqrt(2) and 2^(n+1) as they are meant."""

import re

# Command, and how many arguments it has. In parentheses one is meant that TeX would not take for an argument.
_COMMANDS = re.compile(
    r"\\(?P<two>frac|binom)(?![A-Za-z])|(?:\\|(?<![A-Za-z\\]))(?P<root>sqrt)(?![A-Za-z])(?P<degree>\s*\[[^][]*\])?|\^\s*(?=\()|"
    r"\\log\s*_\s*(?=[0-9]\s*[0-9])"
)
_CLOSING = {"{": "}", "(": ")"}
_TOKEN = re.compile(r"\\(?:[A-Za-z]+|.)|.", re.DOTALL)


def braced(text: str) -> str:
    r"""The text with braces around every argument.

    >>> braced(r"\frac12"), braced(r"\frac{\sqrt3}2"), braced(r"sqrt(x(1+x))/\frac \pi 6"), braced("2^(n+1)"), braced(r"\log_23")
    ('\\frac{1}{2}', '\\frac{\\sqrt{3}}{2}', '\\sqrt{x(1+x)}/\\frac{\\pi}{6}', '2^{n+1}', '\\log_{2}3')
    """
    out, place = [], 0
    while match := _COMMANDS.search(text, place):
        out += [text[place : match.start()], rf"\sqrt{match['degree'] or ''}" if match["root"] else match.group().strip()]
        place = match.end()
        for _ in range(2 if match["two"] else 1):
            argument, end = _argument(text, place, round_too=not match["two"])
            if argument is None:
                break
            out.append("{" + braced(argument) + "}")
            place = end
    return "".join([*out, text[place:]])


def _argument(text: str, place: int, round_too: bool) -> tuple[str | None, int]:
    """The group or the one token after `place`, and where it ends; None where the text ends first."""
    while place < len(text) and text[place].isspace():
        place += 1
    token = _TOKEN.match(text, place)
    if token is None or token.group() in ("}", ")"):
        return None, place
    if token.group() != "{" and not (round_too and token.group() == "("):
        return token.group(), token.end()
    opening, depth = token.group(), 0
    for other in _TOKEN.finditer(text, place):
        depth += (other.group() == opening) - (other.group() == _CLOSING[opening])
        if depth == 0:
            return text[place + 1 : other.start()], other.end()
    return None, place
