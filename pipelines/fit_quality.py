"""Where the recipe has clean.quality: scored pairs -> the lexicon, and the model of quality.

    fit_quality(scored, recipe.languages, recipe.clean.quality, recipe.clean, root)

Inputs: scored/train/part-*.arrow of the stage score; the files of labelled pairs, if any. Outputs:

    lexicon/*.parquet     which words translate which (see `pipelines/lexicon.py`)
    quality.json          the logistic regression on people's verdicts (see `pipelines/quality.py`); only with such

The lexicon is estimated on the rows of train that pass the recipe's thresholds, or on a sample spread evenly over them.
The labelled pairs are normalised and scored as train is. How well the model tells them apart is measured on pairs that
it was not fitted to: FOLDS times on a part, with all rows of one pair in the same part.

Takes 100 seconds for half a million pairs of 18 words on one core, and 0.8 GiB beside their texts; a million takes 240
seconds and 1.3 GiB.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.characters import Counts, Flags
from pipelines.config import CleanConfig, LabelledConfig, LanguagesConfig, QualityConfig, RulesConfig
from pipelines.corpus import RawBatch
from pipelines.dedup import Keys, pair_keys
from pipelines.errors import InputError
from pipelines.files import opened, sha256_of
from pipelines.filters import RULES, load_resources
from pipelines.lexicon import Lexicon, fit_lexicon
from pipelines.quality import (
    FOLDS,
    QUALITY_FORMAT,
    Values,
    cross_validated,
    fit,
    folds,
    pair_features,
    roc_area,
    sigmoid,
)
from pipelines.readers import Columns, Rows, TsvReader, bom_bytes
from pipelines.scoring import BATCH_ROWS, FAULT, Scoring, scored_batch
from pipelines.stage import StageResult, StageRun, run_stage
from pipelines.verdict import Criterion, judge, rule_column

STAGE_VERSION = 1
LEXICON_FOLDER = "lexicon"
QUALITY_FILE = "quality.json"
_EVERY_LABEL = 20  # that an error names
_KEPT_VALID = (0.99, 0.95, 0.9, 0.8)  # shares of the valid rows, of which the thresholds are reported

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabelledPairs:
    """Pairs with a verdict: raw texts [rows], whether each is valid [rows], and rows that could not be read."""

    src: pa.StringArray
    tgt: pa.StringArray
    valid: Flags
    unreadable: int


def fit_quality(
    scored: StageRun, languages: LanguagesConfig, config: QualityConfig, clean_config: CleanConfig, root: Path
) -> StageRun:
    """Return the stage whose folder holds the lexicon and, where there are labelled pairs, the model.

    Counters: rows (of train), passing, sampled_rows, entries, source_words, target_words, iterations: [{"target",
    "source"}], the log-likelihoods per word in nats; labelled: null, or {"rows", "valid", "unreadable", "iterations",
    "log_likelihood", "roc_area", "thresholds": [{"keeps_valid", "threshold", "drops_invalid"}] (both in
    cross-validation: thresholds of `quality` by the shares of valid rows that they keep and of others that they drop),
    "spreads": {feature: of its part in the log-odds}}.

    Raises InputError where no row of train passes, and for labelled pairs that cannot be used.
    """
    criteria = _criteria(clean_config.rules)
    rules = tuple(scored.manifest.config["rules"])
    resources = load_resources(clean_config.resources).digests()

    def body(folder: Path) -> StageResult:
        sample = _Sample.of(scored, criteria, config.sample_rows)
        lexicon, likelihoods = fit_lexicon(*sample.texts(), config.iterations)
        (folder / LEXICON_FOLDER).mkdir()
        outputs = [f"{LEXICON_FOLDER}/{name}" for name in lexicon.save(folder / LEXICON_FOLDER)]
        counters: dict[str, Any] = {
            "rows": sample.rows,
            "passing": sample.passing,
            "sampled_rows": sample.size,
            "entries": len(lexicon.keys),
            "source_words": len(lexicon.src.words),
            "target_words": len(lexicon.tgt.words),
            "iterations": likelihoods,
            "labelled": None,
        }
        if config.labelled:
            scoring = Scoring(languages, clean_config, rules, digests=tuple(sorted(resources.items())))
            pairs = [read_labelled(entry) for entry in config.labelled]
            counters["labelled"] = _fit_model(pairs, scoring, lexicon, folder / QUALITY_FILE)
            outputs.append(QUALITY_FILE)
        return StageResult(outputs, counters)

    decides = {
        "languages": languages.model_dump(mode="json"),
        "normalize": clean_config.normalize.model_dump(mode="json"),
        "thresholds": {criterion.name: criterion.threshold for criterion in criteria},
        "sample_rows": config.sample_rows,
        "iterations": config.iterations,
        "labelled": [entry.model_dump(mode="json", exclude={"tsv"}) for entry in config.labelled],
        "quality_format": QUALITY_FORMAT,
    }
    inputs = {"scored": scored.manifest.digest()}
    inputs |= {f"labelled/{number}": sha256_of(entry.tsv) for number, entry in enumerate(config.labelled)}
    inputs |= {f"resource/{name}": digest for name, digest in resources.items()}
    return run_stage("fit_quality", STAGE_VERSION, decides, inputs, root, body)


# --- The sample of train ---------------------------------------------------------------------------------------------


def _criteria(rules: RulesConfig) -> tuple[Criterion, ...]:
    """Return what a row of train must pass: the thresholds of the recipe, not those that single corpora have."""
    thresholds = ((rule, getattr(rules, rule.name)) for rule in RULES)
    return tuple(
        Criterion(rule.name, rule_column(rule.name), rule.worse, float(threshold))
        for rule, threshold in thresholds
        if threshold is not None and threshold != "soft"
    )


@dataclass(frozen=True)
class _Sample:
    """`size` pairs of train, evenly spread over the `passing` ones of its `rows`."""

    parts: tuple[Path, ...]
    criteria: tuple[Criterion, ...]
    rows: int
    passing: int
    size: int

    @classmethod
    def of(cls, scored: StageRun, criteria: tuple[Criterion, ...], wanted: int) -> _Sample:
        """Return the sample. Raises InputError where no row passes."""
        described = [part for part in scored.manifest.counters["parts"] if part["split"] == "train"]
        parts = tuple(scored.folder / part["path"] for part in described)
        rows = sum(part["rows"] for part in described)
        passing = sum(int(_passes(batch, criteria).sum()) for part in parts for batch in _batches(part))
        if passing == 0:
            raise InputError(
                f"none of the {rows} rows of train passes the rules, so that there is nothing to learn words from",
                where="clean.quality",
                remedy="Look at the thresholds in clean.rules, or take clean.quality out",
            )
        return cls(parts, criteria, rows, passing, min(wanted, passing))

    def texts(self) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
        """Return both sides of the pairs: [size] each."""
        picked = np.arange(self.size) * self.passing // self.size
        first = 0
        src, tgt = [], []
        for part in self.parts:
            for batch in _batches(part):
                rows = np.flatnonzero(_passes(batch, self.criteria))
                start, stop = np.searchsorted(picked, [first, first + len(rows)])
                wanted = pa.array(rows[picked[start:stop] - first])
                src.append(batch["src"].take(wanted))
                tgt.append(batch["tgt"].take(wanted))
                first += len(rows)
        return pa.chunked_array(src, pa.string()), pa.chunked_array(tgt, pa.string())


def _batches(part: Path) -> Iterator[pa.RecordBatch]:
    with pa.memory_map(str(part)) as file:
        reader = pa.ipc.open_file(file)
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)


def _passes(batch: pa.RecordBatch, criteria: Sequence[Criterion]) -> Flags:
    columns = {c.column: batch[c.column] for c in criteria if c.column in batch.schema.names}
    passes = ~judge(columns, criteria, len(batch)).drops.any(axis=0) & np.asarray(batch[FAULT].is_null())
    if "split" in batch.schema.names:
        # Rows of train that become dev or test are not looked at.
        passes &= np.asarray(pc.equal(batch["split"], "train"))
    return passes


# --- Labelled pairs --------------------------------------------------------------------------------------------------


def read_labelled(config: LabelledConfig) -> LabelledPairs:
    """Return the pairs of a file, without those that cannot be read.

    Raises InputError for a file that cannot be opened, a column that its header lacks, and labels that are all valid or
    all not.
    """
    with opened(config.tsv) as file:
        data = file.read()  # rows that people have judged are few
    header, _, rest = data[bom_bytes(data) :].partition(b"\n")
    names = header.rstrip(b"\r").decode("utf-8", "backslashreplace").split("\t")
    columns = {key: getattr(config, key) for key in ("source_column", "target_column", "label_column")}
    for key, name in columns.items():
        if name not in names:
            raise InputError(
                f"the header has no column {name!r}, but {', '.join(names)}",
                where=config.tsv,
                remedy=f"Correct {key} in clean.quality.labelled",
            )
    src, tgt, label = (names.index(name) for name in columns.values())
    texts, labels = _every_row(rest, Columns(src, tgt)), _every_row(rest, Columns(label, label))
    faults = pc.coalesce(texts.reasons(), labels.reasons())
    readable = faults.is_null()
    verdicts = pc.utf8_trim_whitespace(labels.src.filter(readable))
    valid = np.asarray(pc.is_in(verdicts, pa.array(config.valid, pa.string())))
    if not valid.any() or valid.all():
        met = pc.unique(verdicts).to_pylist()[:_EVERY_LABEL]
        raise InputError(
            f"{int(valid.sum())} of {len(valid)} labelled pairs are valid; the labels are {', '.join(map(repr, met))}",
            where=config.tsv,
            remedy="Give pairs of both kinds, and in clean.quality.labelled `valid` the labels of the good ones",
        )
    return LabelledPairs(texts.src.filter(readable), texts.tgt.filter(readable), valid, len(faults) - len(valid))


def _every_row(data: bytes, columns: Columns) -> Rows:
    reader = TsvReader(io.BytesIO(data), columns)
    parts: list[Rows] = []
    while len(rows := reader.take(BATCH_ROWS)) or not parts:
        parts.append(rows)
    src, tgt = (pa.concat_arrays([getattr(part, side) for part in parts]) for side in ("src", "tgt"))
    return Rows(src, tgt, np.concatenate([part.faults for part in parts]), {})


def _fit_model(pairs: Sequence[LabelledPairs], scoring: Scoring, lexicon: Lexicon, path: Path) -> dict[str, Any]:
    """Write the model of the labelled pairs, and return its figures."""
    batches = [batch for some in pairs for batch in _scored(some, scoring)]
    valid = np.concatenate([some.valid for some in pairs])
    features = _joined([pair_features(batch, scoring.languages, lexicon) for batch in batches])
    groups = np.concatenate([_pair_groups(batch) for batch in batches])
    model, report = fit(features, valid)
    model.save(path)
    figures = {
        "rows": len(valid),
        "valid": int(valid.sum()),
        "unreadable": sum(some.unreadable for some in pairs),
        "iterations": report.iterations,
        "log_likelihood": round(report.log_likelihood, 6),
        **_held_out(features, valid, folds(groups)),
        "spreads": {name: round(spread, 4) for name, spread in report.spreads.items()},
    }
    log.info("fit_quality: %d labelled pairs, ROC area %s in cross-validation", len(valid), figures["roc_area"])
    return figures


def _held_out(features: dict[str, Values], valid: Flags, fold: Counts) -> dict[str, Any]:
    """Return the ROC area of rows that the model was not fitted to, and thresholds; none where the rows are too few."""
    for number in range(FOLDS):
        left = valid[fold != number]
        if not left.any() or left.all():
            return {"roc_area": None, "thresholds": []}
    odds = sigmoid(cross_validated(features, valid, fold))
    thresholds = []
    for share in _KEPT_VALID:
        threshold = float(np.quantile(odds[valid], 1 - share))
        dropped = float((odds[~valid] < threshold).mean())
        thresholds.append({"keeps_valid": share, "threshold": round(threshold, 4), "drops_invalid": round(dropped, 4)})
    return {"roc_area": round(roc_area(odds, valid), 4), "thresholds": thresholds}


def _scored(pairs: LabelledPairs, scoring: Scoring) -> Iterator[pa.RecordBatch]:
    for start in range(0, len(pairs.valid), BATCH_ROWS):
        src, tgt = (pa.concat_arrays([texts.slice(start, BATCH_ROWS)]) for texts in (pairs.src, pairs.tgt))
        row_id = np.arange(start, start + len(src), dtype=np.int64)
        batch, _ = scored_batch(scoring, RawBatch(row_id, src, tgt, pa.nulls(len(src), pa.string())), "", "train")
        yield batch


def _joined(parts: Sequence[dict[str, Values]]) -> dict[str, Values]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _pair_groups(batch: pa.RecordBatch) -> Keys:
    return pair_keys(*(batch[name].to_numpy() for name in ("src_folded", "tgt_folded")))
