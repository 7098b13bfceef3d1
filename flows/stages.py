"""The stages in their order: run them up to one, or say what would run and why.

Each stage is a function of `pipelines` or `nmt` that knows nothing of the others; here stands which of them reads what.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from flows.config import Profile, Recipe, check_profile
from flows.run_folder import RunFolder
from pipelines.errors import InputError
from pipelines.stage import Manifest, StageRun, WouldRun, planning, read_manifest

MAX_NAMED_KEYS = 6


class Stage(NamedTuple):
    """A stage's name, what it does in words, and the stages whose output it reads."""

    name: str
    title: str
    reads: tuple[str, ...] = ()


STAGES: tuple[Stage, ...] = (
    Stage("score", "Score the corpora: raw text to normalised rows with the scores of each rule"),
    Stage("fit_quality", "Fit the lexicon, and the learned combination of the scores", ("score",)),
    Stage("rate", "Rate the adequacy and quality of each pair", ("score", "fit_quality")),
    Stage("clean", "Clean the corpora: kept rows, rejected rows and the waterfall", ("score", "rate")),
    Stage("fit_tokenizer", "Fit the tokeniser on a sample of the clean training rows", ("clean",)),
    Stage("encode", "Encode the clean rows into shards of piece ids", ("clean", "fit_tokenizer")),
    Stage("align", "Align the pieces of the training rows, for attention to be guided by", ("encode", "fit_tokenizer")),
    Stage("train", "Train the model on the shards", ("encode", "clean", "fit_tokenizer", "align")),
    Stage("translate", "Translate the test sets", ("train", "fit_tokenizer", "clean")),
    Stage("evaluate", "Score the translations", ("clean", "translate")),
)
STAGE_NAMES = tuple(stage.name for stage in STAGES)
# Only where the recipe has `clean.quality`.
RATING_STAGES = frozenset({"fit_quality", "rate"})
# Only where the recipe guides attention: `train.guided_alignment_weight`.
ALIGNING_STAGES = frozenset({"align"})
# Only where the recipe's model translates: that of a language model ends with training.
TRANSLATION_STAGES = frozenset({"translate", "evaluate"})


def stages_of(recipe: Recipe) -> tuple[Stage, ...]:
    """Return the stages that a recipe has, in their order."""
    translates = recipe.translates()
    return tuple(stage for stage in _of_any_model(recipe) if translates or stage.name not in TRANSLATION_STAGES)


def stages_read_by(name: str, recipe: Recipe) -> list[str]:
    """Return the names of the recipe's stages that one of its stages reads, in their order."""
    reads = next(stage.reads for stage in STAGES if stage.name == name)
    return [stage.name for stage in stages_of(recipe) if stage.name in reads]


def _of_any_model(recipe: Recipe) -> tuple[Stage, ...]:
    left_out = frozenset() if recipe.clean.quality is not None else RATING_STAGES
    left_out |= frozenset() if recipe.train.guided_alignment_weight > 0.0 else ALIGNING_STAGES
    return tuple(stage for stage in STAGES if stage.name not in left_out)


@dataclass(frozen=True)
class PlannedStage:
    """What a run would do with one stage. `folder` is None where an earlier stage must run before it is known."""

    name: str
    runs: bool
    reason: str
    folder: Path | None


def stages_root(workdir: Path) -> Path:
    """Return the folder that holds the stages' folders of all recipes; absolute, as workers have other folders."""
    return workdir.absolute() / "stages"


