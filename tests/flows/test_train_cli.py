"""The dry run of training, through the command: what it says, and that nothing is left of it."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flows.cli import app

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
    found, printed = dry_run(recipe, "--no-ray")
    assert not (tmp_path / "deep").exists()
    first, _, vocabulary = found["notes"]
    assert first == (
        "training would first run score, clean, fit_tokenizer, encode; this is of 400 of 400 rows of the corpora"
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
    assert "cost" not in found
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
