"""The lexicon: what it is estimated on, what it says of a pair (against plain loops), and how it is kept."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import InputError
from pipelines.lexicon import LEXICAL_FEATURES, LEXICON_FILES, Lexicon, fit_lexicon

# Words of two made-up languages, of five letters each at most: all different there, and none of one in the other.
SOURCE = [first + vowel + "t" for first in "bdfgklmnps" for vowel in "aeo"]
TARGET = [word[::-1] + "i" for word in SOURCE]
SENTENCES = st.lists(st.sampled_from(["one", "two", "three", "Anna", "7"]), max_size=5).map(" ".join)
CORPORA = st.lists(st.tuples(SENTENCES, SENTENCES), min_size=1, max_size=7)


def array(texts: list[str]) -> pa.StringArray:
    return pa.array(texts, pa.string())


def translated_corpus(rows: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """Source sentences of three to eight words, and their translations word by word in another order."""
    generator = np.random.default_rng(seed)
    sides: tuple[list[str], list[str]] = ([], [])
    for _ in range(rows):
        words = generator.integers(0, len(SOURCE), generator.integers(3, 9))
        sides[0].append(" ".join(SOURCE[word] for word in words))
        sides[1].append(" ".join(TARGET[word] for word in generator.permutation(words)))
    return sides


def fitted(src: list[str], tgt: list[str], iterations: int = 5, least: int = 1) -> Lexicon:
    return fit_lexicon(array(src), array(tgt), iterations, min_meetings=least, pruned=0.0)[0]


def adequacies(lexicon: Lexicon, src: list[str], tgt: list[str]) -> np.ndarray:
    found = lexicon.match(array(src), array(tgt))
    return (found["src_translated"] + found["tgt_translated"]) / 2


# --- What it says of a pair ------------------------------------------------------------------------------------------


def plain_match(lexicon: Lexicon, src: list[str], tgt: list[str], own: bool) -> dict[str, float]:
    """What `match` says of one pair of words, by loops over them; `own`: the table was estimated on it."""
    found: dict[str, float] = {}
    for side, other, one in (("tgt", tgt, src), ("src", src, tgt)):
        probabilities = plain_probabilities(lexicon, side, one, other, own)
        best = {word: max(probabilities[with_, word] for with_ in one) for word in other}
        sides = {"tgt": lexicon.tgt, "src": lexicon.src}
        uses = dict(zip(sides[side].words.to_pylist(), sides[side].counts.tolist()))
        whole = max(sum(uses.values()), 1)
        chosen = {w for w in one for word in other if best[word] >= 0.1 and probabilities[w, word] == best[word]}
        opposite = "src" if side == "tgt" else "tgt"
        found[f"{opposite}_translated"] = len(chosen) / len(set(one))
        found[f"{side}_explained"] = sum(best[word] >= 0.1 for word in other) / len(other)
        found[f"{side}_certainty"] = sum(best[word] for word in other) / len(other)
        means = [sum(probabilities[with_, word] for with_ in one) / (len(one) + 1) for word in other]
        logs = [math.log(0.9 * mean + 0.1 * uses.get(word, 1) / whole) for mean, word in zip(means, other)]
        found[f"{side}_likelihood"] = sum(logs) / len(other)
    return found


def plain_probabilities(
    lexicon: Lexicon, side: str, one: list[str], other: list[str], own: bool
) -> dict[tuple[str, str], float]:
    """p(word of `other` | word of `one`), without the pair's own share in the counts, smoothed."""
    given, null, totals = plain_table(lexicon, side)
    shares: dict[tuple[str, str], float] = {}
    for word in other:
        whole = null.get(word, 0.0) + sum(
            given.get((with_, word), 0.0) / totals[with_] for with_ in one if totals.get(with_)
        )
        for with_ in one:
            if (with_, word) in given:
                share = given[with_, word] / totals[with_] / whole
                shares[with_, word] = shares.get((with_, word), 0.0) + share
    probabilities = {}
    for with_ in one:
        taken = sum(share for (first, _), share in shares.items() if first == with_) if own else 0.0
        left = max(totals.get(with_, 0.0) - taken, 0.0)
        for word in other:
            count = given.get((with_, word), 0.0) - (shares.get((with_, word), 0.0) if own else 0.0)
            probabilities[with_, word] = (max(count, 0.0) + 0.5 * (with_ == word)) / (left + 1)
    return probabilities


