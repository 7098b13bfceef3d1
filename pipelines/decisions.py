"""What the stage `clean` does with one part, step by step: judge, find what repeats, write what stays.

Each step reads files and writes files, and gives Beam nothing but numbers. Reasons, in their order: the reader's
faults, the rules, the scores that came with the corpus, leakage, repetition.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.characters import CodePoints, Counts, Flags
from pipelines.config import ALL_SPLITS, SPLITS, CleanConfig, Split
from pipelines.corpus import READ_FAULTS
from pipelines.dedup import ENTRIES, Keys, digitless, overused, pair_keys, repeats
from pipelines.explanations import Explanations
from pipelines.filters import RULES, Pairs, rule_scores
from pipelines.leakage import LEAKAGE_REASONS, NO_LEAK, HeldOutIndex, held_out_index, merged
from pipelines.minhash import SIGNATURE_SIZE, band_keys, near_duplicates
from pipelines.scoring import FAULT, HELD_OUT, Scoring, scored_ahead
from pipelines.stage import replacing, write_atomically
from pipelines.verdict import INPUT, NONE, RATINGS, Criterion, judge, rule_column

RATED_COLUMNS = tuple(rule_column(name) for name in RATINGS)
# Kinds of repetition, in the order in which they are reasons.
REPETITIONS = ("duplicate", "folded_duplicate", "near_duplicate", "boilerplate")
_EXACT, _FOLDED, _NEAR, _BOILERPLATE = range(len(REPETITIONS))
HELD_OUT_REASONS = (*READ_FAULTS, "empty")
# Bins of ten characters; the last one also holds whatever is longer.
LENGTH_EDGES = tuple(range(0, 501, 10))

_REPEATS = np.dtype([("row_id", "<i8"), ("match", "<i8"), ("priority", "<f4"), ("kind", "u1")])
# What keeps keys of one use apart from those of another: the sides as boilerplate, monolingual texts of either side.
_SALTS = {
    "src": np.uint64(0x9E3779B97F4A7C15),
    "tgt": np.uint64(0xC2B2AE3D27D4EB4F),
    "monolingual": np.uint64(0x165667B19E3779F9),
}
_PLACE_BITS = np.uint64(40)  # of a row within its part; the part's number is above
WHEN = ("before", "after")

_ROW_FIELDS = (
    pa.field("row_id", pa.int64(), nullable=False),
    pa.field("corpus", pa.string(), nullable=False),
    pa.field("src", pa.string()),
    pa.field("tgt", pa.string()),
)
HELD_OUT_SCHEMA = pa.schema([*_ROW_FIELDS, pa.field("src_raw", pa.string()), pa.field("tgt_raw", pa.string())])
REJECTS_SCHEMA = pa.schema(
    [
        *_ROW_FIELDS,
        pa.field("rule", pa.string()),
        pa.field("score", pa.float32()),  # of the rule; null where it has none
        pa.field("match", pa.int64()),  # the row that it repeats, or the held-out one that it leaks
    ]
)
_VERDICT_SCHEMA = pa.schema(
    [pa.field("reason", pa.string()), pa.field("score", pa.float32()), pa.field("match", pa.int64())]
)


@dataclass(frozen=True)
class Part:
    """One part of the stage `score`: files (absolute paths), and where its rows belong. `index` numbers the parts."""

    index: int
    scored: str
    rated: str | None
    signatures: str | None
    split: Split
    corpus: str
    side: str
    rows: int


@dataclass(frozen=True)
class Job:
    """What every step needs: how rows were scored, what is decided on, and where pieces of work lie until the end.

    `criteria` are those of each corpus, by "split/name". Keys are looked at in `partitions`, each by itself.
    `signatures` are the files of those parts that have some, by their numbers.
    """

    scoring: Scoring
    config: CleanConfig
    criteria: Mapping[str, tuple[Criterion, ...]]
    rated: bool
    work: Path
    partitions: int
    signatures: Mapping[int, str]

    def file(self, kind: str, index: int) -> Path:
        """Return where a piece of work lies in one of its states."""
        return self.work / kind / f"{index:06d}"

    def make_folders(self) -> None:
        """Make the folders of all pieces of work; what an earlier attempt left in them is not done again."""
        for kind in ("held_out", "verdicts", "keys", "explanations", "samples", "counts"):
            (self.work / kind).mkdir(parents=True, exist_ok=True)
        for split in ALL_SPLITS:
            (self.work / "kept" / split).mkdir(parents=True, exist_ok=True)
            (self.work / "rejected" / split).mkdir(parents=True, exist_ok=True)

    def is_written(self, index: int, splits: Sequence[Split]) -> bool:
        """Return whether an earlier attempt wrote all of a part, and did not yet move it to its place."""
        rows = [self.file(f"{kind}/{split}", index) for split in splits for kind in ("kept", "rejected")]
        return all(file.exists() for file in (*rows, self.file("counts", index)))

    def criteria_of(self, part: Part) -> tuple[Criterion, ...]:
        """Return what decides on the rows of a part."""
        return self.criteria[f"{part.split}/{part.corpus}"]

    @property
    def index_file(self) -> Path:
        """Where the index of all that is held out lies."""
        return self.work / "held_out.index"

    def kept_schema(self, split: Split) -> pa.Schema:
        """Return the columns of clean/ of a split."""
        if split in HELD_OUT:
            return HELD_OUT_SCHEMA
        names = [rule_column(name) for name in self.scoring.rules]
        names += [INPUT + name for name in self.scoring.inputs]
        names += RATED_COLUMNS if self.rated and split == "train" else ()
        return pa.schema([*_ROW_FIELDS, *(pa.field(name, pa.float32()) for name in names)])


def reasons(criteria: Sequence[Criterion]) -> tuple[str, ...]:
    """Return why a judged row may go, in the order in which the reasons are asked."""
    names = dict.fromkeys(criterion.name for criterion in criteria)
    return (*READ_FAULTS, *names, *LEAKAGE_REASONS, *REPETITIONS)


# --- Dev and test --------------------------------------------------------------------------------------------------


def hold_out(job: Job, part: Part) -> int:
    """Write what stays and goes of a part of dev or test, and the index of what must not occur in train.

    Of a part of train, only the index of its rows that become dev or test: the rules are still to judge them.
    Returns the part's number.
    """
    kept: list[pa.Table] = []
    rejected: list[pa.Table] = []
    indexes: list[HeldOutIndex] = []
    nothing = {name: pa.scalar(None, _VERDICT_SCHEMA.field(name).type) for name in _VERDICT_SCHEMA.names}
    for table in _batches(part):
        if part.split == "train":
            indexes += [_index(job, _readable(table, split), split, of_train=True) for split in HELD_OUT]
            continue
        is_empty = pc.or_(pc.equal(table["src"], ""), pc.equal(table["tgt"], ""))
        reason = pc.coalesce(table[FAULT], pc.if_else(is_empty, "empty", nothing["reason"]))
        others = {name: pa.repeat(nothing[name], len(table)) for name in ("score", "match")}
        kept.append(_columns(table, HELD_OUT_SCHEMA).filter(reason.is_null()))
        rejected.append(_rejects(table, pa.table({"reason": reason, **others})))
        indexes.append(_index(job, kept[-1], part.split))
    merged(indexes).save(job.file("held_out", part.index))
    if part.split != "train":
        counts = _write_rows(job, part.index, part.split, pa.concat_tables(kept), pa.concat_tables(rejected))
        _write_counts(job, part.index, {"splits": {part.split: counts}, "lengths": None, "explanations": None})
    return part.index


def _readable(table: pa.Table, split: str) -> pa.Table:
    return table.filter(pc.and_(pc.equal(table["split"], split), table[FAULT].is_null()))


def _index(job: Job, table: pa.Table, split: str, *, of_train: bool = False) -> HeldOutIndex:
    # A short text counts as well where the split is by text: that no text is on both sides is what it promises.
    config = job.config.leakage.model_copy(update={"min_characters": 0}) if of_train else job.config.leakage
    src, tgt = (CodePoints(_flat(table[side])) for side in ("src", "tgt"))
    return held_out_index(split, table["row_id"].to_numpy(), src, tgt, job.scoring.languages, config)


def merge_held_out(job: Job, indexes: Iterable[int]) -> None:
    """Write the index of all that is held out, from those of the parts."""
    merged([HeldOutIndex.load(job.file("held_out", index)) for index in sorted(indexes)]).save(job.index_file)


@cache
def _held_out(path: Path) -> HeldOutIndex:
    return HeldOutIndex.load(path)


# --- Rules and leakage ---------------------------------------------------------------------------------------------


class Judged(NamedTuple):
    """What is known of some rows before repetitions: verdicts after `reason`, `score`, `match`; scores by columns."""

    verdicts: pa.Table
    columns: dict[str, pa.Array]


def judge_part(job: Job, part: Part) -> int:
    """Write the verdicts on a part, the keys of the rows that are left, and what each rule would drop.

    Returns the part's number; what is written already is left alone.
    """
    if job.file("explanations", part.index).exists():
        return part.index
    entries: list[list[npt.NDArray[np.void]]] = [[] for _ in REPETITIONS]
    explanations = Explanations(job.criteria_of(part))
    signed = None if part.signatures is None else _signature_file(part.signatures)
    place = 0
    with (
        replacing(job.file("verdicts", part.index)) as temporary,
        pa.OSFile(str(temporary), "wb") as file,
        pa.ipc.new_file(file, _verdict_schema(job)) as writer,
    ):
        for table in _batches(part):
            judged = judge_rows(job, part, table, explanations)
            # With the scores that are costly, of which more are known by now.
            late = [judged.columns.get(rule_column(rule.name), _no_scores(len(table))) for rule in job.scoring.costly]
            columns = [_flat(column) for column in judged.verdicts.columns]
            writer.write_batch(pa.RecordBatch.from_arrays([*columns, *late], schema=_verdict_schema(job)))
            alive = np.flatnonzero(np.asarray(judged.verdicts["reason"].is_null()))
            for kind, keys in enumerate(_entries(job, part, table, judged.columns, alive, place, signed)):
                entries[kind].extend(keys)
            place += len(table)
    _write_keys(job, part, entries)
    # Last of the three: where it is, all of them are.
    write_atomically(job.file("explanations", part.index), json.dumps(explanations.to_dict()))
    return part.index


def _verdict_schema(job: Job) -> pa.Schema:
    costly = [pa.field(rule_column(rule.name), pa.float32()) for rule in job.scoring.costly]
    return pa.schema([*_VERDICT_SCHEMA, *costly])


def _no_scores(rows: int) -> pa.Array:
    return pa.nulls(rows, pa.float32())


def judge_rows(job: Job, part: Part, table: pa.Table, explanations: Explanations) -> Judged:
    """Return the verdicts on some rows: the reader's fault, else the first rule's, else leakage, else none."""
    criteria = job.criteria_of(part)
    columns = {c.column: _flat(table[c.column]) for c in criteria if c.column in table.column_names}
    readable = np.asarray(table[FAULT].is_null())
    verdict = judge(columns, criteria, len(table))
    late = _late_scores(job, part, table, columns, readable & (verdict.first == NONE))
    if late:
        columns |= late
        verdict = judge(columns, criteria, len(table))
    explanations.count(verdict, columns, readable)
    first = np.where(readable, verdict.first, NONE)
    names = pa.array([criterion.name for criterion in criteria], type=pa.string())
    reason = pc.coalesce(_flat(table[FAULT]), names.take(pa.array(first, mask=first == NONE)))
    score, match = np.full(len(table), np.nan, dtype=np.float32), np.full(len(table), NONE, dtype=np.int64)
    for number in np.unique(first[first != NONE]).tolist():
        rows = np.flatnonzero(first == number)
        score[rows] = columns[criteria[number].column].take(pa.array(rows)).to_numpy(zero_copy_only=False)
    alive = np.flatnonzero(np.asarray(reason.is_null()))
    leak, overlap, known = _leaks(job, part, table, alive)
    codes = np.full(len(table), NO_LEAK, dtype=np.int64)
    codes[alive] = leak
    leaking = leak != NO_LEAK
    reason = pc.coalesce(reason, pa.array(LEAKAGE_REASONS).take(pa.array(codes, mask=codes == NO_LEAK)))
    score[alive[leaking]], match[alive[leaking]] = overlap[leaking], known[leaking]
    verdicts = {"reason": reason, "score": pa.array(score, mask=np.isnan(score)), "match": _row_ids(match)}
    return Judged(pa.table(verdicts, schema=_VERDICT_SCHEMA), columns)


def _row_ids(match: Counts) -> pa.Array:
    return pa.array(match, mask=match == NONE)


def _late_scores(
    job: Job, part: Part, table: pa.Table, columns: Mapping[str, pa.Array], alive: Flags
) -> dict[str, pa.Array]:
    """Return the columns of the costly rules, now also for rows that only the recipe's looser thresholds left."""
    one_side = part.side != "both"
    costly = [rule for rule in job.scoring.costly if rule.one_side or not one_side]
    cheap = {
        rule.name: columns[rule_column(rule.name)] for rule in job.scoring.cheap if rule_column(rule.name) in columns
    }
    rows = np.flatnonzero(alive & ~scored_ahead(cheap, len(table)))
    if not costly or not len(rows):
        return {}
    left = table.take(pa.array(rows))
    pairs = Pairs.of(
        _flat(left["src"]) if part.side != "tgt" else None,
        _flat(left["tgt"]) if part.side != "src" else None,
        job.scoring.languages,
        resources=job.scoring.resources(),
    )
    mask = np.zeros(len(table), dtype=np.bool_)
    mask[rows] = True
    found = rule_scores(pairs, costly)
    return {
        rule_column(name): pc.replace_with_mask(columns[rule_column(name)], pa.array(mask), scores)
        for name, scores in found.items()
    }


