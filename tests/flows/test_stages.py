from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from flows import stages
from flows.config import Profile, Recipe
from flows.run_folder import RunFolder
from flows.stages import STAGE_NAMES, PlannedStage, given_stage, plan, run_up_to, stages_of
from pipelines.errors import InputError
from pipelines.stage import StageResult, StageRun, WouldRun, planning, run_stage

CORPUS = {"name": "a", "tsv": "/a.tsv"}
RECIPE = Recipe.model_validate(
    {
        "name": "tiny",
        "languages": {"source": "en", "target": "de"},
        "corpora": {split: [CORPUS] for split in ("train", "dev", "test")},
    }
)


def changed(**tables: dict[str, Any]) -> Recipe:
    tree = RECIPE.model_dump(mode="json")
    for table, values in tables.items():
        tree[table] |= values
    return Recipe.model_validate_json(Recipe.model_validate(tree).model_dump_json())


RUN_ONE = stages._run  # itself, before tests put another in its place


@pytest.fixture(autouse=True)
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stages that only write their table of the recipe: what is here tested is the order, and who reads whom."""
    names: list[str] = []
    reads = {
        "score": "languages",
        "fit_quality": "clean",
        "rate": "languages",
        "clean": "clean",
        "fit_tokenizer": "tokenizer",
        "encode": "shards",
        "align": "align",
        "train": "train",
    }

    def run(
        name: str, recipe: Recipe, profile: Profile, root: Path, runs: dict[str, StageRun], **options: bool
    ) -> StageRun:
        config = getattr(recipe, reads.get(name, name)).model_dump(mode="json")

        def body(folder: Path) -> StageResult:
            names.append(name)
            (folder / "out.txt").write_text(f"{name} {config} {[run.manifest.digest() for run in runs.values()]}")
            return StageResult(["out.txt"], {})

        inputs = {earlier: run.manifest.digest() for earlier, run in runs.items()}
        return run_stage(name, 1, config, inputs, root, body)

    monkeypatch.setattr(stages, "_run", run)
    return names


def reasons(planned: list[PlannedStage]) -> dict[str, str]:
    return {stage.name: stage.reason for stage in planned}


def test_stages_run_in_their_order_up_to_the_one_named(tmp_path: Path, ran: list[str]) -> None:
    runs = run_up_to("encode", RECIPE, Profile(), tmp_path)
    assert ran == ["score", "clean", "fit_tokenizer", "encode"]
    assert list(runs) == ran
    assert all(run.folder.parent == tmp_path / "stages" for run in runs.values())


def test_finished_stages_are_reused(tmp_path: Path, ran: list[str]) -> None:
    run_up_to("encode", RECIPE, Profile(), tmp_path)
    runs = run_up_to("train", RECIPE, Profile(), tmp_path)
    assert ran == ["score", "clean", "fit_tokenizer", "encode", "train"]
    assert [run.reused for run in runs.values()] == [True, True, True, True, False]


def test_a_given_stage_is_taken_as_it_is(tmp_path: Path, ran: list[str]) -> None:
    clean = run_up_to("clean", RECIPE, Profile(), tmp_path / "other")["clean"]
    runs = run_up_to("fit_tokenizer", RECIPE, Profile(), tmp_path, given={"clean": given_stage("clean", clean.folder)})
    assert ran == ["score", "clean", "fit_tokenizer"]
    assert runs["clean"].folder == clean.folder


def test_a_given_stage_must_have_finished(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the stage 'clean' has not finished here"):
        given_stage("clean", tmp_path)


def test_a_given_folder_must_be_of_that_stage(tmp_path: Path) -> None:
    clean = run_up_to("clean", RECIPE, Profile(), tmp_path)["clean"]
    with pytest.raises(InputError, match="a folder of the stage 'clean', not of 'encode'"):
        given_stage("encode", clean.folder)


def test_planning_runs_nothing_and_writes_nothing(tmp_path: Path, ran: list[str]) -> None:
    planned = plan(RECIPE, Profile(), tmp_path)
    assert [stage.name for stage in planned] == [stage.name for stage in stages_of(RECIPE)]
    assert all(stage.runs for stage in planned)
    assert reasons(planned)["score"] == "it never ran"
    assert reasons(planned)["encode"] == "because score runs"
    assert ran == []
    assert list(tmp_path.iterdir()) == []


def test_a_plan_after_a_run_reuses_everything(tmp_path: Path) -> None:
    runs = run_up_to("evaluate", RECIPE, Profile(), tmp_path)
    planned = plan(RECIPE, Profile(), tmp_path)
    assert not any(stage.runs for stage in planned)
    assert [stage.folder for stage in planned] == [run.folder for run in runs.values()]


def test_a_plan_names_the_keys_that_differ(tmp_path: Path) -> None:
    run_up_to("evaluate", RECIPE, Profile(), tmp_path)
    planned = plan(changed(train={"max_epochs": 3, "seed": 7}), Profile(), tmp_path)
    assert [stage.runs for stage in planned] == [False, False, False, False, True, True, True]
    assert reasons(planned)["train"] == "config differs: seed 1 to 7, max_epochs 20 to 3"
    assert reasons(planned)["evaluate"] == "because train runs"


def test_a_plan_compares_with_the_recipes_own_last_stage(tmp_path: Path) -> None:
    first = run_up_to("train", RECIPE, Profile(), tmp_path)
    RunFolder.of(tmp_path, RECIPE).link(first)
    run_up_to("train", changed(train={"max_epochs": 9}), Profile(), tmp_path)
    planned = plan(changed(train={"max_epochs": 3}), Profile(), tmp_path)
    assert reasons(planned)["train"] == "config differs: max_epochs 20 to 3"


def test_a_plan_names_the_input_that_differs(tmp_path: Path) -> None:
    run_up_to("train", RECIPE, Profile(), tmp_path)
    other = changed(tokenizer={"vocab_size": 500})
    run_up_to("encode", other, Profile(), tmp_path)
    reason = reasons(plan(other, Profile(), tmp_path))["train"]
    assert reason.startswith("input differs: fit_tokenizer ")
    assert "encode" in reason


def test_a_plan_tells_an_attempt_that_did_not_finish(tmp_path: Path) -> None:
    run = run_up_to("clean", RECIPE, Profile(), tmp_path)["clean"]
    (run.folder / "manifest.json").unlink()
    assert reasons(plan(RECIPE, Profile(), tmp_path))["clean"] == "an earlier attempt did not finish"


def test_inside_planning_a_stage_that_is_not_done_says_what_decides_its_key(tmp_path: Path) -> None:
    def body(folder: Path) -> StageResult:
        raise AssertionError("nothing runs in a plan")

    with planning(), pytest.raises(WouldRun) as raised:
        run_stage("x", 3, {"a": 1}, {"in": "digest"}, tmp_path, body)
    assert (raised.value.name, raised.value.version) == ("x", 3)
    assert (raised.value.config, raised.value.inputs) == ({"a": 1}, {"in": "digest"})
    assert raised.value.folder.parent == tmp_path


def test_after_planning_stages_run_again(tmp_path: Path, ran: list[str]) -> None:
    with planning(), pytest.raises(WouldRun):
        run_up_to("clean", RECIPE, Profile(), tmp_path)
    run_up_to("clean", RECIPE, Profile(), tmp_path)
    assert ran == ["score", "clean"]


def test_a_plan_refuses_what_the_profile_cannot_compute(tmp_path: Path) -> None:
    recipe = RECIPE.model_copy(update={"train": RECIPE.train.model_copy(update={"precision": "float16"})})
    with pytest.raises(InputError, match="float16 is computed on a GPU"):
        plan(recipe, Profile(), tmp_path)


def test_ratings_are_stages_of_a_recipe_that_asks_for_quality(tmp_path: Path, ran: list[str]) -> None:
    rated = changed(clean={"quality": {}})
    assert [stage.name for stage in stages_of(rated)] == [name for name in STAGE_NAMES if name != "align"]
    run_up_to("clean", rated, Profile(), tmp_path)
    assert ran == ["score", "fit_quality", "rate", "clean"]


def test_alignments_are_a_stage_of_a_recipe_that_guides_attention(tmp_path: Path, ran: list[str]) -> None:
    guided = changed(train={"guided_alignment_weight": 0.05})
    assert [stage.name for stage in stages_of(guided)] == [
        name for name in STAGE_NAMES if name not in ("fit_quality", "rate")
    ]
    run_up_to("train", guided, Profile(), tmp_path)
    assert ran == ["score", "clean", "fit_tokenizer", "encode", "align", "train"]
    # What is aligned does not depend on training.
    planned = plan(changed(train={"guided_alignment_weight": 0.1}), Profile(), tmp_path)
    assert [stage.name for stage in planned if stage.runs] == ["train", "translate", "evaluate"]


@pytest.mark.parametrize("name", ["rate", "align"])
def test_a_stage_that_the_recipe_has_not_is_refused(tmp_path: Path, ran: list[str], name: str) -> None:
    with pytest.raises(InputError, match=f"stage {name}: the recipe has no such stage"):
        run_up_to(name, RECIPE, Profile(), tmp_path)
    assert ran == []


def test_training_is_given_the_alignments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    asked: dict[str, Any] = {}
    monkeypatch.setattr("pipelines.align.align", lambda *arguments: asked.update(align=arguments))
    monkeypatch.setattr("nmt.train.train", lambda *arguments, **options: asked.update(options))
    recipe = changed(train={"guided_alignment_weight": 0.05}, align={"iterations": 3})
    runs: Any = {"clean": None, "fit_tokenizer": "tokenizer", "encode": "encoded", "align": "aligned"}
    for name in ("align", "train"):
        stages._run(name, recipe, Profile(), tmp_path, runs, use_ray=False)
    assert asked["align"] == (recipe.align, "encoded", "tokenizer", Profile().beam, tmp_path)
    assert asked["aligned"] == "aligned"


def test_a_language_models_recipe_ends_with_training(tmp_path: Path, ran: list[str]) -> None:
    recipe = changed(model={"architecture": "recurrent_lm"}, train={"early_stopping_metric": "loss"})
    assert [stage.name for stage in stages_of(recipe)] == ["score", "clean", "fit_tokenizer", "encode", "train"]
    assert [stage.name for stage in plan(recipe, Profile(), tmp_path)] == [stage.name for stage in stages_of(recipe)]
    with pytest.raises(InputError, match=r"stage evaluate: .* language model.* Its last stage is train"):
        run_up_to("evaluate", recipe, Profile(), tmp_path)
    assert ran == []
    assert list(run_up_to("train", recipe, Profile(), tmp_path))[-1] == "train"


def test_encode_and_train_are_told_of_augmentation_and_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    asked: dict[str, Any] = {}
    monkeypatch.setattr("pipelines.encode.encode", lambda *arguments, **options: asked.update(options))
    monkeypatch.setattr("nmt.train.train", lambda *arguments, **options: asked.update(options))
    corpora = RECIPE.corpora.model_dump(mode="json")
    corpora["train"][0]["weight"] = 2.5
    recipe = changed(augment={"typos": 0.1}, corpora=corpora)
    runs: Any = {"clean": None, "fit_tokenizer": None, "encode": None}
    for name in ("encode", "train"):
        stages._run(name, recipe, Profile(), tmp_path, runs, use_ray=False)
    assert asked["with_text"] is True
    assert asked["augment"] == recipe.augment
    assert asked["weights"] == {corpora["train"][0]["name"]: 2.5}


def test_every_stage_has_a_branch_that_runs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    with pytest.raises(AssertionError, match="no such stage: dream"):
        stages._run("dream", RECIPE, Profile(), tmp_path, {}, use_ray=True)


def test_training_is_told_how_the_corpora_of_train_are_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, Any] = {}
    monkeypatch.setattr("nmt.train.train", lambda *arguments, **options: told.update(options))
    train = [CORPUS | {"weight": 2.0, "until_epoch": 3}, CORPUS | {"name": "b", "from_epoch": 2}]
    recipe = changed(corpora={"train": train})
    RUN_ONE("train", recipe, Profile(), tmp_path, defaultdict(lambda: None), use_ray=False, continue_from_earlier=False)
    assert told["weights"] == {"a": 2.0, "b": 1.0}
    assert told["curriculum"] == {"a": (1, 3), "b": (2, None)}
