"""The rule on the language of a text."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from pipelines.language_id import language_scores
from pipelines.pairs import Pairs
from pipelines.rules.scores import Scores, scores_of

# Below this, a language is guessed rather than told: "Hallo" is a word of many.
_MIN_LANGUAGE_LETTERS = 15


def language(pairs: Pairs) -> Scores:
    """Score: p(best language other than the expected one), of the worse side; null where no side has 15 letters.

    An ideograph counts for three letters. Raises ValueError for a language that the model does not know.
    """
    worst = np.zeros(len(pairs), dtype=np.float64)
    applies = np.zeros(len(pairs), dtype=np.bool_)
    for side in pairs.sides:
        rows = np.flatnonzero(side.letter_volume >= _MIN_LANGUAGE_LETTERS)
        if not len(rows):
            continue
        texts = side.texts.take(pa.array(rows)).to_pylist()
        _, other = language_scores(texts, side.tag, pairs.resources.language_model)
        worst[rows] = np.maximum(worst[rows], other)
        applies[rows] = True
    return scores_of(worst, applies)
