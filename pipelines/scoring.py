"""How rows are scored: which rules, on what texts, with which keys; and the step of the stage `score` that does it.

Nothing here knows Beam: a piece of the input goes in, a part of the stage's output comes out.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.characters import Counts, Flags
from pipelines.config import (
    ALL_SPLITS,
    CleanConfig,
    CorporaConfig,
    LanguagesConfig,
    ResourcesConfig,
    RulesConfig,
    Split,
)
from pipelines.corpus import Piece, RawBatch, read_batches
from pipelines.dedup import Keys, text_keys
from pipelines.errors import InputError
from pipelines.filters import RULES, Pairs, Resources, Rule, load_resources, rule_scores
from pipelines.minhash import SIGNATURE_SIZE, pair_signatures, signatures
from pipelines.normalize import normalize
from pipelines.stage import replacing
from pipelines.verdict import INPUT, corpus_rules, rule_column, scored_rules

FAULT = "fault"
# The key of each side: of its text as it is, and folded. Null where a row could not be read or has no such side.
KEY_COLUMNS = ("src_key", "tgt_key", "src_folded", "tgt_folded")
HELD_OUT = ("dev", "test")
# Rows that a worker looks at in one go: their code points fit into a core's cache.
BATCH_ROWS = 8192
# Of the hash of a source that decides on its split, so that it is not that of any other use.
_SPLIT_SALT = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Scoring:
    """All that decides what a row's scores and keys are; plain values, for the way between processes.

    `rules` are the names of those that are scored, `inputs` the scores that come with corpora. `near` is the side(s)
    whose signatures are wanted. `held_out` are the shares of train that become dev and test.
    """

    languages: LanguagesConfig
    config: CleanConfig
    rules: tuple[str, ...]
    inputs: tuple[str, ...] = ()
    held_out: tuple[tuple[str, float], ...] = ()
    digests: tuple[tuple[str, str], ...] = ()  # sha256 of the files that rules work with

    @classmethod
    def of(cls, languages: LanguagesConfig, corpora: CorporaConfig, config: CleanConfig) -> Scoring:
        """Return how the corpora of a recipe are scored."""
        judged = (*corpora.train, *corpora.monolingual)
        rules = scored_rules([corpus_rules(config.rules, corpus) for corpus in judged])
        inputs = tuple(sorted({name for corpus in judged for name in corpus.scores}))
        digests = tuple(sorted(load_resources(config.resources).digests().items()))
        return cls(languages, config, rules, inputs, tuple(sorted(corpora.held_out.items())), digests)

    def identity(self) -> dict[str, Any]:
        """Return the JSON values that decide the output: of the config no threshold but the defaults."""
        defaults = RulesConfig().model_dump()
        near = self.config.duplicates
        return {
            "languages": self.languages.model_dump(mode="json"),
            "normalize": self.config.normalize.model_dump(mode="json"),
            "rules": list(self.rules),
            "scored_ahead": {name: defaults[name] for name in self.rules} if self.costly else {},
            "inputs": list(self.inputs),
            "held_out": dict(self.held_out),
            "signatures": None if near.near is None else {"by": near.near, "shingle": near.shingle},
        }

    @property
    def cheap(self) -> tuple[Rule, ...]:
        """The scored rules that every row gets."""
        return tuple(rule for rule in RULES if rule.name in self.rules and not rule.costly)

    @property
    def costly(self) -> tuple[Rule, ...]:
        """The scored rules that only the rows left by the others get."""
        return tuple(rule for rule in RULES if rule.name in self.rules and rule.costly)

    def resources(self) -> Resources:
        """Return the files that rules work with, loaded once in a process."""
        return _resources(self.config.resources, self.digests)


@cache
def _resources(config: ResourcesConfig, digests: tuple[tuple[str, str], ...]) -> Resources:
    resources = load_resources(config)
    if tuple(sorted(resources.digests().items())) != digests:
        raise InputError(
            "a file that rules work with has changed since the run began", where="clean.resources", remedy="Run again"
        )
    return resources


def scored_schema(scoring: Scoring, split: Split) -> pa.Schema:
    """Return the columns of the parts of a split."""
    fields = [
        pa.field("row_id", pa.int64(), nullable=False),
        pa.field("corpus", pa.string(), nullable=False),
        pa.field("src", pa.string()),
        pa.field("tgt", pa.string()),
        pa.field(FAULT, pa.string()),
        *(pa.field(name, pa.uint64()) for name in KEY_COLUMNS),
    ]
    if split in HELD_OUT or (split == "train" and scoring.held_out):
        fields += [pa.field(name, pa.string()) for name in ("src_raw", "tgt_raw")]
    if split == "train" and scoring.held_out:
        fields.append(pa.field("split", pa.string(), nullable=False))
    if split not in HELD_OUT:
        fields += [pa.field(rule_column(name), pa.float32()) for name in scoring.rules]
        fields += [pa.field(INPUT + name, pa.float32()) for name in scoring.inputs]
    return pa.schema(fields)


# --- One piece ---


@dataclass(frozen=True)
class ScoreJob:
    """How rows are scored, and where the parts of each split begin among the pieces of all."""

    scoring: Scoring
    folder: str
    first_indexes: dict[str, int]

    @property
    def lines(self) -> Path:
        """Where pieces of what is compressed lie until they are scored."""
        return Path(self.folder) / "lines"

    def make_folders(self) -> None:
        """Make the folders of all that is written; parts of an earlier attempt stay, and are not done again."""
        shutil.rmtree(self.lines, ignore_errors=True)
        self.lines.mkdir()
        for split in ALL_SPLITS:
            for kind in ("scored", *(("signatures",) if split not in HELD_OUT else ())):
                (Path(self.folder) / kind / split).mkdir(parents=True, exist_ok=True)

    def _name(self, kind: str, piece: Piece, suffix: str) -> str:
        number = piece.index - self.first_indexes[piece.split]
        return f"{kind}/{piece.split}/part-{number:05d}.{suffix}"

    def part(self, piece: Piece) -> str:
        """Return the path of a piece's part, relative to the folder."""
        return self._name("scored", piece, "arrow")

    def signatures(self, piece: Piece) -> str | None:
        """Return the path of the signatures of a piece's rows, None where none are wanted."""
        if self.scoring.config.duplicates.near is None or piece.split in HELD_OUT:
            return None
        return self._name("signatures", piece, "u32")


