from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import filelock
import pytest
from finished_runs import (
    REFERENCES,
    finished_runs,
    language_model_recipe,
    language_model_runs,
    small_recipe,
    worsened,
)

from flows.registry import publish
from nmt.published import load_published
from pipelines.errors import InputError


def test_the_first_model_is_published_whole_and_self_contained(tmp_path: Path) -> None:
    runs, live = finished_runs(tmp_path / "stages"), tmp_path / "model"
    result = publish(small_recipe(), runs, live)
    assert result["published"] is True
    assert result["model"] == str(live)
    assert live.is_symlink() and live.resolve() == tmp_path / "models" / result["version"]
    files = {str(path.relative_to(live)) for path in live.rglob("*") if path.is_file()}
    assert files == {
        "MODEL_CARD.md",
        "checkpoint/config.json",
        "checkpoint/model.safetensors",
        "hypotheses/news.txt",
        "manifests/clean.json",
        "manifests/encode.json",
        "manifests/evaluate.json",
        "manifests/fit_tokenizer.json",
        "manifests/train.json",
        "manifests/translate.json",
        "model.json",
        "scores.json",
        "tokenizer/joint.model",
        "tokenizer/tokenizer.json",
        "translation.json",
    }
    assert not any(path.is_symlink() for path in live.resolve().rglob("*"))


def test_a_loaded_model_says_what_translation_needs(tmp_path: Path) -> None:
    publish(small_recipe(), finished_runs(tmp_path / "stages", weights=b"trained"), tmp_path / "model")
    model = load_published(tmp_path / "model")
    assert (model.checkpoint / "model.safetensors").read_bytes() == b"trained"
    assert (model.tokenizer / "joint.model").read_bytes() == b"model"
    assert (model.translation.languages.source, model.translation.languages.target) == ("en", "de")
    assert model.translation.translate == small_recipe().translate
    assert model.translation.normalize == small_recipe().clean.normalize
    assert model.description.tests["news"].rows == len(REFERENCES)
    assert model.description.name == "small-en-de"


