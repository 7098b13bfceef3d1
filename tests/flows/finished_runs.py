"""Small finished stages with real manifests and files of the contracted forms, for tests of what reads them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from flows.config import PublishConfig, Recipe
from nmt.config import EvaluateConfig, TrainConfig
from nmt.evaluate import evaluate_tests
from pipelines.config import CorporaConfig, CorpusConfig, LanguagesConfig
from pipelines.corpus import ROW_ID_STRIDE
from pipelines.explanations import Explanations, histogram_table, sample_table, waterfall_table
from pipelines.stage import StageResult, StageRun, run_stage
from pipelines.verdict import Criterion, judge

SIZE = 40
ANIMALS = ("Hund", "Vogel", "Fisch", "Bär", "Esel", "Igel", "Affe", "Wolf")
PLACES = ("im Garten", "am See", "auf dem Dach", "vor dem Haus", "hinter der alten Mühle")
REFERENCES = tuple(f"Ein {ANIMALS[i % 8]} schläft {PLACES[i % 5]} seit {i} Tagen." for i in range(SIZE))
SOURCES = tuple(f"Row {i}: an animal has slept for {i} days." for i in range(SIZE))
WATERFALL = (
    {
        "split": "train",
        "corpus": "captions",
        "read": 12_000,
        "kept": 10_500,
        "rejected": {"empty": 240, "length_ratio": 0, "language": 1_259, "duplicate": 1},
        "alone": {"empty": 240, "length_ratio": 12, "language": 1_300, "terminal_punctuation": 0},
        "only": {"empty": 200, "length_ratio": 0, "language": 1_250, "terminal_punctuation": 0},
    },
    {"split": "dev", "corpus": "val", "read": 20, "kept": 20, "rejected": {"empty": 0}},
    {"split": "test", "corpus": "news", "read": SIZE, "kept": SIZE, "rejected": {"empty": 0}},
)
CRITERIA = (
    Criterion("empty", "score_empty", "below", 1.0),
    Criterion("length_ratio", "score_length_ratio", "above", 2.5),
    Criterion("terminal_punctuation", "score_terminal_punctuation", "above", None),
    Criterion("language", "score_language", "above", 0.7),
)
# Of train: source, target, the scores of the criteria, the reason why it went, and the row that it repeats.
TRAIN: tuple[tuple[str, str, tuple[float | None, ...], str | None, int | None], ...] = (
    ("A dog.", "Ein Hund.", (6.0, 1.5, 0.0, 0.125), None, None),
    ("", "Leer.", (0.0, None, None, None), "empty", None),
    ("<script>alert(1)</script>", "a\x00b & c", (7.0, 2.0, 1.0, 0.875), "language", None),
    ("A dog.", "Ein Hund.", (6.0, 1.5, 0.0, 0.125), "duplicate", 0),
    ("A cat sleeps.", "Eine Katze schläft", (12.0, 1.25, 0.5, 0.625), None, None),
)


def small_recipe(**publish: float) -> Recipe:
    """Return a recipe with one corpus a split, and the gate's settings."""

    def corpus(name: str) -> CorpusConfig:
        return CorpusConfig(name=name, source=f"{name}.en", target=f"{name}.de", licence="CC0-1.0")

    return Recipe(
        name="small-en-de",
        languages=LanguagesConfig(source="en", target="de"),
        corpora=CorporaConfig(train=(corpus("captions"),), dev=(corpus("val"),), test=(corpus("news"),)),
        evaluate=EvaluateConfig(bootstrap_resamples=200),
        publish=PublishConfig(**publish),
    )


def language_model_recipe() -> Recipe:
    """Return the small recipe with a language model of the target side."""
    return small_recipe().model_copy(
        update={"model": {"architecture": "recurrent_lm"}, "train": TrainConfig(early_stopping_metric="loss")}
    )