def _leaks(job: Job, part: Part, table: pa.Table, alive: Counts) -> tuple[Counts, npt.NDArray[np.float32], Counts]:
    """Return of the rows alive the reason's code, the score and the held-out row that it meets: [alive] each."""
    rows = pa.array(alive)
    src, tgt = (_flat(table[name]).take(rows) for name in ("src_folded", "tgt_folded"))
    texts = None
    if job.config.leakage.overlap is not None:
        texts = (CodePoints(_flat(table["src"]).take(rows)), CodePoints(_flat(table["tgt"]).take(rows)))
    found = _held_out(job.index_file).leaks(src, tgt, texts)
    reason = found.reason
    if "split" in table.column_names:
        # What becomes dev or test is no leak by itself.
        of_train = np.asarray(pc.equal(_flat(table["split"]).take(rows), "train"))
        reason = np.where(of_train, reason, NO_LEAK)
    return reason, found.overlap, found.match


# --- Repetition ----------------------------------------------------------------------------------------------------


def _entries(
    job: Job,
    part: Part,
    table: pa.Table,
    columns: Mapping[str, pa.Array],
    alive: Counts,
    place: int,
    signed: npt.NDArray[np.uint32] | None,
) -> tuple[list[npt.NDArray[np.void]], ...]:
    """Return the entries of each kind of repetition for the rows alive; `place`: of the first row in its part."""
    config = job.config.duplicates
    found: tuple[list[npt.NDArray[np.void]], ...] = ([], [], [], [])
    rows = table.take(pa.array(alive)) if len(alive) < len(table) else table
    row_id = rows["row_id"].to_numpy()
    priority = _priority(job, columns, alive, len(table))

    def entries(key: Keys, tag: Keys | None = None) -> npt.NDArray[np.void]:
        made = np.zeros(len(key), dtype=ENTRIES)
        made["key"], made["row_id"], made["priority"] = key, row_id, priority
        if tag is not None:
            made["tag"] = tag
        return made

    def key(by: str, suffix: str) -> Keys:
        sides = {side: rows[f"{side}_{suffix}"].fill_null(0).to_numpy() for side in ("src", "tgt")}
        return _key_of(part, by, sides["src"], sides["tgt"])

    if config.exact is not None:
        found[_EXACT].append(entries(key(config.exact, "key")))
    if config.folded is not None and not config.fold_digits:
        found[_FOLDED].append(entries(key(config.folded, "folded")))
    if (config.folded is not None and config.fold_digits) or config.max_uses is not None:
        bare = {side: digitless(CodePoints(_flat(rows[side]))) for side in ("src", "tgt")}
        if config.folded is not None and config.fold_digits:
            found[_FOLDED].append(entries(_key_of(part, config.folded, bare["src"], bare["tgt"])))
        if config.max_uses is not None and part.side == "both":
            pair = key("pair", "folded")
            found[_BOILERPLATE].extend(entries(bare[side] ^ _SALTS[side], pair) for side in ("src", "tgt"))
    if config.near is not None and signed is not None:
        bands = band_keys(signed[place : place + len(table)][alive], config.similarity)
        if part.side != "both":
            bands = bands ^ _SALTS["monolingual"] ^ _SALTS[part.side]
        places = (np.uint64(part.index) << _PLACE_BITS) + (place + alive).astype(np.uint64)
        found[_NEAR].extend(entries(band, places) for band in bands.T)
    return found