def test_the_card_names_files_of_vectors_without_the_place_where_they_lay(tmp_path: Path) -> None:
    recipe = small_recipe().model_copy(update={"model": {"source_vectors": "/secret/cc.en.vec.gz"}})
    publish(recipe, finished_runs(tmp_path / "stages"), tmp_path / "model")
    card = (tmp_path / "model" / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "source_vectors: cc.en.vec.gz" in card
    assert "secret" not in card


def test_the_card_states_data_licences_and_scores_with_signature(tmp_path: Path) -> None:
    runs = finished_runs(tmp_path / "stages", hypotheses=worsened(10))
    publish(small_recipe(), runs, tmp_path / "model")
    card = (tmp_path / "model" / "MODEL_CARD.md").read_text(encoding="utf-8")
    bleu = runs["evaluate"].manifest.counters["tests"]["news"]["metrics"]["bleu"]
    low, high = bleu["confidence"]
    assert "| train | captions | CC0-1.0 | 12,000 | 10,500 |" in card
    assert f"{bleu['score']:.2f} [{low:.2f}, {high:.2f}]" in card
    assert bleu["signature"].replace("|", "\\|") in card
    assert "7,654,321" in card
    assert f"on {runs['train'].manifest.started_at[:10]}" in card


def test_the_same_content_keeps_its_version(tmp_path: Path) -> None:
    runs, live = finished_runs(tmp_path / "stages"), tmp_path / "model"
    first, again = (publish(small_recipe(), runs, live) for _ in range(2))
    assert first["version"] == again["version"]
    assert [path.name for path in (tmp_path / "models").iterdir()] == [first["version"]]


def test_an_equal_model_passes_and_the_old_version_stays(tmp_path: Path) -> None:
    live = tmp_path / "model"
    old = publish(small_recipe(), finished_runs(tmp_path / "a", weights=b"old"), live)
    new = publish(small_recipe(), finished_runs(tmp_path / "b", weights=b"new"), live)
    assert new["published"] is True and new["version"] != old["version"]
    assert (live / "checkpoint/model.safetensors").read_bytes() == b"new"
    assert load_published(tmp_path / "models" / old["version"]).description.version == old["version"]


def test_a_better_model_passes(tmp_path: Path) -> None:
    live = tmp_path / "model"
    publish(small_recipe(), finished_runs(tmp_path / "a", hypotheses=worsened(20)), live)
    assert publish(small_recipe(), finished_runs(tmp_path / "b"), live)["published"] is True


def test_a_worse_model_is_blocked_and_the_live_one_untouched(tmp_path: Path) -> None:
    live = tmp_path / "model"
    old = publish(small_recipe(), finished_runs(tmp_path / "a"), live)
    result = publish(small_recipe(), finished_runs(tmp_path / "b", hypotheses=worsened(20)), live)
    assert result["published"] is False
    assert set(result) == {"published", "reasons"}
    assert "not by chance (paired bootstrap, p = 0." in result["reasons"][-1]
    assert load_published(live).description.version == old["version"]
    assert [path.name for path in (tmp_path / "models").iterdir()] == [old["version"]]


def test_a_drop_that_may_be_chance_passes(tmp_path: Path) -> None:
    live = tmp_path / "model"
    publish(small_recipe(), finished_runs(tmp_path / "a"), live)
    result = publish(small_recipe(), finished_runs(tmp_path / "b", hypotheses=worsened(1)), live)
    assert result["published"] is True
    assert "may be chance" in result["reasons"][-1]


def test_a_drop_within_the_allowed_one_passes(tmp_path: Path) -> None:
    live = tmp_path / "model"
    publish(small_recipe(), finished_runs(tmp_path / "a"), live)
    worse = finished_runs(tmp_path / "b", hypotheses=worsened(20))
    assert publish(small_recipe(max_bleu_drop=90.0), worse, live)["published"] is True


def test_a_model_below_the_lowest_bleu_is_blocked(tmp_path: Path) -> None:
    worse = finished_runs(tmp_path / "stages", hypotheses=worsened(20))
    result = publish(small_recipe(min_bleu=99.0), worse, tmp_path / "model")
    assert result["published"] is False
    assert "is below publish.min_bleu 99" in result["reasons"][0]
    assert not (tmp_path / "model").exists()


def test_other_references_are_not_compared(tmp_path: Path) -> None:
    live = tmp_path / "model"
    publish(small_recipe(), finished_runs(tmp_path / "a"), live)
    others = tuple(line.upper() for line in REFERENCES)
    result = publish(small_recipe(), finished_runs(tmp_path / "b", references=others), live)
    assert result["published"] is True
    assert "was not scored on these references" in result["reasons"][-1]


def test_a_damaged_live_model_stops_publishing(tmp_path: Path) -> None:
    live = tmp_path / "model"
    publish(small_recipe(), finished_runs(tmp_path / "a", weights=b"old"), live)
    (live / "scores.json").unlink()
    with pytest.raises(InputError, match=r"scores\.json: a file of the published model is missing"):
        publish(small_recipe(), finished_runs(tmp_path / "b", weights=b"new"), live)


def test_weights_that_changed_after_training_are_not_published(tmp_path: Path) -> None:
    runs, live = finished_runs(tmp_path / "stages"), tmp_path / "model"
    (runs["train"].folder / "best/model.safetensors").write_bytes(b"other")
    with pytest.raises(InputError, match="has changed since its stage ended"):
        publish(small_recipe(), runs, live)
    assert not live.exists() and list((tmp_path / "models").iterdir()) == []


def test_left_overs_of_a_killed_publisher_are_removed(tmp_path: Path) -> None:
    (tmp_path / "models" / ".tmp-0123").mkdir(parents=True)
    result = publish(small_recipe(), finished_runs(tmp_path / "stages"), tmp_path / "model")
    assert [path.name for path in (tmp_path / "models").iterdir()] == [result["version"]]


def test_a_second_publisher_is_told_at_once(tmp_path: Path) -> None:
    runs = finished_runs(tmp_path / "stages")
    with filelock.FileLock(tmp_path / ".model.lock"), pytest.raises(InputError, match="another process is publishing"):
        publish(small_recipe(), runs, tmp_path / "model")


def test_a_folder_in_the_place_of_the_link_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(InputError, match="stands something else"):
        publish(small_recipe(), finished_runs(tmp_path / "stages"), tmp_path / "model")


def test_a_stage_that_has_not_run_is_named(tmp_path: Path) -> None:
    runs = finished_runs(tmp_path / "stages")
    del runs["train"]
    with pytest.raises(InputError, match=r"\['train'\] have not run"):
        publish(small_recipe(), runs, tmp_path / "model")


# Language models


def publish_language_model(folder: Path, name: str, **figures: Any) -> dict[str, Any]:
    return publish(language_model_recipe(), language_model_runs(folder / name, **figures), folder / "model")


def test_a_language_model_is_published_without_translations(tmp_path: Path) -> None:
    result = publish_language_model(tmp_path, "a")
    assert result["published"] is True
    assert result["reasons"] == ["perplexity 12.0000 per piece on dev", "no model is live to compare with"]
    model = load_published(tmp_path / "model")
    assert model.description.tests == {}
    files = {str(path.relative_to(model.folder)) for path in model.folder.rglob("*") if path.is_file()}
    assert files == {
        "MODEL_CARD.md",
        "checkpoint/config.json",
        "checkpoint/model.safetensors",
        "manifests/clean.json",
        "manifests/encode.json",
        "manifests/fit_tokenizer.json",
        "manifests/train.json",
        "model.json",
        "tokenizer/joint.model",
        "tokenizer/tokenizer.json",
        "translation.json",
    }


def test_a_language_models_card_says_perplexities_and_no_search(tmp_path: Path) -> None:
    publish_language_model(tmp_path, "a")
    card = (tmp_path / "model" / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "A language model: scores `de` text." in card
    assert "seqloom score MODEL INPUT" in card
    assert "| dev | 5 | 12.0000 | 2.7019 |" in card
    assert "BLEU" not in card and "Search" not in card


@pytest.mark.parametrize(("perplexity", "passes"), [(11.9, True), (12.0, True), (12.1, False)])
def test_a_language_model_passes_where_its_perplexity_is_no_higher(
    tmp_path: Path, perplexity: float, passes: bool
) -> None:
    live = publish_language_model(tmp_path, "a")
    result = publish_language_model(tmp_path, "b", perplexity=perplexity)
    assert result["published"] is passes
    against = f"perplexity {perplexity:.4f} per piece against 12.0000 of the live model {live['version']}"
    assert result["reasons"][-1].startswith(against)
    assert (load_published(tmp_path / "model").description.version != live["version"]) is passes


@pytest.mark.parametrize(("perplexity", "passes"), [(11.9, True), (12.1, False)])
def test_language_models_of_other_tokenisers_are_compared_by_character(
    tmp_path: Path, perplexity: float, passes: bool
) -> None:
    publish_language_model(tmp_path, "a")
    result = publish_language_model(tmp_path, "b", perplexity=perplexity, tokenizer=b"other")
    assert result["published"] is passes
    assert f"{math.exp(math.log(perplexity) / 2.5):.4f} per character against 2.7019" in result["reasons"][-1]


def test_language_models_of_other_dev_sets_are_not_compared_and_the_live_one_stays(tmp_path: Path) -> None:
    live = publish_language_model(tmp_path, "a")
    result = publish_language_model(tmp_path, "b", perplexity=1.5, dev="e" * 64)
    assert result["published"] is False
    assert "was not measured on this dev set" in result["reasons"][-1]
    assert load_published(tmp_path / "model").description.version == live["version"]


def test_a_language_model_takes_the_place_of_no_translation_model(tmp_path: Path) -> None:
    publish(small_recipe(), finished_runs(tmp_path / "a"), tmp_path / "model")
    assert publish_language_model(tmp_path, "b")["published"] is False


def test_a_language_model_needs_the_stages_up_to_training(tmp_path: Path) -> None:
    runs = language_model_runs(tmp_path / "stages")
    del runs["train"]
    with pytest.raises(InputError, match=r"the stages \['train'\] have not run"):
        publish(language_model_recipe(), runs, tmp_path / "model")
