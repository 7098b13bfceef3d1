from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from cleaned_stage import PAIRS
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.config import LanguagesConfig, TokenizerConfig
from pipelines.errors import InputError
from pipelines.tokenizer import (
    BOS_ID,
    EOS_ID,
    JOINT_MODEL,
    PAD_ID,
    SOURCE_MODEL,
    TARGET_MODEL,
    UNK_ID,
    Tokenizer,
    save_tokenizer,
    tokenizer_files,
    train_model,
)

LANGUAGES = LanguagesConfig(source="en", target="de")
SOURCES = [source for source, _ in PAIRS]
TARGETS = [target for _, target in PAIRS]
JOINT = TokenizerConfig(vocab_size=60, character_coverage=1.0)


def saved(folder: Path, config: TokenizerConfig = JOINT) -> Tokenizer:
    folder.mkdir(exist_ok=True)
    if config.joint:
        models = {JOINT_MODEL: train_model(SOURCES + TARGETS, config)}
    else:
        models = {SOURCE_MODEL: train_model(SOURCES, config), TARGET_MODEL: train_model(TARGETS, config)}
    save_tokenizer(folder, models, LANGUAGES, config)
    return Tokenizer.load(folder)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return saved(tmp_path_factory.mktemp("tokenizer"))


def test_special_ids_are_those_of_the_module(tokenizer: Tokenizer) -> None:
    assert (PAD_ID, UNK_ID, BOS_ID, EOS_ID) == (0, 1, 2, 3)
    assert tokenizer.source_pieces([PAD_ID, UNK_ID, BOS_ID, EOS_ID]) == ["<pad>", "<unk>", "<s>", "</s>"]


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_decoding_gives_the_encoded_text_back(tmp_path: Path, kind: str) -> None:
    tokenizer = saved(tmp_path, TokenizerConfig(kind=kind, vocab_size=60, character_coverage=1.0))
    assert tokenizer.decode_target(tokenizer.encode_target(TARGETS)) == TARGETS


