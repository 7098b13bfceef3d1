"""What `seqloom preview` shows: the waterfall of the rows drawn, what each rule drops, and rows on both sides of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows import summary
from flows.config import Recipe
from pipelines.explanations import BORDERLINE_DROPPED, BORDERLINE_KEPT, DROPPED
from pipelines.lookup import Sample
from pipelines.preview import Preview, preview

SHOWN_ROWS = 2  # of each rule and kind
SHOWN_CHARACTERS = 200
_KINDS = {DROPPED: "dropped", BORDERLINE_DROPPED: "dropped, nearest", BORDERLINE_KEPT: "kept, nearest"}


def preview_and_print(recipe: Recipe, rows: int, console: Console) -> dict[str, Any]:
    """Preview a recipe's cleaning as `pipelines.preview.preview` does, print it, and return the JSON object."""
    found = preview(recipe.languages, recipe.corpora, recipe.clean, rows)
    for drawn in found.drawn:
        share = summary.percent(drawn.rows / drawn.total)
        line = f"{drawn.split}/{drawn.corpus}: {drawn.rows:,} of {drawn.total:,} rows ({share})"
        console.print(Text(line), soft_wrap=True)
    _print_rows(console, "Waterfall", summary.waterfall_rows(found.waterfall))
    _print_rows(console, "Rules", summary.rules(found.waterfall, found.criteria))
    for rule in summary.dropping([entry for entry in found.waterfall if entry["split"] in summary.JUDGED]):
        _print_rule(console, rule, found)
    console.print()
    for note in found.notes:
        console.print(Text(f"note: {note}"), soft_wrap=True)
    return described(found)


def described(found: Preview) -> dict[str, Any]:
    """Return a preview as JSON values."""
    return {
        "drawn": [vars(drawn) for drawn in found.drawn],
        "waterfall": found.waterfall,
        "criteria": found.criteria,
        "samples": [_described(sample) for sample in found.samples],
        "notes": list(found.notes),
    }


def _described(sample: Sample) -> dict[str, Any]:
    described = {**vars(sample), "origin": str(sample.origin)}
    if sample.match is not None:
        described["match"] = {**vars(sample.match), "origin": str(sample.match.origin)}
    return described


def _print_rows(console: Console, title: str, rows: summary.Rows) -> None:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for place, name in enumerate(rows.header):
        table.add_column(name, justify="left" if place == 0 or name == "drops" else "right", overflow="fold")
    for row in rows.rows:
        table.add_row(*row)
    console.print()
    console.print(table)


def _print_rule(console: Console, rule: str, found: Preview) -> None:
    """Print a few rows that a rule dropped, and those on either side of its threshold that are nearest to it."""
    drops = summary.threshold(found.criteria, rule)
    dropped = sum(entry["rejected"].get(rule, 0) for entry in found.waterfall if entry["split"] in summary.JUDGED)
    console.print()
    counted = f"{dropped:,} {'row' if dropped == 1 else 'rows'}"
    title = Text(rule, style="bold") + Text(f" drops {drops}: {counted}" if drops else f": {counted}")
    console.print(title, soft_wrap=True)
    shown: set[object] = set()
    for kind, name in _KINDS.items():
        samples = [sample for sample in found.samples if (sample.rule, sample.kind) == (rule, kind)]
        # A row that was drawn may also be one of the nearest.
        for sample in [sample for sample in samples if sample.origin not in shown][:SHOWN_ROWS]:
            shown.add(sample.origin)
            for line in _lines(name, sample):
                console.print(line, soft_wrap=True)


def _lines(name: str, sample: Sample) -> Iterator[Text]:
    score = "" if sample.score is None else f"{sample.score:.4g}"
    yield Text(f"  {name:<16} {score:>8}  ") + Text(str(sample.origin), style="dim")
    yield from _texts(sample.src, sample.tgt)
    if sample.match is not None:
        yield Text(f"{'':<20}as {sample.match.origin}", style="dim")
        yield from _texts(sample.match.src, sample.match.tgt)


def _texts(src: str | None, tgt: str | None) -> Iterator[Text]:
    for text in (src, tgt):
        if text is not None:
            shown = summary.visible(text, SHOWN_CHARACTERS)
            yield Text(" " * 20) + (Text(shown) if shown else Text("(empty)", style="dim"))
