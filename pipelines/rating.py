"""How rows are rated: one part of the stage score at a time. The stage is `pipelines/rate.py`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipelines.config import LanguagesConfig
from pipelines.lexicon import Lexicon
from pipelines.quality import Quality, adequacy, pair_features
from pipelines.scoring import FAULT
from pipelines.stage import replacing
from pipelines.verdict import RATINGS, rule_column

RATED_SCHEMA = pa.schema(
    [pa.field("row_id", pa.int64(), nullable=False), *(pa.field(rule_column(name), pa.float32()) for name in RATINGS)]
)


@dataclass(frozen=True)
class RateJob:
    """What every step needs; paths are absolute. `model` is None where there were no labelled pairs."""

    languages: LanguagesConfig
    lexicon: str
    model: str | None


@dataclass(frozen=True)
class RatePart:
    """One piece of work: a part of scored/ and the ratings that it becomes. Paths are absolute."""

    scored: str
    rated: str


def rate_part(job: RateJob, part: RatePart) -> int:
    """Write the ratings of a part, and return its rows."""
    rated, rows = Path(part.rated), 0
    with pa.memory_map(part.scored) as scored:
        reader = pa.ipc.open_file(scored)
        batches = range(reader.num_record_batches)
        if rated.exists():  # of an attempt that was ended: a part has its name only when it is whole
            return sum(reader.get_batch(number).num_rows for number in batches)
        with (
            replacing(rated) as temporary,
            pa.OSFile(str(temporary), "wb") as file,
            pa.ipc.new_file(file, RATED_SCHEMA) as writer,
        ):
            for number in batches:
                batch = reader.get_batch(number)
                writer.write_batch(rated_batch(batch, job.languages, *loaded(job)))
                rows += len(batch)
    return rows


@cache
def loaded(job: RateJob) -> tuple[Lexicon, Quality | None]:
    """Return the lexicon and the model, loaded once in a process. Raises InputError where they cannot be read."""
    return Lexicon.load(Path(job.lexicon)), None if job.model is None else Quality.load(Path(job.model))


def rated_batch(
    batch: pa.RecordBatch, languages: LanguagesConfig, lexicon: Lexicon, model: Quality | None
) -> pa.RecordBatch:
    """Return the ratings of rows of the stage score, after RATED_SCHEMA, in the same order."""
    readable = batch.filter(batch[FAULT].is_null())
    columns = [np.full(len(batch), np.nan, dtype=np.float32) for _ in range(2)]
    if len(readable):
        features = pair_features(readable, languages, lexicon)
        rows = np.flatnonzero(np.asarray(batch[FAULT].is_null()))
        columns[0][rows] = adequacy(features)
        if model is not None:
            columns[1][rows] = model.probabilities(features)
    scores = [pa.array(values, mask=np.isnan(values)) for values in columns]
    return pa.RecordBatch.from_arrays([batch["row_id"], *scores], schema=RATED_SCHEMA)
