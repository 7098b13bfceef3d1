"""The rows of a shard in an epoch: how often each stands in it, and what augmentation makes of it.

A pure function of the shard, the epoch, its weights and `EpochConfig`: a row's key is made of seed, epoch, row_id and
copy, so it makes no difference who computes it, when, and in which order. Dev and test never come here.

    python -m pipelines.epoch_rows          reads requests from its standard input and answers on its standard output

Run so it is a helper of training: a process of its own, since training's would have to stop for every step of it. It
ends with its standard input, so with whoever has started it. The requests and answers stand at `serve`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple, TextIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.augment import Augmentation, Change, Chosen, Pair, noise_text
from pipelines.config import AugmentConfig, Table
from pipelines.draws import Draws, Keys, derived, row_keys, uniform
from pipelines.errors import InputError
from pipelines.segmentation import Sampler
from pipelines.shards import ShardColumns, columns_of, joined, of_table
from pipelines.tokenizer import EOS_ID, UNK_ID, Tokenizer

Ids = npt.NDArray[np.int32]
Numbers = npt.NDArray[np.int64]
Share = tuple[float, float]  # of what an epoch holds of a shard: from here, and up to there, both of [0, 1]

WHOLE: Share = (0.0, 1.0)


class EpochConfig(Table):
    """What decides a row's epochs, beside the weights of each. `tokenizer`: its folder."""

    seed: int
    max_pieces: int
    augment: AugmentConfig
    tokenizer: str


class ShardRows(NamedTuple):
    """A shard's rows in an epoch.

    `rows`: numbers within the shard, one of them several times where its weight says so; from the shard's number of
    rows on, they are those of `made`. `stayed`: how many could not become what was drawn for them.
    """

    rows: Numbers
    made: ShardColumns
    stayed: int


def held_rows(
    config: EpochConfig,
    epoch: int,
    row_id: Numbers,
    trainable: Numbers,
    weights: npt.NDArray[np.float64] | None,
    shares: npt.NDArray[np.float64] | None = None,
) -> tuple[Numbers, Keys]:
    """Return which of the trainable rows an epoch holds, in order and each as often as it does, and their keys.

    `row_id` and `weights` [rows] are of all rows, and so are `shares` [rows, 2], without which all copies of a row are
    held, see `copies_within`; without weights each trainable row is held once.
    """
    keys = row_keys(config.seed, epoch, row_id[trainable])
    if weights is None and shares is None:
        return trainable, keys
    times = np.ones(len(trainable), dtype=np.int64) if weights is None else repetitions(weights[trainable], keys)
    first = np.zeros_like(times)
    if shares is not None:
        first, end = copies_within(shares[trainable], times, keys)
        times = end - first
    rows = np.repeat(trainable, times)
    copies = np.arange(len(rows)) - np.repeat(np.cumsum(times) - times - first, times)
    return rows, row_keys(config.seed, epoch, row_id[rows], copies)


def copies_within(shares: npt.NDArray[np.float64], times: Numbers, keys: Keys) -> tuple[Numbers, Numbers]:
    """Return the first copy of each row that is within its share, and the one behind the last: [rows] each.

    `shares` [rows, 2]. A row's copies lie between 0 and 1 in their order, at even distances from a place that is drawn:
    of shares that are a whole together one has each of them.
    """
    # Draws of 32 bits: their sums with a number of copies are exact.
    draws = (derived(keys, "window") >> np.uint64(32)).astype(np.float64) * 2.0**-32
    first, end = np.floor(shares.T * times + draws).astype(np.int64)
    return first, end


def repetitions(weights: npt.NDArray[np.float64], keys: Keys) -> Numbers:
    """Return how often each row stands in an epoch, its weight on average: [rows].

    The whole part of the weight, and once more with the probability of the rest.
    """
    whole = np.floor(weights)
    return whole.astype(np.int64) + (uniform(derived(keys, "weight")) < weights - whole)


def trainable_rows(src_lengths: Numbers, tgt_lengths: Numbers, max_pieces: int) -> Numbers:
    """Return the rows whose both sides have at most `max_pieces` pieces, in order."""
    return np.flatnonzero(np.maximum(src_lengths, tgt_lengths) <= max_pieces)


def tag_ids(tag: str, tokenizer: Tokenizer) -> Ids:
    """Return the one piece of a tag. Raises InputError when the tokeniser has none for it."""
    (ids,) = tokenizer.encode_source([tag])
    if len(ids) != 2 or ids[0] == UNK_ID:
        raise InputError(
            f"the tag {tag!r} is no symbol of the tokeniser: it is {len(ids) - 1} pieces",
            where="augment.tags",
            remedy="Add it to tokenizer.symbols",
        )
    return np.asarray(ids[:1], dtype=np.int32)


