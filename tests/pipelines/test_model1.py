"""IBM model 1: against a published example, and against plain loops over the words in their order."""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import bags as bags_module
from pipelines import model1 as module
from pipelines.bags import Bags, KeyIndex, bags_of, tokens_of
from pipelines.model1 import Model, expected, meetings

# Koehn 2010, "Statistical machine translation", figure 4.5: p(German word | English word) after iterations.
EXAMPLE = [("the house", "das haus"), ("the book", "das buch"), ("a book", "ein buch")]
PUBLISHED = {
    ("the", "das"): (0.5, 0.6364, 0.7479),
    ("the", "buch"): (0.25, 0.1818, 0.1208),
    ("the", "haus"): (0.25, 0.1818, 0.1313),
    ("book", "das"): (0.25, 0.1818, 0.1208),
    ("book", "buch"): (0.5, 0.6364, 0.7479),
    ("book", "ein"): (0.25, 0.1818, 0.1313),
    ("house", "das"): (0.5, 0.4286, 0.3466),
    ("house", "haus"): (0.5, 0.5714, 0.6534),
    ("a", "ein"): (0.5, 0.5714, 0.6534),
    ("a", "buch"): (0.5, 0.4286, 0.3466),
}
WORDS = [f"w{number}" for number in range(6)]
SENTENCES = st.lists(st.sampled_from(WORDS), min_size=1, max_size=5)
CORPORA = st.lists(st.tuples(SENTENCES, SENTENCES), min_size=1, max_size=6)


class Corpus:
    """Pairs as bags, and the number of each word."""

    def __init__(self, pairs: list[tuple[str, str]]) -> None:
        self.bags: list[Bags] = []
        self.numbers: list[dict[str, int]] = []
        for texts in zip(*pairs):
            vocabulary = sorted({word for text in texts for word in text.split()})
            hashes = tokens_of(pa.array(vocabulary)).hashes
            order = np.argsort(hashes)
            tokens = tokens_of(pa.array(texts))
            self.bags.append(bags_of(tokens.hashes, tokens.first, hashes[order])[0])
            self.numbers.append({vocabulary[place]: number + 1 for number, place in enumerate(order)})
        self.width = len(self.numbers[1]) + 1
        self.index = KeyIndex(meetings(*self.bags, self.width, 1))

    def place(self, source: str, target: str) -> int:
        key = self.numbers[0][source] * self.width + self.numbers[1][target]
        return int(self.index.find(np.array([key]))[0])

    def uniform(self) -> Model:
        return Model.uniform(len(self.index.keys), len(self.numbers[0]), len(self.numbers[1]))

    def step(self, model: Model) -> tuple[Model, Model, dict[str, float]]:
        counts, likelihood = expected(*self.bags, self.index, self.width, model)
        return counts.maximized(self.index.keys, self.width)[0], counts, likelihood


def test_the_published_example_without_the_empty_word() -> None:
    corpus = Corpus(EXAMPLE)
    start = corpus.uniform()
    model = Model(start.given_src, start.given_tgt, start.null_src * 0, start.null_tgt * 0)
    for iteration in range(3):
        model, _, _ = corpus.step(model)
        for (source, target), values in PUBLISHED.items():
            assert model.given_src[corpus.place(source, target)] == pytest.approx(values[iteration], abs=5e-5)
    assert not model.null_tgt.any()


def plain_step(
    pairs: list[tuple[list[str], list[str]]], given: dict[tuple[str, str], float]
) -> tuple[dict[tuple[str, str], float], dict[tuple[str, str], float], float]:
    """Probabilities, expected counts and log-likelihood per word: over positions, the empty word being "" """
    counts: dict[tuple[str, str], float] = defaultdict(float)
    total = 0.0
    for source, target in pairs:
        for word in target:
            whole = sum(given[other, word] for other in ("", *source))
            total += math.log(whole / (len(source) + 1))
            for other in ("", *source):
                counts[other, word] += given[other, word] / whole
    sums: dict[str, float] = defaultdict(float)
    for (source_word, _), count in counts.items():
        sums[source_word] += count
    probabilities = {key: count / sums[key[0]] for key, count in counts.items()}
    return probabilities, counts, total / sum(len(target) for _, target in pairs)


@settings(max_examples=50)
@given(CORPORA)
def test_steps_are_those_of_loops_over_all_words(pairs: list[tuple[list[str], list[str]]]) -> None:
    corpus = Corpus([(" ".join(source), " ".join(target)) for source, target in pairs])
    model = corpus.uniform()
    turned = [(target, source) for source, target in pairs]
    uniform = [1 / len(corpus.numbers[1]), 1 / len(corpus.numbers[0])]
    forward: dict[tuple[str, str], float] = defaultdict(lambda: uniform[0])
    backward: dict[tuple[str, str], float] = defaultdict(lambda: uniform[1])
    for _ in range(4):
        model, counts, likelihood = corpus.step(model)
        forward, forward_counts, forward_sum = plain_step(pairs, forward)
        backward, backward_counts, backward_sum = plain_step(turned, backward)
        assert likelihood == pytest.approx({"target": forward_sum, "source": backward_sum}, rel=1e-9)
        for (source, target), count in forward_counts.items():
            if source:
                place = corpus.place(source, target)
                assert counts.given_src[place] == pytest.approx(count, rel=1e-9)
                assert counts.given_tgt[place] == pytest.approx(backward_counts[target, source], rel=1e-9)
                assert model.given_src[place] == pytest.approx(forward[source, target], rel=1e-9)
            else:
                assert model.null_tgt[corpus.numbers[1][target]] == pytest.approx(forward["", target], rel=1e-9)


def test_the_likelihood_grows() -> None:
    corpus = Corpus([*EXAMPLE, ("a small house", "ein kleines haus"), ("the small book", "das kleine buch")])
    model, found = corpus.uniform(), []
    for _ in range(10):
        model, _, likelihood = corpus.step(model)
        found.append(likelihood)
    for side in ("target", "source"):
        values = [likelihood[side] for likelihood in found]
        assert values == sorted(values)
        assert values[-1] > values[0] + 0.3


def test_neither_blocks_nor_rounds_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [*EXAMPLE, ("a b c d e f g", "h i j k l m n"), ("a c e", "h j l")]
    whole = Corpus(pairs)
    _, counts, likelihood = whole.step(whole.uniform())
    monkeypatch.setattr(bags_module, "ENTRIES", 5)
    monkeypatch.setattr(module, "_SORTED", 20)
    cut = Corpus(pairs)
    assert cut.index.keys.tolist() == whole.index.keys.tolist()
    _, others, other_likelihood = cut.step(cut.uniform())
    for name, values in vars(counts).items():
        assert vars(others)[name] == pytest.approx(values, rel=1e-12)
    assert other_likelihood == pytest.approx(likelihood, rel=1e-12)


def test_words_that_meet_in_too_few_pairs_are_left_out() -> None:
    corpus = Corpus([("a b b", "x x"), ("a", "x y"), ("b", "z")])
    found = meetings(*corpus.bags, corpus.width, 2)
    assert found.tolist() == [corpus.numbers[0]["a"] * corpus.width + corpus.numbers[1]["x"]]
    assert len(meetings(*corpus.bags, corpus.width, 3)) == 0
