"""Which piece of a pair is linked to which of the other side: IBM model 2 with a prior for the diagonal, by EM.

A piece at place i of m translates nothing with probability P0, else the piece at place j of n of the other side with a
prior of exp(-tension * |i/m - j/n|), normalised over j. The tables of translations have a sparse Dirichlet prior, so
that rare pieces do not gather what nothing explains; their expectations are those of variational Bayes. Both directions
are estimated, and a link is what both hold for the best one. This intersection has fewer and surer links than the usual
heuristics find, and each piece has one at most; a piece without a link guides nothing.

Source: Dyer, Chahuneau and Smith 2013, "A Simple, Fast, and Effective Reparameterization of IBM Model 2"; for the
intersection Och and Ney 2003, "A Systematic Comparison of Various Statistical Alignment Models", section 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipelines.bags import Bags, Entries, KeyIndex, Values, blocks, entries_of, turned_places
from pipelines.characters import Counts, Flags
from pipelines.model1 import entry_keys, meetings

P0 = 0.08  # of nothing
TENSION, TENSIONS = 4.0, (0.1, 14.0)  # at the start, and between which it is looked for
ALPHA = 0.01  # of the Dirichlet prior
FLOOR = 1e-9  # probability of a translation that was never seen
_KEPT = 1e-6  # a translation less probable in both directions is one that was never seen
_SMALL = 2**24  # meetings of pieces, below which pieces are looked at that meet once; in more they would fill memory
_STEPS = 50  # of the bisection, which ends within 2e-14 of the tension


class Direction(NamedTuple):
    """The pieces of one side given those of the other, which they are `of`.

    given [entries], by the keys of the aligner; null [pieces]: of nothing, by the piece's number; `tension`.
    """

    given: Values
    null: Values
    tension: float


@dataclass(frozen=True)
class Aligner:
    """Both directions over the same keys: number of the source piece * `width` + number of the target piece."""

    keys: npt.NDArray[np.int64]
    width: int
    target: Direction
    source: Direction

    def save(self, path: Path) -> None:
        """Write it into a file of numpy's arrays, in which it can be read from other processes."""
        with path.open("wb") as file:
            np.savez(
                file, keys=self.keys, width=self.width,
                target_given=self.target.given, target_null=self.target.null, target_tension=self.target.tension,
                source_given=self.source.given, source_null=self.source.null, source_tension=self.source.tension,
            )  # fmt: skip

    @classmethod
    def load(cls, path: Path) -> Aligner:
        """Return what `save` wrote."""
        with np.load(path, allow_pickle=False) as file:
            sides = {
                side: Direction(file[f"{side}_given"], file[f"{side}_null"], float(file[f"{side}_tension"]))
                for side in ("target", "source")
            }
            return cls(file["keys"], int(file["width"]), **sides)


class Links(NamedTuple):
    """Links of some rows: row, place of the source piece and of the target piece, from 0, in this order: [links]."""

    row: Counts
    src: Counts
    tgt: Counts


# The estimate


def fit(src: Bags, tgt: Bags, sizes: tuple[int, int], iterations: int) -> tuple[Aligner, list[dict[str, float]]]:
    """Return the aligner of pairs, and the log-likelihood per piece in nats of each side before each iteration.

    `src` and `tgt` are the pieces of each row in their order, each with a count of 1; `sizes` the numbers of pieces.
    """
    least = 1 if int((src.sizes * tgt.sizes).sum()) <= _SMALL else 2
    keys = meetings(src, tgt, sizes[1], least)
    index = KeyIndex(keys)
    source, target = keys // sizes[1], keys % sizes[1]
    to_target = Direction(np.full(len(keys), 1 / sizes[1]), np.full(sizes[1], 1 / sizes[1]), TENSION)
    to_source = Direction(np.full(len(keys), 1 / sizes[0]), np.full(sizes[0], 1 / sizes[0]), TENSION)
    likelihoods = []
    for _ in range(iterations):
        of_target, of_source = _Expected.none(to_target, tgt, src), _Expected.none(to_source, src, tgt)
        for some_src, some_tgt, _ in blocks(src, tgt):
            block = _Block.of(some_src, some_tgt, index, sizes[1])
            of_target.add(to_target, block, block.entries.src, block.entries.tgt, some_src, some_tgt)
            of_source.add(to_source, block, block.entries.tgt, block.entries.src, some_tgt, some_src)
        likelihoods.append({"target": of_target.per_piece(), "source": of_source.per_piece()})
        to_target, to_source = of_target.maximized(source), of_source.maximized(target)
    return _kept(Aligner(keys, sizes[1], to_target, to_source)), likelihoods


