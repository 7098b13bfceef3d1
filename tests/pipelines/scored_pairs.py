"""Pairs as the data stages make them, for tests of single rules; and texts that are dense in what the rules look at."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
from hypothesis import strategies as st

from pipelines.config import LanguagesConfig, NormalizeConfig
from pipelines.filters import RULES, Pairs, Resources
from pipelines.normalize import normalize

EN_DE = LanguagesConfig(source="en", target="de")
EN_ZH = LanguagesConfig(source="en", target="zh")
RULE = {rule.name: rule for rule in RULES}
PLAIN = NormalizeConfig()

# Letters of one and of several bytes, runs, brackets, separators, digits; words that come again.
_PARTS = (
    *("a", "b", "Ab", "the dog", "ÄRGER", "ß", "字", "字典", "강", "é", "😀", "7", "13", "1,000", "2.5", "٣"),
    *("(", ")", "（", "»", "|", "::", "-", "–", ">", '"', "“", ".", "?", "!", "…", "aaaa", "......", "。。。。。"),
    *("f(x);", "{0}", "*it*", "``x``", "<b>", "__", "&", "#"),
)
TEXTS = st.tuples(st.lists(st.sampled_from(_PARTS), max_size=18), st.sampled_from(["", " "])).map(
    lambda parts: " ".join(parts[1].join(parts[0]).split())
)


def pairs_of(
    src: str | Sequence[str] | None,
    tgt: str | Sequence[str] | None,
    languages: LanguagesConfig = EN_DE,
    resources: Resources | None = None,
) -> Pairs:
    raw = [
        None if side is None else pa.array([side] if isinstance(side, str) else side, pa.string())
        for side in (src, tgt)
    ]
    tags = (languages.source, languages.target)
    texts = [None if side is None else normalize(side, tag, PLAIN) for side, tag in zip(raw, tags)]
    return Pairs.of(*texts, languages, src_raw=raw[0], tgt_raw=raw[1], resources=resources)


def scores(
    rule: str,
    src: str | Sequence[str] | None,
    tgt: str | Sequence[str] | None,
    languages: LanguagesConfig = EN_DE,
    resources: Resources | None = None,
) -> list[float | None]:
    found: list[float | None] = RULE[rule].score(pairs_of(src, tgt, languages, resources)).to_pylist()
    return found


def score(
    rule: str, src: str | None, tgt: str | None, languages: LanguagesConfig = EN_DE, resources: Resources | None = None
) -> float | None:
    (found,) = scores(rule, src, tgt, languages, resources)
    return found
