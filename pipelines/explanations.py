"""What explains a cleaning: what each rule would drop alone, histograms of its scores, examples of what it decides.

    explanations/waterfall.parquet     split, corpus, reason, rows, alone, only
    explanations/histograms.parquet    corpus, rule, low, high, before, after
    explanations/samples.parquet       rule, kind, corpus, row_id, src, tgt, score, threshold

`rows` went for this reason, `alone` would go if it were the only one, `only` go for no other. (A costly rule has
scores of the rows that the other rules leave, so its `alone` counts these.) Histograms are of the readable rows before
and of the kept rows after. Kinds of samples: rows "dropped" by a rule and rows "kept", drawn by a hash of the row's
number; and on either side of the threshold, those nearest to it: "borderline dropped", "borderline kept".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.characters import Counts, Flags
from pipelines.filters import RULES
from pipelines.stage import replacing
from pipelines.verdict import Criterion, Verdict

SAMPLES = 5  # rows shown of each rule and kind
KEPT, DROPPED, BORDERLINE_KEPT, BORDERLINE_DROPPED = "kept", "dropped", "borderline kept", "borderline dropped"
# Edges of the bins. Shares: forty of equal width. Counts and ratios: fine at the small values, where decisions fall.
_SHARE_EDGES = np.linspace(0.0, 1.0, 41, dtype=np.float32)
_COUNT_EDGES = np.array(
    [0, 1, 1.25, 1.5, 1.75, 2, 2.5, 3, 4, 5, 7, 10, 15, 20, 30, 50, 75, 100, 150, 200, 300, 500, 1000, 2000],
    dtype=np.float32,
)
_SCALES = {rule.name: rule.scale for rule in RULES} | {"adequacy": "share", "quality": "share"}
_SAMPLE_SCHEMA = pa.schema(
    [
        pa.field("rule", pa.string()),
        pa.field("kind", pa.string()),
        pa.field("corpus", pa.string()),
        pa.field("row_id", pa.int64()),
        pa.field("src", pa.string()),
        pa.field("tgt", pa.string()),
        pa.field("score", pa.float32()),
        pa.field("threshold", pa.float32()),
        pa.field("rank", pa.float64()),  # the smallest ones are shown
    ]
)


def edges(rule: str) -> npt.NDArray[np.float32]:
    """Return the edges of the bins of a rule's scores; the last bin also holds whatever is above."""
    return _SHARE_EDGES if _SCALES.get(rule, "count") == "share" else _COUNT_EDGES


