"""The gate, and the folder of a published model.

    publish(recipe, runs, workdir / recipe.name / "model")

Versions lie side by side under `models/`, named by the digest of their content, and `model` is a symbolic link to the
live one. A version is written under a temporary name, renamed when whole, and only then is the link replaced, by a
rename too: a reader sees the old model or the new one, whole, and an older version is one link away.

    <workdir>/<recipe name>/
    ├── model -> models/3f2a91c04b7e
    └── models/3f2a91c04b7e/         self-contained, see nmt/published.py
"""

from __future__ import annotations

import logging
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from flows.config import Recipe
from flows.stages import TRANSLATION_STAGES
from flows.summary import best_on_dev
from nmt.evaluate import (
    SCORES_NAME,
    EvaluationSet,
    compare,
    corpus_bleu,
    hypotheses_path,
    read_lines,
    read_tests,
)
from nmt.published import (
    CARD_NAME,
    TRANSLATION_NAME,
    PublishedModel,
    Translation,
    describe,
    describe_references,
    load_published,
)
from pipelines.errors import InputError
from pipelines.stage import MANIFEST_NAME, Manifest, StageRun, acquired, file_sha256, write_atomically

VERSIONS_NAME = "models"
MANIFESTS_NAME = "manifests"
STAGES = ("clean", "fit_tokenizer", "encode", "train", "translate", "evaluate")

log = logging.getLogger(__name__)


def publish(recipe: Recipe, runs: Mapping[str, StageRun], destination: Path) -> dict[str, Any]:
    """Return {"published", "reasons"}, and where the gate was passed "model" (a path) and "version" too.

    `runs` holds the finished stages by the names in STAGES, up to `train` of a language model; `destination` is the
    link to the live model. The same content has the same version, so that publishing again changes nothing. A blocked
    model leaves no trace.
    Raises InputError when a stage is missing or its files have changed, when the live model is damaged, and when
    another process is publishing here.
    """
    missing = [stage for stage in _stages(recipe) if stage not in runs]
    if missing:
        raise InputError(f"the stages {missing} have not run", where=recipe.name, remedy="Run `seqloom run` first")
    if destination.exists() and not destination.is_symlink():
        raise InputError(
            "in the place of the live model's link stands something else",
            where=str(destination),
            remedy="Move it away",
        )
    destination.parent.mkdir(parents=True, exist_ok=True)
    lock = acquired(
        destination.parent / f".{destination.name}.lock",
        "another process is publishing here",
        where=str(destination),
        remedy="Wait for it",
    )
    try:
        return _publish(recipe, runs, destination)
    finally:
        lock.release()


def _stages(recipe: Recipe) -> list[str]:
    return [stage for stage in STAGES if recipe.translates() or stage not in TRANSLATION_STAGES]


def gate(
    recipe: Recipe, test: EvaluationSet, hypotheses: Sequence[str], live: PublishedModel | None
) -> tuple[bool, list[str]]:
    """Return whether a model may go live, and why, from its hypotheses on the recipe's first test set.

    It may not below `min_bleu`, nor where the live model is better on the same references by more than `max_bleu_drop`
    and that is no chance (paired bootstrap test, `p_value`).
    """
    bleu = corpus_bleu(hypotheses, test.references, recipe.evaluate.bleu_tokenize)
    floor = recipe.publish.min_bleu
    if bleu < floor:
        return False, [f"BLEU {bleu:.2f} on {test.name} is below publish.min_bleu {floor:g}"]
    reasons = [f"BLEU {bleu:.2f} on {test.name} is not below publish.min_bleu {floor:g}"]
    if live is None:
        return True, [*reasons, "no model is live to compare with"]
    known = live.description.tests.get(test.name)
    if known is None or known != describe_references(test.references):
        return True, [*reasons, f"the live model {live.description.version} was not scored on these references"]
    passed, reason = _against_live(recipe, test, hypotheses, live)
    return passed, [*reasons, reason]


