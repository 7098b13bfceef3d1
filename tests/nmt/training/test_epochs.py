"""The rows of an epoch: how often each stands in it, what it becomes, and that nothing else decides it."""

from __future__ import annotations

import os
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
import pytest

from nmt.batches import plan_epoch, target_tokens
from nmt.config import Side, TrainConfig
from nmt.training.epochs import Epoch, Epochs
from pipelines.augment import Augmentation, Change, Pair, noise_text
from pipelines.config import AugmentConfig, LanguagesConfig, TokenizerConfig
from pipelines.draws import Draws, derived, row_keys
from pipelines.epoch_rows import repetitions
from pipelines.errors import InputError
from pipelines.segmentation import Sampler
from pipelines.shards import ShardColumns, read_shards, write_shard
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
    ) -> Epochs:
        found, tokenizer = AugmentConfig.model_validate(augment or {}), self.folder.parent / "tokenizer"
        return Epochs(config, found, weights or {}, self.folder, self.shards, tokenizer, helpers=helpers, side=side)


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


def contents(epoch: Epoch) -> list[tuple[list[int], list[int]]]:
    """The ids of the rows that an epoch holds."""
    sides = zip(epoch.sources(epoch.rows), epoch.targets(epoch.rows))
    return [(src.tolist(), tgt.tolist()) for src, tgt in sides]


def texts(corpus: Encoded, epoch: Epoch) -> list[Pair]:
    """The texts of the rows that an epoch holds."""
    src, tgt = zip(*contents(epoch))
    return list(map(Pair, corpus.tokenizer.decode_source(src), corpus.tokenizer.decode_target(tgt)))


def is_noise(epoch: Epoch) -> list[bool]:
    """Which of the rows that an epoch holds are noise: those that were made of no row of the shards."""
    row_id = np.concatenate([epoch.shards.row_id, epoch.made.row_id])
    return [number == -1 for number in row_id[epoch.rows].tolist()]


def of_one(corpus: Encoded, number: int, **augment: Any) -> list[Pair]:
    with corpus.epochs(augment) as epochs:
        return texts(corpus, epochs.epoch(number))


def test_without_changes_an_epoch_is_the_rows_of_the_shards_in_the_plan_of_old(corpus: Encoded) -> None:
    shards = corpus.shards
    src, tgt, every = shards.src_lengths(), shards.tgt_lengths(), np.arange(36)
    for weights in ({}, {"a": 1.0}):
        with corpus.epochs(weights=weights) as epochs:
            assert epochs.trainable.tolist() == every.tolist()
            for number in range(3):
                epoch = epochs.epoch(number)
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
            epoch = epochs.epoch(number)
            found = contents(epoch)
            own = [row for row, noise in zip(found, is_noise(epoch)) if not noise]
            assert own == [expected_row(corpus, augment, number, row) for row in range(36)]
            assert len(found) > 36
            assert all(len(src) <= 80 and len(tgt) <= 80 for src, tgt in found)


def test_an_epoch_is_the_same_whenever_it_is_prepared(corpus: Encoded) -> None:
    def all_of(epoch: Epoch) -> Any:
        return contents(epoch), [[batch.tolist() for batch in update] for update in epoch.updates]

    with corpus.epochs(ALL, weights={"a": 1.5, "b": 0.7}) as epochs:
        epochs.total_updates()
        in_order = [all_of(epochs.epoch(number)) for number in range(4)]
    assert len({str(epoch) for epoch in in_order}) == 4
    for number in (2, 0, 3, 1):
        with corpus.epochs(ALL, weights={"b": 0.7, "a": 1.5}) as epochs:
            assert all_of(epochs.epoch(number)) == in_order[number]


def test_the_plan_knows_the_lengths_of_what_rows_become(corpus: Encoded) -> None:
    with corpus.epochs(ALL) as epochs:
        epoch = epochs.epoch(0)
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
        epoch = epochs.epoch(0)
    assert texts(corpus, epoch) == PAIRS
    assert (len(epoch.made), epoch.stayed) == (0, 32)


def test_rows_too_long_for_training_are_in_no_epoch_and_still_follow(corpus: Encoded, tmp_path: Path) -> None:
    long = Pair("red " * 60 + ".", "rot " * 60 + ".")
    found = encoded(tmp_path, [[("a", PAIRS[0]), ("a", long), ("a", PAIRS[1]), ("a", PAIRS[2])]])
    with found.epochs({"merge": 1.0}) as epochs:
        assert epochs.trainable.tolist() == [0, 2, 3]
        joined = Pair(f"{PAIRS[1].src} {PAIRS[2].src}", f"{PAIRS[1].tgt} {PAIRS[2].tgt}")
        assert texts(found, epochs.epoch(0)) == [PAIRS[0], joined, PAIRS[2]]


