"""Which words translate which: a table in both directions, and how far it accounts for a pair.

The table is estimated on the corpus that is to be judged, without labels. A pair that it was estimated on is judged
without its own share in it (leave one out): otherwise a rare word would have its own pair's words as sure
translations, whatever they are. So the same rows may serve for both.

    lexicon/entries.parquet         source, target string; given_source, given_target double: expected translations
    lexicon/source_words.parquet    word string; count int64; total double: expected translations of it; null double:
    lexicon/target_words.parquet    probability as a translation of nothing
    lexicon/pairs.parquet           pair uint64: keys of the pairs that it was estimated on
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.bags import (
    Bags,
    Entries,
    Hashes,
    KeyIndex,
    Values,
    bags_of,
    blocks,
    entries_of,
    numbers_of,
    row_keys,
    tokens_of,
    turned_places,
    word_hashes,
)
from pipelines.characters import CodePoints, Counts, Flags, running
from pipelines.dedup import pair_keys
from pipelines.errors import InputError
from pipelines.model1 import Model, entry_keys, expected, meetings, shares

Texts: TypeAlias = pa.StringArray | pa.ChunkedArray

LEXICON_FORMAT = "1"
LEXICAL_FEATURES = tuple(
    f"{side}_{kind}" for kind in ("translated", "explained", "certainty", "likelihood") for side in ("src", "tgt")
)
LEXICON_FILES = ("entries.parquet", "source_words.parquet", "target_words.parquet", "pairs.parquet")

_MAX_VOCABULARY = 2**16  # of each side, the most frequent
# Rarer words, and words that meet in fewer pairs, tell nothing once the pair itself is left out.
_MIN_MEETINGS = 2
_PRUNED = 1e-4  # probability in both directions, below which an entry goes after the last iteration
_ROWS = 8192  # that are gone through in one go
# The prior of a word's translations counts for as much as one use of the word, half of it that the word stays as it is.
_PRIOR = 1.0
_COPY = 0.5
# A word is translated where its best partner has it with this probability at least.
_SURE = 0.1
_FREQUENCY = 0.1  # the weight of a word's frequency in its likelihood


# --- The table -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Words:
    """The vocabulary of one side, in the order of `hashes` [words].

    counts: uses in the corpus; totals: expected translations of the word into words of the other side, all together;
    null: the probability of the word as a translation of nothing.
    """

    words: pa.StringArray
    hashes: Hashes
    counts: Counts
    totals: Values
    null: Values


@dataclass(frozen=True)
class Lexicon:
    """Expected translations of words into words.

    src, tgt: the words of each side. keys [entries] int64, ascending: number of the source word * (target words + 1)
    + number of the target word, from 1. given_src, given_tgt [entries]: how often the target word is expected as the
    translation of the source word, and the other way round; over `totals` it is a probability.
    pairs [pairs] uint64, ascending: the pairs that it was estimated on.
    """

    src: _Words
    tgt: _Words
    keys: npt.NDArray[np.int64]
    given_src: Values
    given_tgt: Values
    pairs: Hashes

    @cached_property
    def _index(self) -> KeyIndex:
        return KeyIndex(self.keys)

    def match(self, src: pa.StringArray, tgt: pa.StringArray) -> dict[str, Values]:
        """Return how far the words of pairs account for each other: LEXICAL_FEATURES, [rows] each.

        NaN where a side has no words. Of each side, here of the target:

        tgt_translated   share of its different words that are the best partner of a source word, and a sure one
        tgt_explained    share of its words that have a sure partner: a source word of which they are the translation
                         with a probability of _SURE at least
        tgt_certainty    probability of the best partner, on average
        tgt_likelihood   log probability given the source, per word, in nats; mixed with the word's frequency, so that a
                         word without partners has one too

        A pair that the table was estimated on is looked at without its share in it. A word that stands on both sides
        may translate itself.
        """
        sides = tokens_of(src), tokens_of(tgt)
        keys = pair_keys(*(row_keys(side) for side in sides))
        (src_bags, src_hashes), (tgt_bags, tgt_hashes) = (
            bags_of(side.hashes, side.first, words.hashes) for side, words in zip(sides, (self.src, self.tgt))
        )
        of_table = numbers_of(self.pairs, keys) > 0
        width = len(self.tgt.words) + 1
        features = {name: np.full(len(src), np.nan) for name in LEXICAL_FEATURES}
        filled = np.minimum(src_bags.sizes, tgt_bags.sizes) > 0
        for some_src, some_tgt, rows in blocks(src_bags, tgt_bags):
            entries, turned = entries_of(some_src, some_tgt), turned_places(some_src, some_tgt)
            places = self._index.find(entry_keys(some_src, some_tgt, entries, width))
            of_src = src_hashes[src_bags.first[rows.start] : src_bags.first[rows.stop]]
            of_tgt = tgt_hashes[tgt_bags.first[rows.start] : tgt_bags.first[rows.stop]]
            same = of_src[entries.src] == of_tgt[entries.tgt]
            one, other = _Given(some_src, self.src, self.given_src), _Given(some_tgt, self.tgt, self.given_tgt)
            both = {"tgt": _partners(one, other, places, same, of_table[rows])}
            both["src"] = _partners(other, one, places[turned], same[turned], of_table[rows])
            for side, found in both.items():
                opposite = "src" if side == "tgt" else "tgt"
                features[f"{opposite}_translated"][rows] = found.chosen
                features[f"{side}_explained"][rows] = found.explained
                features[f"{side}_certainty"][rows] = found.certainty
                features[f"{side}_likelihood"][rows] = found.likelihood
        return {name: np.where(filled, values, np.nan) for name, values in features.items()}

    def save(self, folder: Path) -> list[str]:
        """Write the LEXICON_FILES, and return their names."""
        width = len(self.tgt.words) + 1
        entries = pa.table(
            {
                "source": _named(self.src.words, self.keys // width - 1),
                "target": _named(self.tgt.words, self.keys % width - 1),
                "given_source": self.given_src,
                "given_target": self.given_tgt,
            }
        )
        tables = (entries, _word_table(self.src), _word_table(self.tgt), pa.table({"pair": self.pairs}))
        for name, table in zip(LEXICON_FILES, tables, strict=True):
            format_ = table.schema.with_metadata({"lexicon_format": LEXICON_FORMAT})
            pq.write_table(table.cast(format_), folder / name, compression="zstd", row_group_size=2**20)
        return list(LEXICON_FILES)

    @classmethod
    def load(cls, folder: Path) -> Lexicon:
        """Return what `save` wrote. Raises InputError where it is something else."""
        entries, source, target, pairs = (_read(folder / name) for name in LEXICON_FILES)
        src, tgt = _words(source), _words(target)
        source_numbers = numbers_of(src.hashes, _hashes_of(entries["source"])).astype(np.int64)
        target_numbers = numbers_of(tgt.hashes, _hashes_of(entries["target"]))
        keys = source_numbers * (len(tgt.words) + 1) + target_numbers
        if not source_numbers.all() or not target_numbers.all() or not (np.diff(keys) > 0).all():
            raise InputError(
                "entries of words that are not in the vocabulary, or not in their order",
                where=str(folder / LEXICON_FILES[0]),
                remedy="Remove the folder of the stage, and it will run again",
            )
        given_src, given_tgt = (entries[name].to_numpy() for name in ("given_source", "given_target"))
        return cls(src, tgt, keys, given_src, given_tgt, pairs["pair"].to_numpy())


def _named(words: pa.StringArray, numbers: Counts) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(numbers.astype(np.int32)), words)


def _word_table(words: _Words) -> pa.Table:
    return pa.table({"word": words.words, "count": words.counts, "total": words.totals, "null": words.null})


def _read(path: Path) -> pa.Table:
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(
            f"not a part of a lexicon: {error}",
            where=str(path),
            remedy="Remove the stage's folder, and it will run again",
        ) from error
    if (table.schema.metadata or {}).get(b"lexicon_format") != LEXICON_FORMAT.encode():
        raise InputError(
            f"not a lexicon of format {LEXICON_FORMAT}",
            where=str(path),
            remedy="Remove the stage's folder, and it will run again",
        )
    return table


def _words(table: pa.Table) -> _Words:
    words = table["word"].combine_chunks()
    return _Words(words, _hashes_of(words), *(table[name].to_numpy() for name in ("count", "total", "null")))


def _hashes_of(words: pa.Array | pa.ChunkedArray) -> Hashes:
    """Return the hashes of whole words: [words]."""
    if isinstance(words, pa.ChunkedArray):
        words = words.unify_dictionaries().combine_chunks()
    if pa.types.is_dictionary(words.type):
        hashes: Hashes = _hashes_of(words.dictionary)[words.indices.to_numpy()]
        return hashes
    content = CodePoints(words)
    return word_hashes(content.points, content.offsets[:-1], content.offsets[1:])


# --- Estimation ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Text:
    """The words of one side of a corpus: hashes [words], first [rows + 1]; keys [rows], of each row's words."""

    hashes: Hashes
    first: Counts
    keys: Hashes

    @classmethod
    def read(cls, texts: Texts) -> _Text:
        """Return the words of some texts."""
        hashes, sizes, keys = [], [], []
        for some in _slices(texts):
            tokens = tokens_of(some)
            hashes.append(tokens.hashes)
            sizes.append(np.diff(tokens.first))
            keys.append(row_keys(tokens))
        return cls(np.concatenate(hashes), running(np.concatenate(sizes)), np.concatenate(keys))

    def only(self, rows: Counts) -> _Text:
        """Return some of the rows, in ascending order."""
        wanted = np.zeros(len(self.keys), dtype=np.bool_)
        wanted[rows] = True
        sizes = np.diff(self.first)
        return _Text(self.hashes[np.repeat(wanted, sizes)], running(sizes[rows]), self.keys[rows])

    def bags(self, vocabulary: Hashes) -> Bags:
        """Return the words of the vocabulary."""
        parts = []
        for start in range(0, len(self.keys), _ROWS):
            first = self.first[start : start + _ROWS + 1]
            bags, _ = bags_of(self.hashes[first[0] : first[-1]], first - first[0], vocabulary)
            parts.append(bags.where(bags.ids > 0))
        sizes = np.concatenate([part.sizes for part in parts])
        return Bags(
            np.concatenate([part.ids for part in parts]),
            np.concatenate([part.counts for part in parts]),
            running(sizes),
        )


