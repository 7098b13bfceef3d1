"""The keys of a recipe that begin with a published model: where it lies, what is checked before anything runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from flows.config import Recipe, load_recipe, recipe_of
from nmt.architectures import build_model
from nmt.checkpoint import CheckpointConfig, save_model
from nmt.config import TranslateConfig
from nmt.model.recurrent_config import RecurrentConfig
from nmt.published import Translation, describe
from pipelines.config import LanguagesConfig, NormalizeConfig, TokenizerConfig
from pipelines.errors import InputError
from pipelines.tokenizer import save_tokenizer, tokenizer_keys, train_model

MODEL = RecurrentConfig(embedding_dim=8, hidden_dim=8)
TREE: dict[str, Any] = {
    "name": "child",
    "languages": {"source": "en", "target": "de"},
    "corpora": {split: [{"name": split, "tsv": f"{split}.tsv"}] for split in ("train", "dev", "test")},
    "model": {"embedding_dim": 8, "hidden_dim": 8},
}


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "parent" / "model"
    languages = LanguagesConfig(source="en", target="de")
    config = TokenizerConfig(kind="bpe", vocab_size=40, character_coverage=1.0, symbols=("<talk>",))
    sentences = ["the house by the lake", "das Haus am See", "a boat", "ein Boot", "bread and trees", "Brot und Baum"]
    (folder / "tokenizer").mkdir(parents=True)
    save_tokenizer(folder / "tokenizer", {"joint.model": train_model(sentences, config)}, languages, config)
    checkpoint = CheckpointConfig(model=MODEL, source_size=40, target_size=40, tokenizer="t" * 64, update=3)
    save_model(folder / "checkpoint", build_model(MODEL, 40, 40), checkpoint)
    translation = Translation(languages=languages, normalize=NormalizeConfig(), translate=TranslateConfig())
    (folder / "translation.json").write_text(translation.model_dump_json(), encoding="utf-8")
    describe("parent", {}, folder)
    return folder


def load(folder: Path, *overrides: str, **tables: dict[str, Any]) -> Recipe:
    path = folder / "recipes" / "child.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(TREE | tables), encoding="utf-8")
    return load_recipe(str(path), define={"RUNS": str(folder)}, overrides=overrides)


def test_the_folder_of_a_model_is_beside_the_recipe_or_from_outside(parent: Path, tmp_path: Path) -> None:
    shutil.copytree(parent, tmp_path / "parent")
    for given in ("../parent", "${RUNS}/parent", str(tmp_path / "parent")):
        loaded = load(tmp_path, train={"start_from": given}, tokenizer={"from_model": given})
        assert loaded.train.start_from == loaded.tokenizer.from_model == str(tmp_path / "parent")


def test_what_is_no_published_model_is_found_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"recipes/nothing: no published model here"):
        load(tmp_path, train={"start_from": "nothing"})
    with pytest.raises(InputError, match=r"recipes/nothing: no published model here"):
        load(tmp_path, tokenizer={"from_model": "nothing"})


def test_a_model_of_another_table_is_found_before_anything_runs(parent: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"child.yaml: train.start_from: .*hidden_dim 8, here 16.*Set the same"):
        load(tmp_path, "model.hidden_dim=16", train={"start_from": str(parent)})


def test_a_wrong_beginning_of_frozen_names_is_found_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"child.yaml: train.freeze: no parameter's name begins with 'attention'"):
        load(tmp_path, train={"freeze": ["attention"]})
    assert load(tmp_path, train={"freeze": ["encoder", "decoder.layers"]}).train.freeze == ("encoder", "decoder.layers")


def test_the_keys_of_a_taken_tokeniser_are_those_of_the_model(parent: Path, tmp_path: Path) -> None:
    loaded = load(tmp_path, tokenizer={"from_model": str(parent)})
    assert tokenizer_keys(parent / "tokenizer") == {
        "kind": "bpe", "joint": True, "symbols": ("<talk>",), "vocab_size": 40,
    }  # fmt: skip
    assert loaded.tokenizer == TokenizerConfig(
        from_model=str(parent), kind="bpe", joint=True, symbols=("<talk>",), vocab_size=40
    )
    # A tag may be one of its symbols, without their being named again.
    tagged = load(tmp_path, tokenizer={"from_model": str(parent)}, augment={"tags": [{"tag": "<talk>"}]})
    assert tagged.augment.tags[0].tag == "<talk>"
    # What was loaded can be loaded again.
    assert recipe_of(loaded.model_dump(mode="json"), "again").tokenizer == loaded.tokenizer


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"vocab_size": 8000}, r"vocab_size 40, here 8000.*Leave out vocab_size"),
        ({"kind": "unigram", "joint": False}, r"kind bpe, here unigram, joint True, here False"),
        ({"symbols": ["<x>"]}, r"symbols \['<talk>'\], here \['<x>'\]"),
        ({"byte_fallback": True}, "from_model takes a tokeniser as it is: leave out byte_fallback"),
    ],
)
def test_a_taken_tokeniser_cannot_be_changed(parent: Path, tmp_path: Path, keys: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        load(tmp_path, tokenizer={"from_model": str(parent), **keys})
    same = {"kind": "bpe", "vocab_size": 40, "symbols": ["<talk>"]}
    assert load(tmp_path, tokenizer={"from_model": str(parent), **same}).tokenizer.vocab_size == 40


def test_guided_alignment_needs_a_model_with_attention(tmp_path: Path) -> None:
    guided = {"guided_alignment_weight": 0.05}
    assert load(tmp_path, train=guided).train.guided_alignment_weight == 0.05
    for model in ({"attention": "none"}, {"architecture": "recurrent_lm"}):
        with pytest.raises(InputError, match=r"train.guided_alignment_weight: .* has none"):
            load(tmp_path, train=guided | {"early_stopping_metric": "loss"}, model=model)
