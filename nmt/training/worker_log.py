"""What the worker of rank 0 logs, told in the log of the process that started training.

Under Ray workers are processes of their own, and what Ray would pass on of them is everything that they print.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nmt.training.json_lines import Follower, followed
from pipelines.stage import write_atomically

LOG_FILE = "log.jsonl"
_LOGGED = ("nmt", "pipelines")  # what is ours


@contextlib.contextmanager
def log_written(folder: Path) -> Iterator[None]:
    """Write what this process logs within a `with` block to log.jsonl: {"logger", "level", "message"} a line.

    A log of an earlier start is replaced.
    """
    write_atomically(folder / LOG_FILE, "")
    with (folder / LOG_FILE).open("a", encoding="utf-8") as file, contextlib.ExitStack() as stack:
        handler = logging.StreamHandler(file)
        handler.setFormatter(_Lines())
        for name in _LOGGED:
            logger = logging.getLogger(name)
            stack.callback(logger.setLevel, logger.level)
            stack.callback(logger.removeHandler, handler)
            logger.addHandler(handler)
            logger.setLevel(logging.INFO)
        yield


@contextlib.contextmanager
def log_told(folder: Path) -> Iterator[None]:
    """Log within a `with` block what is written to log.jsonl meanwhile."""
    with followed(Follower(folder / LOG_FILE), _tell):
        yield


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {"logger": record.name, "level": record.levelno, "message": record.getMessage()}
        return json.dumps(line, ensure_ascii=False)


def _tell(line: dict[str, Any]) -> None:
    logging.getLogger(line["logger"]).log(line["level"], "%s", line["message"])
