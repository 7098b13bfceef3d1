"""How often an epoch sees the rows of each corpus: a pure function of the epoch and of the recipe.

Source of the temperature: Arivazhagan et al. 2019, "Massively Multilingual Neural Machine Translation in the Wild",
section 4.2, there of languages: p ~ n^(1/T).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# By a corpus's name the first and the last epoch, counted from 1, that it takes part in; None: to the end.
Curriculum = Mapping[str, tuple[int, int | None]]


@dataclass(frozen=True)
class Mixing:
    """The corpora of train and how they are mixed.

    `rows` has how many rows each has, those too long for training counted in; `weights` is 1 and the `curriculum` all
    epochs where a corpus is not named.
    """

    rows: Mapping[str, int]
    weights: Mapping[str, float]
    curriculum: Curriculum
    temperature: float = 1.0

    def epoch_weights(self, epoch: int) -> dict[str, float] | None:
        """Return how often an epoch, counted from 0, sees a row of each corpus, on average; None: all of them once.

        Of the corpora that take part one with n rows and the weight w has the share p ~ (n w)^(1/temperature) of the
        epoch's rows, which are as many as they would be at temperature 1; the others have the weight 0.
        """
        weights = {name: self.weights.get(name, 1.0) if self._takes_part(name, epoch) else 0.0 for name in self.rows}
        if self.temperature != 1.0:
            weights = self._tempered(weights)
        return None if all(weight == 1.0 for weight in weights.values()) else weights

    def _takes_part(self, name: str, epoch: int) -> bool:
        first, last = self.curriculum.get(name, (1, None))
        return first <= epoch + 1 and (last is None or epoch + 1 <= last)

    def _tempered(self, weights: Mapping[str, float]) -> dict[str, float]:
        sizes = {name: rows * weights[name] for name, rows in self.rows.items()}
        powers = {name: size ** (1.0 / self.temperature) for name, size in sizes.items()}
        size, power = sum(sizes.values()), sum(powers.values())
        return {name: powers[name] / power * size / self.rows[name] if sizes[name] else 0.0 for name in weights}
