"""Checkpoints in the background: what they hold, what waits for what, what is removed, and who may write."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nmt.architectures import build_model
from nmt.checkpoint import (
    CheckpointConfig,
    Content,
    Placing,
    TrainState,
    model_content,
    read_state,
    save_model,
    training_checkpoints,
    training_content,
    verify_checkpoint,
    write_checkpoint,
)
from nmt.config import TrainConfig
from nmt.model.recurrent_config import RecurrentConfig
from nmt.model.seq2seq import Seq2Seq
from nmt.training.lease import LeaseLost, taken_by_run, taken_by_workers
from nmt.training.optim import make_optimizer
from nmt.training.saver import HostCopies, Saver, best_folder, checked_newest
from pipelines.errors import InputError

MODEL = RecurrentConfig(embedding_dim=6, hidden_dim=8)
CONFIG = CheckpointConfig(model=MODEL, source_size=11, target_size=11, tokenizer="t" * 64, update=7)


class Gate:
    """`write_checkpoint` that waits until it is opened, and tells what it was given."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.begun: list[str] = []
        self.error: Exception | None = None

    def write(self, folder: Path, content: Content, placing: Placing) -> None:
        self.begun.append(folder.name)
        assert self.opened.wait(60)
        if self.error is not None:
            raise self.error
        write_checkpoint(folder, content, placing)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    found = Gate()
    monkeypatch.setattr("nmt.training.saver.write_checkpoint", found.write)
    return found


@pytest.fixture
def model() -> Seq2Seq:
    return build_model(MODEL, 11, 11, seed=5)


def content_of(model: Seq2Seq, state: TrainState) -> Content:
    return training_content(model, make_optimizer(TrainConfig(), model.parameters()), None, CONFIG, state)


def save_at(saver: Saver, model: Seq2Seq, **state: object) -> None:
    found = TrainState.model_validate(state)
    saver.save(found, content_of(model, found))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_checkpoint_holds_the_weights_of_its_update_though_training_goes_on(
    tmp_path: Path, gate: Gate, model: Seq2Seq
) -> None:
    expected = model.output_bias.detach().clone()
    with Saver(tmp_path, 2) as saver:
        save_at(saver, model, update=3)
        with torch.no_grad():
            model.output_bias.add_(1.0)
        gate.opened.set()
    found = load_file(tmp_path / "update-00000003" / "model.safetensors")
    assert torch.equal(found["output_bias"], expected)
    verify_checkpoint(tmp_path / "update-00000003")


def test_a_second_checkpoint_waits_for_the_first_one(tmp_path: Path, gate: Gate, model: Seq2Seq) -> None:
    with Saver(tmp_path, 2) as saver:
        save_at(saver, model, update=3)
        second = threading.Thread(target=lambda: save_at(saver, model, update=4))
        second.start()
        second.join(0.3)
        assert second.is_alive()
        assert gate.begun == ["update-00000003"]
        gate.opened.set()
        second.join(60)
        assert not second.is_alive()
    assert names(tmp_path) == ["update-00000003", "update-00000004"]


def test_a_best_model_and_the_checkpoint_behind_it_are_on_their_way_together_and_are_written_in_order(
    tmp_path: Path, gate: Gate, model: Seq2Seq
) -> None:
    with Saver(tmp_path, 2) as saver:
        saver.save_model(best_folder(tmp_path, 3), model_content(model, CONFIG))
        save_at(saver, model, update=3, best_update=3, best_models=((3, 1.0),))
        gate.opened.set()
    assert gate.begun == ["best-00000003", "update-00000003"]
    assert names(tmp_path) == ["best-00000003", "update-00000003"]


def test_an_error_of_the_writer_is_raised_at_the_next_checkpoint(tmp_path: Path, gate: Gate, model: Seq2Seq) -> None:
    gate.error = OSError(28, "No space left on device")
    gate.opened.set()
    saver = Saver(tmp_path, 2)
    save_at(saver, model, update=3)
    with pytest.raises(OSError, match="No space left"):
        save_at(saver, model, update=4)
    assert gate.begun == ["update-00000003"]


