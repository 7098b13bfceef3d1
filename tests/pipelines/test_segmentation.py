"""Sampled pieces: the distributions of the papers, and the same pieces for the same key in every process."""

from __future__ import annotations

import math
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.config import LanguagesConfig, TokenizerConfig
from pipelines.draws import numbered, row_keys, uniform
from pipelines.segmentation import Sampler, Vocabulary
from pipelines.tokenizer import JOINT_MODEL, UNK_ID, Tokenizer, save_tokenizer, train_model

# The scores are logarithms of shares that sum to less than one, as of a unigram model.
PIECES = {
    "\u2581": -2.0, "a": -2.5, "b": -2.7, "c": -3.0, "ab": -2.2, "bc": -2.9, "\u2581a": -2.1, "abc": -3.5,
    "\u2581ab": -4.0, "ca": -3.1, "cab": -4.2, "aa": -3.3,
}  # fmt: skip
IDS = {piece: number for number, piece in enumerate(PIECES, 10)}
words = st.lists(st.text("abc", min_size=1, max_size=7), min_size=1, max_size=5).map(" ".join)


def plain(texts: Sequence[str]) -> list[list[int]]:
    """An encoder that knows no word: each is one piece of its own, by its length."""
    return [[100 + len(text), 99] for text in texts]


def sampler(kind: str, strength: float, symbols: tuple[str, ...] = ()) -> Sampler:
    return Sampler(Vocabulary(kind, IDS, PIECES, symbols, plain), strength)  # type: ignore[arg-type]


def keys_of(number: int) -> np.ndarray:
    return row_keys(1, 0, np.arange(number))


def segmentations(text: str) -> Iterator[tuple[str, ...]]:
    """All ways to write a text with the pieces."""
    if not text:
        yield ()
    for stop in range(1, len(text) + 1):
        if text[:stop] in PIECES:
            yield from ((text[:stop], *rest) for rest in segmentations(text[stop:]))


@pytest.mark.parametrize("alpha", [0.1, 0.5, 1.0])
def test_unigram_samples_have_the_probabilities_of_the_model(alpha: float) -> None:
    number = 40_000
    every = list(segmentations("\u2581cabca"))
    weights = [math.exp(alpha * sum(PIECES[piece] for piece in pieces)) for pieces in every]
    sampled = sampler("unigram", alpha).sample(["cabca"] * number, keys_of(number))
    found = Counter(tuple(ids.tolist()) for ids in sampled)
    assert found.keys() <= {tuple(IDS[piece] for piece in pieces) for pieces in every}
    assert len(every) == 11
    for pieces, weight in zip(every, weights):
        share = weight / sum(weights)
        tolerance = 5 * math.sqrt(share * (1 - share) / number)
        assert found[tuple(IDS[piece] for piece in pieces)] / number == pytest.approx(share, abs=tolerance)


def merged_one_by_one(word: str, key: np.ndarray, dropout: float) -> list[int]:
    """Algorithm 1 of Provilkov et al., word by word."""
    symbols = list(word)
    for step in range(len(word)):
        candidates = []
        for at in range(len(symbols) - 1):
            draw = uniform(numbered(key, step * len(word) + at))[0]
            pair = symbols[at] + symbols[at + 1]
            if pair in PIECES and draw >= dropout:
                candidates.append((PIECES[pair], -at))
        if not candidates:
            break
        at = -max(candidates)[1]
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
    return [IDS[symbol] for symbol in symbols]


@settings(max_examples=60)
@given(st.lists(words, min_size=1, max_size=6), st.sampled_from([0.0, 0.1, 0.5, 0.9]))
def test_bpe_dropout_is_the_papers_algorithm(texts: list[str], dropout: float) -> None:
    keys = keys_of(len(texts))
    for ids, text, key in zip(sampler("bpe", dropout).sample(texts, keys), texts, keys):
        expected = [
            merged_one_by_one("\u2581" + word, numbered(np.asarray([key]), place), dropout)
            for place, word in enumerate(text.split(" "))
        ]
        assert ids.tolist() == list(chain.from_iterable(expected))


