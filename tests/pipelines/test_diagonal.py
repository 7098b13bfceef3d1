"""The aligner: against plain loops in the order of the words, torch's digamma, and a corpus whose links are known."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines import bags as bags_module
from pipelines.bags import Bags, KeyIndex
from pipelines.diagonal import (
    ALPHA,
    FLOOR,
    P0,
    TENSION,
    Aligner,
    best_tension,
    digamma,
    fit,
    links,
    mean_distance,
)

Pairs = list[tuple[list[int], list[int]]]
SIZES = (40, 50)


def bags_of(rows: list[list[int]]) -> Bags:
    first = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    ids = np.array([piece for row in rows for piece in row], dtype=np.int32)
    return Bags(ids, np.ones(len(ids), dtype=np.float32), first)


def sides(pairs: Pairs) -> tuple[Bags, Bags]:
    return bags_of([src for src, _ in pairs]), bags_of([tgt for _, tgt in pairs])


def drawn(rows: int, *, seed: int = 3, longest: int = 6) -> Pairs:
    rng = random.Random(seed)

    def row(pieces: int, most: int) -> list[int]:
        return [rng.randrange(pieces) for _ in range(rng.randint(0, most))]

    return [(row(8, longest), row(9, 5)) for _ in range(rows)]


# The same by loops over the words in their order: the target given the source


class Looped:
    """One direction of the aligner, as the paper writes it."""

    def __init__(self, pairs: Pairs, pieces: int) -> None:
        self.pairs, self.tension = pairs, TENSION
        self.given: dict[tuple[int, int], float] = defaultdict(lambda: 1 / pieces)
        self.null: dict[int, float] = defaultdict(lambda: 1 / pieces)

    def joint(self, src: list[int], tgt: list[int], i: int) -> tuple[list[float], float]:
        near = [math.exp(-self.tension * abs((i + 1) / len(tgt) - (j + 1) / len(src))) for j in range(len(src))]
        scores = [(1 - P0) * p / sum(near) * max(self.given[e, tgt[i]], FLOOR) for e, p in zip(src, near)]
        return scores, P0 * max(self.null[tgt[i]], FLOOR)

    def iterate(self) -> float:
        """Do an iteration of EM; return the log-likelihood per target piece before it."""
        counts: dict[tuple[int, int], float] = defaultdict(float)
        nothing: dict[int, float] = defaultdict(float)
        weights: dict[tuple[int, int], float] = defaultdict(float)
        likelihood, pieces, apart = 0.0, 0, 0.0
        for src, tgt in self.pairs:
            for i in range(len(tgt) if src else 0):
                scores, null = self.joint(src, tgt, i)
                total = sum(scores) + null
                likelihood, pieces = likelihood + math.log(total), pieces + 1
                nothing[tgt[i]] += null / total
                weights[len(tgt), len(src)] += 1 - null / total
                for j, (e, score) in enumerate(zip(src, scores)):
                    counts[e, tgt[i]] += score / total
                    apart += score / total * abs((i + 1) / len(tgt) - (j + 1) / len(src))
        self.maximize(counts, nothing)
        m, n = (np.array(side) for side in zip(*weights))
        values = np.array(list(weights.values()))
        self.tension = best_tension(m, n, values, apart / values.sum())
        return likelihood / pieces

    def maximize(self, counts: dict[tuple[int, int], float], nothing: dict[int, float]) -> None:
        totals: dict[int, float] = defaultdict(float)
        for (e, _), count in counts.items():
            totals[e] += count + ALPHA
        psi = torch.special.digamma

        def expected(count: float, total: float) -> float:
            both = torch.tensor([count, total], dtype=torch.float64)
            return float(torch.exp(psi(both[0]) - psi(both[1])))

        whole = sum(nothing.values()) + ALPHA * len(nothing)
        self.given = defaultdict(float, {k: expected(c + ALPHA, totals[k[0]]) for k, c in counts.items()})
        self.null = defaultdict(float, {f: expected(c + ALPHA, whole) for f, c in nothing.items()})

    def best(self, src: list[int], tgt: list[int], i: int) -> int | None:
        scores, null = self.joint(src, tgt, i)
        return scores.index(max(scores)) if src and max(scores) > null else None


@pytest.mark.parametrize("entries", [2**18, 7])
def test_both_directions_are_those_of_loops_over_the_pieces(entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bags_module, "ENTRIES", entries)
    pairs = drawn(25)
    aligner, likelihoods = fit(*sides(pairs), SIZES, 3)
    to_target = Looped(pairs, SIZES[1])
    to_source = Looped([(tgt, src) for src, tgt in pairs], SIZES[0])
    expected = [{"target": to_target.iterate(), "source": to_source.iterate()} for _ in range(3)]
    for likelihood, exact in zip(likelihoods, expected):
        assert likelihood == pytest.approx(exact, rel=1e-10)
    assert aligner.target.tension == pytest.approx(to_target.tension, rel=1e-9)
    assert aligner.source.tension == pytest.approx(to_source.tension, rel=1e-9)
    assert len(aligner.keys) > 20
    for key, given, back in zip(aligner.keys.tolist(), aligner.target.given, aligner.source.given):
        e, f = divmod(key, SIZES[1])
        assert (given, back) == pytest.approx((to_target.given[e, f], to_source.given[f, e]), rel=1e-8)
    found = links(aligner, KeyIndex(aligner.keys), *sides(pairs))
    exact_links = []
    for row, (src, tgt) in enumerate(pairs):
        for i in range(len(tgt)):
            j = to_target.best(src, tgt, i)
            if j is not None and to_source.best(tgt, src, j) == i:
                exact_links.append((row, j, i))
    assert list(zip(*(side.tolist() for side in found))) == exact_links
    assert exact_links


def test_em_raises_the_likelihood() -> None:
    _, likelihoods = fit(*sides(corpus(300)[0]), SIZES, 6)
    for side in ("target", "source"):
        values = [found[side] for found in likelihoods]
        # Of variational Bayes it is the bound that never falls; the likelihood does not at first.
        assert values[0] < values[1] < values[2] < values[-1] + 1e-3


# Formulas


def test_digamma_is_torchs() -> None:
    x = np.concatenate([np.geomspace(1e-4, 1e6, 500), [0.01, 0.5, 1.0, 9.999, 10.0]])
    expected = torch.special.digamma(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(digamma(x), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("tension", [0.1, 1.0, 4.0, 14.0])
def test_the_mean_distance_is_that_of_a_sum_over_all_places(tension: float) -> None:
    m, n = np.array([1, 3, 7, 12, 5]), np.array([1, 9, 7, 4, 1])
    weights = np.array([0.5, 2.0, 1.0, 3.0, 0.25])
    total = 0.0
    for rows, columns, weight in zip(m.tolist(), n.tolist(), weights.tolist()):
        for i in range(1, rows + 1):
            apart = [abs(i / rows - j / columns) for j in range(1, columns + 1)]
            prior = [math.exp(-tension * x) for x in apart]
            total += weight / rows * sum(p * x for p, x in zip(prior, apart)) / sum(prior)
    assert mean_distance(tension, m, n, weights) == pytest.approx(total / weights.sum(), rel=1e-9)


def test_the_tension_found_is_the_one_that_gives_the_distance() -> None:
    m, n, weights = np.array([4, 9]), np.array([5, 8]), np.array([2.0, 1.0])
    for tension in (0.5, 3.0, 9.0):
        apart = mean_distance(tension, m, n, weights)
        assert best_tension(m, n, weights, apart) == pytest.approx(tension, abs=1e-6)
    assert best_tension(m, n, weights, 0.0) == pytest.approx(14.0, abs=1e-6)
    assert best_tension(m, n, weights, 1.0) == pytest.approx(0.1, abs=1e-6)
    none = np.empty(0, dtype=np.int64)
    assert best_tension(none, none, np.empty(0), 0.0) == TENSION


# A corpus whose links are known


def corpus(rows: int, *, seed: int = 1) -> tuple[Pairs, list[list[tuple[int, int]]]]:
    """Return pairs in which piece k translates piece k + 4, with neighbours exchanged, some pieces added, and links."""
    rng = random.Random(seed)
    weights = [1 / (k + 1) for k in range(30)]
    pairs, known = [], []
    for _ in range(rows):
        src = rng.choices(range(4, 34), weights, k=rng.randint(3, 10))
        order = list(range(len(src)))
        for place in range(len(order) - 1):
            if rng.random() < 0.2:
                order[place], order[place + 1] = order[place + 1], order[place]
        tgt, found = [], []
        for place in order:
            if rng.random() < 0.15:
                tgt.append(45)  # a piece that translates nothing
            found.append((place, len(tgt)))
            tgt.append(src[place] + 4)
        pairs.append((src, tgt))
        known.append(found)
    return pairs, known


def test_links_of_a_known_corpus_are_found() -> None:
    pairs, known = corpus(1500)
    aligner, _ = fit(*sides(pairs), SIZES, 5)
    unseen, expected = corpus(200, seed=2)
    for rows, truth in ((pairs, known), (unseen, expected)):
        found = links(aligner, KeyIndex(aligner.keys), *sides(rows))
        said = {(row, j, i) for row, j, i in zip(*(side.tolist() for side in found))}
        right = {(row, j, i) for row, pairs_of_row in enumerate(truth) for j, i in pairs_of_row}
        assert len(said & right) / len(said) > 0.93
        # Pieces that stand twice in a row are all that is hard.
        said, right = (
            {(row, j, i) for row, j, i in some if rows[row][0].count(rows[row][0][j]) == 1} for some in (said, right)
        )
        assert len(right) > 600
        assert len(said & right) / len(said) > 0.99
        assert len(said & right) / len(right) > 0.96
    added = {(row, i) for row, (_, tgt) in enumerate(unseen) for i, piece in enumerate(tgt) if piece == 45}
    assert len(added) > 100
    assert len({(row, i) for row, _, i in said} & added) < 0.05 * len(added)


def test_the_diagonal_decides_between_equal_pieces_and_those_that_were_never_seen() -> None:
    pairs, _ = corpus(500)
    aligner, _ = fit(*sides(pairs), SIZES, 5)
    index = KeyIndex(aligner.keys)
    twice = links(aligner, index, *sides([([4, 10, 20, 4], [8, 14, 24, 8])]))
    assert list(zip(twice.src.tolist(), twice.tgt.tolist())) == [(0, 0), (1, 1), (2, 2), (3, 3)]
    # 38 and 48 are in no pair.
    unseen = links(aligner, index, *sides([([4, 38, 20], [8, 48, 24])]))
    assert list(zip(unseen.src.tolist(), unseen.tgt.tolist())) == [(0, 0), (1, 1), (2, 2)]


def test_the_tension_follows_the_corpus() -> None:
    straight, _ = corpus(500)
    turned = [(src, tgt[::-1]) for src, tgt in straight]
    near, far = (fit(*sides(pairs), SIZES, 5)[0].target.tension for pairs in (straight, turned))
    assert near > 5 > 1 > far


def test_it_is_the_same_each_time_and_comes_back_from_its_file(tmp_path: Path) -> None:
    pairs, _ = corpus(200)
    first, again = (fit(*sides(pairs), SIZES, 3)[0] for _ in range(2))
    first.save(tmp_path / "aligner")
    for other in (again, Aligner.load(tmp_path / "aligner")):
        assert np.array_equal(first.keys, other.keys)
        assert first.width == other.width
        for one, two in ((first.target, other.target), (first.source, other.source)):
            assert np.array_equal(one.given, two.given)
            assert np.array_equal(one.null, two.null)
            assert one.tension == two.tension


def test_rows_without_pieces_have_no_links_and_no_part_in_the_estimate() -> None:
    pairs, _ = corpus(60)
    with_empty: Pairs = [([], [5, 6]), *pairs, ([4], []), ([], [])]
    plain, found = (fit(*sides(rows), SIZES, 3) for rows in (pairs, with_empty))
    assert found[1] == plain[1]
    assert np.array_equal(found[0].target.given, plain[0].target.given)
    rows = links(found[0], KeyIndex(found[0].keys), *sides(with_empty)).row
    assert rows.min() >= 1
    assert rows.max() <= 60
    nothing = links(found[0], KeyIndex(found[0].keys), *sides([([], [])]))
    assert len(nothing.row) == 0
    assert fit(*sides([([], [3])]), SIZES, 2)[1] == [{"target": 0.0, "source": 0.0}] * 2
