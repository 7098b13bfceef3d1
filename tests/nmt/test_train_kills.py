"""Training that is killed or stopped, wherever it was: it ends with the weights of a run that nothing disturbed."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from nmt.checkpoint import read_state, training_checkpoints
from nmt.training.stopping import STOP_FILE, LeaveWatch, Stopped
from nmt.training.workers import read_workers
from pipelines.errors import InputError
from pipelines.stage import StageRun
from tests.nmt.conftest import ToyStages
from tests.nmt.toy_runs import CONFIG, Driver, assert_bit_for_bit, run_train

# Updates that take long enough to be interrupted, a few of them in an epoch.
SLOW = CONFIG.model_copy(
    update={"microbatch_tokens": 24, "microbatches_per_update": 40, "max_epochs": 3, "log_updates": 1}
)


@pytest.fixture(scope="module")
def undisturbed(toy: ToyStages, tmp_path_factory: pytest.TempPathFactory) -> StageRun:
    return run_train(toy, tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture(scope="module")
def undisturbed_pair(toy: ToyStages, tmp_path_factory: pytest.TempPathFactory) -> StageRun:
    return run_train(toy, tmp_path_factory.mktemp("pair"), workers=2)


@pytest.fixture(scope="module")
def undisturbed_slow_pair(toy: ToyStages, tmp_path_factory: pytest.TempPathFactory) -> StageRun:
    return run_train(toy, tmp_path_factory.mktemp("slow-pair"), workers=2, config=SLOW)


def newest_update(folder: Path) -> int:
    return read_state(training_checkpoints(folder / "checkpoints")[-1]).update


# SIGKILL


def test_a_run_killed_whole_continues_to_the_same_weights_bit_for_bit(
    toy: ToyStages, undisturbed: StageRun, tmp_path: Path
) -> None:
    driver = Driver(toy, tmp_path)
    driver.until_checkpoint()
    driver.kill_group()
    assert not (driver.folder / "manifest.json").exists(), "the run ended before it could be killed"
    assert_bit_for_bit(run_train(toy, tmp_path), undisturbed)


# The third checkpoint hangs between its files and its name.
HANGING_WRITER = """
import nmt.checkpoint, time
sync, names = nmt.checkpoint._sync, []
def hang(path):
    names.append(path)
    if path.name.endswith("update-00000009"):
        (Path(root) / "hangs").touch()
        time.sleep(600)
    sync(path)
nmt.checkpoint._sync = hang
"""


def test_a_kill_while_a_checkpoint_is_written_leaves_no_half_of_one(
    toy: ToyStages, undisturbed: StageRun, tmp_path: Path
) -> None:
    driver = Driver(toy, tmp_path, before=HANGING_WRITER)
    driver.until((tmp_path / "hangs").exists)
    driver.kill_group()
    half = list(driver.folder.glob("checkpoints/.tmp-*-update-00000009"))
    assert len(half) == 1
    assert newest_update(driver.folder) < 9
    assert_bit_for_bit(run_train(toy, tmp_path), undisturbed)
    assert not half[0].exists()


# The third validation hangs.
HANGING_VALIDATION = """
import nmt.training.validator, time
scores, asked = nmt.training.validator._scores, []
def hang(run, model):
    asked.append(run.state.update)
    if len(asked) == 3:
        time.sleep(600)
    return scores(run, model)