def _key_of(part: Part, by: str, src: Keys, tgt: Keys) -> Keys:
    if part.side != "both":
        return (src if part.side == "src" else tgt) ^ _SALTS["monolingual"] ^ _SALTS[part.side]
    return pair_keys(src, tgt) if by == "pair" else src if by == "source" else tgt


def _priority(job: Job, columns: Mapping[str, pa.Array], alive: Counts, rows: int) -> npt.NDArray[np.float32]:
    """Return how good each row alive is by the score that is to decide: [alive], higher is better; null is worst."""
    keep = job.config.duplicates.keep
    if keep == "first":
        return np.zeros(len(alive), dtype=np.float32)
    column = keep if keep.startswith(INPUT) else rule_column(keep)
    values = columns.get(column, pa.nulls(rows, pa.float32())).take(pa.array(alive)).to_numpy(zero_copy_only=False)
    higher_is_worse = any(rule.name == keep and rule.worse == "above" for rule in RULES)
    signs = np.float32(-1 if higher_is_worse else 1)
    priority: npt.NDArray[np.float32] = values.astype(np.float32) * signs
    priority[np.isnan(priority)] = -np.inf
    return priority


def _write_keys(job: Job, part: Part, entries: Sequence[Sequence[npt.NDArray[np.void]]]) -> None:
    """Write the entries of a part by kind and partition, behind the bounds of these: [kinds, partitions + 1]."""
    bounds = np.zeros((len(REPETITIONS), job.partitions + 1), dtype=np.int64)
    ordered: list[npt.NDArray[np.void]] = []
    start = 0
    for kind, arrays in enumerate(entries):
        rows = np.concatenate([np.empty(0, dtype=ENTRIES), *arrays])
        partition = rows["key"] % np.uint64(job.partitions)
        ordered.append(rows[np.argsort(partition, kind="stable")] if job.partitions > 1 else rows)
        sizes = np.bincount(partition.astype(np.int64), minlength=job.partitions)
        bounds[kind, 1:] = np.cumsum(sizes)
        bounds[kind] += start
        start += len(rows)
    with replacing(job.file("keys", part.index)) as temporary, temporary.open("wb") as file:
        np.save(file, bounds, allow_pickle=False)
        np.save(file, np.concatenate(ordered), allow_pickle=False)


