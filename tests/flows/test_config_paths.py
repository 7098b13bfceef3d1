"""Which files a recipe means: paths beside the recipe, from outside, patterns and URIs."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.config import Recipe, load_recipe
from pipelines.config import ResourcesConfig

RECIPE = """
name: paths
languages: {source: en, target: de}
corpora:
  train:
    - {name: a, source: "data/*.en", target: "../data/*.de"}
    - {name: b, jsonl: "${DATA}/b.jsonl.zst"}
    - {name: c, parquet: "s3://bucket/c-*.parquet"}
    - {name: d, tmx: "/abs/d.tmx.gz"}
    - {name: e, tsv: "s3://${BUCKET}/e.tsv"}
  monolingual: [{name: m, target: "m.de.xz"}]
  held_out: {dev: 0.1, test: 0.1}
clean:
  resources: {source_profanity: "words.txt", language_model: "${DATA}/model.ftz"}
  quality: {labelled: [{tsv: "labelled.tsv"}, {tsv: "${DATA}/labelled.tsv", label_column: verdict}]}
"""


def load(folder: Path, data: str) -> Recipe:
    path = folder / "recipes" / "paths.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(RECIPE, encoding="utf-8")
    return load_recipe(str(path), define={"DATA": data, "BUCKET": "bucket"})


def test_paths_of_every_form_are_beside_the_recipe(tmp_path: Path) -> None:
    recipe = load(tmp_path, "/data")
    a, b, c, d, e = recipe.corpora.train
    assert (a.source, a.target) == (f"{tmp_path}/recipes/data/*.en", f"{tmp_path}/data/*.de")
    assert b.jsonl == "/data/b.jsonl.zst"
    assert (c.parquet, e.tsv) == ("s3://bucket/c-*.parquet", "s3://bucket/e.tsv")
    assert d.tmx == "/abs/d.tmx.gz"
    assert recipe.corpora.monolingual[0].target == f"{tmp_path}/recipes/m.de.xz"
    assert recipe.corpora.held_out == {"dev": 0.1, "test": 0.1}


def test_resources_and_labelled_rows_are_beside_the_recipe(tmp_path: Path) -> None:
    clean = load(tmp_path, "/data").clean
    assert clean.resources == ResourcesConfig(
        source_profanity=f"{tmp_path}/recipes/words.txt", language_model="/data/model.ftz"
    )
    assert clean.quality is not None
    assert [(entry.tsv, entry.label_column) for entry in clean.quality.labelled] == [
        (f"{tmp_path}/recipes/labelled.tsv", "label"),
        ("/data/labelled.tsv", "verdict"),
    ]


def test_a_defined_path_is_relative_to_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = load(tmp_path, "outside")
    assert recipe.corpora.train[1].jsonl == f"{tmp_path}/outside/b.jsonl.zst"
    assert recipe.clean.resources.language_model == f"{tmp_path}/outside/model.ftz"


def test_a_defined_uri_stays_as_it_is(tmp_path: Path) -> None:
    recipe = load(tmp_path, "gs://bucket/data")
    assert recipe.corpora.train[1].jsonl == "gs://bucket/data/b.jsonl.zst"
    assert recipe.clean.resources.language_model == "gs://bucket/data/model.ftz"
    assert recipe.clean.quality is not None
    assert recipe.clean.quality.labelled[1].tsv == "gs://bucket/data/labelled.tsv"


@pytest.mark.parametrize("clean", ["[1]", "{resources: [], quality: {labelled: 3}}", "{quality: {labelled: [3]}}"])
def test_wrong_types_are_left_to_the_check_of_types(tmp_path: Path, clean: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(RECIPE.partition("clean:")[0] + f"clean: {clean}\n", encoding="utf-8")
    with pytest.raises(ValueError, match="key `clean"):
        load_recipe(str(path), define={"DATA": "a", "BUCKET": "b"})