def test_a_row_whose_target_would_be_unknown_stays_as_it_was(tmp_path: Path) -> None:
    rows = [[("a", pair) for pair in PAIRS]]
    found = encoded(tmp_path, rows, vocab_size=50, byte_fallback=False)
    with found.epochs({"upper_case": 1.0, "noise_rows": 1.0}) as epochs:
        epoch = epochs.epoch(0)
    assert [pair for pair, noise in zip(texts(found, epoch), is_noise(epoch)) if not noise] == PAIRS
    assert epoch.stayed == 72 - len(epoch.made)
    assert not any(UNK_ID in tgt for _, tgt in contents(epoch))


def test_rows_of_noise_are_the_same_on_both_sides(corpus: Encoded) -> None:
    with corpus.epochs({"noise_rows": 0.5}) as epochs:
        epoch = epochs.epoch(1)
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
        epoch = epochs.epoch(0)
    assert [pair.src for pair in texts(found, epoch)] == [
        f"<x> {PAIRS[0].src}", f"<x> <b> {PAIRS[1].src}", f"<x> <b> {PAIRS[2].src}",
    ]  # fmt: skip
    assert [pair.tgt for pair in texts(found, epoch)] == [pair.tgt for pair in PAIRS[:3]]


def test_whole_weights_repeat_rows_and_each_copy_is_changed_by_itself(corpus: Encoded) -> None:
    with corpus.epochs(weights={"a": 3.0}) as epochs:
        assert Counter(epochs.epoch(0).rows.tolist()) == {row: 3 if row < 20 else 1 for row in range(36)}
    with corpus.epochs({"typos": 1.0}, weights={"a": 3.0}) as epochs:
        found = texts(corpus, epochs.epoch(0))
    assert len(found) == 76
    assert sum(len(set(found[row * 3 : row * 3 + 3])) > 1 for row in range(20)) > 15


def test_broken_weights_are_met_on_average_and_differ_between_epochs(corpus: Encoded) -> None:
    config = CONFIG.model_copy(update={"max_epochs": 200})
    with corpus.epochs(config=config, weights={"a": 0.25, "b": 2.5}) as epochs:
        seen = [Counter(epochs.epoch(number).rows.tolist()) for number in range(200)]
    assert len({tuple(sorted(counts.items())) for counts in seen}) == 200
    for rows, weight in ((range(20), 0.25), (range(20, 36), 2.5)):
        times = [counts[row] for counts in seen for row in rows]
        assert set(times) == {int(weight), int(weight) + 1}
        assert np.mean(times) == pytest.approx(weight, abs=0.04)


def test_the_schedule_counts_on_the_first_epochs_updates(corpus: Encoded) -> None:
    with corpus.epochs(ALL, weights={"a": 0.5}) as epochs:
        assert epochs.total_updates() == 4 * len(epochs.epoch(0).updates)


def test_an_epoch_may_be_empty_but_not_the_first(tmp_path: Path) -> None:
    found = encoded(tmp_path, [[("a", PAIRS[0])]])
    config = CONFIG.model_copy(update={"max_epochs": 40})
    seed = next(n for n in range(50) if repetitions(np.asarray([0.5]), row_keys(n, 0, np.arange(1))).tolist() == [1])
    with found.epochs(config=config.model_copy(update={"seed": seed}), weights={"a": 0.5}) as epochs:
        updates = [len(epochs.epoch(number).updates) for number in range(40)]
    assert set(updates) == {0, 1}
    with pytest.raises(InputError, match="weights of the corpora leave an epoch without a row"):
        found.epochs(weights={"a": 1e-9})


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
        (found.folder / "part-00000.parquet").unlink()
        with pytest.raises(RuntimeError, match="the process that prepares the rows of epochs has ended"):
            epochs.epoch(0)
    assert "FileNotFoundError" in capfd.readouterr().err


@pytest.mark.parametrize("augment", [{}, ALL], ids=["plain", "augmented"])
@pytest.mark.parametrize("side", ["source", "target"])
def test_an_epoch_of_one_side_has_that_side_of_the_same_rows(
    corpus: Encoded, side: Side, augment: dict[str, Any]
) -> None:
    with corpus.epochs(augment) as both, corpus.epochs(augment, side=side) as one:
        whole, found = both.epoch(1), one.epoch(1)
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
            found.append([contents(epochs.epoch(number)) for number in range(2)])
    assert found[0] == found[1] == found[2]


def test_helpers_end_with_the_epochs_and_with_the_process_that_started_them(corpus: Encoded) -> None:
    def children() -> set[int]:
        return {int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()}

    before = children()
    with corpus.epochs(ALL, helpers=2) as epochs:
        epochs.epoch(0)  # the next one is begun, and never asked for
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
from pipelines.shards import read_shards
folder, tokenizer = map(Path, sys.argv[1:])
epochs = Epochs(TrainConfig(), AugmentConfig(typos=1.0), {}, folder, read_shards(folder), tokenizer)
epochs.epoch(0)
print(epochs._helpers._processes[0].pid, flush=True)
time.sleep(600)
"""