def score_piece(job: ScoreJob, description: dict[str, Any]) -> int:
    """Write the part of a piece, and its signatures where they are wanted; return its index."""
    piece = Piece.from_dict(description)
    schema = scored_schema(job.scoring, piece.split)
    folder, part, signatures = Path(job.folder), job.part(piece), job.signatures(piece)
    if (folder / part).exists():
        return piece.index
    rows: list[npt.NDArray[np.uint32]] = []
    with replacing(folder / part) as temporary:
        with pa.OSFile(str(temporary), "wb") as file, pa.ipc.new_file(file, schema) as writer:
            for raw in read_batches(piece, BATCH_ROWS):
                batch, signed = scored_batch(job.scoring, raw, piece.corpus, piece.split, piece.side)
                writer.write_batch(batch)
                rows.append(signed)
        # Before the part has its name: where that is, all of the piece is.
        if signatures is not None:
            with replacing(folder / signatures) as signed_file:
                np.concatenate(rows).astype("<u4").tofile(signed_file)
    return piece.index


# --- One batch -----------------------------------------------------------------------------------------------------


def scored_batch(
    scoring: Scoring, raw: RawBatch, corpus: str, split: Split, side: str = "both"
) -> tuple[pa.RecordBatch, npt.NDArray[np.uint32]]:
    """Return rows after `scored_schema`, and their signatures [rows, SIGNATURE_SIZE], without rows where not wanted."""
    src, tgt = _normalized(scoring, raw, side)
    readable = np.flatnonzero(np.asarray(raw.reason.is_null()))
    whole = len(readable) == len(src)

    def some(texts: pa.Array) -> pa.Array:
        return texts if whole else texts.take(pa.array(readable))

    pairs = Pairs.of(
        some(src) if side != "tgt" else None,
        some(tgt) if side != "src" else None,
        scoring.languages,
        src_raw=some(raw.src) if side != "tgt" else None,
        tgt_raw=some(raw.tgt) if side != "src" else None,
        resources=scoring.resources(),
    )

    def everywhere(column: pa.Array) -> pa.Array:
        return column if whole else column.take(_places(readable, len(src)))

    keys = {name: everywhere(column) for name, column in _keys(pairs).items()}
    columns: dict[str, pa.Array] = {
        "row_id": pa.array(raw.row_id),
        "corpus": pa.repeat(pa.scalar(corpus, pa.string()), len(src)),
        "src": src,
        "tgt": tgt,
        FAULT: raw.reason,
        **keys,
    }
    signed = np.empty((0, SIGNATURE_SIZE), dtype=np.uint32)
    if split in HELD_OUT:
        columns |= {"src_raw": raw.src, "tgt_raw": raw.tgt}
    else:
        columns |= {rule_column(name): everywhere(scores) for name, scores in pair_scores(scoring, pairs).items()}
        columns |= {INPUT + name: _input(raw, name) for name in scoring.inputs}
        if scoring.config.duplicates.near is not None:
            signed = np.zeros((len(src), SIGNATURE_SIZE), dtype=np.uint32)
            signed[readable] = _signatures(pairs, scoring)
        if split == "train" and scoring.held_out:
            splits = _splits(keys["src_folded"], scoring.held_out)
            chosen = pc.not_equal(splits, "train")
            nothing = pa.scalar(None, pa.string())
            columns |= {
                "src_raw": pc.if_else(chosen, raw.src, nothing),
                "tgt_raw": pc.if_else(chosen, raw.tgt, nothing),
            }
            columns["split"] = splits
    schema = scored_schema(scoring, split)
    arrays = [columns[field.name] for field in schema]
    return pa.RecordBatch.from_arrays(arrays, schema=schema), signed


