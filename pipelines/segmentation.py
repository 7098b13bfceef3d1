"""Subword regularisation: a text split into pieces at random, as a pure function of the text and a key.

SentencePiece can sample too, but its draws differ from process to process, whatever the seed; here a key decides, so
that every worker and every restart gets the same pieces. Words are split one by one, as no piece crosses a space, and
all words of many texts at once, as arrays. A word with a character that the vocabulary lacks, or that starts with a
symbol, is split as it always is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from pipelines.draws import Keys, numbered, uniform

SPACE = "\u2581"  # what stands for the space before a word
Ids = npt.NDArray[np.int32]
Numbers = npt.NDArray[np.int64]
Number = TypeVar("Number", bound=np.generic)

# Words of so many texts are in arrays together: a bound on memory.
_TEXTS_AT_ONCE = 10_000
# Words whose lattices are kept, about half a kilobyte each.
_WORDS_KEPT = 300_000


@dataclass(frozen=True)
class Vocabulary:
    """A SentencePiece model as sampling needs it: the ids and scores of normal pieces, and the words of one piece.

    `encode` gives the ids of words without sampling.
    """

    kind: Literal["unigram", "bpe"]
    ids: Mapping[str, int]
    scores: Mapping[str, float]
    symbols: tuple[str, ...]
    encode: Callable[[Sequence[str]], list[list[int]]]


class Segments(NamedTuple):
    """The pieces of many words, one after another, and how many each word has: ids [pieces], counts [words]."""

    ids: Ids
    counts: Numbers


class _Splitter(Protocol):
    def split(self, words: Sequence[str], word_of: Numbers, keys: Keys) -> Segments:
        """Return the pieces of words[word_of[i]] for each i, drawn with keys[i]; a word starts with SPACE."""


class Sampler:
    """Splits texts at random with the pieces of one vocabulary.

    Unigram: a segmentation x has the probability P(x)^strength / sum of P(y)^strength over all segmentations y of the
    text, Kudo 2018, arXiv:1804.10959, section 3.3 with all of them. BPE: in each step each possible merge is left out
    with the probability `strength`, and the best of the others is done, until there is none: Provilkov et al. 2020,
    arXiv:1910.13267, algorithm 1.
    """

    def __init__(self, vocabulary: Vocabulary, strength: float) -> None:
        self._vocabulary = vocabulary
        self._characters = frozenset(piece for piece in vocabulary.ids if len(piece) == 1)
        splitter = _Unigram if vocabulary.kind == "unigram" else _Bpe
        self._splitter: _Splitter = splitter(vocabulary, strength)

    def sample(self, texts: Sequence[str], keys: Keys) -> list[Ids]:
        """Return the piece ids of each text, without special ones: a pure function of text and key."""
        sampled = []
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            stop = start + _TEXTS_AT_ONCE
            sampled += self._sample(texts[start:stop], keys[start:stop])
        return sampled

    def _sample(self, texts: Sequence[str], keys: Keys) -> list[Ids]:
        places: dict[str, int] = {}
        lines = [[places.setdefault(word, len(places)) for word in text.split(" ") if word] for text in texts]
        counts = np.fromiter(map(len, lines), dtype=np.int64, count=len(lines))
        word_of = np.fromiter((word for line in lines for word in line), dtype=np.int64, count=int(counts.sum()))
        word_keys = numbered(np.repeat(keys, counts), _ranges(counts))

        known = np.asarray([self._is_known(word) for word in places], dtype=np.bool_)
        place = np.where(known, np.cumsum(known), np.cumsum(~known)) - 1
        at_random = known[word_of]
        words = [SPACE + word for word, is_known in zip(places, known) if is_known]
        drawn = self._splitter.split(words, place[word_of[at_random]], word_keys[at_random])
        plain = self._vocabulary.encode([word for word, is_known in zip(places, known) if not is_known])
        fixed = [plain[number] for number in place[word_of[~at_random]].tolist()]

        pieces = np.empty(len(word_of), dtype=np.int64)
        pieces[at_random] = drawn.counts
        pieces[~at_random] = [len(ids) for ids in fixed]
        is_drawn = np.repeat(at_random, pieces)
        flat = np.empty(len(is_drawn), dtype=np.int32)
        flat[is_drawn] = drawn.ids
        flat[~is_drawn] = [piece for ids in fixed for piece in ids]
        ends = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(pieces)])
        return np.split(flat, ends[np.cumsum(counts)[:-1]])

    def _is_known(self, word: str) -> bool:
        return self._characters.issuperset(SPACE + word) and not word.startswith(self._vocabulary.symbols)


class _Unigram:
    """Forward filtering and backward sampling on the lattices of words, which are kept: most words come again."""

    def __init__(self, vocabulary: Vocabulary, strength: float) -> None:
        scores = vocabulary.scores
        self._pieces = {piece: (number, strength * scores[piece]) for piece, number in vocabulary.ids.items()}
        self._prefixes = {piece[:stop] for piece in self._pieces for stop in range(1, len(piece) + 1)}
        self._forget()

    def _forget(self) -> None:
        self._places: dict[str, int] = {}
        self._lattices = _Lattices.of([], [], [], [], [], [])

    def split(self, words: Sequence[str], word_of: Numbers, keys: Keys) -> Segments:
        place = self._placed(words)[word_of]
        lattices = self._lattices
        node, start = lattices.end[place], lattices.start[place]
        drawn, steps, ids = [], [], []
        active, step = np.arange(len(word_of)), 0
        while len(active):
            # The edges into node n have their cumulative probabilities in (n, n + 1].
            wanted = node[active] + uniform(numbered(keys[active], step))
            edge = np.searchsorted(lattices.cumulative, wanted, side="right")
            edge = np.minimum(edge, lattices.last_edge[node[active]])  # where the sum was rounded up to n + 1
            drawn.append(active)
            steps.append(np.full(len(active), step))
            ids.append(lattices.piece[edge])
            node[active] = lattices.origin[edge]
            active, step = active[node[active] != start[active]], step + 1
        if not drawn:
            return Segments(np.empty(0, dtype=np.int32), np.zeros(0, dtype=np.int64))
        tokens = np.concatenate(drawn)
        counts = np.bincount(tokens, minlength=len(word_of))
        flat = np.empty(len(tokens), dtype=np.int32)
        flat[np.cumsum(counts)[tokens] - 1 - np.concatenate(steps)] = np.concatenate(ids)  # drawn from the end
        return Segments(flat, counts)

    def _placed(self, words: Sequence[str]) -> Numbers:
        """Return the places of the words' lattices, which are made where there are none yet: [words]."""
        if len(self._places) > _WORDS_KEPT:
            self._forget()
        new = [word for word in words if word not in self._places]
        self._lattices = self._lattices.with_more(self._made(new))
        for word in new:
            self._places[word] = len(self._places)
        return np.asarray([self._places[word] for word in words], dtype=np.int64)

    def _made(self, words: Sequence[str]) -> _Lattices:
        pieces, prefixes, exp, log = self._pieces, self._prefixes, math.exp, math.log
        starts: list[int] = []
        ends: list[int] = []
        last_edge: list[int] = []
        origin: list[int] = []
        piece: list[int] = []
        cumulative: list[float] = []
        for word in words:
            first, length = len(last_edge), len(word)
            starts.append(first)
            ends.append(first + length)
            # The ways to each node: the log probability of all of them by one last piece, its start and its id.
            ways: list[list[tuple[float, int, int]]] = [[] for _ in range(length + 1)]
            for node in range(length + 1):
                log_sum = 0.0  # of the probabilities of all ways to this node
                if node:
                    best = max(ways[node])[0]
                    shares = [exp(way[0] - best) for way in ways[node]]
                    total, so_far = sum(shares), 0.0
                    for (_, before, number), share in zip(ways[node], shares):
                        so_far += share
                        origin.append(first + before)
                        piece.append(number)
                        cumulative.append(first + node + so_far / total)
                    log_sum = best + log(total)
                last_edge.append(len(origin) - 1)
                for stop in range(node + 1, length + 1):
                    text = word[node:stop]
                    if text not in prefixes:
                        break
                    if text in pieces:
                        number, score = pieces[text]
                        ways[stop].append((log_sum + score, node, number))
        return _Lattices.of(starts, ends, last_edge, origin, piece, cumulative)


