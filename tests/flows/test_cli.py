from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from flows import cli
from flows.cli import app
from flows.process import Interrupted, ProcessFailed

RECIPE = """
name: tiny
languages: {source: en, target: de}
corpora:
  train: [{name: a, source: "${DATA}/train.en", target: "${DATA}/train.de"}]
  dev: [{name: a, source: "${DATA}/dev.en", target: "${DATA}/dev.de"}]
  test: [{name: a, source: "${DATA}/test.en", target: "${DATA}/test.de"}]
"""
SCORES = {"bleu": {"score": 61.25, "signature": "nrefs:1|tok:13a", "confidence": [60.0, 62.5]}}


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    return str(path)


def seqloom(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_help_names_every_command_with_examples_and_exit_statuses() -> None:
    text = seqloom("--help").stdout
    for name in (
        "run", "plan", "prepare", "train", "stage", "report", "preview", "explain", "translate", "evaluate", "score",
        "schema",
    ):  # fmt: skip
        assert f"│ {name} " in text
    assert "seqloom run my.yaml --set train.max_epochs=3" in text
    assert "0 done, 1 failed, 2 wrong usage or input" in text


def test_importing_the_command_imports_no_slow_library() -> None:
    slow = {"torch", "ray", "prefect", "apache_beam", "pyarrow", "sacrebleu", "matplotlib"}
    text = f"import sys, flows.cli\nprint(sorted({slow} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("command", ["run", "plan", "prepare", "train", "explain"])
@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--set", "train.max_epoch=3"], "unknown key `train.max_epoch`"),
        (["--set", "train.max_epochs=many"], "key `train.max_epochs`: Input should be a valid integer"),
        (["--set", "train.max_epochs"], "--set train.max_epochs: not of the form KEY=VALUE"),
        (["--define", "DATA"], "--define DATA: not of the form NAME=VALUE"),
        (["--profile", "moon"], "moon: no such profile"),
    ],
)
def test_wrong_options_end_with_status_two(recipe: str, command: str, options: list[str], says: str) -> None:
    define = [] if "--define" in options else ["--define", "DATA=/data"]
    result = seqloom(command, recipe, *define, *options)
    assert result.exit_code == 2
    assert says in result.stderr
    assert "Traceback" not in result.stderr


def test_a_missing_definition_ends_with_status_two(recipe: str, tmp_path: Path) -> None:
    result = seqloom("run", recipe, "--workdir", tmp_path / "runs")
    assert result.exit_code == 2
    assert "${DATA} is not defined. Add --define DATA=VALUE" in result.stderr


def test_an_unknown_recipe_ends_with_status_two_and_lists_the_known() -> None:
    result = seqloom("run", "nowhere")
    assert result.exit_code == 2
    assert "nowhere: no such recipe. Give the path of a YAML file, or one of these names: " in result.stderr


def test_a_missing_corpus_ends_with_status_two_before_anything_starts(recipe: str, tmp_path: Path) -> None:
    result = seqloom("run", recipe, "--define", f"DATA={tmp_path}", "--workdir", tmp_path / "runs")
    assert result.exit_code == 2
    assert str(tmp_path / "train.en") in result.stderr
    assert not (tmp_path / "runs").exists()


def test_an_unknown_stage_ends_with_status_two(recipe: str) -> None:
    result = seqloom("stage", "dream", recipe)
    assert result.exit_code == 2
    assert "dream: no such stage. Give one of score, fit_quality, rate, clean, fit_tokenizer, encode" in result.stderr


def test_an_input_that_is_no_finished_stage_ends_with_status_two(recipe: str, tmp_path: Path) -> None:
    result = seqloom("stage", "encode", recipe, "--define", "DATA=/data", "--input", f"clean={tmp_path}")
    assert result.exit_code == 2
    assert f"{tmp_path}: the stage 'clean' has not finished here" in result.stderr


def test_a_folder_without_a_run_has_no_report(tmp_path: Path) -> None:
    result = seqloom("report", tmp_path)
    assert result.exit_code == 2
    assert f"{tmp_path}: no run has finished here" in result.stderr


