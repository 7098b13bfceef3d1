"""Small finished stages with real manifests and files of the contracted forms, for tests of what reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from flows.config import PublishConfig, Recipe
from nmt.config import EvaluateConfig
from nmt.evaluate import evaluate_tests
from pipelines.config import CorporaConfig, CorpusConfig, LanguagesConfig
from pipelines.stage import StageResult, StageRun, run_stage

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
    },
    {"split": "dev", "corpus": "val", "read": 20, "kept": 20, "rejected": {"empty": 0}},
    {"split": "test", "corpus": "news", "read": SIZE, "kept": SIZE, "rejected": {"empty": 0}},
)
REJECTED = (
    ("captions", "", "Leer.", "empty", None),
    ("captions", "<script>alert(1)</script>", "a\x00b & c", "language", 0.125),
    ("captions", "A dog.", "Ein Hund.", "duplicate", None),
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
    side = {"src_pieces": 250, "tgt_pieces": 300, "src_unknown": 1, "tgt_unknown": 0}
    splits = {split: {"rows": 20, **side} for split in ("train", "dev", "test")}
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
        lines.append({"kind": "train", "update": update, "epoch": update // 100, "loss": 1.0 + 60.0 / update})
        if update % 100 == 0:
            bleu = 41.25 if update == 300 else update / 10
            lines.append({"kind": "validation", "update": update, "loss": 1.4 + 40.0 / update, "bleu": bleu})
    metrics = "".join(json.dumps(line) + "\n" for line in lines)
    return {"best/config.json": b"{}", "best/model.safetensors": weights, "metrics.jsonl": metrics.encode()}


def _clean(
    root: Path, sources: Sequence[str], references: Sequence[str], waterfall: Sequence[Mapping[str, Any]]
) -> StageRun:
    def body(folder: Path) -> StageResult:
        test = {
            "row_id": pa.array([2 * 2**40 + row for row in range(len(references))], pa.int64()),
            "corpus": ["news"] * len(references),
            "src": list(sources),
            "tgt": list(references),
            "src_raw": list(sources),
            "tgt_raw": list(references),
        }
        columns = ("corpus", "src", "tgt", "rule", "score")
        rejects = {name: [row[index] for row in REJECTED] for index, name in enumerate(columns)}
        rejects["score"] = pa.array(rejects["score"], pa.float32())
        paths = {"clean/test/part-00000.parquet": test, "rejects/train/part-00000.parquet": rejects}
        for path, table in paths.items():
            (folder / path).parent.mkdir(parents=True)
            pq.write_table(pa.table(table), folder / path)
        histogram = {"edges": [0, 10, 20, 30, 500], "rows": [100, 8_000, 3_900, 0]}
        kept = {"edges": [0, 10, 20, 30, 500], "rows": [0, 7_500, 3_000, 0]}
        lengths = {"before": {"src": histogram, "tgt": histogram}, "after": {"src": kept, "tgt": kept}}
        return StageResult(paths, {"waterfall": list(waterfall), "lengths": lengths})

    return run_stage("clean", 1, {"waterfall": list(waterfall)}, _digests(sources, references), root, body)


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