@settings(max_examples=60)
@given(st.lists(words, min_size=1, max_size=6), st.sampled_from(["unigram", "bpe"]))
def test_pieces_spell_the_text_and_depend_on_nothing_but_their_key(texts: list[str], kind: str) -> None:
    keys = keys_of(len(texts))
    found = sampler(kind, 0.3).sample(texts, keys)
    names = {number: piece for piece, number in IDS.items()}
    assert ["".join(names[number] for number in ids) for ids in map(np.ndarray.tolist, found)] == [
        "\u2581" + text.replace(" ", "\u2581") for text in texts
    ]
    for row in reversed(range(len(texts))):
        (alone,) = sampler(kind, 0.3).sample([texts[row]], keys[[row]])
        assert alone.tolist() == found[row].tolist()


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_the_same_word_is_split_anew_at_each_place(kind: str) -> None:
    (ids,) = sampler(kind, 0.4).sample(["abcabc " * 200], keys_of(1))
    text = " ".join(map(str, ids.tolist()))
    starts = {text[at : at + 12] for at in range(len(text)) if text.startswith(("10 ", "16 ", "18 "), at)}
    assert len(starts) > 5


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_words_with_other_characters_and_symbols_are_not_sampled(kind: str) -> None:
    found = sampler(kind, 0.2, ("<x>", "b")).sample(["<x> xyz! ba", "", "<x>"], keys_of(3))
    assert [ids.tolist() for ids in found] == [[103, 99, 104, 99, 102, 99], [], [103, 99]]
    assert sampler(kind, 0.2).sample([], keys_of(0)) == []


def test_many_texts_are_as_few() -> None:
    texts = ["ab ca", "", "cab"] * 5000
    keys = keys_of(len(texts))
    whole = sampler("unigram", 0.3).sample(texts, keys)
    assert len(whole) == 15_000
    last = sampler("unigram", 0.3).sample(texts[-3:], keys[-3:])
    assert [ids.tolist() for ids in last] == [ids.tolist() for ids in whole[-3:]]


NOUNS = ["house", "boat", "dress", "book", "village", "castle"]
SENTENCES = [f"The {colour} {noun} costs {price}." for colour in ("red", "blue") for noun in NOUNS for price in (3, 17)]


def fitted(folder: Path, kind: str) -> Tokenizer:
    config = TokenizerConfig.model_validate(
        {"kind": kind, "vocab_size": 286, "byte_fallback": True, "character_coverage": 1.0, "symbols": ("<x>",)}
    )
    languages = LanguagesConfig(source="en", target="de")
    save_tokenizer(folder, {JOINT_MODEL: train_model(SENTENCES, config)}, languages, config)
    return Tokenizer.load(folder)


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_samples_of_a_tokeniser_decode_to_the_text(tmp_path: Path, kind: str) -> None:
    tokenizer = fitted(tmp_path, kind)
    texts = [*SENTENCES, "<x> The жred house 漢字."]
    found = Sampler(tokenizer.source_vocabulary(), 0.3).sample(texts, keys_of(len(texts)))
    ids = [row.tolist() for row in found]
    assert tokenizer.decode_source(ids) == texts
    assert not any(UNK_ID in row for row in ids)
    assert sum(row != encoded[:-1] for row, encoded in zip(ids, tokenizer.encode_source(texts))) > 10
    assert tokenizer.source_pieces(ids[-1])[0] == "\u2581<x>"


def test_without_dropout_bpe_is_what_the_tokeniser_gives(tmp_path: Path) -> None:
    tokenizer = fitted(tmp_path, "bpe")
    texts = [*SENTENCES, "seldom seen words, here and there"]
    found = Sampler(tokenizer.source_vocabulary(), 0.0).sample(texts, keys_of(len(texts)))
    assert [ids.tolist() for ids in found] == [ids[:-1] for ids in tokenizer.encode_source(texts)]


_SCRIPT = """
import sys
from pathlib import Path
from pipelines.draws import row_keys
from pipelines.segmentation import Sampler
from pipelines.tokenizer import Tokenizer
import numpy as np
sampler = Sampler(Tokenizer.load(Path(sys.argv[1])).source_vocabulary(), 0.3)
print([ids.tolist() for ids in sampler.sample(["The blue castle costs 17."] * 20, row_keys(1, 0, np.arange(20)))])
"""


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_another_process_draws_the_same_pieces(tmp_path: Path, kind: str) -> None:
    tokenizer = fitted(tmp_path, kind)
    here = Sampler(tokenizer.source_vocabulary(), 0.3).sample(["The blue castle costs 17."] * 20, keys_of(20))
    assert len({tuple(ids.tolist()) for ids in here}) > 5
    for seed in ("1", "2"):  # of Python's own hashes, which differ between processes too
        command = [sys.executable, "-c", _SCRIPT, str(tmp_path)]
        there = subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed})
        assert there.stdout.strip() == str([ids.tolist() for ids in here])


def test_lattices_that_are_forgotten_are_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["ab ca", "cab abc", "cabca"] * 3
    expected = [ids.tolist() for ids in sampler("unigram", 0.3).sample(texts, keys_of(9))]
    monkeypatch.setattr("pipelines.segmentation._WORDS_KEPT", 1)
    monkeypatch.setattr("pipelines.segmentation._TEXTS_AT_ONCE", 2)
    assert [ids.tolist() for ids in sampler("unigram", 0.3).sample(texts, keys_of(9))] == expected