def _slices(texts: Texts) -> Iterator[pa.StringArray]:
    """Yield the texts, _ROWS at a time, at least once."""
    for start in range(0, max(len(texts), 1), _ROWS):
        some = texts.slice(start, _ROWS)
        whole = isinstance(some, pa.StringArray)
        yield some if whole else pa.concat_arrays(some.chunks or [pa.array([], pa.string())])


@dataclass(frozen=True)
class _Vocabulary:
    words: pa.StringArray
    hashes: Hashes
    counts: Counts


def _vocabulary(text: _Text, texts: Texts, rows: Counts, min_uses: int) -> _Vocabulary:
    """Return the most frequent words; `rows`: where the rows of `text` stand in `texts`."""
    hashes, places, counts = np.unique(text.hashes, return_index=True, return_counts=True)
    often = np.flatnonzero(counts >= min_uses)
    # Of equally frequent ones the smaller hash, so that the choice does not hang on the order of the rows.
    often = np.sort(often[np.argsort(-counts[often], kind="stable")[:_MAX_VOCABULARY]])
    used_in = np.searchsorted(text.first, places[often], side="right") - 1
    names: list[str] = []
    place = places[often] - text.first[used_in]  # within its row
    for start in range(0, len(often), _ROWS):
        some = slice(start, start + _ROWS)
        tokens = tokens_of(next(_slices(texts.take(pa.array(rows[used_in[some]])))))
        names += [tokens.text(word) for word in (tokens.first[:-1] + place[some]).tolist()]
    return _Vocabulary(pa.array(names, pa.string()), hashes[often], counts[often])


