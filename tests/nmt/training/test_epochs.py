"""The rows of an epoch: how often each stands in it, what it becomes, and that nothing else decides it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nmt.batches import plan_epoch, target_tokens
from nmt.config import Side, TrainConfig
from nmt.training.epochs import Epochs, RowCounts, Window
from nmt.training.mixing import Curriculum
from pipelines.augment import Augmentation, Change, Pair, noise_text
from pipelines.config import AugmentConfig, LanguagesConfig, TokenizerConfig
from pipelines.draws import Draws, derived, row_keys
from pipelines.epoch_rows import repetitions
from pipelines.errors import InputError
from pipelines.segmentation import Sampler
from pipelines.shards import SCHEMA, Shard, ShardColumns, read_rows, read_shards, write_shard
from pipelines.tokenizer import JOINT_MODEL, UNK_ID, Tokenizer, save_tokenizer, train_model

NOUNS = {"house": "Haus", "boat": "Boot", "dress": "Kleid", "book": "Buch", "village": "Dorf", "castle": "Schloss"}
COLOURS = {"red": "rot", "blue": "blau", "green": "grün", "white": "weiß", "old": "alt", "small": "klein"}
PAIRS = [
    Pair(f"The {noun} is {colour}.", f"{wort} ist {farbe}.")
    for noun, wort in NOUNS.items()
    for colour, farbe in COLOURS.items()
]
CONFIG = TrainConfig(seed=3, max_epochs=4, microbatch_tokens=300, microbatches_per_update=2, max_pieces=80)
ALL: dict[str, Any] = {
    "upper_case": 0.2, "title_case": 0.2, "no_end_punctuation": 0.3, "typos": 0.3, "merge": 0.2, "noise_words": 0.2,
    "noise_rows": 0.2, "tags": [{"tag": "<b>", "corpora": ["b"], "rate": 0.5}, {"tag": "<x>", "rate": 0.3}],
    "sampling": {"source": 0.3, "target": 0.3, "unigram_alpha": 0.3},
}  # fmt: skip


@dataclass(frozen=True)
class Encoded:
    """Shards of train in a folder, with what they were made of."""

    folder: Path
    tokenizer: Tokenizer
    rows: list[tuple[str, Pair]]

    @property
    def shards(self) -> ShardColumns:
        return read_shards(self.folder, self.tokenizer.digest)

    def epochs(
        self,
        augment: dict[str, Any] | None = None,
        config: TrainConfig = CONFIG,
        weights: dict[str, float] | None = None,
        helpers: int = 1,
        side: Side | None = None,
        curriculum: Curriculum | None = None,
    ) -> Epochs:
        found, tokenizer = AugmentConfig.model_validate(augment or {}), self.folder.parent / "tokenizer"
        return Epochs(
            config, found, weights or {}, self.folder, tokenizer, curriculum=curriculum, helpers=helpers, side=side
        )


def encoded(
    folder: Path, parts: Sequence[Sequence[tuple[str, Pair]]], *, with_text: bool = True, **config: Any
) -> Encoded:
    """Write each part as a shard; its rows are pairs with their corpora."""
    config = {"vocab_size": 308, "byte_fallback": True, "symbols": ("<b>", "<x>"), "character_coverage": 1.0} | config
    fitted = TokenizerConfig.model_validate(config)
    (folder / "tokenizer").mkdir()
    sentences = [text for pair in PAIRS for text in pair]
    languages = LanguagesConfig(source="en", target="de")
    save_tokenizer(folder / "tokenizer", {JOINT_MODEL: train_model(sentences, fitted)}, languages, fitted)
    tokenizer = Tokenizer.load(folder / "tokenizer")
    (folder / "train").mkdir()
    for number, part in enumerate(parts):
        src, tgt = [pair.src for _, pair in part], [pair.tgt for _, pair in part]
        columns = {
            "row_id": pa.array([number * 1000 + row for row in range(len(part))], pa.int64()),
            "corpus": [corpus for corpus, _ in part],
            "src": tokenizer.encode_source(src),
            "tgt": tokenizer.encode_target(tgt),
            "src_text": src,
            "tgt_text": tgt,
        }
        path = folder / "train" / f"part-{number:05d}.parquet"
        write_shard(path, pa.table(columns), tokenizer.digest, with_text=with_text)
    return Encoded(folder / "train", tokenizer, [row for part in parts for row in part])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Encoded:
    """20 rows of a and 16 of b, in three shards of which the second holds both."""
    rows = [("a" if number < 20 else "b", pair) for number, pair in enumerate(PAIRS)]
    return encoded(tmp_path_factory.mktemp("corpus"), [rows[:12], rows[12:25], rows[25:]])


def contents(epoch: Window) -> list[tuple[list[int], list[int]]]:
    """The ids of the rows that an epoch holds."""
    sides = zip(epoch.sources(epoch.rows), epoch.targets(epoch.rows))
    return [(src.tolist(), tgt.tolist()) for src, tgt in sides]


def texts(corpus: Encoded, epoch: Window) -> list[Pair]:
    """The texts of the rows that an epoch holds."""
    src, tgt = zip(*contents(epoch))
    return list(map(Pair, corpus.tokenizer.decode_source(src), corpus.tokenizer.decode_target(tgt)))


def is_noise(epoch: Window) -> list[bool]:
    """Which of the rows that an epoch holds are noise: those that were made of no row of the shards."""
    row_id = np.concatenate([epoch.shards.row_id, epoch.made.row_id])
    return [number == -1 for number in row_id[epoch.rows].tolist()]


def of_one(corpus: Encoded, number: int, **augment: Any) -> list[Pair]:
    with corpus.epochs(augment) as epochs:
        return texts(corpus, epochs.window(number))


def test_without_changes_an_epoch_is_the_rows_of_the_shards_in_the_plan_of_old(corpus: Encoded) -> None:
    shards = corpus.shards
    src, tgt, every = shards.src_lengths(), shards.tgt_lengths(), np.arange(36)
    for weights in ({}, {"a": 1.0}):
        with corpus.epochs(weights=weights) as epochs:
            assert epochs.counts() == RowCounts(36, 0, exact=True)
            assert epochs.num_windows(0) == 1
            for number in range(3):
                epoch = epochs.window(number)
                assert len(epoch.made) == 0
                assert texts(corpus, epoch) == PAIRS
                plan = plan_epoch(CONFIG, number, src, tgt, every)
                found = [[batch.tolist() for batch in update] for update in epoch.updates]
                assert found == [[batch.tolist() for batch in update] for update in plan]


def expected_row(corpus: Encoded, augment: AugmentConfig, epoch: int, row: int) -> tuple[list[int], list[int]]:
    """What a row becomes, by itself."""
    augmentation, tokenizer = Augmentation(augment, "en", "de"), corpus.tokenizer
    parts = [(0, 12), (12, 25), (25, 36)]
    part, (first, stop) = next((n, bounds) for n, bounds in enumerate(parts) if bounds[0] <= row < bounds[1])
    keys = row_keys(CONFIG.seed, epoch, np.asarray([part * 1000 + row - first]))
    name, pair = corpus.rows[row]
    follows = row + 1 < stop and corpus.rows[row + 1][0] == name
    chosen = augmentation.chosen(keys)
    (after,) = augmentation.changed(chosen, keys, [pair], [corpus.rows[row + 1][1] if follows else None])
    (src,), (tgt,) = tokenizer.encode_source([after.src]), tokenizer.encode_target([after.tgt])
    for change, ids, text, vocabulary in (
        (Change.SAMPLED_SOURCE, src, after.src, tokenizer.source_vocabulary()),
        (Change.SAMPLED_TARGET, tgt, after.tgt, tokenizer.target_vocabulary()),
    ):
        if chosen[0] & change:
            (drawn,) = Sampler(vocabulary, 0.3).sample([text], derived(keys, change.name))
            ids[:-1] = drawn.tolist()
    tagged = augmentation.tagged(keys, ["a", "b"], np.asarray([0 if name == "a" else 1], dtype=np.int32))
    tags = [tag.tag for tag, has_tag in zip(augment.tags, tagged) if has_tag[0]]
    src = [ids[0] for ids in tokenizer.encode_source(tags)] + src
    if max(len(src), len(tgt)) > CONFIG.max_pieces:
        return tokenizer.encode_source([pair.src])[0], tokenizer.encode_target([pair.tgt])[0]
    return src, tgt


def test_each_row_becomes_what_it_becomes_by_itself(corpus: Encoded) -> None:
    augment = AugmentConfig.model_validate(ALL)
    with corpus.epochs(ALL) as epochs:
        for number in range(3):
            epoch = epochs.window(number)
            found = contents(epoch)
            own = [row for row, noise in zip(found, is_noise(epoch)) if not noise]
            assert own == [expected_row(corpus, augment, number, row) for row in range(36)]
            assert len(found) > 36
            assert all(len(src) <= 80 and len(tgt) <= 80 for src, tgt in found)


def test_an_epoch_is_the_same_whenever_it_is_prepared(corpus: Encoded) -> None:
    def all_of(epoch: Window) -> Any:
        return contents(epoch), [[batch.tolist() for batch in update] for update in epoch.updates]

    with corpus.epochs(ALL, weights={"a": 1.5, "b": 0.7}) as epochs:
        epochs.total_updates()
        in_order = [all_of(epochs.window(number)) for number in range(4)]
    assert len({str(epoch) for epoch in in_order}) == 4
    for number in (2, 0, 3, 1):
        with corpus.epochs(ALL, weights={"b": 0.7, "a": 1.5}) as epochs:
            assert all_of(epochs.window(number)) == in_order[number]


def test_the_plan_knows_the_lengths_of_what_rows_become(corpus: Encoded) -> None:
    with corpus.epochs(ALL) as epochs:
        epoch = epochs.window(0)
    batches = [batch for update in epoch.updates for batch in update]
    assert sorted(np.concatenate(batches).tolist()) == sorted(epoch.rows.tolist())
    for batch in batches:
        src, tgt = ([len(ids) for ids in side] for side in (epoch.sources(batch), epoch.targets(batch)))
        assert epoch.src_lengths[batch].tolist() == src
        assert epoch.tgt_lengths[batch].tolist() == tgt
        assert len(batch) * max(*src, *tgt) <= CONFIG.microbatch_tokens
    tokens = sum(target_tokens(update, epoch.tgt_lengths) for update in epoch.updates)
    assert tokens == sum(len(tgt) for _, tgt in contents(epoch))


def test_other_rows_follow_only_within_their_corpus_and_shard(corpus: Encoded) -> None:
    merged = of_one(corpus, 0, merge=1.0)
    for row, pair in enumerate(merged):
        alone = row in (11, 19, 24, 35)
        follower = Pair("", "") if alone else PAIRS[row + 1]
        assert pair == tuple(f"{own} {other}".strip() for own, other in zip(PAIRS[row], follower))


def test_a_row_that_would_be_too_long_stays_as_it_was(corpus: Encoded) -> None:
    lengths = np.maximum(corpus.shards.src_lengths(), corpus.shards.tgt_lengths())
    config = CONFIG.model_copy(update={"max_pieces": int(lengths.max())})
    with corpus.epochs({"merge": 1.0}, config) as epochs:
        epoch = epochs.window(0)
    assert texts(corpus, epoch) == PAIRS
    assert (len(epoch.made), epoch.stayed) == (0, 32)


def test_rows_too_long_for_training_are_in_no_epoch_and_still_follow(corpus: Encoded, tmp_path: Path) -> None:
    long = Pair("red " * 60 + ".", "rot " * 60 + ".")
    found = encoded(tmp_path, [[("a", PAIRS[0]), ("a", long), ("a", PAIRS[1]), ("a", PAIRS[2])]])
    with found.epochs({"merge": 1.0}) as epochs:
        assert epochs.counts() == RowCounts(3, 1, exact=True)
        joined = Pair(f"{PAIRS[1].src} {PAIRS[2].src}", f"{PAIRS[1].tgt} {PAIRS[2].tgt}")
        assert texts(found, epochs.window(0)) == [PAIRS[0], joined, PAIRS[2]]


def test_a_row_whose_target_would_be_unknown_stays_as_it_was(tmp_path: Path) -> None:
    rows = [[("a", pair) for pair in PAIRS]]
    found = encoded(tmp_path, rows, vocab_size=50, byte_fallback=False)
    with found.epochs({"upper_case": 1.0, "noise_rows": 1.0}) as epochs:
        epoch = epochs.window(0)
    assert [pair for pair, noise in zip(texts(found, epoch), is_noise(epoch)) if not noise] == PAIRS
    assert epoch.stayed == 72 - len(epoch.made)
    assert not any(UNK_ID in tgt for _, tgt in contents(epoch))


def test_rows_of_noise_are_the_same_on_both_sides(corpus: Encoded) -> None:
    with corpus.epochs({"noise_rows": 0.5}) as epochs:
        epoch = epochs.window(1)
    found, added = texts(corpus, epoch), is_noise(epoch)
    keys = row_keys(CONFIG.seed, 1, corpus.shards.row_id)
    noisy = Augmentation(AugmentConfig(noise_rows=0.5), "en", "de").noise_rows(keys)
    noise = [noise_text(Draws(int(key))) for key in derived(keys[noisy], "within noise row")]
    assert [pair for pair, is_added in zip(found, added) if not is_added] == PAIRS
    assert 8 < len(noise) < 28
    short = [text for text in noise if len(corpus.tokenizer.encode_source([text])[0]) <= CONFIG.max_pieces]
    assert [pair for pair, is_added in zip(found, added) if is_added] == [Pair(text, text) for text in short]


def test_tags_alone_need_no_text(tmp_path: Path) -> None:
    rows = [[("a", PAIRS[0]), ("b", PAIRS[1])], [("b", PAIRS[2])]]
    found = encoded(tmp_path, rows, with_text=False)
    tags = [{"tag": "<x>"}, {"tag": "<b>", "corpora": ["b"]}]
    with found.epochs({"tags": tags}) as epochs:
        epoch = epochs.window(0)
    assert [pair.src for pair in texts(found, epoch)] == [
        f"<x> {PAIRS[0].src}", f"<x> <b> {PAIRS[1].src}", f"<x> <b> {PAIRS[2].src}",
    ]  # fmt: skip
    assert [pair.tgt for pair in texts(found, epoch)] == [pair.tgt for pair in PAIRS[:3]]


def test_whole_weights_repeat_rows_and_each_copy_is_changed_by_itself(corpus: Encoded) -> None:
    with corpus.epochs(weights={"a": 3.0}) as epochs:
        assert Counter(epochs.window(0).rows.tolist()) == {row: 3 if row < 20 else 1 for row in range(36)}
    with corpus.epochs({"typos": 1.0}, weights={"a": 3.0}) as epochs:
        found = texts(corpus, epochs.window(0))
    assert len(found) == 76
    assert sum(len(set(found[row * 3 : row * 3 + 3])) > 1 for row in range(20)) > 15


def test_broken_weights_are_met_on_average_and_differ_between_epochs(corpus: Encoded) -> None:
    config = CONFIG.model_copy(update={"max_epochs": 200})
    with corpus.epochs(config=config, weights={"a": 0.25, "b": 2.5}) as epochs:
        seen = [Counter(epochs.window(number).rows.tolist()) for number in range(200)]
    assert len({tuple(sorted(counts.items())) for counts in seen}) == 200
    for rows, weight in ((range(20), 0.25), (range(20, 36), 2.5)):
        times = [counts[row] for counts in seen for row in rows]
        assert set(times) == {int(weight), int(weight) + 1}
        assert np.mean(times) == pytest.approx(weight, abs=0.04)


def test_the_schedule_counts_on_the_first_epochs_updates(corpus: Encoded) -> None:
    with corpus.epochs(ALL, weights={"a": 0.5}) as epochs:
        assert epochs.total_updates() == 4 * len(epochs.window(0).updates)


def test_an_epoch_without_a_row_is_refused_before_the_first_one(tmp_path: Path) -> None:
    found = encoded(tmp_path, [[("a", PAIRS[0]), ("b", PAIRS[1])]])
    drawn = [repetitions(np.asarray([0.5]), row_keys(CONFIG.seed, epoch, np.arange(1))).tolist() for epoch in range(9)]
    empty = drawn.index([0])
    config = CONFIG.model_copy(update={"max_epochs": empty + 1})
    weights = {"a": 0.5, "b": 1e-9}
    with found.epochs(config=config, weights=weights) as epochs:
        message = rf"weight, from_epoch, until_epoch: the weights of the corpora leave epoch {empty + 1} without a row"
        with pytest.raises(InputError, match=message):
            epochs.counts()
    with found.epochs(config=config, weights={"a": 0.5}) as epochs:
        assert epochs.counts() == RowCounts(2, 0, exact=True)
    with pytest.raises(InputError, match=r"until_epoch: no corpus of train takes part in epoch 3\..*max_epochs: 2"):
        found.epochs(curriculum={"a": (1, 2), "b": (4, None)})
    with pytest.raises(InputError, match=r"no corpus of train takes part in epoch 1\. Let one take part in it"):
        found.epochs(curriculum={"a": (2, 4), "b": (2, None)})


# Windows

SMALL = CONFIG.model_copy(update={"window_rows": 9, "microbatch_tokens": 60})


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Encoded:
    """36 rows in 12 shards of 3: 8 of a, and 4 of b."""
    rows = [("a" if number < 24 else "b", pair) for number, pair in enumerate(PAIRS)]
    return encoded(tmp_path_factory.mktemp("pieces"), [rows[start : start + 3] for start in range(0, 36, 3)])


def windows_of(epochs: Epochs, epoch: int) -> list[Window]:
    """All windows of an epoch, each asked for after the one before it."""
    return [epochs.window(epoch, number) for number in range(epochs.num_windows(epoch))]


def test_each_row_is_in_one_window_of_an_epoch_and_each_window_mixes_the_corpora(pieces: Encoded) -> None:
    orders = set()
    with pieces.epochs(config=SMALL) as epochs:
        for epoch in range(4):
            windows = windows_of(epochs, epoch)
            assert [(found.epoch, found.number, found.last) for found in windows] == [
                (epoch, 0, False), (epoch, 1, False), (epoch, 2, False), (epoch, 3, True),
            ]  # fmt: skip
            assert [len(found.shards) for found in windows] == [9] * 4
            rows = np.concatenate([found.shards.row_id[found.rows] for found in windows])
            assert sorted(rows.tolist()) == sorted(pieces.shards.row_id.tolist())
            # Of 12 shards in runs of 4, the last run is the corpus b.
            assert [sum(row // 1000 >= 8 for row in found.shards.row_id.tolist()) for found in windows] == [3] * 4
            planned = [np.sort(np.concatenate([np.concatenate(u) for u in found.updates])) for found in windows]
            assert [places.tolist() for places in planned] == [[*range(9)]] * 4
            orders.add(str(rows.tolist()))
    assert len(orders) == 4


@pytest.mark.parametrize("augment", [{}, ALL], ids=["plain", "augmented"])
def test_a_window_is_the_same_whenever_it_is_prepared(pieces: Encoded, augment: dict[str, Any]) -> None:
    def all_of(found: Window) -> Any:
        return contents(found), [[batch.tolist() for batch in update] for update in found.updates]

    with pieces.epochs(augment, SMALL, {"a": 1.5}) as epochs:
        in_order = [[all_of(found) for found in windows_of(epochs, epoch)] for epoch in range(2)]
    assert len({str(window) for windows in in_order for window in windows}) == 12
    for epoch, number in ((1, 2), (0, 5), (1, 0)):
        with pieces.epochs(augment, SMALL, {"a": 1.5}, helpers=2) as epochs:
            assert all_of(epochs.window(epoch, number)) == in_order[epoch][number]
            # From there it goes on, over the end of an epoch too.
            following = (epoch, number + 1) if number < 5 else (epoch + 1, 0)
            assert all_of(epochs.window(*following)) == in_order[following[0]][following[1]]


@pytest.mark.parametrize("augment", [{}, ALL], ids=["plain", "augmented"])
def test_windows_decide_the_order_of_an_epochs_rows_and_not_what_they_are(
    pieces: Encoded, augment: dict[str, Any]
) -> None:
    weights = {"a": 0.6, "b": 2.5}
    for epoch in range(2):
        with pieces.epochs(augment, CONFIG, weights) as whole, pieces.epochs(augment, SMALL, weights) as cut:
            together = contents(whole.window(epoch))
            assert whole.num_windows(epoch) == 1
            assert sorted(row for found in windows_of(cut, epoch) for row in contents(found)) == sorted(together)


def test_the_next_window_is_read_while_one_is_trained_on_and_no_further(
    pieces: Encoded, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def noted(shards: Sequence[Shard], corpora: Sequence[str]) -> Any:
        read.extend(shard.path.name for shard in shards)
        return read_rows(shards, corpora)

    monkeypatch.setattr("nmt.training.epochs.read_rows", noted)
    with pieces.epochs(config=SMALL) as epochs:
        epochs.window(0, 0)
        deadline = time.monotonic() + 30
        while len(read) < 6 and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.05)
        assert len(read) == len(set(read)) == 6
        epochs.window(0, 1)
    read.clear()
    with pieces.epochs() as epochs:  # of one window nothing is read twice
        epochs.counts()
        epochs.total_updates()
        for epoch in range(3):
            epochs.window(epoch)
    assert sorted(read) == sorted(path.name for path in pieces.folder.iterdir())


def test_what_goes_wrong_with_the_next_window_is_raised_when_it_is_asked_for(pieces: Encoded, tmp_path: Path) -> None:
    for path in pieces.folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    tokenizer = pieces.folder.parent / "tokenizer"
    with Epochs(SMALL, AugmentConfig(), {}, tmp_path, tokenizer) as epochs:
        for path in tmp_path.iterdir():
            if path.name not in {f"part-{shard:05d}.parquet" for shard in epochs._windows(0)[0]}:
                path.unlink()
        epochs.window(0, 0)
        with pytest.raises(FileNotFoundError, match=r"part-000\d\d\.parquet"):
            epochs.window(0, 1)


def test_rows_and_updates_are_estimated_from_the_first_window_where_there_are_several(tmp_path: Path) -> None:
    long, short = Pair("red " * 60 + ".", "rot " * 60 + "."), PAIRS[0]
    # One row in three of a is too long, of b none; b has no shard in the first window of some seeds.
    parts = [[("a", short), ("a", long), ("a", short)] * 20] * 12 + [[("b", short)] * 30]
    found = encoded(tmp_path, parts)
    for seed in range(6):
        config = SMALL.model_copy(update={"seed": seed, "window_rows": 180})
        with found.epochs(config=config) as epochs:
            assert epochs.counts() == RowCounts(480 + 30, 240, exact=False)
            total = epochs.total_updates()
            updates = sum(len(window.updates) for epoch in range(4) for window in windows_of(epochs, epoch))
        assert total == pytest.approx(updates, rel=0.1)
        with found.epochs(config=config) as epochs:
            epochs.window(2, 1)
            assert epochs.total_updates() == total


def test_where_no_row_of_the_first_window_is_short_enough_others_are_looked_at(tmp_path: Path) -> None:
    long, short = Pair("red " * 60 + ".", "rot " * 60 + "."), PAIRS[0]
    found = encoded(tmp_path, [[("a", long)] * 30, [("a", short)] * 30, [("a", short)] * 30])
    totals = set()
    for seed in range(6):
        with found.epochs(config=SMALL.model_copy(update={"seed": seed, "window_rows": 30})) as epochs:
            updates = [len(window.updates) for epoch in range(4) for window in windows_of(epochs, epoch)]
            counts = epochs.counts()
            total = epochs.total_updates()
        if updates[0]:
            assert (counts, total) == (RowCounts(90, 0, exact=False), 12 * updates[0])
        else:  # of two shards one row in two is short enough
            assert counts == RowCounts(45, 45, exact=False)
            assert total == 4 * round(updates[1] * 1.5)
        totals.add(total)
    assert len(totals) == 2


def test_where_the_first_window_draws_no_row_others_are_looked_at(pieces: Encoded) -> None:
    weights = {"a": 0.03, "b": 0.03}
    empty = 0
    for seed in range(10):
        config = SMALL.model_copy(update={"seed": seed, "max_epochs": 40})
        with pieces.epochs(config=config, weights=weights) as epochs:
            total = epochs.total_updates()
            windows = [len(window.updates) for window in windows_of(epochs, 0)]
        empty += not windows[0] and any(windows)
        first = next((place for place, updates in enumerate(windows) if updates), None)
        assert total == (1 if first is None else 40 * round(windows[first] * 4 / (first + 1)))
    assert empty > 2


def test_the_longest_row_is_known_where_all_are_read_and_stay_as_they_are(pieces: Encoded) -> None:
    longest = int(np.maximum(pieces.shards.src_lengths(), pieces.shards.tgt_lengths()).max())
    curriculum: Curriculum = {"b": (2, None)}
    for options, expected in (
        ({}, longest),
        ({"curriculum": curriculum, "weights": {"a": 0.5}}, longest),
        ({"config": CONFIG.model_copy(update={"max_pieces": longest - 1})}, longest - 1),
        ({"config": SMALL}, 80),
        ({"augment": {"merge": 0.1}}, 80),
        ({"side": "source"}, int(pieces.shards.src_lengths().max())),
    ):
        with pieces.epochs(**options) as epochs:
            epochs.window(0)
            assert epochs.longest() == expected


# Corpora that are seen more than once, or have few shards, in several windows


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Encoded:
    """480 rows of crawl in 40 shards, and 6 rows of captions in one, their last."""
    rows = [("crawl", PAIRS[number % 30]) for number in range(480)]
    parts = [rows[start : start + 12] for start in range(0, 480, 12)]
    return encoded(tmp_path_factory.mktemp("uneven"), [*parts, [("captions", pair) for pair in PAIRS[30:]]])


def row_ids(window: Window) -> list[int]:
    """The row_id of each row that a window holds, in order; -1 is noise."""
    return sorted(np.concatenate([window.shards.row_id, window.made.row_id])[window.rows].tolist())


@pytest.mark.parametrize("augment", [{}, ALL], ids=["plain", "augmented"])
@pytest.mark.parametrize(
    ("weights", "temperature", "epochs_of_captions"),
    [
        ({"captions": 20.0}, 1.0, (1, None)),
        ({}, 5.0, (1, None)),
        ({}, 1.0, (1, None)),
        ({"captions": 9.5}, 1.0, (2, 2)),
    ],
    ids=["weight", "temperature", "one shard", "curriculum"],
)
def test_a_corpus_of_one_shard_is_in_every_window_in_its_share_and_the_epoch_is_the_same(
    uneven: Encoded,
    augment: dict[str, Any],
    weights: dict[str, float],
    temperature: float,
    epochs_of_captions: tuple[int, int | None],
) -> None:
    config = CONFIG.model_copy(update={"temperature": temperature, "microbatch_tokens": 60, "max_pieces": 60})
    cut = config.model_copy(update={"window_rows": 100})
    options: dict[str, Any] = {"weights": weights, "curriculum": {"captions": epochs_of_captions}}
    with uneven.epochs(augment, config, **options) as together, uneven.epochs(augment, cut, **options) as apart:
        for epoch in range(2):
            whole, windows = together.window(epoch), windows_of(apart, epoch)
            assert whole.last and len(windows) > 4
            assert sorted(row for found in windows for row in row_ids(found)) == row_ids(whole)
            assert sorted(row for found in windows for row in contents(found)) == sorted(contents(whole))
            assert sum(found.stayed for found in windows) == whole.stayed
            held = [[row for row in row_ids(found) if row >= 0] for found in windows]
            captions = [sum(row >= 40_000 for row in rows) for rows in held]
            share = sum(captions) / len(windows)
            # Of each of the 6 rows a window has its part of the copies, cut up or down.
            assert all(abs(number - share) < 6 for number in captions)
            assert all(captions) or share < 6
            assert max(map(len, held)) <= 120
            assert all(len(found.shards) <= 120 for found in windows)


@pytest.mark.parametrize("augment", [{}, ALL], ids=["plain", "augmented"])
def test_a_window_of_shares_is_the_same_whenever_it_is_prepared(uneven: Encoded, augment: dict[str, Any]) -> None:
    config = SMALL.model_copy(update={"window_rows": 100, "max_pieces": 60})
    with uneven.epochs(augment, config, {"captions": 20.0}) as epochs:
        epochs.counts()
        epochs.total_updates()
        in_order = [contents(found) for found in windows_of(epochs, 1)]
    with uneven.epochs(augment, config, {"captions": 20.0}, helpers=2) as epochs:
        assert contents(epochs.window(1, 3)) == in_order[3]
        assert contents(epochs.window(1, 4)) == in_order[4]
    assert len({str(sorted(found)) for found in in_order}) == len(in_order)


def test_updates_are_estimated_where_the_first_window_has_shares(uneven: Encoded) -> None:
    config = SMALL.model_copy(update={"window_rows": 100})
    with uneven.epochs(config=config, weights={"captions": 20.0}) as epochs:
        total = epochs.total_updates()
        updates = sum(len(window.updates) for epoch in range(4) for window in windows_of(epochs, epoch))
        assert epochs.counts() == RowCounts(486, 0, exact=False)
    assert total == pytest.approx(updates, rel=0.05)


def test_a_corpus_takes_part_in_its_epochs_and_the_others_read_none_of_its_shards(pieces: Encoded) -> None:
    curriculum: Curriculum = {"a": (1, 2), "b": (2, None)}
    with pieces.epochs(curriculum=curriculum) as epochs:
        rows = [epochs.window(epoch).shards.row_id for epoch in range(4)]
        updates = [len(epochs.window(epoch).updates) for epoch in range(4)]
        assert epochs.counts() == RowCounts(36, 0, exact=True)
        total = epochs.total_updates()
    assert [sorted({row // 1000 for row in of_epoch.tolist()}) for of_epoch in rows] == [
        [*range(8)], [*range(12)], [*range(8, 12)], [*range(8, 12)],
    ]  # fmt: skip
    # 24 rows, then 36, then twice 12, all of them about as long.
    assert total == pytest.approx(sum(updates), abs=2)


def test_temperature_makes_the_rows_of_a_small_corpus_more_frequent(pieces: Encoded) -> None:
    config = CONFIG.model_copy(update={"temperature": 5.0, "max_epochs": 100})
    with pieces.epochs(config=config) as epochs:
        seen = [epochs.window(epoch) for epoch in range(100)]
    assert np.mean([len(window.rows) for window in seen]) == pytest.approx(36, abs=0.5)
    of_a = np.mean([sum(window.shards.row_id[window.rows] < 8000) for window in seen])
    assert of_a == pytest.approx(36 * 24**0.2 / (24**0.2 + 12**0.2), abs=0.5)


def test_shards_of_another_tokeniser_are_refused(pieces: Encoded, tmp_path: Path) -> None:
    other = encoded(tmp_path, [[("a", PAIRS[0])]], vocab_size=300)
    with pytest.raises(InputError, match=r"part-00000\.parquet: encoded by the tokeniser"):
        Epochs(CONFIG, AugmentConfig(), {}, pieces.folder, other.folder.parent / "tokenizer")


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        ({"tags": [{"tag": "<unknown>"}]}, r"augment\.tags: the tag '<unknown>' is no symbol"),
        ({"typos": 0.1}, r"part-00000\.parquet: the shard holds no text"),
    ],
)
def test_what_the_tokeniser_or_the_shards_lack_is_an_input_error(
    tmp_path: Path, augment: dict[str, Any], message: str
) -> None:
    found = encoded(tmp_path, [[("a", PAIRS[0])]], with_text=False)
    with pytest.raises(InputError, match=message):
        found.epochs(augment)


def test_what_fails_in_a_helper_fails_the_epoch(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found = encoded(tmp_path, [[("a", pair) for pair in PAIRS]])
    with found.epochs({"typos": 1.0}) as epochs:
        table = pq.read_table(found.folder / "part-00000.parquet", columns=SCHEMA.names)
        write_shard(found.folder / "part-00000.parquet", table, found.tokenizer.digest)
        with pytest.raises(RuntimeError, match="the process that prepares the rows of epochs has ended"):
            epochs.window(0)
    assert "src_text" in capfd.readouterr().err


@pytest.mark.parametrize("augment", [{}, ALL], ids=["plain", "augmented"])
@pytest.mark.parametrize("side", ["source", "target"])
def test_an_epoch_of_one_side_has_that_side_of_the_same_rows(
    corpus: Encoded, side: Side, augment: dict[str, Any]
) -> None:
    with corpus.epochs(augment) as both, corpus.epochs(augment, side=side) as one:
        whole, found = both.window(1), one.window(1)
    assert found.rows.tolist() == whole.rows.tolist()
    kept = 0 if side == "source" else 1
    assert contents(found) == [([], row[kept]) for row in contents(whole)]
    assert found.tgt_lengths.tolist() == (whole.src_lengths if side == "source" else whole.tgt_lengths).tolist()
    assert not found.src_lengths.any()
    # Batches are planned by that side alone.
    sizes = [len(rows) * found.tgt_lengths[rows].max() for update in found.updates for rows in update]
    assert max(sizes) <= CONFIG.microbatch_tokens
    assert sorted(np.concatenate([rows for update in found.updates for rows in update])) == sorted(found.rows)


def test_any_number_of_helpers_prepares_the_same_epochs(corpus: Encoded) -> None:
    found = []
    for helpers in (1, 2, 5):
        with corpus.epochs(ALL, helpers=helpers) as epochs:
            found.append([contents(epochs.window(number)) for number in range(2)])
    assert found[0] == found[1] == found[2]


def test_helpers_end_with_the_epochs_and_with_the_process_that_started_them(corpus: Encoded) -> None:
    def children() -> set[int]:
        listed = [path.read_text().split() for path in Path("/proc/self/task").glob("*/children")]  # by thread
        return {int(pid) for of_thread in listed for pid in of_thread}

    before = children()
    with corpus.epochs(ALL, helpers=2) as epochs:
        epochs.window(0)  # the next one is begun, and never asked for
        assert len(children() - before) == 2
    assert children() == before
    arguments = [str(corpus.folder), str(corpus.folder.parent / "tokenizer")]
    process = subprocess.Popen([sys.executable, "-c", _STARTER, *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    helper = int(process.stdout.readline())
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 60
    while Path(f"/proc/{helper}").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not Path(f"/proc/{helper}").exists()


_STARTER = """
import sys, time
from pathlib import Path
from nmt.config import TrainConfig
from nmt.training.epochs import Epochs
from pipelines.config import AugmentConfig
folder, tokenizer = map(Path, sys.argv[1:])
epochs = Epochs(TrainConfig(), AugmentConfig(typos=1.0), {}, folder, tokenizer)
epochs.window(0)
print(epochs._processes.pids()[0], flush=True)
time.sleep(600)
"""
