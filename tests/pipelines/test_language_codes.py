"""Codes of languages, and what tags say of scripts."""

from __future__ import annotations

import pytest

from pipelines.language_codes import canonical, script_of_tag


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("de", "de"),
        ("deu", "de"),
        ("cmn", "zh"),
        ("zho", "zh"),
        ("nob", "no"),
        ("nb", "no"),
        ("yue", "yue"),
        ("fil", "tl"),
    ],
)
def test_a_language_has_one_code(code: str, expected: str) -> None:
    assert canonical(code) == expected


@pytest.mark.parametrize(
    ("tag", "script"),
    [
        ("zh", None),
        ("zh-Hant", "Hant"),
        ("zho_Hans", "Hans"),
        ("zh-hant", "Hant"),
        ("pt-BR", None),
        ("sr-Latn", "Latn"),
    ],
)
def test_a_tag_may_name_a_script(tag: str, script: str | None) -> None:
    assert script_of_tag(tag) == script