def _read_keys(path: Path, partition: int) -> Iterator[npt.NDArray[np.void]]:
    """Yield the entries of one partition, kind by kind; no more of the file is read."""
    with path.open("rb") as file:
        bounds = np.load(file, allow_pickle=False)
        np.lib.format.read_magic(file)
        np.lib.format.read_array_header_1_0(file)
        start = file.tell()
        for first, last in zip(bounds[:, partition].tolist(), bounds[:, partition + 1].tolist()):
            file.seek(start + first * ENTRIES.itemsize)
            yield np.fromfile(file, dtype=ENTRIES, count=last - first)


def find_repeats(job: Job, indexes: Sequence[int], partition: int) -> list[tuple[int, bytes]]:
    """Return (part number, its rows that repeat better ones after _REPEATS), of one partition of the keys."""
    config = job.config.duplicates
    kinds: list[list[npt.NDArray[np.void]]] = [[] for _ in REPETITIONS]
    numbers: list[list[npt.NDArray[np.int64]]] = [[] for _ in REPETITIONS]
    for index in indexes:
        for kind, rows in enumerate(_read_keys(job.file("keys", index), partition)):
            kinds[kind].append(rows)
            numbers[kind].append(np.full(len(rows), index, dtype=np.int64))
    result = []
    for kind, arrays in enumerate(kinds):
        entries, number = np.concatenate(arrays), np.concatenate(numbers[kind])
        if not len(entries):
            continue
        priority = np.zeros(len(entries), dtype=np.float32)
        if kind == _NEAR:
            repeated, match, priority = _near(job, entries)
        elif kind == _BOILERPLATE:
            repeated, match = overused(entries, config.max_uses or 1)
        else:
            repeated, match = repeats(entries)
        for index in np.unique(number[repeated]).tolist():
            mine = repeated & (number == index)
            found = np.empty(int(mine.sum()), dtype=_REPEATS)
            found["row_id"], found["match"] = entries["row_id"][mine], match[mine]
            found["priority"], found["kind"] = priority[mine], kind
            result.append((index, found.tobytes()))
    return result


