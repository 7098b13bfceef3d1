"""The record of a training run: metrics.jsonl, TensorBoard and what else is asked for, written by one worker."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nmt.checkpoint import TrainState
from nmt.config import TrackingConfig
from nmt.training.attention_maps import picture, write_maps
from nmt.training.job import TrainJob
from nmt.training.json_lines import read_lines
from nmt.training.tracking import numbers, open_trackers
from pipelines.stage import write_atomically

METRICS_FILE = "metrics.jsonl"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the records of metrics.jsonl in order; a last line that is not whole yet is left out."""
    return read_lines(path)


class MetricsWriter:
    """Appends records to metrics.jsonl, and their figures to TensorBoard and to what `tracking` asks for.

    Opened at `update`, it first drops what an interrupted run recorded beyond it, and validations beyond `validated`,
    the last update whose validation was judged: both will be done again.
    `last` is the last record that an earlier start had written, dropped or not: its last sign of life.
    """

    def __init__(
        self,
        folder: Path,
        update: int,
        validated: int,
        *,
        tracking: TrackingConfig | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        from tensorboardX import SummaryWriter

        path = folder / METRICS_FILE
        known = read_metrics(path)
        kept = [
            record for record in known if record["update"] <= (validated if record["kind"] == "validation" else update)
        ]
        self.last = known[-1] if known else None
        self._folder = folder
        self._trackers = open_trackers(tracking or TrackingConfig(), folder, settings or {}, kept=kept, known=known)
        write_atomically(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in kept))
        self._file = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=update + 1)

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record, with the Unix `time`; its numbers become scalars named `<kind>/<name>` at its update.

        Maps of attention, under `attention`, become files and pictures, see `attention_maps.py`.
        """
        update, maps = record["update"], record.get("attention")
        record = {name: value for name, value in record.items() if name != "attention"}
        record.setdefault("time", round(time.time(), 3))
        self._file.write(json.dumps(record, ensure_ascii=False) + "\n")
        self._file.flush()
        for name, value in numbers(record):
            self._board.add_scalar(name, value, update)
        for number, sample in enumerate(record.get("samples", [])):
            text = "\n\n".join(f"{name}: {value}" for name, value in sample.items())
            self._board.add_text(f"samples/{number}", text, update)
        if maps:
            write_maps(self._folder, update, maps)
            for number, attention in enumerate(maps):
                self._board.add_image(f"attention/{number}", picture(attention), update, dataformats="HWC")
        self._board.flush()  # else a kill would take two minutes of it
        for tracker in self._trackers:
            tracker.write(record)

    def close(self, *, finished: bool = True) -> None:
        """Flush and close all of them."""
        self._file.close()
        self._board.close()
        for tracker in self._trackers:
            tracker.close(finished=finished)


def metrics_writer(job: TrainJob, state: TrainState) -> MetricsWriter:
    """Return the writer of a run that begins, or goes on, at `state`."""
    settings = {"model": job.model.model_dump(mode="json"), "train": job.train.model_dump(mode="json")}
    return MetricsWriter(
        Path(job.folder), state.update, state.validated_update, tracking=job.tracking, settings=settings
    )
