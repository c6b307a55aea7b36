"""MkDocs hooks: formulas become MathML, which browsers draw themselves, and no page fetches anything from elsewhere."""

import html
import re
from typing import Any

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
NAME = re.compile(r"\\(?:begin|end|text|mathrm)\{[^}]*\}|\\[A-Za-z]+|[A-Z]{2,}|[a-z]{3,}")
FETCHED = re.compile(r'<(?:script|img|link)\b[^>]*\b(?:src|href)="(https?://[^"]+)"')


def on_page_content(content: str, **_: Any) -> str:
    """Put ``<math>`` where pymdownx.arithmatex has marked a formula."""
    return FORMULA.sub(lambda match: mathml(html.unescape(match[2]), match[1] == "div"), content)


def mathml(latex: str, block: bool) -> str:
    """``latex`` as MathML; names such as KL or softmax stand upright."""
    upright = NAME.sub(lambda match: match[0] if match[0][0] == "\\" else rf"\mathrm{{{match[0]}}}", latex)
    found = convert(upright, display="block" if block else "inline")
    if "\\" in found:
        raise PluginError(f"latex2mathml does not know a command in {latex!r}.")
    return found


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """See that the page works without a network."""
    if found := FETCHED.findall(output):
        raise PluginError(f"{page.file.src_uri} fetches {found[0]}: keep the file in docs/.")
    return output
