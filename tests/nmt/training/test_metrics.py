"""The record of a run: whole lines only, and nothing twice after a restart."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from nmt.training.metrics import METRICS_FILE, MetricsWriter, read_metrics


def train_record(update: int) -> dict[str, Any]:
    return {
        "kind": "train", "update": update, "epoch": 1, "loss": 3.25, "perplexity": 20.25, "learning_rate": 0.001,
        "gradient_norm": 0.5, "target_tokens_per_s": 1000.0, "target_tokens_per_update": 500.0, "padding": 0.03,
        "total_updates": 130, "seconds": 4.0, "time": 1000.0 + update, "waiting": [0.0, 0.125],
    }  # fmt: skip


def validation_record(update: int) -> dict[str, Any]:
    return {
        "kind": "validation", "update": update, "epoch": 1, "loss": 2.0, "perplexity": 7.389, "bleu": 31.5,
        "best": True, "seconds": 2.2, "time": 1000.0 + update,
        "samples": [{"source": "a", "reference": "b", "hypothesis": "c"}],
    }  # fmt: skip


MAP = {
    "source": "a", "hypothesis": "c", "source_pieces": ["▁a", "</s>"], "target_pieces": ["▁c", "</s>"],
    "attention": [[0.75, 0.25], [0.0, 1.0]],
}  # fmt: skip


def written(folder: Path) -> list[tuple[str, int]]:
    return [(record["kind"], record["update"]) for record in read_metrics(folder / METRICS_FILE)]


def board_values(folder: Path) -> list[tuple[str, int, float | None]]:
    """The tag, step and scalar of each value of the TensorBoard files; None of a value that is no scalar."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.glob("events.out.tfevents.*")):
        data, start = path.read_bytes(), 0
        while start < len(data):  # length (8 bytes), its checksum (4), the event, its checksum (4)
            length = int.from_bytes(data[start : start + 8], "little")
            event = Event.FromString(data[start + 12 : start + 12 + length])
            start += 16 + length
            for value in event.summary.value:
                scalar = value.simple_value if value.WhichOneof("value") == "simple_value" else None
                found.append((value.tag, event.step, scalar))
    return found


def test_a_restart_drops_what_it_will_compute_again(tmp_path: Path) -> None:
    first = MetricsWriter(tmp_path, 0, 0)
    assert first.last is None
    for record in (train_record(2), validation_record(3), train_record(4), train_record(6)):
        first.write(record)
    first.close()
    second = MetricsWriter(tmp_path, 4, 3)
    assert second.last == train_record(6)
    assert written(tmp_path) == [("train", 2), ("validation", 3), ("train", 4)]
    second.write(train_record(6))
    second.close()
    assert written(tmp_path) == [("train", 2), ("validation", 3), ("train", 4), ("train", 6)]


def test_a_restart_from_before_a_validation_was_judged_drops_that_validation(tmp_path: Path) -> None:
    first = MetricsWriter(tmp_path, 0, 0)
    for record in (validation_record(2), train_record(4), validation_record(4)):
        first.write(record)
    first.close()
    MetricsWriter(tmp_path, 4, 4).close()
    assert len(written(tmp_path)) == 3
    MetricsWriter(tmp_path, 4, 2).close()
    assert written(tmp_path) == [("validation", 2), ("train", 4)]


def test_a_line_that_is_being_written_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / METRICS_FILE
    path.write_text(json.dumps(train_record(2)) + '\n{"kind": "tr', encoding="utf-8")
    assert [record["update"] for record in read_metrics(path)] == [2]
    assert read_metrics(tmp_path / "none") == []


def test_a_record_is_written_with_the_time(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, 0, 0)
    before = time.time()
    writer.write({"kind": "train", "update": 2})
    writer.close()
    (record,) = read_metrics(tmp_path / METRICS_FILE)
    assert before - 0.001 <= record["time"] <= time.time()


def test_numbers_become_scalars_and_those_of_each_worker_one_a_rank(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, 0, 0)
    writer.write(train_record(2))
    writer.close()
    scalars = {(tag, step): value for tag, step, value in board_values(tmp_path / "tensorboard")}
    assert scalars["train/loss", 2] == 3.25
    assert scalars["train/waiting/0", 2] == 0.0
    assert scalars["train/waiting/1", 2] == 0.125
    assert not {("train/update", 2), ("train/time", 2), ("train/kind", 2)} & set(scalars)


def test_maps_of_attention_are_a_file_and_pictures_and_no_line_of_metrics(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, 0, 0)
    writer.write(validation_record(7) | {"attention": [MAP]})
    writer.write(validation_record(9) | {"attention": []})  # of a model without attention
    writer.close()
    assert read_metrics(tmp_path / METRICS_FILE) == [validation_record(7), validation_record(9)]
    files = list((tmp_path / "attention").iterdir())
    assert [file.name for file in files] == ["update-00000007.json"]
    assert json.loads(files[0].read_text(encoding="utf-8")) == [MAP]
    tags = [(tag, step) for tag, step, _ in board_values(tmp_path / "tensorboard") if tag.startswith("attention")]
    assert tags == [("attention/0", 7)]
