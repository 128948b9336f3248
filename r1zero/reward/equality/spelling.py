r"""Converts the many ways to write TeX to a single spelling: characters, spacing, brackets, synonyms of commands.

Nothing here changes what a text means to a reader. The other modules read only the resulting spelling. Digits are not
changed: only ASCII digits are numbers.
"""

import re

from r1zero.reward.equality.arguments import braced, in_bars
from r1zero.reward.equality.characters import as_tex

_DIGIT_GROUPS = re.compile(r"(?<![0-9.,])[0-9]{1,3}(?:(?:\{,\}|,\\!|\\[,;: ]|~)[0-9]{3})+(?![0-9])")
_NOT_DIGITS = re.compile(r"[^0-9]+")
# A line break of TeX is matched first, so that its second backslash does not start a command.
_SPACING = re.compile(
    r"(?P<newline>\\\\)(?:\[[^][]*\])?|(?P<none>\\!|\\negthinspace(?![A-Za-z]))"
    r"|\\[,;:> ()]|~|\\[][]|\\hspace\*?\s*\{[^{}]*\}"
    r"|\\(?:q?quad|enspace|thinspace|medspace|thickspace|hfill)(?![A-Za-z])|\\[hv]?phantom\s*(?:\{[^{}]*\}|.)"
)
_STYLE = re.compile(
    r"\\(?:displaystyle|textstyle|scriptstyle|tiny|small|footnotesize|normalsize|large|Large|boldmath|limits|nolimits"
    r"|m?left|m?right|middle|[bB]igg?[lrm]?)(?![A-Za-z])\s*(?:(?<=left)\.|(?<=right)\.)?"
)
_OLD_FONT = re.compile(r"\{\s*\\(?:rm|bf|it|sf|tt)(?![A-Za-z])\s*([^{}]*)\}")
_FONT = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|sc|normal|up)?|math(?:rm|bf|it|sf|tt|normal)|mbox|hbox|textnormal|boldsymbol|bm)\s*\{"
)
_TEXT_IN_BRACES = re.compile(r"(?<![A-Za-z_^}])\{\s*(\\text\{[^{}]*\})\s*\}")
# R, Z, N and Q stand for sets of numbers in blackboard bold, in bold, and in any font after "element of".
_BLACKBOARD = re.compile(
    r"\\(?:mathbb|Bbb)\s*(?:\{\s*)?(?P<a>[RZNQC])(?:\s*\})?"
    r"|\\(?:mathbf|bm|boldsymbol)\s*(?:\{\s*(?P<b>[RZNQ])\s*\}|(?P<c>[RZNQ]))"
    r"|\\in\s*(?:\\[a-z]+\s*\{\s*)?(?P<d>[RZNQ])(?![A-Za-z])(?:\s*\})?"
)
_SHORT_SUBSCRIPT = re.compile(r"_\{([0-9A-Za-z])\}(?![0-9])")
_SIGN_IN_BRACES = re.compile(r"\{\s*([-+:;])\s*\}")
_POWER_IN_TEXT = re.compile(r"(\\text\{[^{}]*\^)\{(-?[0-9])\}(?=[^{}]*\})")
# ]1, 2[ is the French notation for (1, 2). U between brackets is a union.
_OUTWARD = re.compile(r"(?P<left>[][])(?P<ends>[^][(),;]+[,;][^][(),;]+)(?P<right>[][])")
_UNION = re.compile(r"(?<=[)\]])\s*U\s*(?=[(\[])")
# TeX sets both orders alike. math-verify drops a subscript that comes after an exponent.
_SCRIPTS = re.compile(r"(\^\s*(?:\{[^{}]*\}|[0-9A-Za-z]))\s*(_\s*(?:\{[^{}]*\}|[0-9A-Za-z]))")
_COMBINATIONS = re.compile(r"(?:\\text\{\s*C\s*\}|(?<![A-Za-z\\])C)\s*_\s*\{?([0-9]+)\}?\s*\^\s*\{?([0-9]+)\}?")
# Another C beside combinations, which is neither a choice nor in a word.
_OTHER_C = re.compile(r"\\text\{[^{}]*\}|\(C\)|\\mathbb\{C\}|(?<![A-Za-z\\])(?P<letter>C)")
_CHOOSE = re.compile(r"\{\s*([^{}]*?)\s*\\choose\s*([^{}]*?)\s*\}")
# The letters of an angle have an order and are not a product.
_ANGLE = re.compile(r"\\(angle|triangle)\s*(?:\{\s*)?([A-Z]+)(?![A-Za-z])(?:\s*\})?")
_LETTER = re.compile(r"\\(?:text|operatorname)\s*\{\s*([ieIE])\s*\}")
# Names of functions in a text font or without a backslash. `sec` and `min` are also units, and `max` is also a word.
_NAMES = r"(?:arc)?(?:sin|cos|tan|cot|csc)h?|arcsech?|sech|ln|log|exp|gcd|lcm|floor|ceil"
_BEFORE_PARENTHESES = "max|min|abs"
_FUNCTION = re.compile(
    rf"\\(?:text|operatorname\s*\*?)\s*\{{\s*(?:(?P<wrapped>{_NAMES})\s*\}}(?=\s*[\\({{_^A-Za-z0-9])"
    rf"|(?P<ambiguous>sec|{_BEFORE_PARENTHESES})\s*\}}(?=\(|\\\{{))"
    rf"|(?<![A-Za-z\\])(?P<bare>{_NAMES}|{_BEFORE_PARENTHESES})(?=\(|\\\{{|(?<=log)_)"
)
_IN_BRACES = re.compile(r"\\(?P<name>gcd|lcm|max|min)\s*\\\{(?P<inside>(?:[^{}\\]|\\[^{}]|\{[^{}]*\})*)\\\}")
_CONNECTIVE = re.compile(
    r"\s*,?\s*\\text\{\s*,?\s*(and|or)\s*\}\s*|\\text\{\s*(?P<comma>,)\s*(?:and|or)?\s*\}", re.IGNORECASE
)
_SYNONYMS = {
    "dfrac": r"\frac", "tfrac": r"\frac", "cfrac": r"\frac", "dbinom": r"\binom", "tbinom": r"\binom",
    "leqslant": r"\le", "leq": r"\le", "geqslant": r"\ge", "geq": r"\ge", "neq": r"\ne", "lt": "<", "gt": ">",
    "langle": "(", "rangle": ")", "lbrace": r"\{", "rbrace": r"\}", "lbrack": "[", "rbrack": "]", "lvert": "|",
    "rvert": "|", "vert": "|", "mid": "|", "colon": ":", "varnothing": r"\emptyset", "infin": r"\infty",
    "backslash": r"\setminus", "ast": "*",
    "degree": r"^\circ", "textdegree": r"^\circ", "textdollar": r"\$", "pounds": "£", "euro": "€",
    "tg": r"\tan", "ctg": r"\cot", "arctg": r"\arctan", "lg": r"\log",
    "R": r"\mathbb{R}", "Z": r"\mathbb{Z}", "N": r"\mathbb{N}", "Q": r"\mathbb{Q}",
}  # fmt: skip
_COMMAND = re.compile(r"\\([A-Za-z]+)")
_INFINITY = re.compile(r"\\text\s*\{\s*(?:positive |plus )?infinity\s*\}|(?<![A-Za-z\\])infinity(?![A-Za-z])")
_DEGREE = re.compile(r"\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))\s*")
_ASCII_RELATIONS = re.compile(r"<=|>=")
_ANGLES = re.compile(r"\\(?:left\s*<|right\s*>)")


