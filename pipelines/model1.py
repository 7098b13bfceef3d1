"""IBM model 1: which words of one side translate which of the other, by expectation and maximisation.

The probability of a target word is the mean of its probabilities given each source word of the pair and given nothing;
of a source word, the same the other way round. A row's words are counted, since their order plays no part.

Source: Brown et al. 1993, "The mathematics of statistical machine translation", section 4.1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipelines.bags import Bags, Entries, KeyIndex, Values, blocks, entries_of
from pipelines.characters import Counts

_SORTED = 2**23  # entries that are sorted in one go: 200 MiB
_TINY = 1e-290  # a probability below is none: counts over it would overflow


def meetings(src: Bags, tgt: Bags, width: int, least: int) -> npt.NDArray[np.int64]:
    """Return the keys of the words that meet in so many pairs at least, in ascending order."""
    # Some source words at a time, so that what is sorted has a bound.
    rounds = 1 + int((src.sizes * tgt.sizes).sum()) // _SORTED
    found = []
    for number in range(rounds):
        keys = []
        for some_src, some_tgt, _ in blocks(src.where(src.ids % rounds == number), tgt):
            entries = entries_of(some_src, some_tgt)
            keys.append(entry_keys(some_src, some_tgt, entries, width))
        ordered = np.sort(np.concatenate(keys)) if keys else np.empty(0, dtype=np.int64)
        heads = np.flatnonzero(np.diff(ordered, prepend=-1))
        found.append(ordered[heads[np.diff(np.append(heads, len(ordered))) >= least]])
    return np.sort(np.concatenate(found))


def entry_keys(src: Bags, tgt: Bags, entries: Entries, width: int) -> npt.NDArray[np.int64]:
    """Return the key of each entry: number of the source word * width + number of the target word, which is below."""
    keys: npt.NDArray[np.int64] = (src.ids.astype(np.int64) * width)[entries.src] + tgt.ids[entries.tgt]
    return keys


@dataclass(frozen=True)
class Model:
    """Probabilities, or the expected counts that they come from.

    given_src, given_tgt [entries]: of the target word given the source word, and the other way round.
    null_src, null_tgt [words + 1]: of each word given nothing, by its number, which is 1 and up.
    """

    given_src: Values
    given_tgt: Values
    null_src: Values
    null_tgt: Values

    @classmethod
    def uniform(cls, entries: int, source_words: int, target_words: int) -> Model:
        """Return the start. The log-likelihood of model 1 is concave, so that no other start leads higher."""
        to_target, to_source = 1 / max(target_words, 1), 1 / max(source_words, 1)
        return cls(
            np.full(entries, to_target),
            np.full(entries, to_source),
            np.full(source_words + 1, to_source),
            np.full(target_words + 1, to_target),
        )

    def maximized(self, keys: npt.NDArray[np.int64], width: int) -> tuple[Model, tuple[Values, Values]]:
        """Return the probabilities of these counts, and the counts of each source and target word in all."""
        source, target = keys // width, keys % width
        of_source = np.bincount(source, weights=self.given_src, minlength=len(self.null_src)).astype(np.float64)
        of_target = np.bincount(target, weights=self.given_tgt, minlength=len(self.null_tgt)).astype(np.float64)
        model = Model(
            self.given_src / of_source[source],
            self.given_tgt / of_target[target],
            self.null_src / max(self.null_src.sum(), _TINY),
            self.null_tgt / max(self.null_tgt.sum(), _TINY),
        )
        return model, (of_source, of_target)


def expected(src: Bags, tgt: Bags, index: KeyIndex, width: int, model: Model) -> tuple[Model, dict[str, float]]:
    """Return the expected counts under a model (the E step), and the log-likelihood per word under it."""
    counts = Model(*(np.zeros_like(values) for values in vars(model).values()))
    sums = {"target": 0.0, "source": 0.0}
    for some_src, some_tgt, _ in blocks(src, tgt):
        entries = entries_of(some_src, some_tgt)
        places = index.find(entry_keys(some_src, some_tgt, entries, width))
        known = np.flatnonzero(places >= 0)
        places, at_src, at_tgt = places[known], entries.src[known], entries.tgt[known]
        share = shares(model.given_src[places], some_src, at_src, some_tgt, at_tgt, model.null_tgt)
        np.add.at(counts.given_src, places, share.entries)
        np.add.at(counts.null_tgt, some_tgt.ids, share.null)
        sums["target"] += share.likelihood
        share = shares(model.given_tgt[places], some_tgt, at_tgt, some_src, at_src, model.null_src)
        np.add.at(counts.given_tgt, places, share.entries)
        np.add.at(counts.null_src, some_src.ids, share.null)
        sums["source"] += share.likelihood
    words = {"target": float(tgt.counts.sum(dtype=np.float64)), "source": float(src.counts.sum(dtype=np.float64))}
    return counts, {side: sums[side] / max(words[side], 1.0) for side in sums}


@dataclass(frozen=True)
class Shares:
    """Expected counts: of each entry, and of each word as a translation of nothing; and the words' log-likelihood."""

    entries: Values
    null: Values
    likelihood: float


def shares(given: Values, one: Bags, at_one: Counts, other: Bags, at_other: Counts, null: Values) -> Shares:
    """Return which word of one side each word of the other is expected to translate.

    given [entries]: p(other word | one word), of the words at at_one and at_other; null: p(word | nothing).
    """
    weights = given * one.counts[at_one]
    nothing = null[other.ids]
    sums = nothing + np.bincount(at_other, weights=weights, minlength=len(nothing))
    scale = np.divide(other.counts, sums, out=np.zeros(len(sums)), where=sums > _TINY)
    words = np.repeat(one.sums(one.counts) + 1, other.sizes)
    likelihood = float((other.counts * np.log(np.maximum(sums, _TINY) / words)).sum())
    return Shares(weights * scale[at_other], nothing * scale, likelihood)
