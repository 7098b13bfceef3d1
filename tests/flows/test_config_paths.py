"""Which files a recipe means: paths beside the recipe, from outside, patterns and URIs."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.config import Recipe, load_recipe
from pipelines.config import ResourcesConfig
from pipelines.errors import InputError

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


def test_files_of_vectors_are_beside_the_recipe_and_looked_into(tmp_path: Path) -> None:
    model = 'model: {embedding_dim: 2, source_vectors: "en.vec", target_vectors: "${DATA}/de.vec"}\n'
    path = tmp_path / "recipes" / "vectors.yaml"
    path.parent.mkdir()
    path.write_text(RECIPE + model, encoding="utf-8")
    define = {"DATA": str(tmp_path), "BUCKET": "bucket"}
    with pytest.raises(InputError, match=r"vectors.yaml: .*recipes/en.vec: cannot be read"):
        load_recipe(str(path), define=define)
    unread = load_recipe(str(path), define=define, with_model=False)
    assert unread.model["source_vectors"] == f"{tmp_path}/recipes/en.vec"
    (path.parent / "en.vec").write_text("1 2\nhouse 1 2\n", encoding="utf-8")
    (tmp_path / "de.vec").write_text("1 3\nHaus 1 2 3\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"vectors.yaml: model.target_vectors: .*3 components, embedding_dim is 2"):
        load_recipe(str(path), define=define)
    (tmp_path / "de.vec").write_text("1 2\nHaus 1 2\n", encoding="utf-8")
    found = load_recipe(str(path), define=define).model_table().vectors()
    assert found == {"source_vectors": f"{tmp_path}/recipes/en.vec", "target_vectors": f"{tmp_path}/de.vec"}


def test_uris_of_vectors_stay_and_those_of_wrong_types_are_left_to_the_check_of_types(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(RECIPE + 'model: {source_vectors: "${DATA}/en.vec", target_vectors: 3}\n', encoding="utf-8")
    define = {"DATA": "s3://bucket", "BUCKET": "b"}
    assert load_recipe(str(path), define=define, with_model=False).model == {
        "source_vectors": "s3://bucket/en.vec",
        "target_vectors": 3,
    }
    with pytest.raises(InputError, match=r"key `model.target_vectors`: Input should be a valid string"):
        load_recipe(str(path), define=define)


@pytest.mark.parametrize("clean", ["[1]", "{resources: [], quality: {labelled: 3}}", "{quality: {labelled: [3]}}"])
def test_wrong_types_are_left_to_the_check_of_types(tmp_path: Path, clean: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(RECIPE.partition("clean:")[0] + f"clean: {clean}\n", encoding="utf-8")
    with pytest.raises(ValueError, match="key `clean"):
        load_recipe(str(path), define={"DATA": "a", "BUCKET": "b"})