def language_model_runs(
    root: Path, *, perplexity: float = 12.0, tokenizer: bytes = b"model", dev: str = "d" * 64
) -> dict[str, StageRun]:
    """Return the runs of a language model's stages; each of its ten pieces on dev has two characters and a half."""
    clean = _clean(root, SOURCES, REFERENCES, WATERFALL)
    fitted = _run(root, "fit_tokenizer", {}, {"tokenizer.json": b"{}", "joint.model": tokenizer}, {})
    encoded = _run(root, "encode", {}, {}, {"dev": _SPLIT})
    loss = math.log(perplexity)
    lines = [{"kind": "train", "update": 10, "epoch": 0, "loss": loss + 1.0}]
    lines += [{"kind": "validation", "update": n, "loss": loss + 30 / n - 0.1, "samples": []} for n in (100, 300)]
    metrics = "".join(json.dumps(line) + "\n" for line in lines).encode()
    # Of each root its own weights: a version is named by its content.
    weights = f"{root.name} {perplexity}".encode()
    files = {"best/config.json": b"{}", "best/model.safetensors": weights, "metrics.jsonl": metrics}
    counters = {name: value for name, value in _TRAINING.items() if name != "best_bleu"} | {
        "best_loss": loss,
        "best_perplexity": perplexity,
        "best_perplexity_per_character": math.exp(loss / 2.5),
        "dev_rows": 5,
        "dev_pieces": 10,
        "dev_characters": 25,
        "dev_sha256": dev,
    }
    train = _run(root, "train", {"tokenizer": fitted.manifest.digest(), "counters": str(counters)}, files, counters)
    return {"clean": clean, "fit_tokenizer": fitted, "encode": encoded, "train": train}


def worsened(rows: int) -> tuple[str, ...]:
    """Return the references with words wrong in the first rows: hypotheses of a known quality."""
    return tuple(
        line.replace("schläft", "sitzt").replace("seit", "vor") if i < rows else line
        for i, line in enumerate(REFERENCES)
    )


def finished_runs(
    root: Path,
    *,
    hypotheses: Sequence[str] = REFERENCES,
    references: Sequence[str] = REFERENCES,
    sources: Sequence[str] = SOURCES,
    weights: bytes = b"weights",
    waterfall: Sequence[Mapping[str, Any]] = WATERFALL,
) -> dict[str, StageRun]:
    """Return the runs of all six stages under `root`; only `evaluate` is the real stage."""
    clean = _clean(root, sources, references, waterfall)
    after_clean = {"clean": clean.manifest.digest()}
    tokenizer = _run(root, "fit_tokenizer", after_clean, {"tokenizer.json": b"{}", "joint.model": b"model"}, {})
    splits = dict.fromkeys(("train", "dev", "test"), _SPLIT)
    encoded = _run(root, "encode", after_clean, {}, splits)
    train = _run(root, "train", {"encode": encoded.manifest.digest()}, _training_files(weights), _TRAINING)
    translated = _run(
        root,
        "translate",
        {"train": train.manifest.digest()},
        {
            "hypotheses/news.txt": "".join(f"{line}\n" for line in hypotheses).encode(),
            "attention.json": json.dumps([_ATTENTION]).encode(),
        },
        {"tests": {"news": {"rows": len(hypotheses), "seconds": 1.0, "rows_per_s": 40.0}}},
    )
    evaluated = evaluate_tests(small_recipe().evaluate, clean, translated, root)
    return {
        "clean": clean,
        "fit_tokenizer": tokenizer,
        "encode": encoded,
        "train": train,
        "translate": translated,
        "evaluate": evaluated,
    }


_SPLIT = {"rows": 20, "src_pieces": 250, "tgt_pieces": 300, "src_unknown": 1, "tgt_unknown": 0}
_TRAINING = {
    "updates": 400,
    "epochs": 4,
    "best_update": 300,
    "best_bleu": 41.25,
    "best_loss": 1.5,
    "parameters": 7_654_321,
    "train_rows": 10_500,
    "rows_too_long": 3,
    "target_tokens": 98_765,
    "target_tokens_per_s": 4321.5,
    "num_workers": 2,
    "stopped": "max_epochs",
    "ledger": {
        "wall_hours": 3.5,
        "worker_hours": 10.0,
        "gpu_hours": 0.0,
        "again_hours": 0.5,
        "restarts": 1,
        "updates": 400,
        "updates_again": 12,
        "target_tokens": 98_765,
        "target_tokens_per_s": 4321.5,
        "shares": {"communication": 0.125, "data": 0.0004, "validation": 0.1},
        "cost": 15.875,
        "currency": "EUR",
    },
}
_ATTENTION = {
    "test": "news",
    "row": 0,
    "source": "A dog.",
    "hypothesis": "Ein Hund.",
    "source_pieces": ["▁A", "▁dog", ".", "</s>"],
    "target_pieces": ["▁Ein", "▁Hund", ".", "</s>"],
    "attention": [[0.9, 0.1, 0.0, 0.0], [0.05, 0.9, 0.05, 0.0], [0.0, 0.1, 0.88, 0.02], [0.0, 0.0, 0.25, 0.75]],
}