def test_translation_takes_keys_of_its_own_table_only(tmp_path: Path) -> None:
    result = seqloom("translate", tmp_path, tmp_path / "in", tmp_path / "out", "--set", "train.seed=2")
    assert result.exit_code == 2
    assert "only keys of `translate` can be set here" in result.stderr


@pytest.mark.parametrize("arguments", [[], ["--hypotheses", "h.txt"], ["runs/x", "--references", "r.txt"]])
def test_evaluation_needs_either_a_folder_or_two_files(arguments: list[str]) -> None:
    result = seqloom("evaluate", *arguments)
    assert result.exit_code == 2
    assert "give either a folder alone, or both --hypotheses and --references" in result.stderr


def test_wrong_usage_ends_with_status_two() -> None:
    assert seqloom("run").exit_code == 2
    assert seqloom("fly").exit_code == 2


def test_with_json_the_error_is_one_object_on_standard_output() -> None:
    result = seqloom("run", "nowhere", "--json")
    assert result.exit_code == 2
    error = json.loads(result.stdout)["error"]
    assert (error["what"], error["where"]) == ("no such recipe", "nowhere")


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (ProcessFailed("stage train", 1, ["out of memory"]), 1, "stage train ended with exit status 1"),
        (KeyboardInterrupt(), 130, "interrupted; the same command continues"),
        (Interrupted(), 143, "interrupted; the same command continues"),
    ],
)
def test_a_failure_ends_with_status_one_and_a_signal_with_its_own(
    monkeypatch: pytest.MonkeyPatch, recipe: str, error: BaseException, status: int, says: str
) -> None:
    def fail(*_args: object, **_kwargs: object) -> None:
        raise error

    monkeypatch.setattr(cli, "load_recipe", fail)
    result = seqloom("run", recipe, "--json")
    assert result.exit_code == status
    assert f"error: {says}" in result.stderr
    assert "error" in json.loads(result.stdout)