def _kept(aligner: Aligner) -> Aligner:
    kept = np.maximum(aligner.target.given, aligner.source.given) > _KEPT
    sides = (side._replace(given=side.given[kept]) for side in (aligner.target, aligner.source))
    return Aligner(aligner.keys[kept], aligner.width, *sides)


class _Block(NamedTuple):
    """Some rows: each piece of a side with each of the other, the place of its key, -1 for none, and how far apart."""

    entries: Entries
    places: Counts
    apart: Values

    @classmethod
    def of(cls, src: Bags, tgt: Bags, index: KeyIndex, width: int) -> _Block:
        entries = entries_of(src, tgt)
        places = index.find(entry_keys(src, tgt, entries, width))
        apart = np.abs(_relative(tgt)[entries.tgt] - _relative(src)[entries.src])
        return cls(entries, places, apart)


def _relative(side: Bags) -> Values:
    """Return i/m of each piece, at place i, from 1, of its row's m."""
    sizes = np.repeat(side.sizes, side.sizes)
    places = np.arange(len(side.ids)) - np.repeat(side.first[:-1], side.sizes)
    return np.asarray((places + 1) / sizes, dtype=np.float64)


def _scores(direction: Direction, block: _Block, at_other: Counts, other: Bags) -> tuple[Values, Values]:
    """Return the joint probability of each entry [entries] and of nothing [pieces], of the `other` side's pieces."""
    prior = np.exp(-direction.tension * block.apart)
    norm = np.bincount(at_other, weights=prior, minlength=len(other.ids))
    given = np.full(len(prior), FLOOR)
    known = block.places >= 0
    given[known] = np.maximum(direction.given[block.places[known]], FLOOR)
    scale = np.divide(1.0 - P0, norm, out=np.zeros(len(norm)), where=norm > 0.0)
    return given * prior * scale[at_other], P0 * np.maximum(direction.null[other.ids], FLOOR)


@dataclass
class _Expected:
    """Expected counts of a direction, what the tension is looked for by, and the log-likelihood of so many pieces.

    `cells` [m, n]: pieces that translate something, by the pieces of their row and of the other side's; `apart`: how
    far they are from what they translate, in all.
    """

    given: Values
    null: Values
    cells: Values
    apart: float = 0.0
    likelihood: float = 0.0
    pieces: int = 0

    @classmethod
    def none(cls, direction: Direction, other: Bags, one: Bags) -> _Expected:
        shape = int(other.sizes.max(initial=0)) + 1, int(one.sizes.max(initial=0)) + 1
        return cls(np.zeros_like(direction.given), np.zeros_like(direction.null), np.zeros(shape))

    def add(
        self, direction: Direction, block: _Block, at_one: Counts, at_other: Counts, one: Bags, other: Bags
    ) -> None:
        """Add the expectations of a block: the E step. Rows without a piece on either side have no part in it."""
        scores, nothing = _scores(direction, block, at_other, other)
        totals = nothing + np.bincount(at_other, weights=scores, minlength=len(nothing))
        met = np.repeat(one.sizes, other.sizes) > 0
        shares = scores / totals[at_other]
        known = np.flatnonzero(block.places >= 0)
        np.add.at(self.given, block.places[known], shares[known])
        np.add.at(self.null, other.ids[met], (nothing / totals)[met])
        rows = np.repeat(np.arange(len(other.sizes)), other.sizes)
        something = np.bincount(rows, weights=1.0 - nothing / totals, minlength=len(other.sizes))
        np.add.at(self.cells, (other.sizes, one.sizes), np.where(one.sizes > 0, something, 0.0))
        self.apart += float((shares * block.apart).sum())
        self.likelihood += float(np.log(totals[met]).sum())
        self.pieces += int(met.sum())

    def per_piece(self) -> float:
        return self.likelihood / max(self.pieces, 1)

    def maximized(self, one: npt.NDArray[np.int64]) -> Direction:
        """Return the direction of these counts: the M step. `one` is the number of each entry's given piece."""
        counts = self.given + ALPHA
        totals = np.bincount(one, weights=counts)
        given = np.exp(digamma(counts) - digamma(np.maximum(totals, ALPHA))[one])
        seen = self.null > 0.0
        null = np.where(seen, self.null + ALPHA, 0.0)
        null[seen] = np.exp(digamma(null[seen]) - digamma(np.asarray(max(null.sum(), ALPHA))))
        m, n = np.nonzero(self.cells)
        weights = self.cells[m, n]
        return Direction(given, null, best_tension(m, n, weights, self.apart / max(float(weights.sum()), FLOOR)))