class Augmenter:
    """Augments the rows of shards: their texts are changed, and encoded."""

    def __init__(self, config: EpochConfig) -> None:
        self._config, self._tokenizer = config, Tokenizer.load(Path(config.tokenizer))
        tokenizer, augment = self._tokenizer, config.augment
        self._augmentation = Augmentation(augment, tokenizer.source_language, tokenizer.target_language)
        self._tags = [tag_ids(tag.tag, tokenizer) for tag in augment.tags]
        sampling = augment.sampling
        strength = sampling.unigram_alpha if tokenizer.kind == "unigram" else sampling.bpe_dropout
        self._samplers: dict[Change, Sampler] = {}
        if sampling.source > 0.0:
            self._samplers[Change.SAMPLED_SOURCE] = Sampler(tokenizer.source_vocabulary(), strength)
        if sampling.target > 0.0:
            self._samplers[Change.SAMPLED_TARGET] = Sampler(tokenizer.target_vocabulary(), strength)

    def augmented(
        self, shard: Path, epoch: int, weights: Mapping[str, float] | None = None, share: Share = WHOLE
    ) -> ShardRows:
        """Return a share of a shard's rows in an epoch of which the corpora have these weights, or each the weight 1.

        What becomes of a row's copy is the same in whichever share it is.
        """
        augmentation = self._augmentation
        texts = ["src_text", "tgt_text"] if augmentation.config.changes_text else []
        table = pq.read_table(shard, columns=["row_id", "corpus", "src", "tgt", *texts])
        columns, corpora = of_table(table), table["corpus"].combine_chunks().dictionary_encode()
        names, corpus = corpora.dictionary.to_pylist(), corpora.indices.to_numpy()
        of_rows = None
        if weights is not None:
            of_rows = np.asarray([weights[name] for name in names], dtype=np.float64)[corpus]
        trainable = trainable_rows(columns.src_lengths(), columns.tgt_lengths(), self._config.max_pieces)
        of_window = None if share == WHOLE else np.broadcast_to(share, (len(columns), 2))
        rows, keys = held_rows(self._config, epoch, columns.row_id, trainable, of_rows, of_window)

        chosen = augmentation.chosen(keys)
        tagged = augmentation.tagged(keys, names, corpus[rows])
        places = np.flatnonzero(np.logical_or.reduce([chosen != 0, *tagged]))
        old = _Sides(columns.sources(rows[places]), columns.targets(rows[places]))
        new = _Sides(list(old.src), list(old.tgt))
        if texts:
            self._rewrite(table, corpus, rows[places], chosen[places], keys[places], new)
        for tag, has_tag in reversed(list(zip(self._tags, tagged))):
            for row in np.flatnonzero(has_tag[places]).tolist():
                new.src[row] = np.concatenate([tag, new.src[row]])
        changed = old.differs(new)
        taken = np.flatnonzero(changed & self._fits(new, old.unknown_in_target()))
        noise = self._noise(keys)
        fitting = np.flatnonzero(self._fits(noise, np.zeros(len(noise.src), dtype=np.int64)))

        row_id = columns.row_id[rows]
        made = joined([new.columns(row_id[places], taken), noise.columns(np.full(len(noise.src), -1), fitting)])
        result = np.concatenate([rows, len(columns) + len(taken) + np.arange(len(fitting))])
        result[places[taken]] = len(columns) + np.arange(len(taken))
        return ShardRows(result, made, int(changed.sum()) - len(taken) + len(noise.src) - len(fitting))

    def _rewrite(
        self, table: pa.Table, corpus: npt.NDArray[np.int32], rows: Numbers, chosen: Chosen, keys: Keys, sides: _Sides
    ) -> None:
        """Put into `sides` the ids of what these rows of the table become, where they become something else."""
        before = _pairs(table, rows)
        followers: list[Pair | None] = [None] * len(rows)
        merging = np.flatnonzero((chosen & Change.MERGE != 0) & (rows + 1 < len(table)))
        merging = merging[corpus[rows[merging]] == corpus[rows[merging] + 1]]
        for row, pair in zip(merging.tolist(), _pairs(table, rows[merging] + 1)):
            followers[row] = pair
        after = self._augmentation.changed(chosen, keys, before, followers)
        for side, change, encode in (
            (0, Change.SAMPLED_SOURCE, self._tokenizer.encode_source),
            (1, Change.SAMPLED_TARGET, self._tokenizer.encode_target),
        ):
            sampled = chosen & change != 0
            if change in self._samplers:
                at_random = np.flatnonzero(sampled)
                texts = [after[row][side] for row in at_random.tolist()]
                drawn = self._samplers[change].sample(texts, derived(keys[at_random], change.name))
                for row, ids in zip(at_random.tolist(), drawn):
                    sides[side][row] = np.append(ids, np.int32(EOS_ID))
            plain = [row for row in np.flatnonzero(~sampled).tolist() if after[row][side] != before[row][side]]
            for row, ids in zip(plain, _arrays(encode([after[row][side] for row in plain]))):
                sides[side][row] = ids

    def _noise(self, keys: Keys) -> _Sides:
        noisy = keys[self._augmentation.noise_rows(keys)]
        texts = [noise_text(Draws(key)) for key in derived(noisy, "within noise row").tolist()]
        return _Sides(_arrays(self._tokenizer.encode_source(texts)), _arrays(self._tokenizer.encode_target(texts)))

    def _fits(self, sides: _Sides, unknown: Numbers) -> npt.NDArray[np.bool_]:
        """Return which rows are short enough and have no more unknown target pieces than these: [rows]."""
        longest = np.maximum(_lengths(sides.src), _lengths(sides.tgt))
        fits: npt.NDArray[np.bool_] = (longest <= self._config.max_pieces) & (sides.unknown_in_target() <= unknown)
        return fits


