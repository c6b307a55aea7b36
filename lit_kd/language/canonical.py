r"""One way to write what models write in many: a number as a fraction, a formula as a string to compare.

``\boxed{1{,}080}`` and 1080 are the same, as are ``\frac34`` and 3/4. Whatever a model writes, these functions take
time linear in its length.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

LONGEST_NUMBER = 200  # characters; a longer text is no plain number

# From what models write to a bare number: repeated until nothing changes. Blanks that are put in come in pairs, because
# a single one between digits may separate thousands.
_BLANK = r"(?:\\[,;: ]|[ \u00a0\u2009\u202f])"
_TEXT = r"\\(?:text(?:bf|it|rm|normal)?|math(?:bf|rm|it|sf)|bm|boldsymbol|[mh]box|f?box(?:ed)?)"
_DECIMAL = r"(?:(?:[1-9]\d{0,2}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+)"
# Words that follow a number and leave its value alone. Short ones may be products of variables (6xy, 5 k): only known
# units count. Others change the value (2 million) or are no units (2 and).
_VALUE_WORD = r"(?:and|hundreds?|thousands?|[mbtr]+illions?|dozens?|hal(?:f|ves)|score|sin|cos|tan|log|exp|sqrt|mod)\b"
_GLUED = r"(?:[A-Za-z]{4,}|[ckm]m|k?g|m[gLl]|ft|lb)"
_WORD = r"(?:[A-Za-z]{3,}|[ckm]?m|[km]?g|[mk]?[lL]|ft|in|yd|mi|oz|lb|hr?|s|am|pm|of)"
_POWER = r"(?![A-Za-z])(?:\s*\^\s*\{?[23]\}?|[²³])?"

Step = tuple[str, str | Callable[[re.Match[str]], str]]
_REWRITES: list[Step] = [
    (r"[−–﹣－]", "-"),
    (r",\s*\\!\s*", ","),  # 10,\!080
    (r"\\!|\\(?:left|right|displaystyle)(?![a-z])", ""),
    (r"\{,\}", ","),
    (rf"(?<![\d.,])[1-9]\d{{0,2}}(?:{_BLANK}\d{{3}})+(?!\d)", lambda match: re.sub(r"\D", "", match[0])),  # 850\,000
    (rf"{_TEXT}\s*\{{([^{{}}]*)\}}", r"  \1"),
    (r"(?<!\\)\\[,;: ]|~|\\q?quad(?![a-z])|\s{3,}", "  "),
    (r"^[\s$]+|[\s$€£¥₹\\]+$|^\\[(\[]|\\[)\]]$|^\*\*|\*\*$|[.,;:]$", ""),  # $...$, \(...\), **...**, full stops
    (r"^([-+]?)\s*(?:\\?\$|\\pounds(?![a-z])|[€£¥₹])\s*", r"\1"),
    (r"\s*(?:\\?%|(?:\^\s*\{?\s*\\circ\s*\}?|\\degree|°)\s*[CF]?)$", ""),  # the value is left alone: 50% is 50
    (
        rf"(?<=[\d.)}}$%°])(?:(?!{_VALUE_WORD}){_GLUED}|[\s-]+(?!{_VALUE_WORD}){_WORD}){_POWER}"
        rf"(?:[\s./-]+(?!{_VALUE_WORD}){_WORD}{_POWER})*$",
        "",
    ),
    (r"\\[dtc]frac(?![a-z])", r"\\frac"),
    (r"\\frac\s*(\d)", r"\\frac{\1}"),  # \frac34, \frac9{19}
    (r"(\\frac\s*\{[^{}]*\})\s*(\d)", r"\1{\2}"),  # \frac{270}7
    (rf"^([-+]?\s*(?:\d+\s+)?)({_DECIMAL})\s*/\s*([-+]?{_DECIMAL})$", r"\1\\frac{\2}{\3}"),
    (r"(\d)\s*(?:\\times|\\cdot|[×*·x])\s*10\s*\^\s*(?:\{\s*([-+]?\d+)\s*\}|(\d))", r"\1e\2\3"),
    (r"^\(([^(),]*)\)$|^\{([^{}]*)\}$", r"\1\2"),  # with a comma inside it is a pair or an interval
]
_EQUATION: Step = (r"^(.*)(?:=|\\approx(?![a-z])|≈)(.*)$", lambda match: _right_side(match))
_NUMBER = re.compile(
    rf"(?P<sign>[-+]?)\s*(?:(?P<decimal>{_DECIMAL})(?:[eE](?P<exponent>[-+]?\d{{1,3}}))?"
    rf"|(?P<whole>\d*)\s*\\frac\s*\{{\s*(?P<over>[-+]?\s*{_DECIMAL})\s*\}}\s*\{{\s*(?P<under>[-+]?\s*{_DECIMAL})\s*\}})",
    re.ASCII,
)
_FORMULA: list[Step] = [
    (r"\\sqrt\s*(\w)", r"\\sqrt{\1}"),
    (r"([_^])\s*\{\s*(\w)\s*\}", r"\1\2"),
    (r"^[a-zA-Z]\s*\\in(?![a-z])", ""),
    # A blank between two digits or two letters may matter: 3 5 is not 35.
    (r"(?<=[0-9])\s+(?=[^0-9])|(?<=[A-Za-z])\s+(?=[^A-Za-z])|(?<=[^0-9A-Za-z])\s+", ""),
]


def canonical_number(text: str) -> Fraction | None:
    r"""The one plain number that a text stands for, exact; None for all else, such as lists, times and formulas.

    Units, currencies, percent and degree marks are dropped. Of an equation the right side counts, if the left is a
    name or a sum of numbers. Commas must separate thousands.

    Example:
        >>> [str(canonical_number(text)) for text in (r"\$1{,}234.50", r"1\frac12 \text{ hours}", "x = 3e4", "12,34")]
        ['2469/2', '3/2', '30000', 'None']
    """
    if len(text) > LONGEST_NUMBER or not (match := _NUMBER.fullmatch(_rewrite(text, [*_REWRITES, _EQUATION]))):
        return None
    sign = -1 if match["sign"] == "-" else 1
    if match["decimal"]:
        return sign * _fraction(match["decimal"]) * Fraction(10) ** int(match["exponent"] or 0)
    over, under = _fraction(match["over"]), _fraction(match["under"])
    if under == 0 or (match["whole"] and not 0 <= over < under):  # 2\frac{7}{3} may be a product
        return None
    return sign * (int(match["whole"] or 0) + over / under)


def canonical_formula(text: str) -> str:
    r"""The text without what makes no difference, for a comparison of strings.

    Example:
        >>> canonical_formula(r"$\left( \dfrac{\pi}{2}, 1 \right)$"), canonical_formula(r"\text{Monday}")
        ('(\\frac{\\pi}{2},1)', 'monday')
    """
    if len(text) > 10 * LONGEST_NUMBER:
        return text
    text = _rewrite(text, [*_REWRITES, *_FORMULA])
    return text.casefold() if is_word(text) else text


def is_word(text: str) -> bool:
    """Whether the text is made of letters, four at least: a name and no product of variables."""
    return re.fullmatch(r"[A-Za-z ]{4,}", text) is not None


def _fraction(decimal: str) -> Fraction:
    return Fraction(re.sub(r"[\s,]", "", decimal).removesuffix("."))


def _right_side(equation: re.Match[str]) -> str:
    """What an equation says about a name or a sum; the whole of it if it is a relation, such as 2x - 3y = 0."""
    for side in re.split(r"=|\\approx|≈", equation[1]):
        side = re.sub(r"_\{?\w+\}?|\([^()]*\)|\\[a-zA-Z]+", "", side)  # x_1, f(2), \alpha
        variable = re.search(r"(?<![A-Za-z])[A-Za-z]{1,2}(?![A-Za-z])", side)
        if re.search("[<>!]", side) or (variable and re.search(r"\d", side)):
            return equation[0]
    return equation[2]


def _rewrite(text: str, steps: list[Step]) -> str:
    before = None
    while text != before:
        before = text
        for pattern, replacement in steps:
            text = re.sub(pattern, replacement, text, flags=re.DOTALL)
    return text