def pair_scores(scoring: Scoring, pairs: Pairs) -> dict[str, pa.FloatArray]:
    """Return the scores of the rules that are scored and apply to pairs, or to texts of one side: [rows] each."""
    one_side = len(pairs.sides) == 1
    wanted = [rule for rule in scoring.cheap if rule.one_side or not one_side]
    scores = dict(rule_scores(pairs, wanted))
    costly = [rule for rule in scoring.costly if rule.one_side or not one_side]
    if costly:
        left = np.flatnonzero(scored_ahead(scores, len(pairs)))
        every = len(left) == len(pairs)
        found = rule_scores(pairs if every else pairs.take(left), costly)
        places = _places(left, len(pairs))
        scores |= {name: column if every else column.take(places) for name, column in found.items()}
    missing = pa.nulls(len(pairs), pa.float32())
    return {name: scores.get(name, missing) for name in scoring.rules}


def scored_ahead(scores: dict[str, pa.FloatArray], rows: int) -> Flags:
    """Return which rows get the costly scores here: those that the cheap rules leave at their default thresholds."""
    defaults = RulesConfig()
    left = np.ones(rows, dtype=np.bool_)
    for rule in RULES:
        threshold = getattr(defaults, rule.name)
        if not rule.costly and rule.name in scores and isinstance(threshold, float):
            bad = pc.greater if rule.worse == "above" else pc.less
            left &= ~np.asarray(bad(scores[rule.name], pa.scalar(threshold, pa.float32())).fill_null(False))
    return left


def _normalized(scoring: Scoring, raw: RawBatch, side: str) -> tuple[pa.StringArray, pa.StringArray]:
    """Return both sides normalised; those of rows that could not be read stay as they are."""
    config, languages = scoring.config.normalize, scoring.languages
    src = raw.src if side == "tgt" else normalize(raw.src, languages.source, config)
    tgt = raw.tgt if side == "src" else normalize(raw.tgt, languages.target, config)
    if raw.reason.null_count == len(raw.reason):
        return src, tgt
    bad = raw.reason.is_valid()
    return pc.if_else(bad, raw.src, src), pc.if_else(bad, raw.tgt, tgt)


def _places(rows: Counts, total: int) -> pa.Array:
    places = np.full(total, -1, dtype=np.int64)
    places[rows] = np.arange(len(rows))
    return pa.array(places, mask=places < 0)


def _keys(pairs: Pairs) -> dict[str, pa.Array]:
    columns: dict[str, pa.Array] = {name: pa.nulls(len(pairs), pa.uint64()) for name in KEY_COLUMNS}
    for name, side in (("src", pairs.src), ("tgt", pairs.tgt)):
        if side is not None:
            columns[f"{name}_key"] = pa.array(text_keys(side.texts))
            columns[f"{name}_folded"] = pa.array(side.keys.keys)
    return columns


def _input(raw: RawBatch, name: str) -> pa.Array:
    return raw.scores.get(name, pa.nulls(len(raw.row_id), pa.float32()))


def _signatures(pairs: Pairs, scoring: Scoring) -> npt.NDArray[np.uint32]:
    near, shingle = scoring.config.duplicates.near, scoring.config.duplicates.shingle
    if len(pairs.sides) == 1:
        return signatures(pairs.sides[0].code_points, shingle)
    src, tgt = (side.code_points for side in pairs.both)
    if near == "pair":
        return pair_signatures(src, tgt, shingle)
    return signatures(src if near == "source" else tgt, shingle)


def _splits(src_folded: pa.Array, held_out: Sequence[tuple[str, float]]) -> pa.Array:
    """Return the split of each row by its source's folded key: the same text is always in the same split."""
    keys: Keys = src_folded.fill_null(0).to_numpy(zero_copy_only=False)
    mixed = (keys ^ (keys >> np.uint64(29))) * _SPLIT_SALT
    place = (mixed >> np.uint64(11)).astype(np.float64) / 2.0**53
    splits = np.full(len(keys), "train", dtype=object)
    start = 0.0
    for name, share in held_out:
        splits[(place >= start) & (place < start + share) & np.asarray(src_folded.is_valid())] = name
        start += share
    return pa.array(splits, type=pa.string())
