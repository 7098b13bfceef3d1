"""The dry run of training, through the command: what it says, and that nothing is left of it."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from flows import train_cli
from flows.cli import app
from flows.config import Profile, load_recipe
from nmt.config import PricesConfig, TrainConfig

RECIPE = """
name: tiny
languages: {source: en, target: de}
corpora:
  train: [{name: a, tsv: train.tsv, weight: 2}]
  dev: [{name: a, tsv: dev.tsv}]
  test: [{name: a, tsv: dev.tsv}]
clean: {leakage: {overlap: null}, rules: {language: null}}
tokenizer: {vocab_size: VOCABULARY}
model: {embedding_dim: 8, hidden_dim: 8}
train: {max_epochs: 3, microbatch_tokens: 256, keep_checkpoints: 3, validate_epochs: 2}
"""
PROFILE = """
name: priced
ray: {num_workers: 2, object_store_memory_bytes: 83886080}
prices: {currency: EUR, worker_hour: 1000.0, machine_hour: 500.0}
"""
WORDS = (
    ("the", "das"), ("small", "kleine"), ("big", "große"), ("dog", "Hund"), ("cat", "Katze"), ("house", "Haus"),
    ("sees", "sieht"), ("runs", "rennt"), ("and", "und"), ("tree", "Baum"),
)  # fmt: skip


def write_recipe(folder: Path, vocabulary: int) -> Path:
    draw = random.Random(1)
    for name, rows in (("train", 400), ("dev", 70)):
        pairs = [draw.choices(WORDS, k=draw.randint(3, 8)) for _ in range(rows)]
        lines = (" ".join(en for en, _ in pair) + "\t" + " ".join(de for _, de in pair) + "\n" for pair in pairs)
        (folder / f"{name}.tsv").write_text("".join(lines), encoding="utf-8")
    (folder / "tiny.yaml").write_text(RECIPE.replace("VOCABULARY", str(vocabulary)), encoding="utf-8")
    (folder / "priced.yaml").write_text(PROFILE, encoding="utf-8")
    return folder / "tiny.yaml"


def seqloom(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flows.cli", *(str(argument) for argument in arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def dry_run(recipe: Path, *options: object) -> tuple[dict[str, Any], str]:
    """The JSON object, and what was printed beside it."""
    before = files(recipe.parent)
    workdir = recipe.parent / "deep" / "runs"
    done = seqloom("train", recipe, "--workdir", workdir, "--dry-run", "--json", *options)
    assert done.returncode == 0, done.stderr
    assert files(recipe.parent) == before
    return json.loads(done.stdout), done.stderr


def test_a_dry_run_without_stages_prepares_a_sample_and_leaves_nothing(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, 400)
    (tmp_path / "beside.yaml").write_text("ray: {validation_workers: 2}\nprices: {worker_hour: 1000}\n")
    found, printed = dry_run(recipe, "--no-ray", "--profile", tmp_path / "beside.yaml")
    assert not (tmp_path / "deep").exists()
    first, _, vocabulary = found["notes"]
    assert first == (
        "training would first run score, clean, fit_tokenizer, encode; this is of 400 of 400 rows of train"
    )
    assert vocabulary.startswith("so few rows give a vocabulary of 41 pieces, not of 400: ")
    assert f"note: {vocabulary}" in printed
    # Embeddings of 400 pieces, 8 numbers each, shared by both sides and the output layer, which has a bias.
    assert found["parameters"] == 400 * 8 + 400 + model_without_vocabulary(recipe)
    assert (found["num_workers"], found["updates"]) == (1, 3 * found["updates_per_epoch"])
    # Each row twice an epoch, of at most 256 places a micro-batch, two of them an update.
    assert 2 * 400 * 5 / 512 < found["updates_per_epoch"] < 2 * 400 * 20 / 512
    assert 0 < found["padding"] < 0.15
    assert 0.1 < found["memory_gib"] < 4
    assert found["seconds_per_epoch"] == pytest.approx(
        found["updates_per_epoch"] * found["target_tokens_per_update"] / found["target_tokens_per_s"], abs=0.06
    )
    # One validation at the end of epoch 2, and the last one.
    whole = 3 * found["seconds_per_epoch"] + found["seconds_per_validation"]
    assert found["seconds"] == pytest.approx(whole, abs=1.5)
    assert found["disk_bytes"] == 3 * found["checkpoint_bytes"] + 2 * found["model_bytes"]
    assert found["checkpoint_bytes"] > 2 * found["model_bytes"] > 0
    # Without Ray there are no workers beside the one.
    assert found["cost"] == pytest.approx(found["seconds"] / 3600 * 1000, abs=0.1)
    assert "where early stopping does not end it" in printed


def model_without_vocabulary(recipe: Path) -> int:
    from flows.config import load_recipe
    from nmt.architectures import build_model

    table = load_recipe(str(recipe), define={}).model_table()
    return build_model(table, 40, 40).num_parameters() - 40 * 8 - 40


def test_a_dry_run_says_first_what_the_profile_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    recipe = write_recipe(tmp_path, 40)
    (tmp_path / "tracked.yaml").write_text("name: tracked\ntracking: {wandb_project: captions}\n", encoding="utf-8")
    arguments = ["train", recipe, "--workdir", tmp_path / "runs", "--dry-run", "--profile", tmp_path / "tracked.yaml"]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 2
    assert "tracking.wandb_project: the library wandb is not installed" in result.stderr
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_is_no_continued_run(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, 40)
    done = seqloom("train", recipe, "--workdir", tmp_path / "runs", "--dry-run", "--continue-from-earlier")
    assert done.returncode == 2
    assert "--continue-from-earlier: a dry run continues nothing" in done.stderr


def test_a_dry_run_that_is_told_to_stop_leaves_nothing(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, 40)
    command = [sys.executable, "-m", "flows.cli", "train", str(recipe), "--workdir", str(tmp_path / "runs")]
    process = subprocess.Popen([*command, "--dry-run", "--no-ray"], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("runs/.dry-run-*/*")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.terminate()
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 143, stderr
    assert "Traceback" not in stderr
    assert not (tmp_path / "runs").exists()


def test_a_workdir_that_others_write_to_meanwhile_stays(tmp_path: Path) -> None:
    with train_cli._temporary(tmp_path / "deep" / "runs") as folder:
        (tmp_path / "deep" / "runs" / "stages").mkdir()
    assert not folder.exists()
    assert (tmp_path / "deep" / "runs" / "stages").is_dir()


# What the whole takes, from what the trial took


def test_the_rows_that_were_drawn_stand_for_those_of_train_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_cli, "SAMPLE_ROWS", 200)
    path = write_recipe(tmp_path, 40)
    texts = [line.split("\t")[1] for line in (tmp_path / "train.tsv").read_text(encoding="utf-8").splitlines()]
    (tmp_path / "more.de").write_text("".join(f"{text} {n}\n" for n, text in enumerate(5 * texts)), encoding="utf-8")
    recipe = load_recipe(str(path), define={}, overrides=["corpora.monolingual=[{name: m, target: more.de}]"])
    prepared = train_cli._sampled(recipe, Profile(), tmp_path / "runs", tmp_path)
    assert prepared.scale == 2.0
    assert "this is of 200 of 400 rows of train" in prepared.notes[0]
    rows = prepared.runs["encode"].manifest.counters["train"]["rows"]
    (note,) = train_cli._notes_of_windows(prepared, 1000.0)
    assert note.startswith(f"each worker will hold {rows} kB more")
    small = recipe.model_copy(update={"train": recipe.train.model_copy(update={"window_rows": rows // 2})})
    assert train_cli._notes_of_windows(replace(prepared, recipe=small), 1000.0) == []


def estimated(num_workers: int, rows: int, *, scale: float = 1.0, held_out: bool = False, beside: int = 0) -> Any:
    """What a training of 100 updates takes, of a trial whose dev had 640 rows: 64 of them took 2 s."""
    corpora = SimpleNamespace(held_out={"dev": 0.1} if held_out else {})
    recipe = SimpleNamespace(train=TrainConfig(max_epochs=10, validate_epochs=5), corpora=corpora)
    encoded = SimpleNamespace(manifest=SimpleNamespace(counters={"dev": {"rows": 640}}))
    prepared = train_cli._Prepared({"encode": encoded}, recipe, None, scale, ())  # type: ignore[dict-item,arg-type]
    figures = {
        "num_workers": num_workers, "target_tokens_per_update": 100, "target_tokens_per_s": 100,
        "checkpoint_bytes": 0, "model_bytes": 0,
    }  # fmt: skip
    prices = PricesConfig(worker_hour=36.0)
    return train_cli._estimates(figures, prepared, prices, 100, train_cli._Validation(2.0, rows), beside=beside)


@pytest.mark.parametrize(
    ("num_workers", "rows", "seconds"),
    [
        (1, 64, 20.0),
        (4, 64, 5.0),  # one worker had all 64 rows, and of the whole it has a quarter
        (4, 16, 20.0),  # each had its part of them
        (640, 64, 2.0),  # a batch is not dealt out
    ],
)
def test_the_time_of_a_validation_is_that_of_the_busiest_workers_rows(
    num_workers: int, rows: int, seconds: float
) -> None:
    assert estimated(num_workers, rows)["seconds_per_validation"] == pytest.approx(seconds)


def test_a_dev_that_is_held_out_of_train_grows_with_it() -> None:
    assert estimated(1, 64, scale=50.0)["seconds_per_validation"] == pytest.approx(20.0)
    assert estimated(1, 64, scale=50.0, held_out=True)["seconds_per_validation"] == pytest.approx(1000.0)


def test_only_workers_that_validate_beside_training_cost_and_keep_it_from_waiting() -> None:
    waiting, beside = estimated(2, 64), estimated(2, 64, beside=1)
    assert waiting["seconds"] == pytest.approx(100 + 2 * 10)
    assert waiting["cost"] == pytest.approx(waiting["seconds"] / 3600 * 2 * 36)
    assert beside["seconds"] == pytest.approx(100)
    assert beside["cost"] == pytest.approx(100 / 3600 * 3 * 36)
    assert beside["seconds_per_validation"] == pytest.approx(20.0)


@pytest.mark.slow
def test_a_dry_run_on_finished_stages_takes_the_workers_and_prices_of_the_profile(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, 40)
    done = seqloom("prepare", recipe, "--workdir", tmp_path / "deep" / "runs")
    assert done.returncode == 0, done.stderr
    found, printed = dry_run(recipe, "--profile", tmp_path / "priced.yaml")
    assert found["notes"] == []
    assert found["num_workers"] == 2
    assert found["parameters"] == 40 * 8 + 40 + model_without_vocabulary(recipe)
    assert found["cost"] == pytest.approx(found["seconds"] / 3600 * (2 * 1000 + 500), abs=0.1)
    assert found["currency"] == "EUR"
    assert re_line(printed, "cost").endswith("EUR")


def re_line(text: str, name: str) -> str:
    return next(line.rstrip() for line in text.splitlines() if line.startswith(name))