def plain(text: str) -> str:
    r"""Returns the text in the single spelling that the other modules read.

    >>> plain(r"10~\mathrm {cm}"), plain(r"12\ \%"), plain("3½ ≤ x"), plain(r"x\in\mathbf R")
    ('10 \\text{cm}', '12 \\%', '3\\frac{1}{2} \\le  x', 'x\\in\\mathbb{R}')
    >>> plain(r"\left( 1\,234,\; \tfrac12 \right]"), plain(r"2 \text { or } 3"), plain(r"]1, 2[ U [3, 4[")
    ('( 1234,  \\frac{1}{2} ]', '2 or 3', '(1, 2) \\cup [3, 4)')
    >>> plain(r"\operatorname{ln}2"), plain(r"\max\{a,b\}"), plain("gcd(a,b)"), plain(r"20\text{min} 5")
    ('\\ln 2', '\\max(a,b)', '\\gcd (a,b)', '20\\text{min} 5')
    """
    if not text.isascii():
        text = as_tex(text)
    text = _DIGIT_GROUPS.sub(lambda match: _NOT_DIGITS.sub("", match.group()), text)
    text = _SPACING.sub(_space, text)
    if "\\" in text:
        text = _ANGLES.sub(lambda match: "(" if "<" in match.group() else ")", text)
        text = _BLACKBOARD.sub(_number_set, text)
        text = _OLD_FONT.sub(r"\\text{\1}", _STYLE.sub("", text))
        text = _COMMAND.sub(lambda match: _SYNONYMS.get(match[1], match.group()), _FONT.sub(r"\\text{", text))
        text = _TEXT_IN_BRACES.sub(r"\1", _ANGLE.sub(r"\\text{\1 \2}", text))
        text = _POWER_IN_TEXT.sub(r"\1\2", _LETTER.sub(r"\1", text))
        text = _CONNECTIVE.sub(lambda match: ", " if match["comma"] else f" {match[1].lower()} ", text)
        text = _DEGREE.sub(r"^\\circ ", text)
        text = _CHOOSE.sub(r"\\binom{\1}{\2}", text)
    text = _IN_BRACES.sub(r"\\\g<name>(\g<inside>)", _FUNCTION.sub(_function, text))
    text = _INFINITY.sub(r"\\infty ", text)
    text = _combinations(_SCRIPTS.sub(r"\2\1", _UNION.sub(r" \\cup ", _OUTWARD.sub(_inward, text))))
    text = _ASCII_RELATIONS.sub(lambda match: r"\le " if "<" in match.group() else r"\ge ", text)
    text = _SHORT_SUBSCRIPT.sub(r"_\1", _SIGN_IN_BRACES.sub(r"\1", text))
    return in_bars(braced(text)).strip()