class Explanations:
    """What is counted and shown of the rows of one corpus, some at a time."""

    def __init__(self, criteria: Sequence[Criterion]) -> None:
        self.criteria = tuple(criteria)
        self.alone = np.zeros(len(criteria), dtype=np.int64)
        self.only = np.zeros(len(criteria), dtype=np.int64)
        names = {criterion.column: criterion.name for criterion in criteria}
        self.before = {column: np.zeros(len(edges(name)), dtype=np.int64) for column, name in names.items()}
        self.after = {column: np.zeros(len(edges(name)), dtype=np.int64) for column, name in names.items()}
        self._names = names
        self._samples: list[pa.Table] = []

    def count(self, verdict: Verdict, columns: Mapping[str, pa.Array], readable: Flags) -> None:
        """Add what the criteria say of some rows, whatever comes after them: `readable` [rows]."""
        self.alone += verdict.alone
        self.only += verdict.only
        for column, name in self._names.items():
            if column in columns:
                self.before[column] += _histogram(columns[column], edges(name), readable)

    def show(self, table: pa.Table, reason: pa.Array, score: pa.Array) -> None:
        """Add the kept rows' scores to the histograms, and examples of what goes and stays; both arrays [rows]."""
        stays = np.asarray(reason.is_null())
        scores = {column: _flat(table[column]) for column in self._names if column in table.column_names}
        for column, values in scores.items():
            self.after[column] += _histogram(values, edges(self._names[column]), stays)
        by_chance = _by_chance(table["row_id"].to_numpy())
        shown = [_Shown(None, KEPT, _first(stays, by_chance), by_chance, None, None)]
        codes, gone_for = _codes(reason)
        by_name = {criterion.name: criterion for criterion in self.criteria}
        for number, name in enumerate(gone_for):
            gone, criterion = codes == number, by_name.get(name)
            shown.append(_Shown(name, DROPPED, _first(gone, by_chance), by_chance, criterion, score))
            if criterion is not None and criterion.threshold is not None:
                distance = criterion.distance(score)
                shown.append(_Shown(name, BORDERLINE_DROPPED, _first(gone, distance), distance, criterion, score))
        for criterion in self.criteria:
            if criterion.threshold is not None and criterion.column in scores:
                distance = criterion.distance(scores[criterion.column])
                rows = _first(stays & np.isfinite(distance), distance)
                values = scores[criterion.column]
                shown.append(_Shown(criterion.name, BORDERLINE_KEPT, rows, distance, criterion, values))
        self._samples.append(_sampled(table, shown))

    def write_samples(self, path: Path) -> None:
        """Write the examples found so far."""
        with replacing(path) as temporary:
            pq.write_table(_best(pa.concat_tables([_SAMPLE_SCHEMA.empty_table(), *self._samples])), temporary)

    def to_dict(self) -> dict[str, Any]:
        """Return the counts as JSON values; the examples are not among them."""
        return {
            "alone": self.alone.tolist(),
            "only": self.only.tolist(),
            "before": {column: rows.tolist() for column, rows in self.before.items()},
            "after": {column: rows.tolist() for column, rows in self.after.items()},
        }

    @classmethod
    def from_dict(cls, criteria: Sequence[Criterion], counts: Mapping[str, Any]) -> Self:
        """Return what `to_dict` gave, of the same criteria."""
        made = cls(criteria)
        made.alone, made.only = np.asarray(counts["alone"]), np.asarray(counts["only"])
        made.before = {column: np.asarray(rows) for column, rows in counts["before"].items()}
        made.after = {column: np.asarray(rows) for column, rows in counts["after"].items()}
        return made

    def add(self, other: Self) -> None:
        """Add the counts of other rows of the same corpus."""
        self.alone = self.alone + other.alone
        self.only = self.only + other.only
        for mine, theirs in ((self.before, other.before), (self.after, other.after)):
            for column in mine:
                mine[column] = mine[column] + theirs[column]