class _Lattices(NamedTuple):
    """The lattices of words, their nodes numbered through: start, end [words]; last_edge [nodes]; the rest [edges].

    An edge is a piece between two nodes; edges are in the order of the nodes that they lead to.
    """

    start: Numbers
    end: Numbers
    last_edge: Numbers
    origin: Numbers
    piece: Ids
    cumulative: npt.NDArray[np.float64]

    @classmethod
    def of(
        cls,
        start: Sequence[int],
        end: Sequence[int],
        last_edge: Sequence[int],
        origin: Sequence[int],
        piece: Sequence[int],
        cumulative: Sequence[float],
    ) -> _Lattices:
        """Return the lists as arrays."""
        return cls(
            np.asarray(start, dtype=np.int64),
            np.asarray(end, dtype=np.int64),
            np.asarray(last_edge, dtype=np.int64),
            np.asarray(origin, dtype=np.int64),
            np.asarray(piece, dtype=np.int32),
            np.asarray(cumulative, dtype=np.float64),
        )

    def with_more(self, more: _Lattices) -> _Lattices:
        """Return these lattices and others behind them."""
        nodes, edges = len(self.last_edge), len(self.origin)
        return _Lattices(
            start=np.concatenate([self.start, more.start + nodes]),
            end=np.concatenate([self.end, more.end + nodes]),
            last_edge=np.concatenate([self.last_edge, more.last_edge + edges]),
            origin=np.concatenate([self.origin, more.origin + nodes]),
            piece=np.concatenate([self.piece, more.piece]),
            cumulative=np.concatenate([self.cumulative, more.cumulative + nodes]),
        )


