from __future__ import annotations

import json
from pathlib import Path

import pytest

from nmt.config import TranslateConfig
from nmt.published import Translation, describe, describe_references, load_published
from pipelines.config import LanguagesConfig, NormalizeConfig
from pipelines.errors import InputError
from pipelines.stage import file_sha256

TRANSLATION = Translation(
    languages=LanguagesConfig(source="en", target="pt-BR"),
    normalize=NormalizeConfig(),
    translate=TranslateConfig(beam_size=3),
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    files = {
        "checkpoint/model.safetensors": "weights",
        "tokenizer/joint.model": "pieces",
        "translation.json": TRANSLATION.model_dump_json(),
    }
    for name, text in files.items():
        (tmp_path / "model" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "model" / name).write_text(text, encoding="utf-8")
    describe("small", {"news": ["Um cão.", "Um gato."]}, tmp_path / "model")
    return tmp_path / "model"


def _edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def test_what_was_described_is_read_back(model: Path) -> None:
    published = load_published(model)
    assert published.translation == TRANSLATION
    assert published.description.name == "small"
    assert published.description.tests["news"].rows == 2
    assert (published.checkpoint / "model.safetensors").read_text(encoding="utf-8") == "weights"
    assert (published.tokenizer / "joint.model").read_text(encoding="utf-8") == "pieces"


def test_a_link_is_resolved_once(model: Path, tmp_path: Path) -> None:
    (tmp_path / "live").symlink_to(model)
    assert load_published(tmp_path / "live").folder == model.resolve()


def test_the_version_is_that_of_the_content(model: Path) -> None:
    before = load_published(model).description.version
    (model / "model.json").unlink()
    assert describe("small", {}, model).version == before
    (model / "model.json").unlink()
    (model / "tokenizer/joint.model").write_text("others", encoding="utf-8")
    assert describe("small", {}, model).version != before


def test_the_references_digest_is_that_of_their_text_file(tmp_path: Path) -> None:
    (tmp_path / "news.pt").write_text("Um cão.\nUm gato.\n", encoding="utf-8", newline="")
    assert describe_references(["Um cão.", "Um gato."]).sha256 == file_sha256(tmp_path / "news.pt")


@pytest.mark.parametrize("name", ["checkpoint/model.safetensors", "tokenizer/joint.model", "translation.json"])
def test_a_changed_file_is_found(name: str, model: Path) -> None:
    (model / name).write_bytes(b"tampered")
    with pytest.raises(InputError, match=f"{name}: a file of the published model has changed"):
        load_published(model)


def test_a_missing_file_is_found(model: Path) -> None:
    (model / "tokenizer/joint.model").unlink()
    with pytest.raises(InputError, match=r"joint\.model: a file of the published model is missing"):
        load_published(model)


def test_a_description_that_was_edited_is_found(model: Path) -> None:
    _edit(model / "model.json", files={})
    with pytest.raises(InputError, match="the version is not that of its files"):
        load_published(model)


def test_an_unknown_format_is_refused(model: Path) -> None:
    _edit(model / "model.json", format=2)
    with pytest.raises(InputError, match="model format 2, this version reads 1"):
        load_published(model)


def test_a_description_with_an_unknown_key_is_refused(model: Path) -> None:
    _edit(model / "model.json", extra=1)
    with pytest.raises(InputError, match="not a model description"):
        load_published(model)


def test_a_description_that_is_no_json_is_refused(model: Path) -> None:
    (model / "model.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match="not a model description"):
        load_published(model)


def test_a_translation_table_of_another_form_is_refused(model: Path) -> None:
    _edit(model / "translation.json", languages={"source": "English"})
    describe("small", {}, _without_description(model))
    with pytest.raises(InputError, match=r"translation\.json: not of this version's form"):
        load_published(model)


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no published model here"):
        load_published(tmp_path)


def _without_description(model: Path) -> Path:
    (model / "model.json").unlink()
    return model
