"""What `seqloom explain` shows: the texts, what became of them, and what each rule says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.config import Profile, Recipe
from flows.explain import Explanation, explain_row, explain_text
from flows.summary import visible
from pipelines.errors import InputError

_STYLES = {"drops": "bold red", "soft": "yellow", "no score": "dim", "not scored": "dim"}


def explain_and_print(
    recipe: Recipe,
    profile: Profile,
    workdir: Path,
    console: Console,
    *,
    row: str | None,
    pair: tuple[str, str] | None,
    source: str | None,
    target: str | None,
) -> dict[str, Any]:
    """Explain a row or a text, print it, and return the JSON object. Raises InputError unless one of them is given."""
    options = {"--row": row, "--text": pair, "--source": source, "--target": target}
    given = [name for name, value in options.items() if value is not None]
    if len(given) != 1:
        raise InputError(
            "nothing to explain is given" if not given else f"{' and '.join(given)} are given, of which one is enough",
            where="seqloom explain",
            remedy="A row: --row CORPUS:LINE; a pair: --text SOURCE TARGET; one side alone: --source or --target TEXT",
        )
    if row is not None:
        found = explain_row(recipe, profile, workdir, row)
    else:
        source, target = pair if pair is not None else (source, target)
        found = explain_text(recipe, profile, workdir, source, target)
    _print(found, console)
    return found.to_dict()


def _print(found: Explanation, console: Console) -> None:
    if found.origin is not None:
        console.print(Text(str(found.origin), style="bold"), soft_wrap=True)
    for name, raw, text in zip(("source", "target"), found.raw, found.texts):
        if raw is not None and raw != text:
            _print_text(f"{name}, as read", raw, console)
        if text is not None:
            _print_text(name, text, console)
    console.print()
    style = "green" if found.reason is None else "red"
    console.print(Text(found.fate, style=style), soft_wrap=True)
    if found.match is not None:
        console.print(Text(f"the other row is {found.match.origin}"), soft_wrap=True)
        for name, side in (("source", found.match.src), ("target", found.match.tgt)):
            if side is not None:
                _print_text(name, side, console)
    if found.rules:
        table = Table("rule", "drops", box=None, pad_edge=False)
        table.add_column("score", justify="right")
        table.add_column("says")
        for said in found.rules:
            score = "" if said.score is None else f"{said.score:.6g}"
            table.add_row(said.rule, said.drops, score, Text(said.says, style=_STYLES.get(said.says, "")))
        console.print()
        console.print(table)
    for note in found.notes:
        console.print(Text(f"note: {note}"), soft_wrap=True)


def _print_text(name: str, text: str, console: Console) -> None:
    shown = Text(visible(text)) if text else Text("(empty)", style="dim")
    console.print(Text(f"  {name:<16}", style="dim") + shown, soft_wrap=True)
