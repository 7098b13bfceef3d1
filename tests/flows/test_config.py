from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from flows.config import (
    PROFILES,
    Profile,
    check_profile,
    load_profile,
    load_recipe,
    load_table,
    schema,
    table_overrides,
)
from nmt.config import EvaluateConfig
from pipelines.errors import InputError

RECIPE = """
name: tiny
languages: {source: en, target: de}
corpora:
  train: [{name: a, source: "${DATA}/a.en", target: data/a.de}]
  dev: [{name: b, tsv: b.tsv}]
  test: [{name: c, tsv: /abs/c.tsv}]
train: {max_epochs: 2}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipes" / "tiny.yaml"
    path.parent.mkdir()
    path.write_text(RECIPE, encoding="utf-8")
    return path


def loading_fails(path: Path | str, *overrides: str, define: dict[str, str] | None = None) -> str:
    with pytest.raises(InputError) as raised:
        load_recipe(str(path), define={"DATA": "/data"} if define is None else define, overrides=overrides)
    return str(raised.value)


def test_a_recipe_holds_only_what_differs_from_the_defaults(recipe: Path) -> None:
    loaded = load_recipe(str(recipe), define={"DATA": "/data"})
    assert loaded.train.max_epochs == 2
    assert loaded.tokenizer.vocab_size == 8000


def test_paths_are_relative_to_the_recipe(recipe: Path) -> None:
    corpora = load_recipe(str(recipe), define={"DATA": "/data"}).corpora
    assert corpora.train[0].target == str(recipe.parent / "data" / "a.de")
    assert corpora.dev[0].tsv == str(recipe.parent / "b.tsv")
    assert corpora.test[0].tsv == "/abs/c.tsv"


def test_a_defined_path_is_relative_to_the_current_folder(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    corpora = load_recipe(str(recipe), define={"DATA": "corpus"}).corpora
    assert corpora.train[0].source == str(tmp_path / "corpus" / "a.en")


def test_an_override_sets_a_key_of_a_table_that_the_file_does_not_have(recipe: Path) -> None:
    loaded = load_recipe(str(recipe), define={"DATA": "/data"}, overrides=["tokenizer.vocab_size=500", "name=other"])
    assert (loaded.name, loaded.tokenizer.vocab_size) == ("other", 500)


@pytest.mark.parametrize("value", ["1e-4", "1.0e-4", "0.0001", "1E-4"])
def test_a_number_with_an_exponent_is_a_number(recipe: Path, value: str) -> None:
    loaded = load_recipe(str(recipe), define={"DATA": "/data"}, overrides=[f"train.learning_rate={value}"])
    assert loaded.train.learning_rate == 1e-4


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("train.max_epoch=3", "unknown key `train.max_epoch`"),
        ("trian.max_epochs=3", "unknown key `trian`"),
        ("train.max_epochs=many", "key `train.max_epochs`: Input should be a valid integer"),
        ("train.max_epochs=2.5", "key `train.max_epochs`: Input should be a valid integer"),
        ("train.max_epochs='3'", "key `train.max_epochs`: Input should be a valid integer"),
        ("train.max_epochs=0", "key `train.max_epochs`: Input should be greater than or equal to 1"),
        ("train.optimizer=lion", "key `train.optimizer`: Input should be 'adam', 'adamw', 'sgd' or 'adafactor'"),
        ("train.clip_norm=.inf", "a number is infinite"),
        ("languages.source=no", "key `languages.source`: YAML reads this word as false; put it in quotes"),
        ("languages.source=english", "key `languages.source`: String should match pattern"),
        ("tokenizer.joint=false", "model.share_embeddings: shared embeddings need one tokeniser"),
        ("model.hidden_dim=7", "hidden_dim 7 must be even"),
        ("augment.typos=1.5", "key `augment.typos`: Input should be less than or equal to 1"),
        ("augment.upper_cases=0.1", "unknown key `augment.upper_cases`"),
        ("augment.tags=[{tag: <a>}]", "the tag '<a>' of augment.tags must be one of tokenizer.symbols too"),
        ("name=stages", "the name `stages` is taken"),
        ("train.max_epochs", "not of the form KEY=VALUE"),
        ("=3", "not of the form KEY=VALUE"),
        ("name.x=3", "'name' is no table"),
        ("name=[", "not a YAML value"),
    ],
)
def test_a_wrong_override_names_the_key_and_the_fault(recipe: Path, override: str, says: str) -> None:
    assert says in loading_fails(recipe, override)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "the file holds no table of keys"),
        ("- a\n", "the file holds no table of keys"),
        ("name: [\n", "not YAML"),
        ("name: a\nname: b\n", "key `name` given twice"),
        ("name: tiny\n", "key `languages` is missing; key `corpora` is missing"),
        (RECIPE.replace("name: tiny", "name: ../up"), "key `name`: String should match pattern"),
        (RECIPE.replace("tsv: b.tsv", "source: b.en"), "needs both `source` and `target`"),
        (RECIPE.replace("[{name: b, tsv: b.tsv}]", "[]"), "give either corpora of `dev`, or a share of train"),
    ],
)
def test_a_wrong_file_is_named_with_the_fault(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text, encoding="utf-8")
    message = loading_fails(path)
    assert str(path) in message
    assert says in message


def test_tags_are_symbols_of_the_tokeniser_and_of_corpora_that_there_are(recipe: Path) -> None:
    symbols, tags = "tokenizer.symbols=[<a>]", "augment.tags=[{tag: <a>, corpora: [%s]}]"
    loaded = load_recipe(str(recipe), define={"DATA": "/data"}, overrides=[symbols, tags % "a"])
    assert loaded.augment.active
    assert not loaded.augment.changes_text
    message = loading_fails(recipe, symbols, tags % "news")
    assert "the tag '<a>' is for ['news'], which are no corpora of train" in message


def test_a_corpus_takes_part_in_a_run_of_epochs(recipe: Path) -> None:
    corpora = "corpora.train=[{name: a, tsv: a.tsv, from_epoch: %s, until_epoch: %s}]"
    (corpus,) = load_recipe(str(recipe), define={"DATA": "/data"}, overrides=[corpora % (2, 2)]).corpora.train
    assert (corpus.from_epoch, corpus.until_epoch) == (2, 2)
    (corpus,) = load_recipe(str(recipe), define={"DATA": "/data"}).corpora.train
    assert (corpus.from_epoch, corpus.until_epoch) == (1, None)
    assert "until_epoch 2 is before from_epoch 3" in loading_fails(recipe, corpora % (3, 2))
    assert "from_epoch" in loading_fails(recipe, corpora % (0, 2))


def test_a_missing_definition_is_named_with_the_remedy(recipe: Path) -> None:
    assert "${DATA} is not defined. Add --define DATA=VALUE" in loading_fails(recipe, define={})


def test_a_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "binary.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    assert f"{path}: not YAML" in loading_fails(path)


def test_an_unknown_recipe_lists_the_known_ones() -> None:
    assert "no such recipe. Give the path of a YAML file, or one of these names: " in loading_fails("nowhere")


def test_an_unknown_profile_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"no such profile.*local"):
        load_profile("moon")


def test_the_local_profile_holds_every_default() -> None:
    assert load_profile("local") == Profile()
    written = yaml.safe_load((PROFILES / "local.yaml").read_text(encoding="utf-8"))
    assert written == Profile().model_dump(mode="json")


def test_every_profile_loads() -> None:
    for path in PROFILES.glob("*.yaml"):
        assert load_profile(str(path)).name == path.stem


def test_a_language_model_is_not_stopped_by_bleu_nor_published_by_it(recipe: Path) -> None:
    model, by_loss = "model={architecture: recurrent_lm}", "train.early_stopping_metric=loss"
    says = loading_fails(recipe, model)
    assert f"{recipe}: train.early_stopping_metric: " in says
    assert says.endswith("Set train.early_stopping_metric: loss")
    says = loading_fails(recipe, model, by_loss, "publish.min_bleu=20")
    assert f"{recipe}: publish: " in says
    assert says.endswith("Leave publish out")
    overrides = (model, by_loss, "tokenizer.joint=false")  # there is nothing to share
    assert not load_recipe(str(recipe), define={"DATA": "/data"}, overrides=overrides).translates()
    assert load_recipe(str(recipe), define={"DATA": "/data"}).translates()


def test_a_table_alone_takes_overrides_of_its_own_keys() -> None:
    assert load_table(EvaluateConfig, "evaluate", ["evaluate.bleu_tokenize=zh"]).bleu_tokenize == "zh"
    assert table_overrides("translate", ["translate.beam_size=8"]) == {"beam_size": 8}


def test_a_table_alone_refuses_keys_of_another() -> None:
    with pytest.raises(InputError, match="only keys of `evaluate` can be set here"):
        load_table(EvaluateConfig, "evaluate", ["train.seed=3"])


def test_the_schema_lists_a_key_with_its_default() -> None:
    properties = schema()["recipe"]["$defs"]["TrainConfig"]["properties"]
    assert properties["max_epochs"]["default"] == 20


@pytest.mark.parametrize(("key", "value"), [("train.max_pieces", 600), ("translate.max_source_pieces", 300)])
def test_learned_positions_that_do_not_reach_are_refused(recipe: Path, key: str, value: int) -> None:
    model = "model={architecture: transformer, positions: learned}"
    define = {"DATA": "/data"}
    load_recipe(str(recipe), define=define, overrides=[model])
    with pytest.raises(InputError, match=f"{key} lets .* learns 512 positions"):
        load_recipe(str(recipe), define=define, overrides=[model, f"{key}={value}"])


@pytest.mark.parametrize(
    ("target", "tokenize", "remedy"),
    [("zh-Hant", "13a", "zh"), ("ja", "intl", "ja-mecab or char"), ("th", "13a", "char")],
)
def test_bleu_of_words_is_refused_for_a_language_without_blanks_between_them(
    recipe: Path, target: str, tokenize: str, remedy: str
) -> None:
    overrides = [f"languages.target={target}", f"evaluate.bleu_tokenize={tokenize}"]
    with pytest.raises(InputError, match="no blanks between words") as refused:
        load_recipe(recipe, define={"DATA": "/data"}, overrides=overrides)
    assert refused.value.where.endswith("evaluate.bleu_tokenize") and refused.value.remedy == f"Set it to {remedy}"
    for fits in (remedy.split()[-1], "char"):
        load_recipe(recipe, define={"DATA": "/data"}, overrides=[*overrides, f"evaluate.bleu_tokenize={fits}"])


def test_the_plateau_schedule_with_validation_beside_training_is_refused_before_any_stage(recipe: Path) -> None:
    loaded = load_recipe(recipe, define={"DATA": "/data"}, overrides=["train.schedule=plateau"])
    profile = Profile.model_validate({"ray": {"validation_workers": 1}})
    with pytest.raises(InputError, match="plateau"):
        check_profile(loaded, profile)
    check_profile(loaded, profile, use_ray=False)
    check_profile(loaded, Profile())


@pytest.mark.parametrize("use_ray", [True, False])
def test_a_tracker_that_is_not_there_is_refused_before_any_stage(
    recipe: Path, use_ray: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    profile = Profile.model_validate({"tracking": {"wandb_project": "captions"}})
    with pytest.raises(InputError, match="the library wandb is not installed"):
        check_profile(load_recipe(recipe, define={"DATA": "/data"}), profile, use_ray=use_ray)