def _near(job: Job, entries: npt.NDArray[np.void]) -> tuple[Flags, Counts, npt.NDArray[np.float32]]:
    """Return which entries are of rows like better ones, the best of these, and how good it is: [entries] each.

    Other partitions may find a better one: the best of all is taken where the part is written.
    """

    def lookup(places: Counts) -> npt.NDArray[np.uint32]:
        number, place = places >> int(_PLACE_BITS), places & ((1 << int(_PLACE_BITS)) - 1)
        found = np.empty((len(places), SIGNATURE_SIZE), dtype=np.uint32)
        for index in np.unique(number).tolist():
            mine = number == index
            found[mine] = _signature_file(job.signatures[index])[place[mine]]
        return found

    found = near_duplicates(
        entries["key"],
        entries["row_id"],
        entries["priority"],
        entries["tag"].astype(np.int64),
        lookup,
        job.config.duplicates.similarity,
    )
    if not len(found):
        nothing = np.full(len(entries), NONE, dtype=np.int64)
        return np.zeros(len(entries), dtype=np.bool_), nothing, np.zeros(len(entries), dtype=np.float32)
    place = np.minimum(np.searchsorted(found.row_id, entries["row_id"]), len(found) - 1)
    return found.row_id[place] == entries["row_id"], found.better[place], found.better_priority[place]


