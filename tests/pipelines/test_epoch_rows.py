"""What a shard's rows become in an epoch, and the helper that says it to another process."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipelines.config import AugmentConfig, LanguagesConfig, TokenizerConfig
from pipelines.draws import row_keys
from pipelines.epoch_rows import (
    WHOLE,
    Augmenter,
    EpochConfig,
    ShardRows,
    copies_within,
    held_rows,
    read_answer,
    repetitions,
    serve,
    tag_ids,
    trainable_rows,
)
from pipelines.errors import InputError
from pipelines.shards import write_shard
from pipelines.tokenizer import JOINT_MODEL, Tokenizer, save_tokenizer, train_model

NOUNS = {"house": "Haus", "boat": "Boot", "dress": "Kleid", "book": "Buch", "village": "Dorf", "castle": "Schloss"}
PAIRS = [
    (f"The {noun} is {colour}.", f"{wort} ist {farbe}.")
    for noun, wort in NOUNS.items()
    for colour, farbe in {"red": "rot", "blue": "blau", "green": "grün", "white": "weiß"}.items()
]


@dataclass(frozen=True)
class Made:
    """A shard of three rows in three corpora or one, and the folder of its tokeniser."""

    shard: Path
    folder: Path

    @property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.load(self.folder)

    def config(self, max_pieces: int = 100, **augment: Any) -> EpochConfig:
        found = AugmentConfig.model_validate(augment)
        return EpochConfig(seed=1, max_pieces=max_pieces, augment=found, tokenizer=str(self.folder))

    def texts(self, found: ShardRows) -> list[tuple[str, str]]:
        """The texts of the rows; those of the shard itself are PAIRS."""
        made = np.arange(len(found.made))
        src = self.tokenizer.decode_source([ids.tolist() for ids in found.made.sources(made)])
        tgt = self.tokenizer.decode_target([ids.tolist() for ids in found.made.targets(made)])
        every = [*PAIRS, *zip(src, tgt)]
        return [every[row] for row in found.rows.tolist()]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("made")
    config = TokenizerConfig(vocab_size=300, byte_fallback=True, character_coverage=1.0, symbols=("<x>", "<y>"))
    sentences = [text for pair in PAIRS for text in pair]
    languages = LanguagesConfig(source="en", target="de")
    save_tokenizer(folder, {JOINT_MODEL: train_model(sentences, config)}, languages, config)
    tokenizer = Tokenizer.load(folder)
    src, tgt = [pair[0] for pair in PAIRS], [pair[1] for pair in PAIRS]
    columns = {
        "row_id": pa.array(range(2**40, 2**40 + len(PAIRS)), pa.int64()),
        "corpus": ["a"] * 10 + ["b"] * (len(PAIRS) - 10),
        "src": tokenizer.encode_source(src),
        "tgt": tokenizer.encode_target(tgt),
        "src_text": src,
        "tgt_text": tgt,
    }
    write_shard(folder / "part-00000.parquet", pa.table(columns), tokenizer.digest, with_text=True)
    return Made(folder / "part-00000.parquet", folder)


def test_rows_that_nothing_changes_are_the_shards_own(made: Made) -> None:
    found = Augmenter(made.config()).augmented(made.shard, 0)
    assert found.rows.tolist() == [*range(24)]
    assert (len(found.made), found.stayed) == (0, 0)


def test_changed_rows_take_the_places_of_their_own(made: Made) -> None:
    config = made.config(upper_case=0.5)
    found = Augmenter(config).augmented(made.shard, 3)
    expected = [pair if row < 24 else tuple(text.upper() for text in pair) for row, pair in zip(found.rows, PAIRS)]
    assert made.texts(found) == expected
    assert 4 < len(found.made) < 20
    assert found.made.row_id.tolist() == [2**40 + place for place in np.flatnonzero(found.rows >= 24)]


def test_tags_stand_in_the_order_of_the_config(made: Made) -> None:
    tags = [{"tag": "<y>", "corpora": ["b"]}, {"tag": "<x>"}]
    found = made.texts(Augmenter(made.config(tags=tags)).augmented(made.shard, 0))
    assert found[9] == (f"<x> {PAIRS[9][0]}", PAIRS[9][1])
    assert found[10] == (f"<y> <x> {PAIRS[10][0]}", PAIRS[10][1])


def test_weights_are_those_of_the_rows_corpora(made: Made) -> None:
    found = Augmenter(made.config(typos=1.0)).augmented(made.shard, 0, {"a": 1.0, "b": 2.0, "c": 7.0})
    assert found.made.row_id.tolist() == [2**40 + row for row in range(24) for _ in range(1 if row < 10 else 2)]


def test_held_rows_are_the_trainable_ones_each_as_often_as_its_weight() -> None:
    config = EpochConfig(seed=1, max_pieces=9, augment=AugmentConfig(), tokenizer="")
    row_id = np.asarray([70, 71, 72])
    trainable = trainable_rows(np.asarray([3, 10, 9]), np.asarray([9, 3, 2]), 9)
    assert trainable.tolist() == [0, 2]
    rows, keys = held_rows(config, 4, row_id, trainable, None)
    assert rows.tolist() == [0, 2]
    assert keys.tolist() == row_keys(1, 4, np.asarray([70, 72])).tolist()
    rows, keys = held_rows(config, 4, row_id, trainable, np.asarray([2.0, 5.0, 3.0]))
    assert rows.tolist() == [0, 0, 2, 2, 2]
    assert keys.tolist() == row_keys(1, 4, row_id[rows], np.asarray([0, 1, 0, 1, 2])).tolist()


@pytest.mark.parametrize("weight", [1.0, 0.4, 3.3, 359.7])
def test_shares_that_are_a_whole_have_each_copy_once_and_each_its_part(weight: float) -> None:
    config = EpochConfig(seed=1, max_pieces=9, augment=AugmentConfig(), tokenizer="")
    row_id, every = np.arange(3000), np.arange(3000)
    weights = np.full(3000, weight)
    rows, keys = held_rows(config, 4, row_id, every, weights)
    found = []
    for part in range(7):
        share = np.broadcast_to((part / 7, (part + 1) / 7), (3000, 2))
        found.append(held_rows(config, 4, row_id, every, weights, share))
        # Of a row that stands t times each share has t / 7 copies, cut up or down.
        times = np.bincount(rows, minlength=3000) / 7
        assert np.abs(np.bincount(found[-1][0], minlength=3000) - times).max() < 1.0
        assert len(found[-1][0]) == pytest.approx(len(rows) / 7, abs=5 * np.sqrt(3000 / 7))
    together, their_keys = (np.concatenate(parts) for parts in zip(*found))
    assert sorted(zip(together.tolist(), their_keys.tolist())) == sorted(zip(rows.tolist(), keys.tolist()))


def test_the_last_share_has_a_rows_last_copy_wherever_its_first_is_drawn() -> None:
    keys = row_keys(1, 0, np.arange(200_000))
    for times in (1, 359, 2**20):
        whole = copies_within(np.broadcast_to(WHOLE, (len(keys), 2)), np.full(len(keys), times), keys)
        assert [set(bound.tolist()) for bound in whole] == [{0}, {times}]


def test_a_rows_copy_becomes_the_same_in_whichever_share_it_is(made: Made) -> None:
    augmenter = Augmenter(made.config(typos=0.5, noise_rows=0.5))
    weights = {"a": 2.5, "b": 0.5}
    whole = augmenter.augmented(made.shard, 3, weights)
    parts = [augmenter.augmented(made.shard, 3, weights, (part / 3, (part + 1) / 3)) for part in range(3)]
    assert sorted(text for part in parts for text in made.texts(part)) == sorted(made.texts(whole))
    assert sum(part.stayed for part in parts) == whole.stayed
    assert all(part.rows.size for part in parts)


def test_repetitions_are_the_whole_part_and_a_chance_of_the_rest() -> None:
    keys = row_keys(1, 0, np.arange(10_000))
    assert repetitions(np.full(10_000, 1.0), keys).tolist() == [1] * 10_000
    found = repetitions(np.full(10_000, 3.2), keys)
    assert set(found.tolist()) == {3, 4}
    assert found.mean() == pytest.approx(3.2, abs=0.02)


@pytest.mark.parametrize("tag", ["<z>", "The house", "漢"])
def test_a_tag_must_be_one_piece(made: Made, tag: str) -> None:
    assert len(tag_ids("<x>", made.tokenizer)) == 1
    with pytest.raises(InputError, match=r"augment\.tags: the tag .* is no symbol of the tokeniser"):
        tag_ids(tag, made.tokenizer)


def answers(config: EpochConfig, requests: Sequence[dict[str, Any]]) -> io.BytesIO:
    lines = "".join(f"{json.dumps(request)}\n" for request in requests)
    output = io.BytesIO()
    serve(io.StringIO(f"{config.model_dump_json()}\n{lines}"), output)
    output.seek(0)
    return output


def test_what_a_helper_answers_is_what_the_shard_gives(made: Made) -> None:
    config = made.config(typos=0.5, noise_rows=0.5, sampling={"source": 0.5})
    weights: dict[int, dict[str, float] | None] = {2: {"a": 1.5, "b": 1.0}, 0: {"a": 0.0, "b": 0.5}, 1: None}
    shares = {2: (0.5, 1.0), 0: WHOLE, 1: (1 / 3, 2 / 3)}
    requests = [
        {"shard": str(made.shard), "epoch": epoch, "weights": weights[epoch], "share": shares[epoch]}
        for epoch in weights
    ]
    stream = answers(config, requests)
    for epoch in weights:
        found = read_answer(stream)
        expected = Augmenter(config).augmented(made.shard, epoch, weights[epoch], shares[epoch])
        assert np.array_equal(found.rows, expected.rows)
        assert found.stayed == expected.stayed
        for name, values in vars(expected.made).items():
            assert np.array_equal(getattr(found.made, name), values)
            assert getattr(found.made, name).dtype == values.dtype
    with pytest.raises(RuntimeError, match="has ended"):
        read_answer(stream)


def test_what_an_interrupted_helper_leaves_is_no_answer(made: Made) -> None:
    request = {"shard": str(made.shard), "epoch": 0, "weights": None, "share": WHOLE}
    whole = answers(made.config(typos=1.0), [request]).getvalue()
    with pytest.raises(RuntimeError, match="has ended"):
        read_answer(io.BytesIO(whole[:-8]))
