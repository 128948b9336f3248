r"""Marks the arguments of commands and functions, so that a parser reads them as a person does.

TeX takes single tokens as arguments (\frac12), and people write sqrt(2), 2^(n+1) and \sin 2x.
"""

import re

# Commands, by their number of arguments. Parentheses after them hold an argument that TeX itself would not accept.
_COMMANDS = re.compile(
    r"\\(?P<two>frac|binom)(?![A-Za-z])|(?:\\|(?<![A-Za-z\\]))(?P<root>sqrt)(?![A-Za-z])(?P<degree>\s*\[[^][]*\])?"
    r"|\^\s*(?=\()|\\log\s*_\s*(?=[0-9]\s*[0-9])"
)
_FUNCTION = re.compile(r"\\(?P<name>(?:arc)?(?:sin|cos|tan|cot|sec|csc)h?|ln|log|exp)(?![A-Za-z])\s*")
_ABSOLUTE = re.compile(r"\\abs\s*(?=[({])")
_TRIGONOMETRIC = re.compile("(?:sin|cos|tan|cot|sec|csc)$")
_SCRIPT, _BLANKS = re.compile(r"\s*[\^_]\s*(?=\S)"), re.compile(r"\s*")
_END = re.compile(
    r"[-+*=<>,;&)\]}|]|\\(?:cdot|times|div|cup|cap|text|le|ge|ne|in|pm|mp|quad|rfloor|rceil)(?![A-Za-z])|\\\\|\\[,;}]"
)
_CLOSING = {"{": "}", "(": ")"}
_DEEPER, _SHALLOWER = ("{", "(", "[", r"\lfloor", r"\lceil"), ("}", ")", "]", r"\rfloor", r"\rceil")
_TOKEN = re.compile(r"\\(?:[A-Za-z]+|.)|.", re.DOTALL)


def braced(text: str) -> str:
    r"""Returns the text with braces around every argument.

    >>> braced(r"\frac12"), braced(r"\frac{\sqrt3}2"), braced(r"sqrt(x(1+x))"), braced("2^(n+1)"), braced(r"\log_23")
    ('\\frac{1}{2}', '\\frac{\\sqrt{3}}{2}', '\\sqrt{x(1+x)}', '2^{n+1}', '\\log_{2}3')
    """
    out, place = [], 0
    while match := _COMMANDS.search(text, place):
        out += [
            text[place : match.start()],
            rf"\sqrt{match['degree'] or ''}" if match["root"] else match.group().strip(),
        ]
        place = match.end()
        for _ in range(2 if match["two"] else 1):
            argument, end = _argument(text, place, round_too=not match["two"])
            if argument is None:
                break
            out.append("{" + braced(argument) + "}")
            place = end
    return "".join([*out, text[place:]])


def in_bars(text: str) -> str:
    r"""Returns the text with |x| for \abs(x), unless bars would meet other bars, whose pairs a reader could not tell.

    >>> in_bars(r"\abs (x-1)+2\abs{y}"), in_bars(r"\abs(x+|y|)"), in_bars(r"\abs(1-\abs(x))")
    ('|x-1|+2|y|', '\\abs(x+|y|)', '\\abs(1-\\abs(x))')
    """
    if "|" in text or "\\abs" not in text:
        return text
    out, place = [], 0
    while match := _ABSOLUTE.search(text, place):
        argument, end = _argument(text, match.end(), round_too=True)
        if not argument or "\\abs" in argument:
            return text
        out += [text[place : match.start()], f"|{argument}|"]
        place = end
    return "".join([*out, text[place:]])


def _argument(text: str, place: int, round_too: bool) -> tuple[str | None, int]:
    """Returns the group or the single token after `place`, and where it ends; None if the text ends first."""
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


def applied(text: str) -> str | None:
    r"""Returns the text with function arguments in parentheses; None if a fraction bar makes an argument ambiguous.

    An argument extends over adjacent factors, up to a written sign or another function. Without this, math-verify would
    read the logarithm of 2 times that of 3 as one logarithm.

    >>> applied(r"\ln 2\cdot \ln 3"), applied(r"2\sin^2 3x \cos{x}"), applied(r"\arctan 2\sqrt{2}"), applied(r"\sin(x)")
    ('\\ln(2)\\cdot \\ln(3)', '2\\sin^2 (3x)\\cos(x)', '\\arctan(2\\sqrt{2})', '\\sin(x)')
    >>> applied(r"\ln x/x"), applied(r"\cos \pi/3"), applied(r"\lfloor\ln n\rfloor+1"), applied(r"\ln\lfloor n\rfloor")
    (None, '\\cos(\\pi/3)', '\\lfloor\\ln(n)\\rfloor+1', '\\ln(\\lfloor n\\rfloor)')
    """
    out, place = [], 0
    while match := _FUNCTION.search(text, place):
        start = match.end()
        while script := _SCRIPT.match(text, start):  # an exponent or a base
            start = _after_blanks(text, _argument(text, script.end(), round_too=False)[1])
        head = text[place : match.end()].rstrip() + text[match.end() : start]
        argument, place, bar = _bare_argument(text, start)
        if bar and not (_TRIGONOMETRIC.match(match["name"]) and "\\pi" in argument.partition("/")[0]):
            return None
        inner = applied(argument)
        if inner is None:
            return None
        out.append(f"{head}({inner})" if inner else head)
    return "".join([*out, text[place:]])


def _after_blanks(text: str, place: int) -> int:
    blanks = _BLANKS.match(text, place)
    return blanks.end() if blanks else place


def _bare_argument(text: str, start: int) -> tuple[str, int, bool]:
    """Returns (argument, its end, whether it contains a fraction bar); '' and `start` if it has parentheses."""
    opening = text[start : start + 1]
    if opening in ("(", ""):
        return "", start, False
    if opening == "{":
        inside, stop = _argument(text, start, round_too=False)
        return (inside or "").strip(), stop, False
    if opening == "|" and (bar := text.find("|", start + 1)) > 0:
        return text[start : bar + 1], bar + 1, False
    stop, slash = _end_of_argument(text, start)
    return text[start:stop].strip(), stop, slash


def _end_of_argument(text: str, start: int) -> tuple[int, bool]:
    depth, bar = 0, False
    for token in _TOKEN.finditer(text, start):
        word, before = token.group(), text[start : token.start()].strip()
        if depth == 0 and _ends_argument(word, before):
            return token.start(), bar
        bar = bar or (word == "/" and depth == 0)
        depth += (word in _DEEPER) - (word in _SHALLOWER)
        if depth < 0:
            return token.start(), bar
    return len(text), bar


def _ends_argument(word: str, before: str) -> bool:
    """Whether a token ends an argument: a sign, unless it comes first, or a root after more than a number."""
    if word == r"\sqrt":
        return bool(before) and not before.isdigit()
    return (_FUNCTION.fullmatch(word) is not None and bool(before)) or (
        bool(_END.fullmatch(word)) and (bool(before) or word not in "+-")
    )
