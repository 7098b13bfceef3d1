"""What a whole run leaves of what happened: records, maps, attempts, the ledger; once undisturbed, once broken off."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nmt.config import PricesConfig, TrainConfig
from nmt.model.recurrent_config import RecurrentConfig
from nmt.train import train
from nmt.training.ledger import ATTEMPTS_FILE, read_attempts
from nmt.training.metrics import read_metrics
from pipelines.stage import StageRun
from tests.nmt.conftest import ToyStages
from tests.nmt.toy_runs import broken_off_at

MODEL = RecurrentConfig(embedding_dim=8, hidden_dim=8, dropout=0.1)
CONFIG = TrainConfig(max_epochs=3, microbatch_tokens=160, warmup_updates=4, checkpoint_updates=2, log_updates=1)
PRICES = PricesConfig(currency="EUR", worker_hour=3.6e6, machine_hour=7.2e6)  # 1,000 and 2,000 a second


def run_train(toy: ToyStages, root: Path, *, workers: int | None = None) -> StageRun:
    ray = toy.ray.model_copy(update={"num_workers": workers or 1})
    return train(
        MODEL, CONFIG, toy.encoded, toy.cleaned, toy.tokenizer, ray, root, use_ray=workers is not None, prices=PRICES
    )


@pytest.fixture(scope="module")
def broken(toy: ToyStages, tmp_path_factory: pytest.TempPathFactory) -> StageRun:
    """A run that was broken off behind update 5, and continued from its checkpoint of update 4."""
    root = tmp_path_factory.mktemp("broken")
    with broken_off_at(5):
        run_train(toy, root)
    return run_train(toy, root)


def test_a_start_that_broke_off_is_in_the_ledger(broken: StageRun) -> None:
    first, second = read_attempts(broken.folder / ATTEMPTS_FILE)
    assert (first.update, first.reached, second.update) == (0, 5, 4)
    counters = broken.manifest.counters
    ledger = counters["ledger"]
    assert (ledger["restarts"], ledger["updates_again"], ledger["updates"]) == (1, 1, counters["updates"])
    assert second.reached == counters["updates"]
    assert first.ended is not None and second.ended is not None
    wall = (first.ended - first.started) + (second.ended - second.started)
    assert ledger["wall_hours"] == pytest.approx(wall / 3600, abs=1e-4)
    assert ledger["cost"] == pytest.approx(3000 * wall, rel=1e-6, abs=0.02)
    assert ledger["again_hours"] <= ledger["wall_hours"]
    assert ledger["target_tokens"] == counters["target_tokens"]
    assert set(ledger["shares"]) >= {"data", "checkpoints", "validation"}
    assert 0 < sum(ledger["shares"].values()) < 1


def test_the_records_have_what_the_time_went_to(broken: StageRun) -> None:
    records = [record for record in read_metrics(broken.folder / "metrics.jsonl") if record["kind"] == "train"]
    assert [record["update"] for record in records] == list(range(1, broken.manifest.counters["updates"] + 1))
    for record in records:
        assert record["num_workers"] == 1
        assert record["skipped_updates"] == 0
        assert 0 <= record["data_wait"] <= 1 and 0 <= record["checkpoint"] <= 1
        assert record["perplexity"] > 1
        assert len(record["memory_gib"]) == 1
        assert "waiting" not in record


def test_each_validation_has_maps_of_its_samples(broken: StageRun) -> None:
    validations = [r for r in read_metrics(broken.folder / "metrics.jsonl") if r["kind"] == "validation"]
    assert len(validations) == 3
    for record in validations:
        path = broken.folder / "attention" / f"update-{record['update']:08d}.json"
        translated = [sample for sample in record["samples"] if sample["hypothesis"]]
        if translated:
            maps = json.loads(path.read_text(encoding="utf-8"))
            assert [(m["source"], m["hypothesis"]) for m in maps] == [
                (sample["source"], sample["hypothesis"]) for sample in translated
            ]
        else:
            assert not path.exists()


@pytest.mark.slow
def test_several_workers_tell_each_other_what_they_waited(toy: ToyStages, tmp_path: Path) -> None:
    run = run_train(toy, tmp_path, workers=2)
    records = [record for record in read_metrics(run.folder / "metrics.jsonl") if record["kind"] == "train"]
    for record in records:
        # Of one update the last worker to come waits for nobody.
        assert min(record["waiting"]) == 0.0 and max(record["waiting"]) < 1.0
        assert 0 < record["communication"] < 1
        assert record["speedup"] > 0
        assert (record["num_workers"], len(record["memory_gib"])) == (2, 2)
    ledger = run.manifest.counters["ledger"]
    assert set(ledger["shares"]) >= {"communication", "waiting"}
    assert ledger["worker_hours"] == pytest.approx(2 * ledger["wall_hours"], abs=2e-4)
    assert ledger["restarts"] == 0
