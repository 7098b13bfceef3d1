from __future__ import annotations

from pathlib import Path

import pytest
from cleaned_stage import PAIRS, cleaned_stage

from pipelines.config import LanguagesConfig, TokenizerConfig
from pipelines.errors import InputError
from pipelines.fit_tokenizer import fit_tokenizer
from pipelines.tokenizer import UNK_ID, Tokenizer, train_model

LANGUAGES = LanguagesConfig(source="en", target="de")
CONFIG = TokenizerConfig(vocab_size=60, character_coverage=1.0)


def test_stage_holds_a_tokeniser_of_the_wished_size(tmp_path: Path) -> None:
    run = fit_tokenizer(LANGUAGES, CONFIG, cleaned_stage(tmp_path), tmp_path)
    assert run.manifest.counters == {"rows": 70, "sampled_rows": 70, "source_size": 60, "target_size": 60}
    assert [output.path for output in run.manifest.outputs] == ["joint.model", "tokenizer.json"]
    assert Tokenizer.load(run.folder).source_size == 60


def test_separate_vocabularies_are_of_one_side_each(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"joint": False, "kind": "bpe", "vocab_size": 90})
    run = fit_tokenizer(LANGUAGES, config, cleaned_stage(tmp_path), tmp_path)
    tokenizer = Tokenizer.load(run.folder)
    assert [output.path for output in run.manifest.outputs] == ["source.model", "target.model", "tokenizer.json"]
    assert UNK_ID in tokenizer.encode_source(["weiß"])[0]
    assert UNK_ID not in tokenizer.encode_target(["weiß"])[0]


def test_how_the_rows_are_cut_into_parts_changes_nothing(tmp_path: Path) -> None:
    parts = ([PAIRS[:70]], [PAIRS[:1], [], PAIRS[1:33], PAIRS[33:70]])
    one, many = (
        fit_tokenizer(LANGUAGES, CONFIG.model_copy(update={"sample_rows": 41}), cleaned_stage(tmp_path, part), tmp_path)
        for part in parts
    )
    assert one.manifest.key != many.manifest.key
    assert one.manifest.outputs == many.manifest.outputs


def test_the_sample_is_spread_evenly_over_the_rows(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"sample_rows": 7, "vocab_size": 50})
    run = fit_tokenizer(LANGUAGES, config, cleaned_stage(tmp_path), tmp_path)
    assert run.manifest.counters["sampled_rows"] == 7
    sample = [sentence for row in range(0, 70, 10) for sentence in PAIRS[row]]
    assert (run.folder / "joint.model").read_bytes() == train_model(sample, config)


def test_an_unchanged_stage_is_reused_and_another_size_is_not(tmp_path: Path) -> None:
    cleaned = cleaned_stage(tmp_path)
    first = fit_tokenizer(LANGUAGES, CONFIG, cleaned, tmp_path)
    assert not first.reused
    assert fit_tokenizer(LANGUAGES, CONFIG, cleaned, tmp_path).reused
    assert not fit_tokenizer(LANGUAGES, CONFIG.model_copy(update={"vocab_size": 59}), cleaned, tmp_path).reused


def test_dev_and_test_take_no_part(tmp_path: Path) -> None:
    cleaned = cleaned_stage(tmp_path, dev=[("ж", "ж")], test=[("Ω", "Ω")])
    tokenizer = Tokenizer.load(fit_tokenizer(LANGUAGES, CONFIG, cleaned, tmp_path).folder)
    assert [UNK_ID in ids for ids in tokenizer.encode_source(["ж", "Ω"])] == [True, True]


def test_a_vocabulary_larger_than_the_corpus_can_give_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tokenizer\.vocab_size: 9000 pieces are more .* Set it to \d+ or less"):
        fit_tokenizer(LANGUAGES, CONFIG.model_copy(update={"vocab_size": 9000}), cleaned_stage(tmp_path), tmp_path)


def test_an_empty_training_set_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"clean/train: no training pair is left"):
        fit_tokenizer(LANGUAGES, CONFIG, cleaned_stage(tmp_path, train=[[]]), tmp_path)


# Taken from a published model


def taken(folder: Path) -> TokenizerConfig:
    return TokenizerConfig(from_model=str(folder), vocab_size=60)


def published(tmp_path: Path, name: str = "parent") -> Path:
    """Return a folder that has a tokeniser as a published model has it."""
    run = fit_tokenizer(LANGUAGES, CONFIG, cleaned_stage(tmp_path), tmp_path)
    for output in run.manifest.outputs:
        (tmp_path / name / "tokenizer").mkdir(parents=True, exist_ok=True)
        (tmp_path / name / "tokenizer" / output.path).write_bytes((run.folder / output.path).read_bytes())
    return tmp_path / name


def test_the_tokeniser_of_a_model_is_taken_as_it_is(tmp_path: Path) -> None:
    folder = published(tmp_path)
    run = fit_tokenizer(LANGUAGES, taken(folder), cleaned_stage(tmp_path, [PAIRS[:3]]), tmp_path)
    assert [output.path for output in run.manifest.outputs] == ["joint.model", "tokenizer.json"]
    assert Tokenizer.load(run.folder).digest == Tokenizer.load(folder / "tokenizer").digest
    assert run.manifest.counters == {"source_size": 60, "target_size": 60}
    assert run.manifest.inputs == {"tokenizer": Tokenizer.load(folder / "tokenizer").digest}


def test_where_it_was_taken_from_and_the_corpus_decide_nothing(tmp_path: Path) -> None:
    folders = [published(tmp_path, name) for name in ("one", "two")]
    cleaned = [cleaned_stage(tmp_path, [PAIRS[:rows]]) for rows in (3, 4)]
    first, again = (fit_tokenizer(LANGUAGES, taken(folder), stage, tmp_path) for folder, stage in zip(folders, cleaned))
    assert not first.reused
    assert again.reused
    # A tokeniser that is fitted has the name that it had before there was this key.
    fitted = fit_tokenizer(LANGUAGES, CONFIG, cleaned_stage(tmp_path), tmp_path)
    assert "from_model" not in fitted.manifest.config["tokenizer"]


def test_for_other_languages_the_pieces_are_the_same(tmp_path: Path) -> None:
    folder = published(tmp_path)
    other = fit_tokenizer(LanguagesConfig(source="en", target="nl"), taken(folder), cleaned_stage(tmp_path), tmp_path)
    found, given = Tokenizer.load(other.folder), Tokenizer.load(folder / "tokenizer")
    assert (found.target_language, given.target_language) == ("nl", "de")
    assert found.target_pieces(range(60)) == given.target_pieces(range(60))
    assert found.kind == given.kind
    assert found.digest != given.digest


def test_a_folder_without_a_tokeniser_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tokenizer/tokenizer.json: cannot be read"):
        fit_tokenizer(LANGUAGES, taken(tmp_path), cleaned_stage(tmp_path), tmp_path)