def _training_files(weights: bytes) -> dict[str, bytes]:
    lines: list[dict[str, Any]] = []
    for update in range(10, 401, 10):
        figures = {"learning_rate": update / 1e5, "target_tokens_per_s": 4000.0 + update}
        lines.append({"kind": "train", "update": update, "epoch": update // 100, "loss": 1.0 + 60.0 / update} | figures)
        if update % 100 == 0:
            bleu = 41.25 if update == 300 else update / 10
            scores = {"bleu": bleu, "chrf": bleu + 20.5}
            lines.append({"kind": "validation", "update": update, "loss": 1.4 + 40.0 / update} | scores)
    metrics = "".join(json.dumps(line) + "\n" for line in lines)
    return {"best/config.json": b"{}", "best/model.safetensors": weights, "metrics.jsonl": metrics.encode()}


def _clean(
    root: Path, sources: Sequence[str], references: Sequence[str], waterfall: Sequence[Mapping[str, Any]]
) -> StageRun:
    judged = any(entry["split"] == "train" for entry in waterfall)

    def body(folder: Path) -> StageResult:
        test = {
            "row_id": pa.array([2 * ROW_ID_STRIDE + row for row in range(len(references))], pa.int64()),
            "corpus": ["news"] * len(references),
            "src": list(sources),
            "tgt": list(references),
            "src_raw": list(sources),
            "tgt_raw": list(references),
        }
        train = _train_table()
        gone = train["rule"].is_valid()
        columns = ["row_id", "corpus", "src", "tgt"]
        paths = {
            "clean/test/part-00000.parquet": pa.table(test),
            "clean/train/part-00000.parquet": train.filter(pc.invert(gone)).select(columns),
            "rejects/train/part-00000.parquet": train.filter(gone).select([*columns, "rule", "score", "match"]),
        }
        if judged:
            explanations = _explained(train, folder)
            samples = sample_table([folder / "samples"])
            (folder / "samples").unlink()
        else:
            explanations, samples = {}, sample_table([])
        paths |= {
            "explanations/waterfall.parquet": waterfall_table(waterfall),
            "explanations/histograms.parquet": histogram_table(explanations),
            "explanations/samples.parquet": samples,
        }
        for path, table in paths.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table, folder / path)
        histogram = {"edges": [0, 10, 20, 30, 500], "rows": [100, 8_000, 3_900, 0]}
        kept = {"edges": [0, 10, 20, 30, 500], "rows": [0, 7_500, 3_000, 0]}
        lengths = {"before": {"src": histogram, "tgt": histogram}, "after": {"src": kept, "tgt": kept}}
        return StageResult(paths, {"waterfall": list(waterfall), "lengths": lengths})

    criteria = {"train/captions": [asdict(criterion) for criterion in CRITERIA]} if judged else {}
    config = {"waterfall": list(waterfall), "criteria": criteria}
    return run_stage("clean", 1, config, _digests(sources, references), root, body)


def _train_table() -> pa.Table:
    scores = {
        criterion.column: pa.array([row[2][place] for row in TRAIN], pa.float32())
        for place, criterion in enumerate(CRITERIA)
    }
    names = [criterion.name for criterion in CRITERIA]
    gone_with = [row[2][names.index(row[3])] if row[3] in names else None for row in TRAIN]
    return pa.table(
        {
            "row_id": pa.array(range(len(TRAIN)), pa.int64()),
            "corpus": ["captions"] * len(TRAIN),
            "src": [row[0] for row in TRAIN],
            "tgt": [row[1] for row in TRAIN],
            "rule": pa.array([row[3] for row in TRAIN], pa.string()),
            "score": pa.array(gone_with, pa.float32()),
            "match": pa.array([row[4] for row in TRAIN], pa.int64()),
            **scores,
        }
    )


def _explained(train: pa.Table, folder: Path) -> dict[str, Explanations]:
    """Return what explains the rows of train, and write their samples."""
    columns = {criterion.column: train[criterion.column].combine_chunks() for criterion in CRITERIA}
    explanations = Explanations(CRITERIA)
    explanations.count(judge(columns, CRITERIA, len(train)), columns, np.ones(len(train), dtype=np.bool_))
    explanations.show(train, train["rule"].combine_chunks(), train["score"].combine_chunks())
    explanations.write_samples(folder / "samples")
    return {"train/captions": explanations}


def _run(
    root: Path, name: str, inputs: Mapping[str, str], files: Mapping[str, bytes], counters: dict[str, Any]
) -> StageRun:
    def body(folder: Path) -> StageResult:
        for path, content in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        return StageResult(files, counters)

    return run_stage(name, 1, {}, {**inputs, **_digests(*files.values())}, root, body)


def _digests(*contents: object) -> dict[str, str]:
    return {str(index): repr(content) for index, content in enumerate(contents)}