nmt.training.validator._scores = hang
"""


def test_a_kill_while_a_validation_goes_on_loses_no_update(
    toy: ToyStages, undisturbed: StageRun, tmp_path: Path
) -> None:
    config = CONFIG.model_copy(update={"checkpoint_updates": None})
    driver = Driver(toy, tmp_path, config=config, before=HANGING_VALIDATION)
    third = 3 * undisturbed.manifest.counters["updates"] // CONFIG.max_epochs
    driver.until_checkpoint()
    driver.until(lambda: newest_update(driver.folder) == third)
    driver.kill_group()
    found = run_train(toy, tmp_path, config=config)
    assert found.manifest.counters["ledger"]["updates_again"] == 0
    assert_bit_for_bit(found, undisturbed)


def test_a_corrupt_checkpoint_is_left_out_only_when_told_and_the_weights_are_the_same_bit_for_bit(
    toy: ToyStages, undisturbed: StageRun, tmp_path: Path
) -> None:
    driver = Driver(toy, tmp_path)
    driver.until(lambda: len(list(tmp_path.glob("train-*/checkpoints/update-*"))) > 1)
    driver.kill_group()
    newest = training_checkpoints(driver.folder / "checkpoints")[-1]
    weights = newest / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(InputError, match="its sha256 is") as raised:
        run_train(toy, tmp_path)
    assert raised.value.where == str(weights)
    assert_bit_for_bit(run_train(toy, tmp_path, continue_from_earlier=True), undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("killed", ["driver", "driver and Ray"])
def test_a_run_of_several_workers_whose_driver_is_killed_continues_bit_for_bit(
    toy: ToyStages, undisturbed_pair: StageRun, tmp_path: Path, killed: str
) -> None:
    driver = Driver(toy, tmp_path, workers=2)
    driver.until_checkpoint()
    if killed == "driver":
        driver.signal(signal.SIGKILL)  # its workers may go on for seconds, while the next run begins
        driver.wait()
    else:
        driver.kill_group()
    assert not (driver.folder / "manifest.json").exists(), "the run ended before it could be killed"
    assert_bit_for_bit(run_train(toy, tmp_path, workers=2), undisturbed_pair)


@pytest.mark.parametrize("name", ["RayTrainWorker", pytest.param("TrainController", marks=pytest.mark.slow)])
def test_a_killed_worker_or_controller_is_replaced_and_the_weights_are_the_same_bit_for_bit(
    toy: ToyStages, undisturbed_slow_pair: StageRun, tmp_path: Path, name: str
) -> None:
    driver = Driver(toy, tmp_path, workers=2, config=SLOW)
    driver.until_checkpoint()
    processes = driver.processes(name)
    assert len(processes) == (2 if name == "RayTrainWorker" else 1)
    os.kill(processes[-1], signal.SIGKILL)
    assert_bit_for_bit(driver.finished(), undisturbed_slow_pair)
    assert len(read_workers(driver.folder)) == 2  # there was a second start


# An older run


# Before its third checkpoint the writer waits until it is told to go on; the folder's lock is nobody's.
WAITING_WRITER = """
import nmt.training.saver, pipelines.stage, time
write = nmt.training.saver.write_checkpoint
def wait(folder, content, placing):
    if folder.name == "update-00000009":
        (Path(root) / "waits").touch()
        while not (Path(root) / "go-on").exists():
            time.sleep(0.01)
    write(folder, content, placing)
nmt.training.saver.write_checkpoint = wait
pipelines.stage.acquired = lambda *arguments, **options: type("Lock", (), {"release": lambda self: None})()
"""


def test_an_older_run_that_goes_on_can_write_nothing_once_a_newer_one_has_begun(
    toy: ToyStages, undisturbed: StageRun, tmp_path: Path
) -> None:
    older = Driver(toy, tmp_path, before=WAITING_WRITER)
    older.until((tmp_path / "waits").exists)
    newer = run_train(toy, tmp_path)
    names = checkpoint_names(newer.folder)
    (tmp_path / "go-on").touch()
    assert older.wait() == 1
    assert "LeaseLost" in older.said()
    assert checkpoint_names(newer.folder) == names
    assert_bit_for_bit(newer, undisturbed)


def checkpoint_names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir() if not path.name.startswith(".tmp-"))


# SIGTERM


def test_sigterm_saves_within_an_epoch_and_the_next_run_continues_bit_for_bit(toy: ToyStages, tmp_path: Path) -> None:
    expected = run_train(toy, tmp_path / "undisturbed", config=SLOW)
    driver = Driver(toy, tmp_path / "stopped", config=SLOW.model_copy(update={"checkpoint_updates": None}))
    driver.until(lambda: any(driver.root.glob("train-*/metrics.jsonl")) and _updates_recorded(driver.folder) >= 2)
    driver.signal(signal.SIGTERM)
    assert driver.wait() == 143
    state = read_state(training_checkpoints(driver.folder / "checkpoints")[-1])
    assert f"saved at update {state.update}" in driver.said()
    assert state.stopped is None
    assert state.update >= 2
    assert not (driver.folder / STOP_FILE).exists()
    assert_bit_for_bit(run_train(toy, tmp_path / "stopped", config=SLOW), expected)


def test_a_run_that_is_stopped_behind_every_single_update_ends_as_one_that_never_was(
    toy: ToyStages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ends of epochs, before whose validation a run leaves, are among these updates."""
    short = CONFIG.model_copy(update={"max_epochs": 3})
    expected = run_train(toy, tmp_path / "undisturbed", config=short)

    def asks(watch: LeaveWatch) -> bool:
        if not watch._path.exists():
            os.kill(os.getpid(), signal.SIGTERM)
        return True

    monkeypatch.setattr(LeaveWatch, "asks", asks)
    stops = []
    found = None
    while found is None:
        try:
            found = run_train(toy, tmp_path / "stopped", config=short)
        except Stopped:
            folder = next((tmp_path / "stopped").glob("train-*"))
            stops.append(newest_update(folder))
    assert stops == list(range(1, expected.manifest.counters["updates"] + 1))
    assert_bit_for_bit(found, expected)