def _against_live(
    recipe: Recipe, test: EvaluationSet, hypotheses: Sequence[str], live: PublishedModel
) -> tuple[bool, str]:
    baseline = read_lines(hypotheses_path(live.folder, test.name))
    result = compare(hypotheses, baseline, test.references, recipe.evaluate)
    drop, allowed = result.baseline_bleu - result.bleu, recipe.publish.max_bleu_drop
    against = f"against {result.baseline_bleu:.2f} of the live model {live.description.version}"
    # The test is two-sided and gives a small p for equal scores too: the direction and size come first.
    if drop <= allowed:
        return True, f"BLEU {result.bleu:.2f} {against}: no drop of more than publish.max_bleu_drop {allowed:g}"
    chance = f"(paired bootstrap, p = {result.p_value:.4f}, {result.signature})"
    if result.p_value < recipe.publish.p_value:
        return False, f"BLEU {result.bleu:.2f} {against}: worse by {drop:.2f}, not by chance {chance}"
    return True, f"BLEU {result.bleu:.2f} {against}: the drop of {drop:.2f} may be chance {chance}"


def language_model_gate(trained: Manifest, live: PublishedModel | None) -> tuple[bool, list[str]]:
    """Return whether a language model may go live, and why: where its perplexity on dev is not above the live model's.

    Per piece where both have one tokeniser, otherwise per character. Where the live model was not measured on the same
    texts nothing tells which is better, and it stays.
    """
    reached = trained.counters
    reasons = [f"perplexity {reached['best_perplexity']:.4f} per piece on dev"]
    if live is None:
        return True, [*reasons, "no model is live to compare with"]
    held = Manifest.model_validate_json((live.folder / MANIFESTS_NAME / "train.json").read_bytes())
    name = f"the live model {live.description.version}"
    if held.counters.get("dev_sha256") != reached["dev_sha256"]:
        return False, [*reasons, f"{name} was not measured on this dev set; without its link this one is published"]
    same = held.inputs["tokenizer"] == trained.inputs["tokenizer"]
    key, per = ("best_perplexity", "piece") if same else ("best_perplexity_per_character", "character")
    before, after = held.counters[key], reached[key]
    if before is None or after is None:
        return False, [*reasons, "dev has no character to compare by"]
    said = f"perplexity {after:.4f} per {per} against {before:.4f} of {name}"
    return after <= before, [*reasons, f"{said}: {'no' if after <= before else 'a'} worse one"]


def _publish(recipe: Recipe, runs: Mapping[str, StageRun], destination: Path) -> dict[str, Any]:
    tests: list[EvaluationSet] = []
    live = load_published(destination) if destination.is_symlink() else None
    if recipe.translates():
        tests = read_tests(runs["clean"])
        first = _first_test(recipe, tests)
        hypotheses = read_lines(hypotheses_path(runs["translate"].folder, first.name))
        passed, reasons = gate(recipe, first, hypotheses, live)
    else:
        passed, reasons = language_model_gate(runs["train"].manifest, live)
    for reason in reasons:
        log.info("gate: %s", reason)
    if not passed:
        return {"published": False, "reasons": reasons}
    version = _write_version(recipe, runs, tests, destination.parent / VERSIONS_NAME)
    link = destination.with_name(f".tmp-{uuid.uuid4().hex}")
    link.symlink_to(Path(VERSIONS_NAME) / version, target_is_directory=True)
    link.replace(destination)
    return {"published": True, "model": str(destination), "version": version, "reasons": reasons}


def _first_test(recipe: Recipe, tests: Sequence[EvaluationSet]) -> EvaluationSet:
    name = recipe.corpora.test[0].name
    for test in tests:
        if test.name == name:
            return test
    raise InputError(f"the test set {name!r} has no row", where="corpora.test", remedy="Give one that has rows")