def fit_lexicon(
    src: Texts, tgt: Texts, iterations: int, *, min_meetings: int = _MIN_MEETINGS, pruned: float = _PRUNED
) -> tuple[Lexicon, list[dict[str, float]]]:
    """Return the table that EM arrives at, and the log-likelihood per word before each iteration, in nats.

    src, tgt [rows]: the two sides of the pairs. A pair that repeats counts once. Words that are used less than
    `min_meetings` times, and two words that meet in fewer pairs, are left out; at the end, entries below the
    probability `pruned` in both directions. Log-likelihoods: {"target": of the target words given the source ones,
    "source": the other way round}.
    """
    sides = _Text.read(src), _Text.read(tgt)
    pairs, rows = np.unique(pair_keys(sides[0].keys, sides[1].keys), return_index=True)
    rows = np.sort(rows)
    texts = tuple(side.only(rows) for side in sides)
    del sides
    source, target = (_vocabulary(text, column, rows, min_meetings) for text, column in zip(texts, (src, tgt)))
    source_bags, target_bags = (text.bags(words.hashes) for text, words in zip(texts, (source, target)))
    del texts
    width = len(target.words) + 1
    index = KeyIndex(meetings(source_bags, target_bags, width, min_meetings))
    model = Model.uniform(len(index.keys), len(source.words), len(target.words))
    likelihoods = []
    for _ in range(iterations):
        counts, likelihood = expected(source_bags, target_bags, index, width, model)
        model, totals = counts.maximized(index.keys, width)
        likelihoods.append(likelihood)
    kept = np.flatnonzero((model.given_src >= pruned) | (model.given_tgt >= pruned))
    lexicon = Lexicon(
        _Words(source.words, source.hashes, source.counts, totals[0][1:], model.null_src[1:]),
        _Words(target.words, target.hashes, target.counts, totals[1][1:], model.null_tgt[1:]),
        index.keys[kept],
        counts.given_src[kept],
        counts.given_tgt[kept],
        pairs,
    )
    return lexicon, likelihoods