def waterfall_table(waterfall: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Return one row for each split, corpus and reason of the counters' waterfall; `alone` null where it has none."""
    rows = [
        {
            "split": entry["split"],
            "corpus": entry["corpus"],
            "reason": reason,
            "rows": count,
            "alone": entry.get("alone", {}).get(reason),
            "only": entry.get("only", {}).get(reason),
        }
        for entry in waterfall
        for reason, count in [("read", entry["read"]), *entry["rejected"].items(), ("kept", entry["kept"])]
    ]
    types = {"split": pa.string(), "corpus": pa.string(), "reason": pa.string()}
    types |= {name: pa.int64() for name in ("rows", "alone", "only")}
    return pa.Table.from_pylist(rows, schema=pa.schema(list(types.items())))


def histogram_table(explained: Mapping[str, Explanations]) -> pa.Table:
    """Return one row for each corpus, score and bin: how many readable rows were in it, and how many kept ones."""
    rows = []
    for corpus, explanations in explained.items():
        for criterion in dict.fromkeys((c.column, c.name) for c in explanations.criteria):
            column, name = criterion
            lows = edges(name).tolist()
            highs = [*lows[1:], float("inf")]
            before, after = explanations.before[column].tolist(), explanations.after[column].tolist()
            rows += [
                {"corpus": corpus, "rule": name, "low": low, "high": high, "before": was, "after": remains}
                for low, high, was, remains in zip(lows, highs, before, after)
            ]
    fields = [("corpus", pa.string()), ("rule", pa.string()), ("low", pa.float32()), ("high", pa.float32())]
    return pa.Table.from_pylist(rows, schema=pa.schema([*fields, ("before", pa.int64()), ("after", pa.int64())]))


def sample_table(files: Iterable[Path]) -> pa.Table:
    """Return the examples to show from those of all parts; which part a row was in plays no part."""
    tables = [pq.read_table(file) for file in files]
    return _best(pa.concat_tables([_SAMPLE_SCHEMA.empty_table(), *tables])).drop_columns(["rank"])


def _best(samples: pa.Table) -> pa.Table:
    """Return the first SAMPLES rows, by rank, of each rule and kind; in the order of the rules' names."""
    ordered = samples.sort_by([(name, "ascending") for name in ("rule", "kind", "rank", "row_id")])
    taken: dict[tuple[str | None, str], int] = {}
    places = []
    for place, group in enumerate(zip(ordered["rule"].to_pylist(), ordered["kind"].to_pylist())):
        taken[group] = taken.get(group, 0) + 1
        if taken[group] <= SAMPLES:
            places.append(place)
    return ordered.take(pa.array(places, pa.int64()))


class _Shown(NamedTuple):
    """Rows to show of one rule and kind: places, and of all rows of the table what ranks them and their scores."""

    rule: str | None
    kind: str
    places: Counts
    rank: npt.NDArray[Any]
    criterion: Criterion | None
    scores: pa.Array | None


def _first(rows: Flags, rank: npt.NDArray[Any]) -> Counts:
    """Return the places of the SAMPLES marked rows that rank lowest, the first ones of equals."""
    places = np.flatnonzero(rows)
    if len(places) > SAMPLES:
        places = places[rank[places] <= np.partition(rank[places], SAMPLES - 1)[SAMPLES - 1]]
        places = places[np.argsort(rank[places], kind="stable")][:SAMPLES]
    return places


def _sampled(table: pa.Table, shown: Sequence[_Shown]) -> pa.Table:
    # The rows of all are taken at once: taking some from a long column of texts costs a copy of all.
    places = np.concatenate([group.places for group in shown])
    every, inverse = np.unique(places, return_inverse=True)
    texts = table.select(["corpus", "row_id", "src", "tgt"]).take(pa.array(every)).take(pa.array(inverse))
    columns: dict[str, list[Any]] = {name: [] for name in ("rule", "kind", "score", "threshold", "rank")}
    for group in shown:
        rows = len(group.places)
        columns["rule"] += [group.rule] * rows
        columns["kind"] += [group.kind] * rows
        scores = [None] * rows if group.scores is None else group.scores.take(pa.array(group.places)).to_pylist()
        columns["score"] += scores
        columns["threshold"] += [None if group.criterion is None else group.criterion.threshold] * rows
        columns["rank"] += group.rank[group.places].tolist()
    arrays = {
        field.name: columns.get(field.name, texts[field.name] if field.name in texts.column_names else None)
        for field in _SAMPLE_SCHEMA
    }
    return pa.table(arrays, schema=_SAMPLE_SCHEMA)


def _histogram(scores: pa.Array, edges: npt.NDArray[np.float32], rows: Flags) -> Counts:
    """Return how many of the scores of some rows lie in each bin; what is below the first edge is in the first."""
    values = scores.to_numpy(zero_copy_only=False)[rows]
    values = values[~np.isnan(values)]
    bins = np.maximum(np.searchsorted(edges, values, side="right") - 1, 0)
    return np.bincount(bins, minlength=len(edges)).astype(np.int64)


def _by_chance(row_id: Counts) -> npt.NDArray[np.float64]:
    mixed = row_id.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    return (mixed >> np.uint64(11)).astype(np.float64)


def _codes(reason: pa.Array) -> tuple[Counts, list[str]]:
    encoded = reason.dictionary_encode()
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    return codes, encoded.dictionary.to_pylist()


def _flat(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
