"""Numbers that are not in digits alone."""

from __future__ import annotations

import pytest

from pipelines.numerals import chinese_numerals, scaled


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("一只狗", [1]),
        ("十九大", [19]),
        ("二十二年", [22]),
        ("二十", [20]),
        ("一百零五", [105]),
        ("三千万元", [30_000_000]),
        ("二〇一九年", [2019]),
        ("八十五万三千", [853_000]),
        ("一万亿", [10**12]),
        ("两百和三亿", [200, 300_000_000]),
        ("1万", [10_000]),
        ("一亿两千万零五", [120_000_005]),
        ("没有", []),
    ],
)
def test_numerals_have_their_value(text: str, values: list[int]) -> None:
    assert chinese_numerals(text) == [str(value) for value in values]


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        ("en", "16 billion and 1.5 million, 2,000 thousand", "16000000000 and 1500000, 2000000"),
        ("en", "a million, 1.2.3 million, 12 dogs", "a million, 1.2.3 million, 12 dogs"),
        ("de", "1,5 Mio. Euro, 2 Milliarden, 3.000 Tausend", "1500000. Euro, 2000000000n, 3000000"),
        ("fr", "1,5 million", "1500000"),
        ("zh", "8.5亿 50 万间 3千万 1.23456万", "850000000 500000间 30000000 12345.6"),
        ("pl", "5 milion", "5 milion"),
    ],
)
def test_digits_with_a_scale_become_one_number(language: str, text: str, expected: str) -> None:
    assert scaled(text, language) == expected
