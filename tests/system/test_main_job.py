"""The main job through the real command: corpora in, a published model out; then nothing is left to do."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

CAPTIONS = Path(__file__).parents[1] / "data" / "captions.py"
RECIPE = """
name: small
languages: {source: en, target: de}
corpora:
  train:
    - {name: captions, source: "${DATA}/train.en.gz", target: "${DATA}/train.de.gz", licence: Apache-2.0}
    - {name: notices, tsv: "${DATA}/notices.tsv", header: true, source_column: en, target_column: de}
  dev: [{name: dev, source: "${DATA}/dev.en", target: "${DATA}/dev.de"}]
  test: [{name: test, source: "${DATA}/test.en", target: "${DATA}/test.de"}]
tokenizer: {kind: bpe, vocab_size: 700, character_coverage: 1.0}
model: {embedding_dim: 24, hidden_dim: 32, attention: general, input_feeding: false}
train: {max_epochs: 3, microbatch_tokens: 1024, learning_rate: 5.0e-3, checkpoint_updates: 2}
translate: {beam_size: 2, rows_per_shard: 150}
"""


def seqloom(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "flows.cli", *arguments]


def run(*arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(seqloom(*arguments), capture_output=True, text=True, timeout=400)
    assert done.returncode == status, done.stderr[-3000:]
    return done


def corpus_and_recipe(folder: Path) -> list[str]:
    """Make a corpus and a recipe in a folder, and return the arguments that name them."""
    subprocess.run([sys.executable, str(CAPTIONS), str(folder / "corpus"), "--pairs", "900"], check=True)
    (folder / "small.yaml").write_text(RECIPE, encoding="utf-8")
    return [str(folder / "small.yaml"), "--define", f"DATA={folder / 'corpus'}", "--workdir", str(folder / "runs")]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[str], dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("main")
    arguments = corpus_and_recipe(folder)
    done = run("run", *arguments, "--json")
    yield folder / "runs" / "small", arguments, json.loads(done.stdout.splitlines()[-1])


def test_the_run_leaves_a_report_scores_and_a_published_model(finished: Any) -> None:
    folder, _, answer = finished
    assert (folder / "report.html").stat().st_size > 20_000
    scores = json.loads((folder / "scores.json").read_text(encoding="utf-8"))["tests"]["test"]
    assert scores["rows"] == 400
    assert scores["metrics"]["bleu"]["signature"].startswith("nrefs:1|bs:1000|seed:12345|case:mixed")
    assert answer["gate"]["published"] is True
    assert (folder / "model" / "checkpoint" / "model.safetensors").is_file()


def test_no_line_of_the_test_set_is_lost(finished: Any) -> None:
    folder, _, _ = finished
    hypotheses = (folder / "stages/translate/hypotheses/test.txt").read_bytes().split(b"\n")
    assert hypotheses.pop() == b""
    assert len(hypotheses) == 400


def test_every_row_of_train_is_kept_or_rejected_with_a_reason(finished: Any) -> None:
    folder, _, _ = finished
    waterfall = json.loads((folder / "stages/clean/manifest.json").read_text())["counters"]["waterfall"]
    train = [entry for entry in waterfall if entry["split"] == "train"]
    assert all(entry["read"] == entry["kept"] + sum(entry["rejected"].values()) for entry in train)
    reasons = {reason for entry in train for reason, rows in entry["rejected"].items() if rows}
    assert reasons >= {
        "malformed", "invalid_utf8", "empty", "length_ratio", "markup", "broken_encoding", "identical", "language",
        "duplicate", "folded_duplicate", "leakage_dev", "leakage_test",
    }  # fmt: skip
    rejects = pq.read_table(folder / "stages/clean/rejects/train").to_pydict()["rule"]
    assert len(rejects) == sum(sum(entry["rejected"].values()) for entry in train)


def test_the_published_model_translates_by_itself(finished: Any, tmp_path: Path) -> None:
    folder, _, _ = finished
    shutil.copytree((folder / "model").resolve(), tmp_path / "elsewhere")
    (tmp_path / "in.txt").write_text("A man is sleeping.\n\nTurn left.\n", encoding="utf-8")
    places = [str(tmp_path / name) for name in ("elsewhere", "in.txt", "out.txt")]
    done = run("translate", *places, "--no-ray", "--json")
    lines = (tmp_path / "out.txt").read_text(encoding="utf-8").split("\n")
    assert len(lines) == 4
    assert lines[1] == lines[3] == ""
    assert json.loads(done.stdout.splitlines()[-1])["rows"] == 3


def test_a_checkpoint_of_another_tokeniser_ends_with_status_two(finished: Any) -> None:
    folder, arguments, _ = finished
    other = run("stage", "fit_tokenizer", *arguments, "--set", "tokenizer.vocab_size=650", "--json")
    tokenizer = json.loads(other.stdout.splitlines()[-1])["folder"]
    inputs = [f"{stage}={folder / 'stages' / stage}" for stage in ("clean", "encode", "train")]
    given = [part for each in [*inputs, f"fit_tokenizer={tokenizer}"] for part in ("--input", each)]
    done = run("stage", "translate", *arguments, *given, status=2)
    message = " ".join(done.stderr.split())
    assert "the checkpoint belongs to the tokeniser" in message
    assert "Use the tokeniser that the model was trained with" in message


def test_a_second_run_has_nothing_to_do_and_publishes_the_same_version(finished: Any) -> None:
    _, arguments, answer = finished
    plan = json.loads(run("plan", *arguments, "--json").stdout.splitlines()[-1])
    assert "unchanged" in json.dumps(plan)
    again = json.loads(run("run", *arguments, "--json").stdout.splitlines()[-1])
    assert again["stages"] == answer["stages"]
    assert again["gate"]["version"] == answer["gate"]["version"]


def test_a_run_killed_in_training_is_finished_by_the_next_one_with_the_same_weights(
    finished: Any, tmp_path: Path
) -> None:
    folder, _, _ = finished
    arguments = corpus_and_recipe(tmp_path)
    process = subprocess.Popen(
        seqloom("run", *arguments), start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 200
    while not list((tmp_path / "runs").glob("stages/train-*/checkpoints/update-*")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    run("run", *arguments)
    with contextlib.suppress(ProcessLookupError):  # Prefect's server outlives a run that is killed so
        os.killpg(process.pid, signal.SIGKILL)
    found, expected = (
        next(runs.glob("stages/train-*/best/model.safetensors")).read_bytes()
        for runs in (tmp_path / "runs", folder.parent)
    )
    assert found == expected