def _updates_recorded(folder: Path) -> int:
    return sum(
        json.loads(line)["kind"] == "train" for line in (folder / "metrics.jsonl").read_bytes().split(b"\n")[:-1]
    )


def test_sigterm_of_the_driver_has_all_workers_save_and_leave(
    toy: ToyStages, undisturbed_slow_pair: StageRun, tmp_path: Path
) -> None:
    config = SLOW.model_copy(update={"checkpoint_updates": None})
    driver = Driver(toy, tmp_path, workers=2, config=config)
    driver.until(lambda: any(driver.root.glob("train-*/metrics.jsonl")) and _updates_recorded(driver.folder) >= 3)
    before = newest_update(driver.folder) if any(driver.root.glob("train-*/checkpoints/update-*")) else 0
    driver.signal(signal.SIGTERM)
    assert driver.wait() == 143
    assert newest_update(driver.folder) > before
    found = run_train(toy, tmp_path, workers=2, config=config)
    assert_bit_for_bit(found, undisturbed_slow_pair)
    assert found.manifest.counters["ledger"]["updates_again"] == 0


@pytest.mark.slow
def test_a_worker_that_gets_sigterm_has_all_save_and_training_goes_on_where_it_was(
    toy: ToyStages, undisturbed_slow_pair: StageRun, tmp_path: Path
) -> None:
    driver = Driver(toy, tmp_path, workers=2, config=SLOW.model_copy(update={"checkpoint_updates": None}))
    driver.until(lambda: any(driver.root.glob("train-*/metrics.jsonl")) and _updates_recorded(driver.folder) >= 3)
    os.kill(driver.processes("RayTrainWorker")[-1], signal.SIGTERM)
    found = driver.finished()
    starts = read_workers(found.folder)
    assert len(starts) == 2
    assert starts[1]["update"] >= 3
    assert_bit_for_bit(found, undisturbed_slow_pair)
    assert found.manifest.counters["ledger"]["updates_again"] == 0


@pytest.mark.slow
def test_a_second_sigterm_ends_the_run_at_once(toy: ToyStages, tmp_path: Path) -> None:
    # A single update that goes on for longer than anybody would wait.
    config = SLOW.model_copy(update={"microbatch_tokens": 1, "microbatches_per_update": 10**6, "max_epochs": 1000})
    driver = Driver(toy, tmp_path, workers=2, config=config)
    # A whole line: before there is one the first signal would end the run.
    driver.until(lambda: any(driver.root.glob("train-*")) and bool(read_workers(driver.folder)))
    driver.signal(signal.SIGTERM)
    driver.until(lambda: (driver.folder / STOP_FILE).exists())
    driver.signal(signal.SIGTERM)
    started = time.monotonic()
    assert driver.wait() == 143
    assert time.monotonic() - started < 60
    assert not driver.processes("RayTrainWorker")