def _space(match: re.Match[str]) -> str:
    return r"\\" if match["newline"] else "" if match["none"] else " "


def _function(match: re.Match[str]) -> str:
    name = match["wrapped"] or match["ambiguous"] or match["bare"]
    return rf"\operatorname{{{name}}}" if name in ("floor", "ceil") else rf"\{name} "


def _combinations(text: str) -> str:
    r"""Returns the text with \binom{6}{2} for C_6^2.

    C_2 may also be a constant and C_2^2 its square, as in C_1^2 + C_2^2 or in C_1 + C_2^2. So nothing is replaced if
    there is any other C, or one with a larger exponent than subscript.
    """
    found = list(_COMBINATIONS.finditer(text))
    if not all(int(match[2]) <= int(match[1]) for match in found):
        return text
    others = _OTHER_C.finditer(_COMBINATIONS.sub("", text)) if found else ()
    return text if any(match["letter"] for match in others) else _COMBINATIONS.sub(r"\\binom{\1}{\2}", text)


def _number_set(match: re.Match[str]) -> str:
    letter = next(filter(None, match.groups()))
    return (r"\in " if match["d"] else "") + rf"\mathbb{{{letter}}}"


def _inward(match: re.Match[str]) -> str:
    left, right = match["left"], match["right"]
    return ("(" if left == "]" else left) + match["ends"] + (")" if right == "[" else right)