@cache
def _signature_file(path: str) -> npt.NDArray[np.uint32]:
    if not Path(path).stat().st_size:
        return np.empty((0, SIGNATURE_SIZE), dtype=np.uint32)
    return np.memmap(path, dtype="<u4", mode="r").reshape(-1, SIGNATURE_SIZE)


# --- What stays and goes -------------------------------------------------------------------------------------------


def write_part(job: Job, part_and_repeats: tuple[Part, Sequence[bytes]]) -> int:
    """Write the rows of a part that stay and those that go, its counts, and examples of both.

    Takes the part and what `find_repeats` found of it; returns its number. What is written already is left alone.
    """
    part, repeated = part_and_repeats
    splits: tuple[Split, ...] = SPLITS if _is_split(job, part) else (part.split,)
    if job.is_written(part.index, splits):
        return part.index
    repeats_of = _first_of_each(np.frombuffer(b"".join(repeated), dtype=_REPEATS))
    table, verdict = _with_verdicts(job, part)
    verdict = _with_repeats(verdict, table["row_id"].to_numpy(), repeats_of)
    explanations = Explanations.from_dict(job.criteria_of(part), _json(job.file("explanations", part.index)))
    explanations.show(table, _flat(verdict["reason"]), _flat(verdict["score"]))
    explanations.write_samples(job.file("samples", part.index))
    counts: dict[Split, Any] = {}
    lengths: dict[str, Any] | None = None
    for split in splits:
        rows, why = table, verdict
        if _is_split(job, part):
            belongs = pc.equal(table["split"], split)
            rows, why = table.filter(belongs), verdict.filter(belongs)
        stays = why["reason"].is_null()
        kept = _columns(rows, job.kept_schema(split)).filter(stays)
        counts[split] = _write_rows(job, part.index, split, kept, _rejects(rows, why))
        if split not in HELD_OUT:
            readable = rows.select(["src", "tgt"]).filter(rows[FAULT].is_null())
            lengths = {when: _lengths(texts) for when, texts in zip(WHEN, (readable, kept))}
    _write_counts(job, part.index, {"splits": counts, "lengths": lengths, "explanations": explanations.to_dict()})
    return part.index


def _with_verdicts(job: Job, part: Part) -> tuple[pa.Table, pa.Table]:
    """Return all rows of a part, with the costly scores that are known by now, and the verdicts on them."""
    table = pa.concat_tables(_batches(part))
    with pa.memory_map(str(job.file("verdicts", part.index))) as file:
        verdict = pa.ipc.open_file(file).read_all()
    for rule in job.scoring.costly:
        name = rule_column(rule.name)
        table = table.set_column(table.schema.get_field_index(name), name, verdict[name])
    return table, verdict.select(_VERDICT_SCHEMA.names)


def _is_split(job: Job, part: Part) -> bool:
    return part.split == "train" and bool(job.scoring.held_out)


