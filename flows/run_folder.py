"""The folder of a recipe under the workdir: what the user opens after a run.

<workdir>/
├── stages/                 the stages' folders, shared by all recipes
└── <recipe name>/
    ├── manifest.json       the run: resolved recipe and profile, each stage's folder, scores, the gate's answer
    ├── scores.json         as of the stage evaluate, where the recipe has it
    ├── report.html         one page about data, training and result
    ├── model -> models/... the published model, where the gate let it pass
    └── stages/<stage>      links to the stages' folders
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from flows.config import Profile, Recipe
from pipelines.errors import InputError
from pipelines.stage import StageRun, read_manifest, replacing, write_atomically

RUN_FORMAT = 1


class RunManifest(BaseModel):
    """manifest.json of a run. `stages` maps names to folders, relative to the run's; `gate` is the gate's answer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = RUN_FORMAT
    recipe: Recipe
    profile: Profile
    stages: dict[str, str]
    scores: dict[str, Any]
    gate: dict[str, Any]
    started_at: str
    seconds: float


@dataclass(frozen=True)
class RunFolder:
    """The paths in the folder of one recipe, and what is read from them and written to them."""

    folder: Path

    @classmethod
    def of(cls, workdir: Path, recipe: Recipe) -> RunFolder:
        """Return the folder of a recipe under a workdir; it need not be there yet."""
        return cls(workdir / recipe.name)

    @property
    def manifest(self) -> Path:
        """Return the path of manifest.json, which is written last."""
        return self.folder / "manifest.json"

    @property
    def scores(self) -> Path:
        """Return the path of scores.json."""
        return self.folder / "scores.json"

    @property
    def report(self) -> Path:
        """Return the path of report.html."""
        return self.folder / "report.html"

    @property
    def model(self) -> Path:
        """Return the path of the link to the published model."""
        return self.folder / "model"

    def link(self, runs: Mapping[str, StageRun]) -> None:
        """Point `stages/<stage>` to the folder of each of these stages, in place of where it pointed before."""
        links = self.folder / "stages"
        links.mkdir(parents=True, exist_ok=True)
        for name, run in runs.items():
            temporary = links / f".tmp-{uuid.uuid4().hex}"
            # Relative, so that a workdir can be moved as a whole.
            temporary.symlink_to(os.path.relpath(run.folder, links), target_is_directory=True)
            temporary.replace(links / name)

    def linked(self, name: str) -> StageRun | None:
        """Return the stage that this recipe had last, or None where it had none or its folder is gone."""
        link = self.folder / "stages" / name
        manifest = read_manifest(link)
        return None if manifest is None else StageRun(link.resolve(), manifest, reused=True)

    def write(self, manifest: RunManifest, evaluated: StageRun | None) -> None:
        """Write scores.json, where anything was evaluated, and manifest.json last."""
        if evaluated is None:
            self.scores.unlink(missing_ok=True)  # of the recipe when it had another model
        else:
            with replacing(self.scores) as temporary:
                shutil.copyfile(evaluated.folder / "scores.json", temporary)
        write_atomically(self.manifest, manifest.model_dump_json(indent=1) + "\n")

    def read(self) -> RunManifest:
        """Return the manifest of the last whole run. Raises InputError where there was none."""
        if not self.manifest.is_file():
            raise InputError(
                "no run has finished here (manifest.json is missing)",
                where=str(self.folder),
                remedy="Give the folder WORKDIR/NAME of a finished `seqloom run`, NAME being the recipe's",
            )
        try:
            return RunManifest.model_validate_json(self.manifest.read_text(encoding="utf-8"))
        except ValidationError as error:
            raise InputError(
                f"not the manifest of a run of format {RUN_FORMAT} ({error.error_count()} faults)",
                where=str(self.manifest),
                remedy="Run the recipe again with this version; what is unchanged is reused",
            ) from error

    def stage_runs(self) -> dict[str, StageRun]:
        """Return the stages of the last whole run. Raises InputError where there was none, or a folder is gone."""
        runs = {}
        for name, folder in self.read().stages.items():
            manifest = read_manifest(self.folder / folder)
            if manifest is None:
                raise InputError(
                    f"the folder of the stage {name!r} is gone",
                    where=str((self.folder / folder).resolve()),
                    remedy="Run the recipe again",
                )
            runs[name] = StageRun((self.folder / folder).resolve(), manifest, reused=True)
        return runs