class _Sides(NamedTuple):
    """The ids of both sides of some rows."""

    src: list[Ids]
    tgt: list[Ids]

    def differs(self, other: _Sides) -> npt.NDArray[np.bool_]:
        """Return which rows are other arrays there: [rows]."""
        same = (a is b and c is d for a, b, c, d in zip(self.src, other.src, self.tgt, other.tgt))
        return ~np.fromiter(same, dtype=np.bool_, count=len(self.src))

    def unknown_in_target(self) -> Numbers:
        """Return the target pieces that stand for what the tokeniser does not know: [rows]."""
        return np.fromiter((np.count_nonzero(ids == UNK_ID) for ids in self.tgt), dtype=np.int64, count=len(self.tgt))

    def columns(self, row_id: Numbers, taken: Numbers) -> ShardColumns:
        """Return the rows that are taken, as columns."""
        src, tgt = ([side[row] for row in taken.tolist()] for side in self)
        return columns_of(row_id[taken], src, tgt)


def _pairs(table: pa.Table, rows: Numbers) -> list[Pair]:
    taken = table.select(["src_text", "tgt_text"]).take(rows)
    return [Pair(src, tgt) for src, tgt in zip(taken["src_text"].to_pylist(), taken["tgt_text"].to_pylist())]


def _arrays(rows: Sequence[Sequence[int]]) -> list[Ids]:
    return [np.asarray(row, dtype=np.int32) for row in rows]


def _lengths(rows: Sequence[Ids]) -> Numbers:
    return np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))


# The helper


def serve(requests: TextIO, answers: IO[bytes]) -> None:
    """Answer requests until there are no more.

    The first line is an EpochConfig as JSON; each line after it is {"shard": path, "epoch": number, "weights": null or
    {corpus: weight}, "share": [from, to]}. An answer is a line of JSON, {"stayed": number, "sizes": [bytes]}, and then
    arrays of these sizes: rows, and the columns of `made` in their order.
    """
    augmenter = Augmenter(EpochConfig.model_validate_json(next(requests)))
    for line in requests:
        request = json.loads(line)
        share = (request["share"][0], request["share"][1])
        found = augmenter.augmented(Path(request["shard"]), request["epoch"], request["weights"], share)
        arrays = [found.rows, *vars(found.made).values()]
        head = {"stayed": found.stayed, "sizes": [array.nbytes for array in arrays]}
        answers.write(json.dumps(head).encode() + b"\n")
        for array in arrays:
            answers.write(array.tobytes())
        answers.flush()


def read_answer(answers: IO[bytes]) -> ShardRows:
    """Return the answer to one request. Raises RuntimeError when the helper has ended instead."""
    ended = "the process that prepares the rows of epochs has ended; what it said stands above"
    line = answers.readline()
    if not line.endswith(b"\n"):
        raise RuntimeError(ended)
    head = json.loads(line)
    contents = [answers.read(size) for size in head["sizes"]]
    if [len(content) for content in contents] != head["sizes"]:
        raise RuntimeError(ended)
    types = (np.int64, np.int64, np.int32, np.int64, np.int32, np.int64)
    arrays = [np.frombuffer(content, dtype) for content, dtype in zip(contents, types, strict=True)]
    return ShardRows(arrays[0], ShardColumns(*arrays[1:]), head["stayed"])


if __name__ == "__main__":
    serve(sys.stdin, sys.stdout.buffer)
