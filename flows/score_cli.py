"""Which model `seqloom score` takes, and what it prints."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from flows.run_folder import RunFolder
from nmt.config import RayConfig, ScoreConfig
from nmt.published import DESCRIPTION_NAME
from nmt.score_texts import ModelFiles, published_files, score_texts
from pipelines.config import LanguagesConfig, NormalizeConfig
from pipelines.errors import InputError


def score_and_print(
    model: Path, source: Path, target: Path | None, output: Path | None, config: ScoreConfig, ray: RayConfig
) -> dict[str, Any]:
    """Return the figures of `score_texts`, and print them: beside the rows where those go to standard output."""
    figures = score_texts(model_files(model), source, target, output, config, ray)
    stream = sys.stderr if output is None else sys.stdout
    unscored = f", {figures['errors']:,} without a score" if figures["errors"] else ""
    print(f"{figures['rows']:,} lines, {figures['pieces']:,} pieces{unscored}", file=stream)
    for key, per in (("perplexity", "piece"), ("perplexity_per_character", "character")):
        if figures[key] is not None:
            print(f"perplexity per {per}: {figures[key]:.4f}", file=stream)
    if output is not None:
        print(f"scores: {output}")
    return figures


def model_files(folder: Path) -> ModelFiles:
    """Return the files of a published model, or of what a run has trained last, published or not.

    Raises InputError where the folder is neither, and where the run was prepared anew since that training.
    """
    run = RunFolder(folder)
    trained, tokenizer, cleaned = (run.linked(stage) for stage in ("train", "fit_tokenizer", "clean"))
    if (folder / DESCRIPTION_NAME).is_file() or trained is None:
        return published_files(folder)
    for name, stage in (("tokenizer", tokenizer), ("cleaned", cleaned)):
        if stage is None or stage.manifest.digest() != trained.manifest.inputs[name]:
            raise InputError(
                "the run was prepared anew since its model was trained",
                where=str(folder),
                remedy="Train again by `seqloom train`, or give the folder of the published model",
            )
    assert tokenizer is not None and cleaned is not None
    settings = cleaned.manifest.config
    return ModelFiles(
        trained.folder / "best",
        tokenizer.folder,
        LanguagesConfig.model_validate(settings["languages"]),
        NormalizeConfig.model_validate(settings["normalize"]),
    )
