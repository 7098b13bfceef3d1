"""Markup in running text: what marks a text up, as tokens to compare, and the text without it.

Known are tags of HTML and XML, the inline markup of reStructuredText and of wikis, and placeholders of programs.
Source: the HTML standard, 13.1.2; the reStructuredText specification of docutils, "Inline Markup"; MediaWiki's help on
formatting; printf's and Python's format strings.
"""

from __future__ import annotations

import re

# What may stand directly before or behind markup: no letter or digit of an alphabet, but an ideograph.
_BEFORE, _BEHIND = r"(?<![A-Za-z0-9_À-ɏ{mark}])", r"(?![A-Za-z0-9_À-ɏ{mark}])"


def _enclosed_by(mark: str, name: str) -> str:
    sign = mark[0]
    content = rf"[^\s{sign}](?:(?:\\.|[^\\{sign}])*[^\s{sign}])?"
    before, behind = _BEFORE.replace("{mark}", sign), _BEHIND.replace("{mark}", sign)
    return before + re.escape(mark) + f"(?P<{name}>{content})" + re.escape(mark) + behind


_TAG = r"</?[A-Za-z][A-Za-z0-9:]*(?:\s[^<>]*)?/?>|<!--.{0,1000}?-->"
_ROLE = r"(?P<role>:[A-Za-z][A-Za-z0-9:+._-]{0,50}:)`(?P<target>[^`]+)`"
_LITERAL = r"``(?P<literal>[^\s`](?:.{0,500}?\S)??)``" + _BEHIND.replace("{mark}", "`")
_LINK = r"`(?P<link>[^`]+)`_(?P<anonymous>_?)" + _BEHIND.replace("{mark}", "")
_STRONG, _EMPHASIS = _enclosed_by("**", "strong"), _enclosed_by("*", "emphasis")
_SUBSTITUTION = _enclosed_by("|", "substitution")
_WIKI = r"\[\[(?P<wiki>[^\[\]]+)\]\]"
_PLACEHOLDER = (
    r"%\(\w+\)[sdifgrx]|%(?:\d\$)?[sdifgrx](?!\w)|%(?:\d\$|\.\d|l)[sdifgrxu](?!\w)"
    r"|\$?\{\{?[\w.:!$-]*\}?\}"
)
_TOKENS = re.compile(
    "|".join([_ROLE, _LITERAL, _LINK, rf"(?P<tag>{_TAG})", _STRONG, _EMPHASIS, _SUBSTITUTION, _WIKI])
    + rf"|(?P<placeholder>{_PLACEHOLDER})"
)
_STRIPPED = re.compile("|".join([_ROLE, _LITERAL, _LINK, rf"(?P<tag>{_TAG})", _STRONG, _EMPHASIS, _WIKI]))
_NAME_OF_TAG = re.compile(r"</?[A-Za-z][A-Za-z0-9:]*")
_EXPLICIT_TARGET = re.compile(r"\s*<[^<>]*>$")
# A text with none of these holds no markup.
MARKUP_SIGNS = "`<*|[{%"


def markup_tokens(text: str) -> list[str]:
    """Return what marks a text up, in its order.

    Of a tag its name counts, of a role or a link its kind, of emphasis that there is some; literals, substitutions and
    placeholders count as they are, since a translation keeps them.
    """
    return [_token(match) for match in _TOKENS.finditer(text)]


def _token(match: re.Match[str]) -> str:
    kind, text = str(match.lastgroup), match.group()
    if match["role"] is not None:
        return match["role"].lower()
    if match["link"] is not None:
        return "`_"
    if kind == "tag":
        name = _NAME_OF_TAG.match(text)
        return name.group().lower() + ">" if name else "<!-->"
    return {"strong": "**", "emphasis": "*", "wiki": "[[]]"}.get(kind, text)


def strip_markup(text: str) -> str:
    """Return a text without its marks: tags are taken out, roles, links, literals and emphasis leave what they enclose.

    Placeholders and substitutions stay, as they stand for words.
    """
    return _STRIPPED.sub(_enclosed, text)


def _enclosed(match: re.Match[str]) -> str:
    found = match.groupdict()
    if found["role"] is not None:
        target = found["target"]
        # "~a.b.c" is shown as "c", and "!x" as "x".
        if target[0] == "~":
            return target[1:].rpartition(".")[2] or target
        return _EXPLICIT_TARGET.sub("", target.removeprefix("!")) or target
    if found["link"] is not None:
        return _EXPLICIT_TARGET.sub("", found["link"]) or found["link"]
    if found["wiki"] is not None:
        return found["wiki"].rpartition("|")[2] or found["wiki"]
    return found["literal"] or found["strong"] or found["emphasis"] or ""
