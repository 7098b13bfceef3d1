"""The loop over updates, window by window: where it stands, and that it goes on from there."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from nmt.checkpoint import TrainState, read_state, training_checkpoints
from nmt.config import TrainConfig
from nmt.model.seq2seq import Seq2Seq
from nmt.train import train
from nmt.training import validator
from nmt.training.epochs import Epochs
from nmt.training.loop import _Training
from nmt.training.metrics import read_metrics
from nmt.training.record import Record
from nmt.training.run import Run
from nmt.training.step import World
from nmt.training.validation import Scores
from pipelines.config import AugmentConfig
from pipelines.shards import read_shards, write_shard
from pipelines.stage import StageResult, StageRun, run_stage
from pipelines.tokenizer import Tokenizer
from tests.nmt.conftest import ToyStages
from tests.nmt.toy_runs import CONFIG, MODEL, assert_bit_for_bit, assert_same_updates, broken_off_at, run_train

ROWS_PER_SHARD = 30
# The 240 rows of train are eight shards, and three windows.
WINDOWS = CONFIG.model_copy(update={"max_epochs": 3, "window_rows": 90, "log_updates": 1})


def cut_up(toy: ToyStages, root: Path, rows_per_shard: int, corpora: Sequence[str] = ()) -> ToyStages:
    """Return the toy stages with shards of so many rows, the last ones of these corpora."""
    digest = Tokenizer.load(toy.tokenizer.folder).digest

    def body(folder: Path) -> StageResult:
        shutil.copytree(toy.encoded.folder / "shards", folder / "shards")
        (whole,) = (folder / "shards" / "train").iterdir()
        table = pq.read_table(whole)
        whole.unlink()
        shards = [table.slice(first, rows_per_shard) for first in range(0, len(table), rows_per_shard)]
        for place, name in enumerate(corpora, len(shards) - len(corpora)):
            column = pa.array([name] * len(shards[place]))
            shards[place] = shards[place].set_column(table.column_names.index("corpus"), "corpus", column)
        for number, shard in enumerate(shards):
            write_shard(whole.with_name(f"part-{number:05d}.parquet"), shard, digest)
        return StageResult([], {})

    encoded = run_stage("encode", 1, {}, {}, root, body)
    return ToyStages(toy.cleaned, toy.tokenizer, encoded, toy.ray)


@pytest.fixture(scope="module")
def cut(toy: ToyStages, tmp_path_factory: pytest.TempPathFactory) -> ToyStages:
    """The toy stages with small shards."""
    return cut_up(toy, tmp_path_factory.mktemp("cut"), ROWS_PER_SHARD)


@pytest.fixture(scope="module")
def planned(cut: ToyStages) -> list[list[int]]:
    """The updates of each window of each epoch."""
    train = cut.encoded.folder / "shards" / "train"
    with Epochs(WINDOWS, AugmentConfig(), {}, train, cut.tokenizer.folder) as epochs:
        numbers = [range(epochs.num_windows(epoch)) for epoch in range(3)]
        return [[len(epochs.window(epoch, number).updates) for number in numbers[epoch]] for epoch in range(3)]


@pytest.fixture(scope="module")
def undisturbed(cut: ToyStages, tmp_path_factory: pytest.TempPathFactory) -> StageRun:
    return run_train(cut, tmp_path_factory.mktemp("undisturbed"), config=WINDOWS)


def state_of(folder: Path) -> TrainState:
    newest = training_checkpoints(folder / "checkpoints")[-1]
    return TrainState.model_validate_json((newest / "state.json").read_text(encoding="utf-8"))


def test_an_epoch_is_all_of_its_windows(undisturbed: StageRun, planned: list[list[int]], cut: ToyStages) -> None:
    assert [len(of_epoch) for of_epoch in planned] == [3, 3, 3]
    counters = undisturbed.manifest.counters
    assert counters["updates"] == sum(sum(of_epoch) for of_epoch in planned)
    assert counters["epochs"] == 3
    assert (counters["train_rows"], counters["rows_too_long"]) == (240, 0)
    assert counters["train_rows_estimated"]
    targets = read_shards(cut.encoded.folder / "shards" / "train").tgt
    assert counters["target_tokens"] == 3 * len(targets)
    records = read_metrics(undisturbed.folder / "metrics.jsonl")
    validations = [record["update"] for record in records if record["kind"] == "validation"]
    assert validations == np.cumsum([sum(of_epoch) for of_epoch in planned]).tolist()
    rows = [record["epoch_rows"] for record in records if record["kind"] == "train"]
    assert set(rows) == {60, 90}
    assert all(0.0 <= record["data_wait"] <= 1.0 for record in records if record["kind"] == "train")
    state = state_of(undisturbed.folder)
    assert (state.epoch, state.window, state.updates_of_window, state.updates_of_epoch) == (3, 0, 0, 0)


def break_off(cut: ToyStages, root: Path, at: int) -> TrainState:
    """Train with a checkpoint behind every update until one fails; return where the last checkpoint stands."""

    config = WINDOWS.model_copy(update={"checkpoint_updates": 1})
    with broken_off_at(at):
        run_train(cut, root, config=config)
    return state_of(next(root.glob("train-*")))


@pytest.mark.parametrize("place", ["within a window", "behind a window's last update", "behind the first of one"])
def test_a_run_that_broke_off_continues_at_its_window_bit_for_bit(
    cut: ToyStages, undisturbed: StageRun, planned: list[list[int]], tmp_path: Path, place: str
) -> None:
    first, (second, *_) = sum(planned[0]), planned[1]
    at, position = {
        "within a window": (first + 1, (1, 0, 1, 1)),
        "behind a window's last update": (first + second, (1, 0, second, second)),
        "behind the first of one": (first + second + 1, (1, 1, 1, second + 1)),
    }[place]
    state = break_off(cut, tmp_path, at)
    assert (state.epoch, state.window, state.updates_of_window, state.updates_of_epoch) == position
    assert state.total_updates == state_of(undisturbed.folder).total_updates
    assert_bit_for_bit(run_train(cut, tmp_path, config=WINDOWS), undisturbed)


def test_with_no_interval_between_checkpoints_each_end_of_a_window_has_one(
    cut: ToyStages, undisturbed: StageRun, planned: list[list[int]], tmp_path: Path
) -> None:
    config = WINDOWS.model_copy(
        update={"checkpoint_updates": None, "checkpoint_minutes": None, "keep_checkpoints": 100}
    )
    with broken_off_at(sum(planned[0]) + planned[1][0] + 1):
        run_train(cut, tmp_path, config=config)
    ends = [*np.cumsum(planned[0]), sum(planned[0]) + planned[1][0]]
    checkpoints = training_checkpoints(next(tmp_path.glob("train-*")) / "checkpoints")
    assert [read_state(checkpoint).update for checkpoint in checkpoints] == ends
    state = read_state(checkpoints[-1])
    assert (state.epoch, state.window, state.updates_of_window) == (1, 1, 0)
    assert_bit_for_bit(run_train(cut, tmp_path, config=config), undisturbed)


VALIDATED = WINDOWS.model_copy(
    update={"checkpoint_updates": None, "validate_updates": 4, "keep_checkpoints": 1, "average_checkpoints": 2}
)


@pytest.fixture(scope="module")
def validated(cut: ToyStages, tmp_path_factory: pytest.TempPathFactory) -> StageRun:
    return run_train(cut, tmp_path_factory.mktemp("validated"), config=VALIDATED)


@pytest.mark.parametrize("place", ["within a window", "at the end of an epoch", "at the end of training"])
def test_what_breaks_off_in_a_validation_loses_no_update(
    cut: ToyStages,
    validated: StageRun,
    planned: list[list[int]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
) -> None:
    ends = np.cumsum([sum(of_epoch) for of_epoch in planned]).tolist()
    at = {"within a window": 4, "at the end of an epoch": ends[0], "at the end of training": ends[-1]}[place]
    scores = validator._scores

    def failing(run: Run, model: Seq2Seq) -> Scores:
        if run.state.update == at:
            raise RuntimeError("the machine is gone")
        return scores(run, model)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="the machine is gone"):
        patch.setattr(validator, "_scores", failing)
        run_train(cut, tmp_path, config=VALIDATED)
    state = state_of(next(tmp_path.glob("train-*")))
    assert (state.update, state.validated_update < at) == (at, True)
    found = run_train(cut, tmp_path, config=VALIDATED)
    assert found.manifest.counters["ledger"]["updates_again"] == 0
    assert_bit_for_bit(found, validated)


def test_a_run_continues_in_a_window_with_another_number_of_workers(
    cut: ToyStages, undisturbed: StageRun, planned: list[list[int]], tmp_path: Path
) -> None:
    state = break_off(cut, tmp_path, planned[0][0] + 1)
    assert (state.window, state.updates_of_window) == (1, 1)
    found = run_train(cut, tmp_path, workers=2, config=WINDOWS)
    assert_same_updates(found, undisturbed)
    assert found.manifest.counters["target_tokens"] == undisturbed.manifest.counters["target_tokens"]


def test_a_run_continues_where_a_small_corpus_is_dealt_over_the_windows(toy: ToyStages, tmp_path: Path) -> None:
    stages = cut_up(toy, tmp_path, 20, ["small"])
    weights = {"small": 7.0}

    def trained(root: Path, config: TrainConfig = WINDOWS) -> StageRun:
        config = config.model_copy(update={"max_epochs": 2})
        inputs = (stages.encoded, stages.cleaned, stages.tokenizer, stages.ray)
        return train(MODEL, config, *inputs, root, use_ray=False, weights=weights)

    folder, tokenizer = stages.encoded.folder / "shards" / "train", stages.tokenizer.folder
    with Epochs(WINDOWS, AugmentConfig(), weights, folder, tokenizer) as epochs:
        windows = [epochs.window(0, number) for number in range(epochs.num_windows(0))]
    # 220 rows, and 7 times 20.
    assert sum(len(window.rows) for window in windows) == 360
    assert [sum(window.shards.row_id[window.rows] >= 220) for window in windows] == pytest.approx([35] * 4, abs=6)
    undisturbed = trained(tmp_path / "undisturbed")
    first = len(windows[0].updates)
    with broken_off_at(first + 1):
        trained(tmp_path / "continued", WINDOWS.model_copy(update={"checkpoint_updates": 1}))
    state = state_of(next((tmp_path / "continued").glob("train-*")))
    assert (state.epoch, state.window, state.updates_of_window) == (0, 1, 1)
    assert_bit_for_bit(trained(tmp_path / "continued"), undisturbed)


def test_the_trial_before_the_first_update_is_of_the_longest_row_of_any_window(
    cut: ToyStages, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr("nmt.training.loop.probe", lambda *arguments: asked.append(arguments[-1]))
    folder, tokenizer = cut.encoded.folder / "shards" / "train", cut.tokenizer.folder
    shards = read_shards(folder)
    longest = int(np.maximum(shards.src_lengths(), shards.tgt_lengths()).max())
    assert longest < CONFIG.max_pieces
    for config in (CONFIG, WINDOWS):
        job, world = SimpleNamespace(train=config), World(0, 1, torch.device("cpu"))
        run: Any = SimpleNamespace(model=None, flat=None, optimizer=None, job=job, world=world)
        with Epochs(config, AugmentConfig(), {}, folder, tokenizer) as epochs:
            _Training(run, epochs, Record(world, 1, {}), 1, 0.0)._probe()
    assert asked == [longest, CONFIG.max_pieces]


def test_a_limit_of_updates_ends_a_run_within_a_window_and_at_its_end(
    cut: ToyStages, planned: list[list[int]], tmp_path: Path
) -> None:
    for limit, position in ((planned[0][0], (0, 0, planned[0][0])), (planned[0][0] + 1, (0, 1, 1))):
        run = run_train(cut, tmp_path, config=WINDOWS.model_copy(update={"max_updates": limit}))
        assert run.manifest.counters["stopped"] == "max_updates"
        assert run.manifest.counters["updates"] == limit
        state = state_of(run.folder)
        assert (state.epoch, state.window, state.updates_of_window) == position


def test_a_state_from_before_there_were_windows_stands_in_the_first_one() -> None:
    state = TrainState.model_validate_json('{"update": 9, "epoch": 1, "updates_of_epoch": 4}')
    assert (state.epoch, state.window, state.updates_of_window, state.updates_of_epoch) == (1, 0, 4, 4)
    again = TrainState.model_validate_json(
        state.model_copy(update={"window": 1, "updates_of_window": 0}).model_dump_json()
    )
    assert (again.window, again.updates_of_window, again.updates_of_epoch) == (1, 0, 4)