class _Bpe:
    """Merges with dropout, of all words of the same length at once."""

    def __init__(self, vocabulary: Vocabulary, strength: float) -> None:
        self._ids, self._dropout = vocabulary.ids, strength
        merges = [(2**63 - 1, math.inf, 0)]  # behind all others, so that every search finds one
        for piece, merged in vocabulary.ids.items():
            for at in range(1, len(piece)):
                left, right = vocabulary.ids.get(piece[:at]), vocabulary.ids.get(piece[at:])
                if left is not None and right is not None:
                    merges.append((left << 32 | right, -vocabulary.scores[piece], merged))
        pairs, ranks, made = zip(*sorted(merges))
        self._pairs = np.asarray(pairs, dtype=np.int64)
        self._ranks = np.asarray(ranks, dtype=np.float64)
        self._made = np.asarray(made, dtype=np.int32)

    def split(self, words: Sequence[str], word_of: Numbers, keys: Keys) -> Segments:
        lengths = np.asarray([len(word) for word in words], dtype=np.int64)
        counts = np.empty(len(word_of), dtype=np.int64)
        found: list[tuple[Numbers, Ids]] = []
        for length in np.unique(lengths).tolist():
            of_length = np.flatnonzero(lengths == length)
            spelt = [[self._ids[letter] for letter in words[word]] for word in of_length.tolist()]
            letters = np.asarray(spelt, dtype=np.int32)
            tokens = np.flatnonzero(lengths[word_of] == length)
            symbols = letters[np.searchsorted(of_length, word_of[tokens])]
            for rows, pieces in self._merged(symbols, keys[tokens]):
                counts[tokens[rows]] = pieces.shape[1]
                found.append((tokens[rows], pieces))
        flat = np.empty(int(counts.sum()), dtype=np.int32)
        starts = np.cumsum(counts) - counts
        for tokens, pieces in found:
            flat[starts[tokens][:, None] + np.arange(pieces.shape[1])] = pieces
        return Segments(flat, counts)

    def _merged(self, symbols: Ids, keys: Keys) -> Iterator[tuple[Numbers, Ids]]:
        """Yield the rows of `symbols` [rows, letters] that are done together: their numbers and their pieces.

        Each step merges one pair in each row that is left, so that all of them stay of one length.
        """
        rows, letters = np.arange(len(symbols)), symbols.shape[1]
        ranks, made = self._look_up(symbols[:, :-1], symbols[:, 1:])
        for step in range(letters - 1):
            draws = uniform(numbered(keys[rows, None], step * letters + np.arange(ranks.shape[1])))
            ranks_left = np.where(draws < self._dropout, math.inf, ranks)
            best = ranks_left.argmin(axis=1)
            goes_on = ranks_left[np.arange(len(rows)), best] < math.inf
            yield rows[~goes_on], symbols[~goes_on]
            rows, symbols, best = rows[goes_on], symbols[goes_on], best[goes_on]
            each = np.arange(len(rows))
            symbols[each, best] = made[goes_on][each, best]
            symbols = _without_column(symbols, best + 1)
            ranks, made = _without_column(ranks[goes_on], best), _without_column(made[goes_on], best)
            for place in (best - 1, best):
                inside = np.flatnonzero((place >= 0) & (place < ranks.shape[1]))
                at = place[inside]
                found = self._look_up(symbols[inside, at], symbols[inside, at + 1])
                ranks[inside, at], made[inside, at] = found
        yield rows, symbols

    def _look_up(self, left: Ids, right: Ids) -> tuple[npt.NDArray[np.float64], Ids]:
        """Return the rank of each pair, infinite where it makes no piece, and the piece that it makes."""
        pairs = left.astype(np.int64) << 32 | right
        places = np.searchsorted(self._pairs, pairs)
        return np.where(self._pairs[places] == pairs, self._ranks[places], math.inf), self._made[places]


def _without_column(table: npt.NDArray[Number], column: Numbers) -> npt.NDArray[Number]:
    """Return the table [rows, columns] without one column in each row: [rows, columns - 1]."""
    columns = np.arange(table.shape[1] - 1)
    return np.take_along_axis(table, columns + (columns >= column[:, None]), axis=1)


def _ranges(counts: Numbers) -> Numbers:
    """Return 0, 1, ... for each count, one after another: [sum of the counts]."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
