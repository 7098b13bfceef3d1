"""Markup as tokens, and texts without it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.markup import MARKUP_SIGNS, markup_tokens, strip_markup

EXAMPLES = [
    ("A dog runs.", [], "A dog runs."),
    ("<b class='x'>A</B> dog<br/>", ["<b>", "</b>", "<br>"], "A dog"),
    ("a <!-- note --> dog", ["<!-->"], "a  dog"),
    ("1 < 2, a < b and c > d", [], "1 < 2, a < b and c > d"),
    ("See :ref:`the dogs <dogs>`.", [":ref:"], "See the dogs."),
    (":py:meth:`~a.b.run` :RFC:`822` :class:`!Dog`", [":py:meth:", ":rfc:", ":class:"], "run 822 Dog"),
    ("Use ``0`` or ``x = 1``.", ["``0``", "``x = 1``"], "Use 0 or x = 1."),
    ("``quoted'' as in ``TeX''", [], "``quoted'' as in ``TeX''"),
    ("`a link <http://x.org>`_ and `one`__", ["`_", "`_"], "a link and one"),
    ("**bold** and *it*", ["**", "*"], "bold and it"),
    ("如果*item*是``None``", ["*", "``None``"], "如果item是None"),
    ("2 * 3 * 4, f*** off, Lehrer*innen und Schüler*innen", [], "2 * 3 * 4, f*** off, Lehrer*innen und Schüler*innen"),
    ("the |version| of a|b|c", ["|version|"], "the |version| of a|b|c"),
    ("[[Dog|a dog]] [[cat]] [1]", ["[[]]", "[[]]"], "a dog cat [1]"),
    ("%s of %(all)d, {0} {name} ${x} {{y}}", ["%s", "%(all)d", "{0}", "{name}", "${x}", "{{y}}"], None),
    ("100 % sure, 50%ig, 100%", [], "100 % sure, 50%ig, 100%"),
]


@pytest.mark.parametrize(("text", "tokens", "stripped"), EXAMPLES)
def test_the_markup_of_a_text(text: str, tokens: list[str], stripped: str | None) -> None:
    assert markup_tokens(text) == tokens
    assert strip_markup(text) == (text if stripped is None else stripped)


@given(st.text(alphabet="ab <>/`*|:_[]{}%s'!~.字", max_size=20))
def test_what_marks_up_begins_with_a_sign_that_is_looked_for(text: str) -> None:
    if not any(sign in text for sign in MARKUP_SIGNS):
        assert markup_tokens(text) == []
        assert strip_markup(text) == text
    assert len(strip_markup(text)) <= len(text)