def run_up_to(
    name: str,
    recipe: Recipe,
    profile: Profile,
    workdir: Path,
    *,
    given: Mapping[str, StageRun] | None = None,
    use_ray: bool = True,
    continue_from_earlier: bool = False,
) -> dict[str, StageRun]:
    """Return the finished stage of a name and all that it needs, in order; what is finished and unchanged is reused.

    A stage in `given` is taken as it is, and what only it would need does not run. `use_ray=False` trains and
    translates in this process, without Ray; `continue_from_earlier` is as of `train`. Raises InputError as the stages
    do, and for a stage that a recipe of a language model has not; and WouldRun inside `planning()`.
    """
    runs = dict(given or {})
    needed = _needed(name, runs)
    # Asked where training is to be done alone: to know it torch is imported, which no other stage's process needs.
    if name in TRANSLATION_STAGES and "train" in needed and not recipe.translates():
        raise InputError(
            "the recipe's model is a language model, which translates nothing",
            where=f"stage {name}",
            remedy="Its last stage is train; score texts with it by `seqloom score`",
        )
    if "train" in needed:
        check_profile(recipe, profile, use_ray=use_ray)
    has = _of_any_model(recipe)
    if name in needed and name not in {stage.name for stage in has}:
        raise InputError(
            "the recipe has no such stage",
            where=f"stage {name}",
            remedy="fit_quality and rate are of recipes with clean.quality, align with train.guided_alignment_weight",
        )
    for stage in has:
        if stage.name in needed:
            runs[stage.name] = _run(
                stage.name, recipe, profile, stages_root(workdir), runs,
                use_ray=use_ray, continue_from_earlier=continue_from_earlier,
            )  # fmt: skip
    return runs


def _needed(name: str, given: Mapping[str, StageRun]) -> set[str]:
    """Return the names of the stages that are to run for one: itself and what it reads, down to what is given."""
    if name in given:
        return set()
    reads = next(stage.reads for stage in STAGES if stage.name == name)
    return {name}.union(*(_needed(earlier, given) for earlier in reads))


def given_stage(name: str, folder: Path) -> StageRun:
    """Return the finished stage of a folder. Raises InputError when it has not finished, or is of another name."""
    manifest = read_manifest(folder)
    if manifest is None:
        raise InputError(f"the stage {name!r} has not finished here", where=str(folder), remedy="Run it first")
    if manifest.stage != name:
        raise InputError(
            f"a folder of the stage {manifest.stage!r}, not of {name!r}",
            where=str(folder),
            remedy="Give another folder",
        )
    return StageRun(folder, manifest, reused=True)


def plan(recipe: Recipe, profile: Profile, workdir: Path) -> list[PlannedStage]:
    """Return for each stage whether a run would run it or reuse it, and why. Nothing runs, nothing is written.

    Raises InputError where a run would: a corpus that is not there, for one.
    """
    check_profile(recipe, profile)
    planned: list[PlannedStage] = []
    runs: dict[str, StageRun] = {}
    stages = stages_of(recipe)
    for position, stage in enumerate(stages):
        try:
            with planning():
                runs = run_up_to(stage.name, recipe, profile, workdir, given=runs)
        except WouldRun as would:
            reason = _reason(would, RunFolder.of(workdir, recipe).linked(stage.name), stages_root(workdir))
            planned.append(PlannedStage(stage.name, True, reason, would.folder))
            later = stages[position + 1 :]
            planned += [PlannedStage(after.name, True, f"because {stage.name} runs", None) for after in later]
            break
        planned.append(PlannedStage(stage.name, False, "unchanged", runs[stage.name].folder))
    return planned


