"""What the launcher shows of a run that appends to metrics.jsonl: a bar in a terminal, in a log a line each 30 s."""

from __future__ import annotations

import contextlib
import logging
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nmt.training.json_lines import Follower, followed

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

_LINE_EVERY_S = 30.0

log = logging.getLogger(__name__)


class Pace:
    """How long the rest will take at the most, by the updates since the launcher looks: validations are in it."""

    def __init__(self) -> None:
        self._first: dict[str, Any] | None = None
        self._last = 0

    def seconds_left(self, record: dict[str, Any]) -> float:
        """Return the seconds to the last update; of the first record, and the first of a restart, by its own rate."""
        left: int = record["total_updates"] - record["update"]
        first, last, self._last = self._first, self._last, record["update"]
        if first is None or record["update"] <= last or "time" not in record:
            self._first = record
            per_update: float = record["target_tokens_per_update"] / max(1.0, record["target_tokens_per_s"])
        else:
            per_update = (record["time"] - first["time"]) / (record["update"] - first["update"])
        return left * per_update


@contextlib.contextmanager
def progress_shown(path: Path, console: Console | None = None) -> Iterator[None]:
    """Show the progress of the run that appends to `path`, unless the log is quiet.

    In a terminal there is a bar; else the log has a line of counters each 30 s. Every validation is logged, and each
    warning of a worker once.
    """
    with contextlib.ExitStack() as stack:
        follower = Follower(path)
        show: Callable[[dict[str, Any]], None] = _Lines().show
        if log.isEnabledFor(logging.INFO):
            from rich.console import Console

            console = console or Console(stderr=True)
            if console.is_terminal:
                show = stack.enter_context(_bar(console, follower.before))
        stack.enter_context(followed(follower, _with_warnings(show)))
        yield


def _with_warnings(show: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
    warned: set[str] = set()

    def tell(record: dict[str, Any]) -> None:
        for warning in record.get("warnings", []):
            # Once for the workers that it names, whatever the figures.
            if (about := re.sub(r"\d+%", "", warning)) not in warned:
                warned.add(about)
                log.warning("update %s: %s", f"{record['update']:,}", warning)
        if record["kind"] == "validation":
            log.info("%s", validation_line(record))
        show(record)

    return tell


class _Lines:
    """A line of counters each 30 s."""

    def __init__(self) -> None:
        self._last = float("-inf")
        self._pace = Pace()

    def show(self, record: dict[str, Any]) -> None:
        if record["kind"] != "train":
            return
        seconds = self._pace.seconds_left(record)
        if time.monotonic() - self._last >= _LINE_EVERY_S:
            self._last = time.monotonic()
            log.info("%s", train_line(record, seconds))


@contextlib.contextmanager
def _bar(console: Console, before: list[dict[str, Any]]) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yield what shows a record in a bar; lines of the log stand above it."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    columns = (TextColumn("{task.fields[place]}"), BarColumn(bar_width=24), TaskProgressColumn())
    pace = Pace()
    with Progress(*columns, TextColumn("{task.fields[figures]}"), console=console, transient=True) as progress:
        task = progress.add_task("training", total=None, place="training starts", figures="")
        best = next((dev_score(record) for record in reversed(before) if record.get("best")), "")

        def show(record: dict[str, Any]) -> None:
            nonlocal best
            if record["kind"] == "validation":
                best = dev_score(record) if record["best"] else best
                return
            progress.update(
                task,
                total=record["total_updates"],
                completed=record["update"],
                place=f"epoch {record['epoch'] + 1}  update {record['update']:,}",
                figures=_figures(record, pace.seconds_left(record), best),
            )

        with _logging_above(progress):
            yield show


@contextlib.contextmanager
def _logging_above(progress: Progress) -> Iterator[None]:
    """Let the log's handlers write where the bar makes room for lines: rich has put that in the place of stderr."""
    moved = [
        handler
        for handler in logging.getLogger().handlers
        if isinstance(handler, logging.StreamHandler) and handler.stream is sys.__stderr__
    ]
    for handler in moved:
        handler.setStream(sys.stderr)
    try:
        yield
    finally:
        for handler in moved:
            handler.setStream(sys.__stderr__)


def train_line(record: dict[str, Any], seconds_left: float | None = None) -> str:
    """Return a line for people of a record of training; what the record has not is left out."""
    seconds = Pace().seconds_left(record) if seconds_left is None else seconds_left
    parts = [
        f"update {record['update']:,}/{record['total_updates']:,}",
        f"epoch {record['epoch'] + 1}",
        f"loss {_number(record['loss'], '.3f')}",
        *([f"perplexity {_number(record['perplexity'], '.2f')}"] if "perplexity" in record else []),
        f"learning rate {record['learning_rate']:.2e}",
        f"gradient norm {_number(record['gradient_norm'], '.2f')}",
        f"{record['target_tokens_per_s']:,.0f} target tokens/s",
        f"padding {record['padding']:.1%}",
        *(f"{words} {record[name]:.1%}" for name, words in _SHARES.items() if name in record),
        *([f"GPU memory {record['gpu_memory_gib']:.1f} GiB"] if "gpu_memory_gib" in record else []),
        *([f"{record['skipped_updates']:,} updates left out"] if record.get("skipped_updates") else []),
        f"at most {duration(seconds)} to go",
    ]
    return "  ".join(parts)


_SHARES = {"data_wait": "waiting for data", "communication": "communication", "checkpoint": "checkpoints"}


def validation_line(record: dict[str, Any]) -> str:
    """Return a line for people of a record of validation."""
    scores = "".join(f"{words} {record[name]:.2f}  " for name, words in _SCORES.items() if name in record)
    return (
        f"validation at update {record['update']:,}, epoch {record['epoch'] + 1}:  "
        f"loss {_number(record['loss'], '.3f')}  perplexity {_number(record['perplexity'], '.2f')}  {scores}"
        f"({record['seconds']:.0f} s{', best so far' if record['best'] else ''})"
    )


_SCORES = {"bleu": "BLEU", "chrf": "chrF"}  # of a language model there are none


def dev_score(record: dict[str, Any]) -> str:
    """Return the score of a validation in words: BLEU, or the perplexity of a language model."""
    if "bleu" in record:
        return f"BLEU {record['bleu']:.2f}"
    return f"perplexity {_number(record['perplexity'], '.2f')}"


def duration(seconds: float) -> str:
    """Return a time in words: `40 s`, `12 min`, `3 h 05 min`, `2 d 4 h`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24} h"


def _figures(record: dict[str, Any], seconds_left: float, best: str) -> str:
    parts = [
        f"loss {_number(record['loss'], '.3f')}",
        *([f"ppl {_number(record['perplexity'], '.2f')}"] if "perplexity" in record else []),
        f"{record['target_tokens_per_s']:,.0f} tok/s",
        f"{duration(seconds_left)} left",
        *([f"best {best}"] if best else []),
    ]
    return "  ".join(parts)


def _number(value: float | None, form: str) -> str:
    return "none" if value is None else format(value, form)