def test_an_error_of_the_writer_is_raised_at_the_end(tmp_path: Path, gate: Gate, model: Seq2Seq) -> None:
    gate.error = OSError(28, "No space left on device")
    with pytest.raises(OSError, match="No space left"), Saver(tmp_path, 2) as saver:
        save_at(saver, model, update=3)
        gate.opened.set()


def test_buffers_are_used_again_and_made_anew_where_a_tensor_has_another_shape() -> None:
    copies = HostCopies()
    first, _ = copies.take(Content({"a": {"x": torch.tensor([1.0, 2.0])}}, {}))
    second, _ = copies.take(Content({"a": {"x": torch.tensor([3.0, 4.0])}}, {}))
    third, _ = copies.take(Content({"a": {"x": torch.tensor([5.0])}}, {}))
    assert first.tensors["a"]["x"].data_ptr() == second.tensors["a"]["x"].data_ptr()
    assert second.tensors["a"]["x"].tolist() == [3.0, 4.0]
    assert third.tensors["a"]["x"].tolist() == [5.0]


def test_old_checkpoints_go_and_models_that_a_kept_one_names_stay(tmp_path: Path, model: Seq2Seq) -> None:
    for kind, update in (("best", 2), ("best", 4), ("best", 5), ("best", 9), ("validate", 3), ("validate", 6)):
        save_model(tmp_path / f"{kind}-{update:08d}", model, CONFIG)
    with Saver(tmp_path, 2) as saver:
        save_at(saver, model, update=2, best_update=2, best_models=((2, 1.0),))
        save_at(saver, model, update=7, best_update=4, best_models=((4, 2.0),), pending_validations=((5, 1), (6, 1)))
        save_at(saver, model, update=8, best_update=5, best_models=((5, 3.0),))
    # 2 is of a checkpoint that is gone, 3 of none; 9 is of an update that training has reached meanwhile.
    assert names(tmp_path) == [
        "best-00000004", "best-00000005", "best-00000009", "update-00000007", "update-00000008", "validate-00000006",
    ]  # fmt: skip


def test_what_a_killed_writer_left_is_removed_at_the_start(tmp_path: Path) -> None:
    (tmp_path / ".tmp-1-update-00000009").mkdir()
    (tmp_path / ".tmp-1-update-00000009" / "model.safetensors").write_bytes(b"half")
    with Saver(tmp_path, 2):
        assert names(tmp_path) == []


def test_a_checkpoint_that_was_moved_away_for_one_that_never_came_is_begun_with_and_kept(
    tmp_path: Path, model: Seq2Seq
) -> None:
    path = tmp_path / "update-00000003"
    for begin in (lambda: Saver(tmp_path, 1), lambda: checked_newest(tmp_path, continue_from_earlier=False)):
        with Saver(tmp_path, 1) as saver:
            save_at(saver, model, update=3)
        path.rename(tmp_path / ".tmp-1-update-00000003-old")
        (tmp_path / ".tmp-2-update-00000003").mkdir()
        begin()
        assert names(tmp_path) == ["update-00000003"]
        verify_checkpoint(path)


def test_a_state_that_is_written_again_comes_behind_the_best_model_and_leaves_the_tensors_as_they_were(
    tmp_path: Path, gate: Gate, model: Seq2Seq
) -> None:
    gate.opened.set()
    with Saver(tmp_path, 2) as saver:
        save_at(saver, model, update=3)
        saver.wait()
        written = (tmp_path / "update-00000003" / "model.safetensors").stat().st_ino
        with torch.no_grad():
            model.output_bias.add_(1.0)
        saver.save_model(best_folder(tmp_path, 3), model_content(model, CONFIG))
        saver.restate(TrainState(update=3, best_update=3, best_models=((3, 1.0),)), CONFIG)
    assert names(tmp_path) == ["best-00000003", "update-00000003"]
    assert (tmp_path / "update-00000003" / "model.safetensors").stat().st_ino == written
    assert read_state(tmp_path / "update-00000003").best_update == 3
    assert checked_newest(tmp_path, continue_from_earlier=False) == tmp_path / "update-00000003"


