"""What `seqloom tune` prints: the trials, best first, and how the best of them is run."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.config import Profile, Recipe
from flows.tune import search
from flows.tune_records import best_first
from flows.tune_report import NUMBERS, report, trial_rows


def tune_and_print(
    recipe: Recipe, profile: Profile, workdir: Path, profile_name: str | None, console: Console
) -> dict[str, Any]:
    """Search as `flows.tune.search` does, write the report, print the trials, and return the JSON object."""
    outcome = search(recipe, profile, workdir)
    command = run_command(outcome.folder.best, workdir, profile_name)
    report(recipe.name, outcome.config, outcome.records, command, outcome.folder.report)
    rows = trial_rows(outcome.config, outcome.records)
    table = Table(title="Trials", title_justify="left", box=None, pad_edge=False)
    for name in rows.header:
        table.add_column(name, justify="right" if name in NUMBERS else "left", overflow="fold")
    for row in rows.rows:
        table.add_row(*row)
    console.print()
    console.print(table)
    console.print()
    for line in (f"best: {outcome.folder.best}", f"report: {outcome.folder.report}", f"run it: {command}"):
        console.print(Text(line), soft_wrap=True)
    return {
        "recipe": recipe.name,
        "folder": str(outcome.folder.folder),
        "trials": [record.model_dump(mode="json") for record in best_first(outcome.records, outcome.config)],
        "best": outcome.best.model_dump(mode="json"),
        "best_recipe": str(outcome.folder.best),
        "report": str(outcome.folder.report),
        "command": command,
    }


def run_command(best: Path, workdir: Path, profile_name: str | None) -> str:
    """Return the command that runs the best point, from any folder."""
    profile = [] if profile_name is None else ["--profile", _absolute(profile_name)]
    return shlex.join(["seqloom", "run", str(best), "--workdir", str(workdir.absolute()), *profile])


def _absolute(profile_name: str) -> str:
    path = Path(profile_name)
    return str(path.absolute()) if path.is_file() else profile_name