def test_the_process_ends_without_a_traceback() -> None:
    done = subprocess.run([sys.executable, "-m", "flows.cli", "plan", "nowhere"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: nowhere: no such recipe.")
    assert done.stderr.count("\n") == 1


def test_evaluation_prints_each_score_with_its_signature(tmp_path: Path) -> None:
    lines = "a small cat sits on the mat\nthe dog runs home\n"
    (tmp_path / "h.txt").write_text(lines, encoding="utf-8")
    (tmp_path / "r.txt").write_text(lines, encoding="utf-8")
    options = ["--set", "evaluate.bootstrap_resamples=100", "--set", "evaluate.metrics=[bleu]"]
    result = seqloom(
        "evaluate", "--hypotheses", tmp_path / "h.txt", "--references", tmp_path / "r.txt", "--json", *options
    )
    assert result.exit_code == 0
    bleu = json.loads(result.stdout)["tests"]["h.txt"]["metrics"]["bleu"]
    assert bleu["score"] == pytest.approx(100)
    assert bleu["signature"] in result.stderr


def test_evaluation_prints_the_scores_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "scores.json").write_text(json.dumps({"tests": {"captions": {"rows": 1000, "metrics": SCORES}}}))
    result = seqloom("evaluate", tmp_path)
    assert result.exit_code == 0
    assert "captions" in result.stdout
    assert "61.25" in result.stdout
    assert "nrefs:1|tok:13a" in result.stdout


LANGUAGE_MODEL = """
name: lm
languages: {source: en, target: de}
corpora:
  train: [{name: a, tsv: train.tsv}]
  dev: [{name: a, tsv: dev.tsv}]
  test: [{name: a, tsv: dev.tsv}]
clean: {leakage: {overlap: null}, rules: {language: null}}
tokenizer: {vocab_size: 40}
model: {architecture: recurrent_lm, embedding_dim: 8, hidden_dim: 8, layers: 1}
train: {max_epochs: 1, early_stopping_metric: loss}
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run of a language model, trained and not published, and what the command printed."""
    folder, draw = tmp_path_factory.mktemp("lm"), random.Random(1)
    (folder / "lm.yaml").write_text(LANGUAGE_MODEL, encoding="utf-8")
    words = ["ein Hund", "eine Katze", "das Haus", "der Baum", "und", "klein", "rot"]
    for name, rows in (("train", 150), ("dev", 10)):
        lines = [" ".join(draw.choices(words, k=draw.randint(3, 6))) for _ in range(rows)]
        (folder / f"{name}.tsv").write_text("".join(f"{n} {line}\t{line}\n" for n, line in enumerate(lines)))
    options = ["--no-ray", "--workdir", str(folder / "runs")]
    command = [sys.executable, "-m", "flows.cli", "train", str(folder / "lm.yaml"), *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "runs" / "lm", done.stdout


def test_training_of_a_language_model_says_its_perplexity(trained: tuple[Path, str]) -> None:
    assert re.match(r"trained in \d+ updates, best on dev: perplexity \d+\.\d\d\n", trained[1])


def test_lines_are_scored_by_the_model_of_a_run_that_is_not_published(
    trained: tuple[Path, str], tmp_path: Path
) -> None:
    run, text = trained[0], tmp_path / "in.txt"
    lines = [line.partition("\t")[2] for line in (run.parents[1] / "dev.tsv").read_text().splitlines()]
    text.write_text("".join(f"{line}\n" for line in lines))
    result = seqloom("score", run, text)
    assert result.exit_code == 0
    rows = [line.split("\t") for line in result.stdout.splitlines()]
    assert len(rows) == 10
    assert all(float(row[0]) < 0 < int(row[1]) for row in rows)
    # The lines are those of dev, so that the whole is what training has found.
    manifest = json.loads((run / "stages" / "train" / "manifest.json").read_text())
    expected = manifest["counters"]["best_perplexity"]
    found = re.search(r"perplexity per piece: ([\d.]+)\n", result.stderr)
    assert found is not None
    assert float(found.group(1)) == pytest.approx(expected, rel=1e-4)
    result = seqloom("score", run, text, "--output", tmp_path / "out.parquet", "--json")
    assert result.exit_code == 0
    figures = json.loads(result.stdout)
    assert figures["rows"] == 10
    assert figures["perplexity"] == pytest.approx(expected, rel=1e-4)
    expected = manifest["counters"]["best_perplexity_per_character"]
    assert figures["perplexity_per_character"] == pytest.approx(expected, rel=1e-4)
    assert (tmp_path / "out.parquet").is_file()


def test_a_run_that_was_prepared_anew_since_training_is_refused(trained: tuple[Path, str], tmp_path: Path) -> None:
    run = tmp_path / "lm"
    shutil.copytree(trained[0], run, symlinks=True)
    for stage in ("train", "clean", "fit_tokenizer"):
        (run / "stages" / stage).unlink()
        (run / "stages" / stage).symlink_to((trained[0] / "stages" / stage).resolve())
    other = tmp_path / "other"
    shutil.copytree((run / "stages" / "fit_tokenizer").resolve(), other)
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["outputs"][0]["sha256"] = "0" * 64
    (other / "manifest.json").write_text(json.dumps(manifest))
    (run / "stages" / "fit_tokenizer").unlink()
    (run / "stages" / "fit_tokenizer").symlink_to(other)
    result = seqloom("score", run, trained[0] / "report.html")
    assert result.exit_code == 2
    assert "the run was prepared anew since its model was trained" in result.stderr


def test_scoring_takes_a_published_model_or_a_run_and_keys_of_its_own_table(tmp_path: Path) -> None:
    result = seqloom("score", tmp_path, tmp_path / "in.txt")
    assert result.exit_code == 2
    assert "no published model here" in result.stderr
    result = seqloom("score", tmp_path, tmp_path / "in.txt", "--set", "translate.beam_size=2")
    assert "only keys of `score` can be set here" in result.stderr


def test_the_schema_is_json_with_both_forms() -> None:
    printed = json.loads(seqloom("schema").stdout)
    assert set(printed) == {"recipe", "models", "profile"}
    assert json.loads(seqloom("schema", "--json").stdout) == printed