def _run(
    name: str,
    recipe: Recipe,
    profile: Profile,
    root: Path,
    runs: Mapping[str, StageRun],
    *,
    use_ray: bool,
    continue_from_earlier: bool = False,
) -> StageRun:
    # Each stage imports what only it needs: the tokeniser's process never loads torch, nor training Beam.
    match name:
        case "score":
            from pipelines.score import score

            return score(recipe.languages, recipe.corpora, recipe.clean, recipe.shards, profile.beam, root)
        case "fit_quality":
            from pipelines.fit_quality import fit_quality

            assert recipe.clean.quality is not None
            return fit_quality(runs["score"], recipe.languages, recipe.clean.quality, recipe.clean, root)
        case "rate":
            from pipelines.rate import rate

            return rate(runs["score"], runs["fit_quality"], recipe.languages, profile.beam, root)
        case "clean":
            from pipelines.clean import clean

            scored, rated = runs["score"], runs.get("rate")
            return clean(recipe.languages, recipe.corpora, recipe.clean, scored, profile.beam, root, rated=rated)
        case "fit_tokenizer":
            from pipelines.fit_tokenizer import fit_tokenizer

            return fit_tokenizer(recipe.languages, recipe.tokenizer, runs["clean"], root)
        case "encode":
            from pipelines.encode import encode

            cleaned, tokenizer, with_text = runs["clean"], runs["fit_tokenizer"], recipe.augment.changes_text
            return encode(recipe.shards, cleaned, tokenizer, profile.beam, root, with_text=with_text)
        case "align":
            from pipelines.align import align

            return align(recipe.align, runs["encode"], runs["fit_tokenizer"], profile.beam, root)
        case "train":
            from nmt.train import train

            return train(
                recipe.model_table(),
                recipe.train,
                runs["encode"],
                runs["clean"],
                runs["fit_tokenizer"],
                profile.ray,
                root,
                bleu_tokenize=recipe.evaluate.bleu_tokenize,
                use_ray=use_ray,
                augment=recipe.augment,
                weights={corpus.name: corpus.weight for corpus in recipe.corpora.train},
                curriculum={corpus.name: (corpus.from_epoch, corpus.until_epoch) for corpus in recipe.corpora.train},
                aligned=runs.get("align"),
                tracking=profile.tracking,
                prices=profile.prices,
                continue_from_earlier=continue_from_earlier,
            )
        case "translate":
            from nmt.translate import translate_tests

            trained, tokenizer, cleaned = runs["train"], runs["fit_tokenizer"], runs["clean"]
            return translate_tests(recipe.translate, trained, tokenizer, cleaned, profile.ray, root, use_ray=use_ray)
        case "evaluate":
            from nmt.evaluate import evaluate_tests

            return evaluate_tests(recipe.evaluate, runs["clean"], runs["translate"], root)
        case _:
            raise AssertionError(f"no such stage: {name}")


def _reason(would: WouldRun, earlier: StageRun | None, root: Path) -> str:
    """Return why a stage is not done: against this recipe's last one, else the newest of that stage of any recipe."""
    if would.folder.exists():
        return "an earlier attempt did not finish"
    manifest = _newest(would.name, root) if earlier is None else earlier.manifest
    if manifest is None:
        return "it never ran"
    causes = []
    if manifest.version != would.version:
        causes.append(f"the stage's behaviour changed (version {manifest.version} to {would.version})")
    if keys := _different(manifest.config, would.config):
        causes.append(f"config differs: {_named(keys)}")
    if names := _different(manifest.inputs, would.inputs):
        causes.append(f"input differs: {_named(names)}")
    return "; ".join(causes)


def _newest(name: str, root: Path) -> Manifest | None:
    manifests = (read_manifest(folder) for folder in root.glob(f"{name}-*"))
    return max((found for found in manifests if found is not None), key=lambda found: found.started_at, default=None)


def _different(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the dotted keys whose values differ, with the value before and after; `...` stands for no value."""
    old, new = _flat(before), _flat(after)
    keys = [*new, *(key for key in old if key not in new)]
    return {key: (old.get(key, ...), new.get(key, ...)) for key in keys if old.get(key, ...) != new.get(key, ...)}


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _named(changes: Mapping[str, tuple[Any, Any]]) -> str:
    named = [f"{key} {_short(old)} to {_short(new)}" for key, (old, new) in list(changes.items())[:MAX_NAMED_KEYS]]
    more = len(changes) - len(named)
    return ", ".join(named) + (f" and {more} more" if more else "")


def _short(value: Any) -> str:
    text = "nothing" if value is ... else str(value)
    # A digest or a list says enough by its beginning.
    return text if len(text) <= 24 else f"{text[:12]}…"
