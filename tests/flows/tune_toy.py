"""A corpus and a recipe so small that a trial takes seconds, most of them to import torch."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import yaml

WORDS = [
    ("one", "eins"), ("two", "zwei"), ("three", "drei"), ("four", "vier"), ("house", "Haus"), ("tree", "Baum"),
    ("red", "rot"), ("green", "grün"), ("dog", "Hund"), ("cat", "Katze"), ("and", "und"), ("small", "klein"),
]  # fmt: skip


def toy_recipe(folder: Path, tune: dict[str, Any], **tables: dict[str, Any]) -> Path:
    """Write the corpus and a recipe with this search, and return the recipe's path."""
    corpora = {}
    for split, rows in {"train": 160, "dev": 8, "test": 4}.items():
        rng = random.Random(split)
        pairs = [rng.choices(WORDS, k=rng.randint(3, 6)) for _ in range(rows)]
        for side, language in enumerate(("en", "de")):
            lines = "".join(" ".join(word[side] for word in words) + "\n" for words in pairs)
            (folder / f"{split}.{language}").write_text(lines, encoding="utf-8")
        corpora[split] = [{"name": "toy", "source": f"{split}.en", "target": f"{split}.de"}]
    tree: dict[str, Any] = {
        "name": "toy",
        "languages": {"source": "en", "target": "de"},
        "corpora": corpora,
        "clean": {"rules": {"language": None}, "leakage": {"overlap": None}, "max_reject_rate": 0.9},
        "tokenizer": {"vocab_size": 48},
        "model": {"embedding_dim": 8, "hidden_dim": 16, "encoder_layers": 1, "dropout": 0.0},
        "train": {
            "max_epochs": 3,
            "microbatch_tokens": 256,
            "warmup_updates": 0,
            "early_stopping_metric": "loss",
        },
        "tune": {"metric": "loss", "grace_validations": 1, "reduction_factor": 2, **tune},
    }
    for name, keys in tables.items():
        tree[name] = tree.get(name, {}) | keys
    path = folder / "toy.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    return path


def trial_lines(workdir: Path) -> list[dict[str, Any]]:
    """Return the lines of trials.jsonl, none where it is not there yet."""
    path = workdir / "toy" / "tune" / "trials.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