def best_tension(m: Counts, n: Counts, weights: Values, apart: float) -> float:
    """Return the tension under which pieces are on average so far `apart` from what they translate.

    weights [cells]: pieces of rows of m, whose other sides have n. It is the tension of the highest expected
    log-likelihood, within TENSIONS: its derivative is the difference of the two sides (Dyer et al., section 3.1.1).
    """
    low, high = TENSIONS
    if not len(m):
        return TENSION
    for _ in range(_STEPS):
        middle = (low + high) / 2
        # The higher the tension, the nearer.
        if mean_distance(middle, m, n, weights) > apart:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def mean_distance(tension: float, m: Counts, n: Counts, weights: Values) -> float:
    """Return the mean of |i/m - j/n| under the prior over j, over all places i of the cells, by their weights.

    The two sides of a diagonal are series of the form (a + k/n) exp(-tension (a + k/n)), which have a closed form.
    """
    cell = np.repeat(np.arange(len(m)), m)
    i = np.arange(len(cell)) - np.repeat(np.cumsum(m) - m, m) + 1
    rows, columns = m[cell], n[cell]
    below = i * columns // rows
    norm, distance = (
        one + other
        for one, other in zip(
            _series(tension, i / rows - below / columns, below, columns),
            _series(tension, (below + 1) / columns - i / rows, columns - below, columns),
        )
    )
    means = np.bincount(cell, weights=distance / norm, minlength=len(m)) / m
    return float((weights * means).sum() / weights.sum())


def _series(tension: float, first: Values, terms: Counts, n: Counts) -> tuple[Values, Values]:
    """Return the sums over k < terms of exp(-tension x) and of x exp(-tension x), x = first + k/n."""
    ratio = np.exp(-tension / n)
    last = ratio**terms
    geometric = (1.0 - last) / (1.0 - ratio)
    # The sum of k r^k over k < K is r (1 - K r^(K-1) + (K-1) r^K) / (1 - r)^2.
    weighted = (ratio - terms * last + (terms - 1) * last * ratio) / (1.0 - ratio) ** 2
    scale = np.exp(-tension * first)
    return scale * geometric, scale * (first * geometric + weighted / n)


def digamma(x: Values) -> Values:
    """Return the derivative of log gamma of positive numbers, within 1e-12 of it or of its size.

    Source: Bernardo 1976, "Algorithm AS 103: Psi (Digamma) Function".
    """
    shift = np.zeros_like(x)
    x = np.array(x, dtype=np.float64)
    for _ in range(10):
        small = x < 10.0
        shift = shift - np.where(small, 1.0 / x, 0.0)
        x = np.where(small, x + 1.0, x)
    inverse = 1.0 / (x * x)
    series = inverse * (1 / 12 - inverse * (1 / 120 - inverse * (1 / 252 - inverse * (1 / 240 - inverse / 132))))
    return np.asarray(shift + np.log(x) - 0.5 / x - series, dtype=np.float64)


# Links


def links(aligner: Aligner, index: KeyIndex, src: Bags, tgt: Bags) -> Links:
    """Return the links of pairs, in the order of rows and of their target pieces; `index` is of the aligner's keys."""
    found = [Links(*(np.empty(0, dtype=np.int64) for _ in range(3)))]
    for some_src, some_tgt, rows in blocks(src, tgt):
        block = _Block.of(some_src, some_tgt, index, aligner.width)
        turned = turned_places(some_src, some_tgt)
        scores, nothing = _scores(aligner.target, block, block.entries.tgt, some_tgt)
        both = _best(scores, block.entries.tgt, nothing)
        scores, nothing = _scores(aligner.source, block, block.entries.src, some_src)
        of_source = np.zeros(len(scores), dtype=np.bool_)
        of_source[turned] = _best(scores[turned], block.entries.src[turned], nothing)
        at_src, at_tgt = (side[both & of_source] for side in (block.entries.src, block.entries.tgt))
        row = np.repeat(np.arange(len(some_tgt.sizes)), some_tgt.sizes)[at_tgt]
        found.append(Links(rows.start + row, at_src - some_src.first[row], at_tgt - some_tgt.first[row]))
    return Links(*(np.concatenate(parts) for parts in zip(*found)))


def _best(scores: Values, piece: Counts, nothing: Values) -> Flags:
    """Return which entries are their piece's most probable one, the first of equal ones, and more so than `nothing`.

    `piece` [entries] is in ascending order.
    """
    best = np.zeros(len(scores), dtype=np.bool_)
    if not len(scores):
        return best
    starts = np.flatnonzero(np.diff(piece, prepend=-1))
    highest = np.repeat(np.maximum.reduceat(scores, starts), np.diff(np.append(starts, len(scores))))
    candidates = np.flatnonzero((scores == highest) & (scores > nothing[piece]))
    best[candidates[np.flatnonzero(np.diff(piece[candidates], prepend=-1))]] = True
    return best