def _write_version(recipe: Recipe, runs: Mapping[str, StageRun], tests: Sequence[EvaluationSet], versions: Path) -> str:
    versions.mkdir(exist_ok=True)
    for left_over in versions.glob(".tmp-*"):
        shutil.rmtree(left_over)  # of a process that was killed: the lock says that none is at work
    temporary = versions / f".tmp-{uuid.uuid4().hex}"
    temporary.mkdir()
    try:
        _write_files(recipe, runs, temporary)
        description = describe(recipe.name, {test.name: test.references for test in tests}, temporary)
        folder = versions / description.version
        if folder.exists():
            load_published(folder)
        else:
            temporary.rename(folder)
    finally:
        if temporary.exists():
            shutil.rmtree(temporary)
    return description.version


def _write_files(recipe: Recipe, runs: Mapping[str, StageRun], folder: Path) -> None:
    _copy_outputs(runs["train"], "best/", folder / "checkpoint")
    _copy_outputs(runs["fit_tokenizer"], "", folder / "tokenizer")
    if recipe.translates():
        _copy_outputs(runs["translate"], "hypotheses/", folder / "hypotheses")
        _copy_outputs(runs["evaluate"], SCORES_NAME, folder)
    (folder / MANIFESTS_NAME).mkdir()
    for stage in _stages(recipe):
        shutil.copyfile(runs[stage].folder / MANIFEST_NAME, folder / MANIFESTS_NAME / f"{stage}.json")
    translation = Translation(
        languages=recipe.languages,
        normalize=recipe.clean.normalize,
        translate=recipe.translate,
    )
    write_atomically(folder / TRANSLATION_NAME, translation.model_dump_json(indent=1) + "\n")
    write_atomically(folder / CARD_NAME, model_card(recipe, runs))


def _copy_outputs(run: StageRun, prefix: str, target: Path) -> None:
    """Copy a stage's outputs that begin with the prefix, and hold each copy against the stage's manifest."""
    outputs = [output for output in run.manifest.outputs if output.path.startswith(prefix)]
    if not outputs:
        raise InputError(
            f"the stage {run.manifest.stage!r} has no output {prefix!r}", where=str(run.folder), remedy="Run it again"
        )
    for output in outputs:
        # A prefix that is a folder goes away, a prefix that is a file stays.
        copy = target / (output.path.removeprefix(prefix) or output.path)
        copy.parent.mkdir(parents=True, exist_ok=True)
        source = run.folder / output.path
        if not source.is_file():
            raise InputError("the file is missing", where=str(source), remedy="Remove its folder and run again")
        shutil.copyfile(source, copy)
        if file_sha256(copy) != output.sha256:
            raise InputError(
                "the file has changed since its stage ended",
                where=str(source),
                remedy="Remove its folder and run again",
            )


def model_card(recipe: Recipe, runs: Mapping[str, StageRun]) -> str:
    """Return the model card, Markdown, from the recipe and the stages' manifests alone."""
    languages, side = recipe.languages, recipe.model_table().only_side()
    trained = runs["train"].manifest
    if side is None:
        does, use = f"Translates `{languages.source}` to `{languages.target}`", "translate MODEL INPUT OUTPUT"
        scores = (
            f"{_scores_table(runs['evaluate'])}\n\nBrackets hold the 95 % bootstrap confidence interval. BLEU "
            "and chrF: higher is better; TER: lower is better."
        )
    else:
        does, use = f"A language model: scores `{getattr(languages, side)}` text", "score MODEL INPUT"
        scores = f"{_perplexity_table(trained)}\n\nLower is better. Pieces count the end of the sentence."
    sections = [
        f"# {recipe.name}\n\n{does}. Trained by Seqloom on {trained.started_at[:10]}.",
        f"## Use\n\n```\nseqloom {use}\n```\n\nMODEL is this folder; INPUT is UTF-8 text, one sentence a line.",
        f"## Model\n\n{_model_table(recipe, runs)}",
        f"## Scores\n\n{scores}",
        f"## Data\n\n{_data_table(recipe, runs['clean'])}\n\nNo licence of this model is stated here: it follows from "
        "those of its data.",
        f"## Limits\n\n{_limits(recipe)}",
    ]
    return "\n\n".join(sections) + "\n"