@given(st.text(alphabet="Dasrotegünweiß3517,.€ ", max_size=60).map(lambda text: " ".join(text.split())))
@settings(max_examples=100)
def test_any_text_of_known_characters_comes_back(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode_target(tokenizer.encode_target([text])) == [text]


def test_each_encoded_text_ends_with_eos_and_has_no_other(tokenizer: Tokenizer) -> None:
    for ids in tokenizer.encode_source(SOURCES) + tokenizer.encode_target(TARGETS):
        assert ids[-1] == EOS_ID
        assert ids.count(EOS_ID) == 1
        assert len(ids) > 1


def test_an_empty_text_is_eos_alone(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode_source([""]) == [[EOS_ID]]
    assert tokenizer.encode_source([]) == []


def test_special_ids_are_skipped_in_decoding(tokenizer: Tokenizer) -> None:
    (ids,) = tokenizer.encode_target(["Das rote Haus"])
    assert tokenizer.decode_target([[BOS_ID, *ids, UNK_ID, PAD_ID, PAD_ID], []]) == ["Das rote Haus", ""]


def test_a_character_that_was_never_seen_is_unknown(tokenizer: Tokenizer) -> None:
    (ids,) = tokenizer.encode_source(["The red ж house"])
    assert ids.count(UNK_ID) == 1


def test_byte_fallback_leaves_nothing_unknown(tmp_path: Path) -> None:
    tokenizer = saved(tmp_path, TokenizerConfig(vocab_size=310, character_coverage=1.0, byte_fallback=True))
    ids = tokenizer.encode_target(["Das ж, 漢字"])
    assert UNK_ID not in ids[0]
    assert tokenizer.decode_target(ids) == ["Das ж, 漢字"]


def test_names_of_special_pieces_in_a_text_are_plain_text(tokenizer: Tokenizer) -> None:
    (ids,) = tokenizer.encode_source(["red </s> <pad> house"])
    assert ids.count(EOS_ID) == 1
    assert PAD_ID not in ids


def test_text_is_not_normalised(tokenizer: Tokenizer) -> None:
    ligature, ring = tokenizer.encode_source(["\ufb01", "A\u030a"])
    assert UNK_ID in ligature
    assert UNK_ID in ring


def test_a_number_is_one_piece_for_each_digit(tokenizer: Tokenizer) -> None:
    (ids,) = tokenizer.encode_source(["17"])
    assert tokenizer.source_pieces(ids[-3:]) == ["1", "7", "</s>"]


def test_separate_models_have_their_own_sizes_and_pieces(tmp_path: Path) -> None:
    config = TokenizerConfig(kind="bpe", vocab_size=90, joint=False, character_coverage=1.0)
    tokenizer = saved(tmp_path, config)
    assert (tokenizer.source_size, tokenizer.target_size) == (90, 90)
    assert tokenizer.decode_target(tokenizer.encode_target(TARGETS)) == TARGETS
    assert UNK_ID in tokenizer.encode_source(["weiß"])[0]
    assert tokenizer_files(tmp_path) == ["tokenizer.json", "source.model", "target.model"]


def test_digest_is_that_of_all_files(tmp_path: Path) -> None:
    tokenizer = saved(tmp_path)
    content = b"".join((tmp_path / name).read_bytes() for name in ("tokenizer.json", "joint.model"))
    assert tokenizer.digest == hashlib.sha256(content).hexdigest()


def test_digest_differs_with_the_model(tmp_path: Path, tokenizer: Tokenizer) -> None:
    assert saved(tmp_path / "same").digest == tokenizer.digest
    assert saved(tmp_path / "other", JOINT.model_copy(update={"vocab_size": 59})).digest != tokenizer.digest


def test_the_same_sentences_give_the_same_model() -> None:
    for kind in ("unigram", "bpe"):
        config = TokenizerConfig(kind=kind, vocab_size=38, character_coverage=1.0)
        assert train_model(SOURCES, config) == train_model(iter(SOURCES), config)


def test_a_very_long_line_takes_part_in_training() -> None:
    model = train_model([*SOURCES, "ж" * 10_000 + " Ω" * 5_000], TokenizerConfig(vocab_size=42, character_coverage=1.0))
    assert "ж".encode() in model
    assert "Ω".encode() in model


SYMBOLS = TokenizerConfig(vocab_size=62, character_coverage=1.0, symbols=("<2de>", "<talk>"))


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_a_symbol_is_one_piece_wherever_a_word_can_stand(tmp_path: Path, kind: str) -> None:
    tokenizer = saved(tmp_path, SYMBOLS.model_copy(update={"kind": kind}))
    ((tag, _),) = tokenizer.encode_source(["<2de>"])
    assert tokenizer.source_pieces([tag]) == ["\u2581<2de>"]
    (plain,) = tokenizer.encode_source(["The red house"])
    assert tokenizer.encode_source(["<2de> The red house"]) == [[tag, *plain]]
    assert tokenizer.encode_source(["The red house <2de>"]) == [[*plain[:-1], tag, EOS_ID]]
    assert tokenizer.decode_source([[tag, *plain]]) == ["<2de> The red house"]


def test_symbols_are_named_by_the_description_only_where_there_are_any(tmp_path: Path, tokenizer: Tokenizer) -> None:
    saved(tmp_path / "symbols", SYMBOLS)
    description = json.loads((tmp_path / "symbols" / "tokenizer.json").read_text(encoding="utf-8"))
    assert description["symbols"] == ["<2de>", "<talk>"]
    saved(tmp_path / "none")
    assert "symbols" not in json.loads((tmp_path / "none" / "tokenizer.json").read_text(encoding="utf-8"))


def test_a_vocabulary_is_the_normal_pieces(tmp_path: Path) -> None:
    config = TokenizerConfig(vocab_size=318, character_coverage=1.0, byte_fallback=True, symbols=("<2de>",))
    vocabulary = saved(tmp_path, config).source_vocabulary()
    assert (vocabulary.kind, vocabulary.symbols) == ("unigram", ("<2de>",))
    assert sorted(vocabulary.ids.values()) == [*range(4 + 1 + 256, 318)]
    assert vocabulary.ids.keys() == vocabulary.scores.keys()
    assert {"\u2581", "T", "€"} <= vocabulary.ids.keys()
    (best,) = vocabulary.encode(["red"])
    assert next(piece for piece, number in vocabulary.ids.items() if number == best[0])[0] == "\u2581"


def test_a_tokeniser_knows_its_kind_and_languages(tokenizer: Tokenizer) -> None:
    assert (tokenizer.kind, tokenizer.source_language, tokenizer.target_language) == ("unigram", "en", "de")


def test_too_large_a_vocabulary_names_the_largest_possible() -> None:
    with pytest.raises(InputError) as caught:
        train_model(SOURCES, TokenizerConfig(vocab_size=5000, character_coverage=1.0))
    assert caught.value.where == "tokenizer.vocab_size"
    largest = int("".join(character for character in caught.value.remedy if character.isdigit()))
    assert 30 < largest < 5000
    train_model(SOURCES, TokenizerConfig(vocab_size=largest, character_coverage=1.0))


def test_too_small_a_vocabulary_names_what_characters_need() -> None:
    with pytest.raises(InputError, match=r"tokenizer\.vocab_size.*16 pieces are fewer.*Set it to 32 or more"):
        train_model(SOURCES, TokenizerConfig(vocab_size=16, character_coverage=1.0))
    train_model(SOURCES, TokenizerConfig(vocab_size=32, character_coverage=1.0))


def test_a_folder_without_tokenizer_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tokenizer\.json.*No such file"):
        Tokenizer.load(tmp_path)


def test_a_missing_model_file_is_an_input_error(tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / "joint.model").unlink()
    with pytest.raises(InputError, match=r"joint\.model: the model file is missing"):
        Tokenizer.load(tmp_path)


def test_a_cut_off_model_file_is_an_input_error(tmp_path: Path) -> None:
    saved(tmp_path)
    model = tmp_path / "joint.model"
    model.write_bytes(model.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"joint\.model: the content differs"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "not a tokeniser of format 1: format"),
        ({"extra": 1}, "not a tokeniser of format 1: extra"),
        ({"models": {"../other.model": "0"}}, "names the models"),
    ],
)
def test_a_changed_description_is_an_input_error(tmp_path: Path, change: dict[str, object], message: str) -> None:
    saved(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **change}), encoding="utf-8")
    with pytest.raises(InputError, match=message):
        Tokenizer.load(tmp_path)


def test_a_description_that_is_no_json_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(b"\xff{")
    with pytest.raises(InputError, match="not a tokeniser of format 1"):
        Tokenizer.load(tmp_path)
