"""The record of a training run: metrics.jsonl and TensorBoard, written by one worker and followed by the launcher."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.stage import write_atomically

METRICS_FILE = "metrics.jsonl"
_LINE_EVERY_S = 30.0
_LOOK_EVERY_S = 0.5

log = logging.getLogger(__name__)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the records of metrics.jsonl in order; a last line that is not whole yet is left out."""
    return [json.loads(line) for line in _whole_lines(path)]


def _whole_lines(path: Path) -> list[bytes]:
    return path.read_bytes().split(b"\n")[:-1] if path.exists() else []


class _Follower:
    """The records that were not there at the last look."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = _whole_lines(path)

    def look(self) -> list[dict[str, Any]]:
        """Return the records that are new. A resumed run drops what it will write again, which then is new, too."""
        lines, seen = _whole_lines(self._path), self._seen
        self._seen = lines
        known = len(seen)
        if lines[:known] != seen:
            known = next((n for n, (one, other) in enumerate(zip(lines, seen)) if one != other), len(lines))
        return [json.loads(line) for line in lines[known:]]


class MetricsWriter:
    """Appends records to metrics.jsonl and their figures to TensorBoard.

    Opened at `update`, it first drops what an interrupted run recorded beyond it: that will be computed again, and so
    will the validation at `update` itself where the checkpoint was written before it (`validated` is false).
    """

    def __init__(self, folder: Path, update: int, *, validated: bool = True) -> None:
        from tensorboardX import SummaryWriter

        path = folder / METRICS_FILE
        kept = [
            record
            for record in read_metrics(path)
            if record["update"] < update
            or (record["update"] == update and (validated or record["kind"] != "validation"))
        ]
        write_atomically(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in kept))
        self._file = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=update + 1)

    def write(self, record: dict[str, Any]) -> None:
        """Append one record; its numbers become scalars named `<kind>/<name>` at its update."""
        self._file.write(json.dumps(record, ensure_ascii=False) + "\n")
        self._file.flush()
        for name, value in record.items():
            if isinstance(value, int | float) and name != "update":
                self._board.add_scalar(f"{record['kind']}/{name}", value, record["update"])
        for number, sample in enumerate(record.get("samples", [])):
            text = "\n\n".join(f"{name}: {value}" for name, value in sample.items())
            self._board.add_text(f"samples/{number}", text, record["update"])

    def close(self) -> None:
        """Flush and close both."""
        self._file.close()
        self._board.close()


@contextlib.contextmanager
def progress_logged(path: Path) -> Iterator[None]:
    """Log the progress of the run that appends to `path`: every validation, and a line of counters each 30 s."""
    done = threading.Event()
    follower = threading.Thread(target=_follow, args=(_Follower(path), done), name="progress", daemon=True)
    follower.start()
    try:
        yield
    finally:
        done.set()
        follower.join()


def _follow(follower: _Follower, done: threading.Event) -> None:
    last_line = float("-inf")
    while True:
        finished = done.wait(_LOOK_EVERY_S)
        for record in follower.look():
            if record["kind"] == "validation":
                log.info("%s", validation_line(record))
            elif time.monotonic() - last_line >= _LINE_EVERY_S:
                last_line = time.monotonic()
                log.info("%s", train_line(record))
        if finished:
            return


def train_line(record: dict[str, Any]) -> str:
    """Return a line for people of a record of training."""
    left = record["total_updates"] - record["update"]
    seconds = left * record["target_tokens_per_update"] / max(1.0, record["target_tokens_per_s"])
    return (
        f"update {record['update']:,}/{record['total_updates']:,}  epoch {record['epoch'] + 1}  "
        f"loss {record['loss']:.3f}  learning rate {record['learning_rate']:.2e}  "
        f"gradient norm {record['gradient_norm']:.2f}  {record['target_tokens_per_s']:,.0f} target tokens/s  "
        f"padding {record['padding']:.1%}  at most {seconds / 60:.0f} min to go"
    )


def validation_line(record: dict[str, Any]) -> str:
    """Return a line for people of a record of validation."""
    bleu = f"BLEU {record['bleu']:.2f}  " if "bleu" in record else ""  # of a language model there is none
    return (
        f"validation at update {record['update']:,}, end of epoch {record['epoch'] + 1}:  loss {record['loss']:.3f}  "
        f"perplexity {record['perplexity']:.2f}  {bleu}"
        f"({record['seconds']:.0f} s{', best so far' if record['best'] else ''})"
    )