def _model_table(recipe: Recipe, runs: Mapping[str, StageRun]) -> str:
    table, counters = recipe.model_table(), runs["train"].manifest.counters
    differing = table.model_dump(mode="json", exclude_defaults=True, exclude={"architecture"})
    differing |= {key: PurePosixPath(path).name for key, path in table.vectors().items()}  # not where they lie
    facts = {
        "Architecture": table.architecture,
        "Beside the defaults": ", ".join(f"{key}: {value}" for key, value in differing.items()) or "none",
        "Parameters": f"{counters['parameters']:,}",
        "Tokeniser": f"{recipe.tokenizer.kind}, {recipe.tokenizer.vocab_size:,} pieces"
        + (", joint" if recipe.tokenizer.joint else " for each language"),
        "Training": f"{counters['updates']:,} updates, {counters['epochs']} epochs, "
        f"{'about ' if 'train_rows_estimated' in counters else ''}{counters['train_rows']:,} rows; "
        f"stopped by {counters['stopped']}; published: update {counters['best_update']:,}",
        "Best on dev": f"{best_on_dev(counters)}, loss {counters['best_loss']:.4f}",
    }
    if table.has_source:
        facts["Search"] = (
            f"{recipe.translate.method}, beam {recipe.translate.beam_size}, "
            f"length penalty {recipe.translate.length_penalty:g}"
        )
    return _markdown(["", ""], [[name, fact] for name, fact in facts.items()])


def _scores_table(evaluated: StageRun) -> str:
    rows = []
    for test, result in evaluated.manifest.counters["tests"].items():
        for metric, figures in result["metrics"].items():
            low, high = figures["confidence"]
            interval = f"{figures['score']:.2f} [{low:.2f}, {high:.2f}]"
            rows.append([test, f"{result['rows']:,}", metric, interval, f"`{figures['signature']}`"])
    return _markdown(["Test set", "Rows", "Metric", "Score", "Signature"], rows)


def _perplexity_table(trained: Manifest) -> str:
    counters = trained.counters
    per_character = counters["best_perplexity_per_character"]
    figures = [f"{counters['best_perplexity']:.4f}", "none" if per_character is None else f"{per_character:.4f}"]
    return _markdown(
        ["Set", "Rows", "Perplexity per piece", "Per character"], [["dev", f"{counters['dev_rows']:,}", *figures]]
    )


def _data_table(recipe: Recipe, cleaned: StageRun) -> str:
    counts = {(entry["split"], entry["corpus"]): entry for entry in cleaned.manifest.counters["waterfall"]}
    rows = []
    for split in ("train", "dev", "test"):
        for corpus in recipe.corpora.of(split):
            entry = counts[split, corpus.name]
            rows.append([split, corpus.name, corpus.licence, f"{entry['read']:,}", f"{entry['kept']:,}"])
    return _markdown(["Split", "Corpus", "Licence", "Rows read", "Rows kept"], rows)


def _limits(recipe: Recipe) -> str:
    corpora = ", ".join(corpus.name for corpus in recipe.corpora.train)
    limits = (
        f"- It has seen the kind of text in {corpora}, and does worse on any other.\n"
        f"- Rows of more than {recipe.train.max_pieces} pieces were left out of training: expect less of them.\n"
    )
    if not recipe.translates():
        return limits + "- A score says how usual a text is to it, not whether the text is right or true."
    return limits + (
        f"- A translation ends after {recipe.translate.max_length_factor:g} times the source's pieces and "
        f"{recipe.translate.max_length_offset} more.\n"
        "- It translates sentence by sentence, and may leave out or invent content: have a person read what matters."
    )


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
