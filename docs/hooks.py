"""MkDocs hook: formulas become MathML, which browsers draw themselves: no script, no font, nothing to fetch."""

import html
import re
from typing import Any

from latex2mathml.converter import convert

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)

NAME = re.compile(r"\\(?:begin|end|text|mathrm)\{[^}]*\}|\\[A-Za-z]+|[A-Z]{2,}|[a-z]{3,}")


def on_page_content(content: str, **_: Any) -> str:
    """Put ``<math>`` where pymdownx.arithmatex has marked a formula."""
    return FORMULA.sub(lambda match: mathml(html.unescape(match[2]), match[1] == "div"), content)


def mathml(latex: str, block: bool) -> str:
    """``latex`` as MathML; names such as KL or softmax stand upright."""
    upright = NAME.sub(lambda match: match[0] if match[0][0] == "\\" else rf"\mathrm{{{match[0]}}}", latex)
    return convert(upright, display="block" if block else "inline")