def plain_table(lexicon: Lexicon, side: str) -> tuple[dict[tuple[str, str], float], dict[str, float], dict[str, float]]:
    src, tgt = lexicon.src.words.to_pylist(), lexicon.tgt.words.to_pylist()
    pairs = [(src[key // (len(tgt) + 1) - 1], tgt[key % (len(tgt) + 1) - 1]) for key in lexicon.keys.tolist()]
    if side == "tgt":
        null = dict(zip(tgt, lexicon.tgt.null.tolist()))
        return dict(zip(pairs, lexicon.given_src.tolist())), null, dict(zip(src, lexicon.src.totals.tolist()))
    turned = [(target, source) for source, target in pairs]
    null = dict(zip(src, lexicon.src.null.tolist()))
    return dict(zip(turned, lexicon.given_tgt.tolist())), null, dict(zip(tgt, lexicon.tgt.totals.tolist()))


@settings(max_examples=60)
@given(CORPORA, CORPORA)
def test_a_match_is_that_of_plain_loops(known: list[tuple[str, str]], asked: list[tuple[str, str]]) -> None:
    lexicon = fitted(*map(list, zip(*known)), iterations=3)
    rows = [*known, *asked]
    found = lexicon.match(*(array(list(side)) for side in zip(*rows)))
    assert set(found) == set(LEXICAL_FEATURES)
    for row, (src, tgt) in enumerate(rows):
        words = [text.lower().split() for text in (src, tgt)]
        for name in LEXICAL_FEATURES:
            if all(words):
                assert found[name][row] == pytest.approx(
                    plain_match(lexicon, *words, own=(src, tgt) in known)[name], rel=1e-9
                )
            else:
                assert math.isnan(found[name][row])


def test_a_pair_is_judged_without_its_own_share() -> None:
    # "rare" and "selten" meet in this pair alone, and would explain each other perfectly.
    src, tgt = (
        ["the rare book", "the book", "a book", "the house"],
        ["das selten buch", "das buch", "ein buch", "das haus"],
    )
    lexicon = fitted(src, tgt, iterations=10)
    inside = lexicon.match(array(src[:1]), array(tgt[:1]))
    stranger = Lexicon(lexicon.src, lexicon.tgt, lexicon.keys, lexicon.given_src, lexicon.given_tgt, lexicon.pairs[:0])
    outside = stranger.match(array(src[:1]), array(tgt[:1]))
    assert outside["src_translated"].tolist() == [1.0]
    assert inside["src_translated"].tolist() == [pytest.approx(2 / 3)]
    assert inside["tgt_explained"].tolist() == [pytest.approx(2 / 3)]


def test_translations_are_told_from_other_sentences() -> None:
    src, tgt = translated_corpus(400)
    lexicon, _ = fit_lexicon(array(src), array(tgt), 5)
    right = adequacies(lexicon, src, tgt)
    wrong = adequacies(lexicon, src, tgt[1:] + tgt[:1])
    assert right.mean() > 0.9
    assert wrong.mean() < 0.5
    assert np.mean(right[:, None] > wrong[None, :]) > 0.97


def test_words_that_were_never_seen_translate_themselves() -> None:
    lexicon = fitted(*translated_corpus(50))
    found = lexicon.match(array(["Xanthippe 1999"]), array(["XANTHIPPE, 1999!"]))
    assert found["tgt_translated"].tolist() == [1.0]
    assert found["src_certainty"].tolist() == [0.5]


def test_a_side_without_words_has_no_match() -> None:
    lexicon = fitted(*translated_corpus(20))
    found = lexicon.match(array(["", "?!", "bat", "bat"]), array(["tabi", "tabi", "", "tabi"]))
    assert [np.isnan(values).tolist() for values in found.values()] == [[True, True, True, False]] * len(found)
    assert all(len(values) == 0 for values in lexicon.match(array([]), array([])).values())


def test_a_row_s_match_does_not_depend_on_the_rows_beside_it() -> None:
    src, tgt = translated_corpus(120)
    lexicon, _ = fit_lexicon(array(src), array(tgt), 3)
    whole = lexicon.match(array(src), array(tgt))
    single = [lexicon.match(array([one]), array([other])) for one, other in zip(src, tgt)]
    for name, values in whole.items():
        assert values.tolist() == [found[name][0] for found in single]


# --- What it is estimated on -----------------------------------------------------------------------------------------


def test_a_pair_that_repeats_counts_once() -> None:
    src, tgt = translated_corpus(30)
    once, repeated = fitted(src, tgt), fitted(src + src[:10], tgt + [text.upper() for text in tgt[:10]])
    assert once.keys.tolist() == repeated.keys.tolist()
    assert once.given_src.tolist() == repeated.given_src.tolist()
    assert once.pairs.tolist() == repeated.pairs.tolist()
    assert len(once.pairs) == 30


def test_rare_words_and_improbable_entries_are_left_out() -> None:
    src, tgt = ["the house", "the book", "the unicum"], ["das haus", "das buch", "das einmal"]
    lexicon, _ = fit_lexicon(array(src), array(tgt), 5)
    assert lexicon.src.words.to_pylist() == ["the"]
    assert lexicon.tgt.words.to_pylist() == ["das"]
    assert lexicon.src.counts.tolist() == [3]
    assert len(lexicon.keys) == 1
    every = fitted(*translated_corpus(100))
    assert len(every.keys) > len(
        fit_lexicon(*map(array, translated_corpus(100)), 5, pruned=0.3, min_meetings=1)[0].keys
    )


def test_texts_may_come_in_chunks() -> None:
    src, tgt = translated_corpus(50)
    chunked = [pa.chunked_array([texts[:20], texts[20:20], texts[20:]], pa.string()) for texts in (src, tgt)]
    one, other = fit_lexicon(*chunked, 3), fit_lexicon(array(src), array(tgt), 3)
    assert one[1] == other[1]
    assert one[0].given_src.tolist() == other[0].given_src.tolist()
    assert one[0].src.words.to_pylist() == other[0].src.words.to_pylist()


def test_the_likelihood_is_reported_for_each_iteration() -> None:
    _, likelihoods = fit_lexicon(*map(array, translated_corpus(100)), 6)
    assert [set(entry) for entry in likelihoods] == [{"target", "source"}] * 6
    values = [entry["target"] for entry in likelihoods]
    assert values == sorted(values)
    assert values[0] == pytest.approx(-math.log(len(TARGET)), abs=0.2)  # of a word among so many, all alike


def test_pairs_without_words_give_an_empty_lexicon() -> None:
    lexicon, likelihoods = fit_lexicon(array(["", "?"]), array(["!", ""]), 2)
    assert len(lexicon.keys) == len(lexicon.src.words) == 0
    assert likelihoods[-1] == {"target": 0.0, "source": 0.0}
    assert lexicon.match(array(["a b"]), array(["a c"]))["src_translated"].tolist() == [0.5]


def test_scripts_without_spaces_have_characters_for_words() -> None:
    lexicon = fitted(["dog", "the dog", "cat", "the cat"] * 2, ["狗", "这狗", "猫", "这猫"] * 2)
    assert sorted(lexicon.tgt.words.to_pylist()) == sorted("狗猫这")
    assert adequacies(lexicon, ["dog", "dog"], ["狗", "猫"]).tolist() == [1.0, 0.0]


# --- How it is kept --------------------------------------------------------------------------------------------------


def test_a_lexicon_is_the_same_when_it_is_read_back(tmp_path: Path) -> None:
    src, tgt = translated_corpus(80)
    lexicon, _ = fit_lexicon(array([*src, "我 爱 你"]), array([*tgt, "É 2000"]), 4, min_meetings=1)
    assert lexicon.save(tmp_path) == list(LEXICON_FILES)
    loaded = Lexicon.load(tmp_path)
    for one, other in ((lexicon, loaded), (lexicon.src, loaded.src), (lexicon.tgt, loaded.tgt)):
        for name, values in vars(one).items():
            if isinstance(values, np.ndarray | pa.Array):
                assert values.tolist() == vars(other)[name].tolist(), name
    asked = lexicon.match(array(src), array(tgt))
    assert {name: values.tolist() for name, values in loaded.match(array(src), array(tgt)).items()} == {
        name: values.tolist() for name, values in asked.items()
    }


def test_the_same_texts_give_the_same_bytes(tmp_path: Path) -> None:
    src, tgt = translated_corpus(80)
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        fit_lexicon(array(src), array(tgt), 4)[0].save(tmp_path / name)
    for name in LEXICON_FILES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def test_the_entries_can_be_read_by_people(tmp_path: Path) -> None:
    fitted(["the house", "the book"], ["das haus", "das buch"]).save(tmp_path)
    entries = pq.read_table(tmp_path / "entries.parquet").to_pylist()
    best = max(entries, key=lambda entry: entry["given_source"])
    assert (best["source"], best["target"]) == ("the", "das")


@pytest.mark.parametrize("name", LEXICON_FILES)
def test_what_is_no_lexicon_is_refused(tmp_path: Path, name: str) -> None:
    fitted(*translated_corpus(20)).save(tmp_path)
    path = tmp_path / name
    pq.write_table(pq.read_table(path).replace_schema_metadata({"lexicon_format": "0"}), path)
    with pytest.raises(InputError, match="not a lexicon of format 1"):
        Lexicon.load(tmp_path)
    path.write_bytes(b"PAR1")
    with pytest.raises(InputError, match="not a part of a lexicon"):
        Lexicon.load(tmp_path)
    path.unlink()
    with pytest.raises(InputError, match="not a part of a lexicon"):
        Lexicon.load(tmp_path)


def test_entries_of_other_words_are_refused(tmp_path: Path) -> None:
    fitted(*translated_corpus(20)).save(tmp_path)
    path = tmp_path / "source_words.parquet"
    table = pq.read_table(path)
    pq.write_table(table.slice(1), path)
    with pytest.raises(InputError, match="not in the vocabulary"):
        Lexicon.load(tmp_path)
