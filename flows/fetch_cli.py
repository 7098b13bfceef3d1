"""What `seqloom fetch` shows: a bar while bytes arrive, and the lines for a recipe."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from pipelines import download
from pipelines.config import CorpusConfig
from pipelines.fetch import fetch
from pipelines.source_record import Fetched


def fetch_and_print(what: str, output: Path, *, quiet: bool, unverified: bool, **options: str | None) -> dict[str, Any]:
    """Fetch what `pipelines.fetch.fetch` fetches, print what a recipe says of it, and return the JSON object.

    Raises InputError as `fetch` does.
    """
    with _bar(quiet) as progress:
        fetched = fetch(what, output, unverified=unverified, progress=progress, **_stated(options))
    lines = recipe_lines(fetched.corpus)
    for file in fetched.record.files:
        print(f"{'unchanged' if fetched.reused else 'fetched'}: {output / file.path}", file=sys.stderr)
    if unverified:
        print(f"not verified; found --sha256 {fetched.record.sources[0].sha256}", file=sys.stderr)
    if fetched.corpus is None:
        print("no form of corpus that a recipe can name: unpack or convert it first", file=sys.stderr)
    print(lines, end="")
    return _described(fetched, output, lines)


def recipe_lines(corpus: CorpusConfig | None) -> str:
    """Return the YAML lines of a corpus for `corpora` in a recipe; none for None."""
    if corpus is None:
        return ""
    entry = corpus.model_dump(mode="json", exclude_unset=True)
    return yaml.safe_dump([entry], default_flow_style=None, sort_keys=False, allow_unicode=True, width=sys.maxsize)


def _stated(options: dict[str, str | None]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _described(fetched: Fetched, output: Path, lines: str) -> dict[str, Any]:
    record = fetched.record
    return {
        "record": str(fetched.record_path),
        "version": record.version,
        "licence": record.licence,
        "sources": [source.model_dump(mode="json") for source in record.sources],
        "files": [{**file.model_dump(mode="json"), "path": str(output / file.path)} for file in record.files],
        "reused": fetched.reused,
        "recipe": lines,
    }


@contextmanager
def _bar(quiet: bool) -> Iterator[download.Progress | None]:
    """Yield what draws a bar, in a terminal only; else None, and the download logs a line now and then."""
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task("downloading", total=None)

        def progress(done: int, total: int | None) -> None:
            bar.update(task, completed=done, total=total)

        yield progress