def _first_of_each(found: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    """Return one of the repeats of each row, in the order of the rows: of the first kind, of the best match."""
    ordered = found[np.lexsort((found["match"], -found["priority"], found["kind"], found["row_id"]))]
    first = np.ones(len(ordered), dtype=np.bool_)
    first[1:] = ordered["row_id"][1:] != ordered["row_id"][:-1]
    return ordered[first]


def _with_repeats(verdict: pa.Table, row_id: Counts, repeats_of: npt.NDArray[np.void]) -> pa.Table:
    if not len(repeats_of):
        return verdict
    place = np.minimum(np.searchsorted(repeats_of["row_id"], row_id), len(repeats_of) - 1)
    found = repeats_of["row_id"][place] == row_id
    kinds = pa.array(REPETITIONS).take(pa.array(repeats_of["kind"][place].astype(np.int64), mask=~found))
    match = pa.array(repeats_of["match"][place], mask=~found)
    return pa.table(
        {
            "reason": pc.coalesce(_flat(verdict["reason"]), kinds),
            "score": verdict["score"],
            "match": pc.coalesce(_flat(verdict["match"]), match),
        }
    )


def _lengths(texts: pa.Table) -> dict[str, list[int]]:
    """Return how many texts of each side lie in each bin of lengths."""
    bins = {}
    for side in ("src", "tgt"):
        lengths = _flat(pc.utf8_length(texts[side])).drop_null().to_numpy()
        places = np.minimum(lengths, LENGTH_EDGES[-1] - 1) // LENGTH_EDGES[1]
        bins[side] = np.bincount(places, minlength=len(LENGTH_EDGES) - 1).tolist()
    return bins


def _rejects(table: pa.Table, verdict: pa.Table) -> pa.Table:
    """Return the rows that go, after REJECTS_SCHEMA."""
    columns = [table[field.name] for field in _ROW_FIELDS] + [verdict[name] for name in _VERDICT_SCHEMA.names]
    return pa.table(dict(zip(REJECTS_SCHEMA.names, columns))).filter(verdict["reason"].is_valid())


def _write_rows(job: Job, index: int, split: Split, kept: pa.Table, rejected: pa.Table) -> dict[str, Any]:
    """Write the rows of a part that belong to one split, and return how many they are."""
    write_parquet(job.file(f"kept/{split}", index), kept)
    write_parquet(job.file(f"rejected/{split}", index), rejected.cast(REJECTS_SCHEMA))
    counted = pc.value_counts(_flat(rejected["rule"]))
    reasons = {count["values"].as_py(): count["counts"].as_py() for count in counted}
    return {"kept": len(kept), "rejected": reasons}


def _columns(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return the columns of a schema; a score that this corpus does not have is null."""
    columns = [
        table[field.name] if field.name in table.column_names else pa.nulls(len(table), field.type) for field in schema
    ]
    return pa.table(columns, schema=schema)


def write_parquet(path: Path, table: pa.Table) -> None:
    """Write a table whole, in the place of what may be there."""
    # Texts differ, so a dictionary of them only costs time; what is sought is sought by row_id.
    text = ("src", "tgt", "src_raw", "tgt_raw", "row_id")
    with replacing(path) as temporary:
        pq.write_table(
            table.combine_chunks(),
            temporary,
            compression="zstd",
            use_dictionary=[name for name in table.column_names if name not in text],
            write_statistics=[name for name in table.column_names if name in ("row_id", "corpus")],
        )


def _write_counts(job: Job, index: int, counts: Mapping[str, Any]) -> None:
    write_atomically(job.file("counts", index), json.dumps(counts))


def read_counts(job: Job, index: int) -> dict[str, Any]:
    """Return what was counted of a part: rows of each split, lengths, what each rule would drop."""
    counts: dict[str, Any] = _json(job.file("counts", index))
    return counts


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _batches(part: Part) -> Iterator[pa.Table]:
    """Yield the rows of a part as they were written, some at a time, with their ratings where there are some."""
    with pa.memory_map(part.scored) as file:
        scored = pa.ipc.open_file(file)
        if part.rated is None:
            for number in range(scored.num_record_batches):
                yield pa.Table.from_batches([scored.get_batch(number)])
            return
        with pa.memory_map(part.rated) as rated_file:
            rated = pa.ipc.open_file(rated_file)
            for number in range(scored.num_record_batches):
                table = pa.Table.from_batches([scored.get_batch(number)])
                ratings = rated.get_batch(number)
                for name in RATED_COLUMNS:
                    table = table.append_column(name, ratings[name])
                yield table


def _flat(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