def test_a_state_that_is_written_again_waits_for_nothing_and_has_the_error_of_what_was_before_it(
    tmp_path: Path, gate: Gate, model: Seq2Seq
) -> None:
    gate.error = OSError(28, "No space left on device")
    saver = Saver(tmp_path, 2)
    save_at(saver, model, update=3)
    saver.restate(TrainState(update=3, validated_update=3), CONFIG)
    gate.opened.set()
    with pytest.raises(OSError, match="No space left"):
        saver.wait()


def test_a_worker_whose_folder_is_another_runs_by_now_renames_and_removes_nothing(
    tmp_path: Path, model: Seq2Seq
) -> None:
    checkpoints = tmp_path / "checkpoints"
    older = taken_by_workers(tmp_path, taken_by_run(tmp_path).run)
    saver = Saver(checkpoints, 1, older)
    save_at(saver, model, update=3)
    saver.__exit__(None, None, None)
    saver = Saver(checkpoints, 1, older)
    taken_by_run(tmp_path)
    save_at(saver, model, update=4)
    with pytest.raises(LeaseLost):
        saver.__exit__(None, None, None)
    assert [name for name in names(checkpoints) if not name.startswith(".tmp-")] == ["update-00000003"]
    with pytest.raises(LeaseLost):
        Saver(checkpoints, 1, older)


# Which checkpoint a run begins with


@pytest.fixture
def two(tmp_path: Path, model: Seq2Seq) -> Path:
    """Two checkpoints, at the updates 3 and 6, each with the best model that it names."""
    with Saver(tmp_path, 2) as saver:
        for update in (3, 6):
            saver.save_model(best_folder(tmp_path, update), model_content(model, CONFIG))
            save_at(saver, model, update=update, best_update=update, best_models=((update, 1.0),))
    return tmp_path


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_the_newest_checkpoint_is_begun_with(two: Path) -> None:
    assert checked_newest(two, continue_from_earlier=False) == two / "update-00000006"


def test_without_a_checkpoint_training_begins_at_the_start(tmp_path: Path) -> None:
    assert checked_newest(tmp_path, continue_from_earlier=True) is None


@pytest.mark.parametrize("file", ["update-00000006/optimizer.safetensors", "best-00000006/model.safetensors"])
def test_a_corrupt_checkpoint_is_named_and_left_out_only_when_told(two: Path, file: str) -> None:
    flip_a_byte(two / file)
    with pytest.raises(InputError, match="its sha256 is") as raised:
        checked_newest(two, continue_from_earlier=False)
    assert raised.value.where == str(two / file)
    assert training_checkpoints(two)[-1] == two / "update-00000006"
    earlier = checked_newest(two, continue_from_earlier=True)
    assert earlier == two / "update-00000003"
    assert training_checkpoints(two) == [earlier]
    assert read_state(earlier).update == 3
    assert len(list(two.glob("unreadable-*-update-00000006"))) == 1  # kept for whoever wants to know


def test_a_checkpoint_whose_best_model_is_gone_is_named(two: Path) -> None:
    (two / "best-00000006").rename(two / "elsewhere")
    with pytest.raises(InputError, match="the model of update 6, which the checkpoint names, is missing"):
        checked_newest(two, continue_from_earlier=False)


def test_where_no_earlier_checkpoint_is_left_the_fault_is_told(two: Path) -> None:
    for checkpoint in training_checkpoints(two):
        flip_a_byte(checkpoint / "state.json")
    with pytest.raises(InputError, match="its sha256 is") as raised:
        checked_newest(two, continue_from_earlier=True)
    assert raised.value.where == str(two / "update-00000003" / "state.json")
    for told in (True, False):
        with pytest.raises(InputError, match="There is no earlier one") as raised:
            checked_newest(two, continue_from_earlier=told)
        assert "--continue-from-earlier" not in raised.value.remedy


def test_a_checkpoint_without_weights_is_left_out_when_told_though_its_checksums_are_gone_too(two: Path) -> None:
    for name in ("checksums.json", "model.safetensors"):
        (two / "update-00000006" / name).unlink()
    with pytest.raises(InputError, match="the file is missing"):
        checked_newest(two, continue_from_earlier=False)
    assert checked_newest(two, continue_from_earlier=True) == two / "update-00000003"