# --- Judging ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Given:
    """The words of one side of some rows, their vocabulary, and the counts of the entries given a word of this side."""

    bags: Bags
    vocabulary: _Words
    counts: Values


@dataclass(frozen=True)
class _Partners:
    """What the words of one side find on the other: [rows] each. `chosen` is of the other side's words."""

    chosen: Values
    explained: Values
    certainty: Values
    likelihood: Values


def _partners(one: _Given, other: _Given, places: Counts, same: Flags, of_table: Flags) -> _Partners:
    """Return how well the words of `other` are translations of the words of `one`.

    places, same [entries], in the order of other's words: where an entry stands in the table or -1, and whether both
    words are the same. of_table [rows]: whether the table was estimated on the row.
    """
    entries = entries_of(one.bags, other.bags)
    probability = _without_own(one, other, entries, places, same, of_table)
    sizes = one.bags.sums(one.bags.counts), other.bags.sums(other.bags.counts)
    uses = other.bags.counts
    filled = np.flatnonzero(np.diff(entries.starts))
    starts = entries.starts[filled]
    best, sums = np.zeros(len(uses)), np.zeros(len(uses))
    if len(filled):
        best[filled] = np.maximum.reduceat(probability, starts)
        sums[filled] = np.add.reduceat(probability * one.bags.counts[entries.src], starts)
    sure = best >= _SURE
    chosen = np.zeros(len(one.bags.ids), dtype=np.bool_)
    chosen[entries.src[probability >= np.where(sure, best, np.inf)[entries.tgt]]] = True
    # Nothing is one more word, that translates into none: as in model 1.
    mean = sums / np.repeat(sizes[0] + 1, other.bags.sizes)
    counts = other.vocabulary.counts
    frequency = np.append(1, counts)[other.bags.ids] / max(int(counts.sum()), 1)
    logs = np.log((1 - _FREQUENCY) * mean + _FREQUENCY * frequency)

    def average(values: npt.NDArray[Any]) -> Values:
        return other.bags.sums(values * uses) / np.maximum(sizes[1], 1)

    share = one.bags.sums(chosen) / np.maximum(one.bags.sizes, 1)
    return _Partners(share, average(sure), average(best), average(logs))


def _without_own(one: _Given, other: _Given, entries: Entries, places: Counts, same: Flags, of_table: Flags) -> Values:
    """Return p(other word | one word) of each entry, smoothed, without the share of the row itself: [entries].

    What a row had contributed to the expected counts is taken to be what it would contribute to the next ones: near the
    end of EM the two are close.
    """
    totals = np.append(0.0, one.vocabulary.totals)[one.bags.ids]
    null = np.append(0.0, other.vocabulary.null)
    known = np.flatnonzero(places >= 0)
    at_one, at_other = entries.src[known], entries.tgt[known]
    counts = one.counts[places[known]]
    given = counts / totals[at_one]
    share = shares(given, one.bags, at_one, other.bags, at_other, null).entries
    share *= np.repeat(of_table, one.bags.sizes)[at_one]
    left = totals - np.bincount(at_one, weights=share, minlength=len(totals))
    probability: Values = same.astype(np.float64) * (_PRIOR * _COPY)
    probability[known] += np.maximum(counts - share, 0.0)
    return probability / (np.maximum(left, 0.0) + _PRIOR)[entries.src]
