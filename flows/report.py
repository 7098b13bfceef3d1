"""Stage manifests -> one self-contained report.html.

    report(runs, recipe, workdir / recipe.name / "report.html")

The page loads nothing from anywhere. Whatever comes from a corpus is escaped; a part that is not there says so and why.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jinja2
import pyarrow.parquet as pq
from markupsafe import Markup

from flows import charts
from flows.config import Recipe
from nmt.evaluate import hypotheses_path, read_lines, read_tests, sentence_chrf
from pipelines.stage import Manifest, StageRun, write_atomically

TEMPLATES = Path(__file__).parent / "templates"
METRICS_NAME = "metrics.jsonl"
ATTENTION_NAME = "attention.json"
STAGES = ("clean", "fit_tokenizer", "encode", "train", "translate", "evaluate")
TITLES = {"bleu": "BLEU", "chrf": "chrF", "ter": "TER"}
SAMPLES = 6  # translations shown of each test set
RANKED_ROWS = 300  # of a test set, drawn by chance, that the samples are chosen from
REJECTS = 3  # rows shown of each rule
HEAT_MAPS = 3
SHOWN_CHARACTERS = 300
CELL = 22  # side of a cell of the heat map, and
CHARACTER = 8  # width of a label's character, in pixels


def report(
    runs: Mapping[str, StageRun], recipe: Recipe, output: Path, verdict: Mapping[str, Any] | None = None
) -> Path:
    """Return `output`, now the report of the finished stages in `runs` (by the names in STAGES, each may be missing).

    `verdict` is what `flows.registry.publish` returned, None where the gate has not been asked.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        count=_count, percent=_percent, duration=_duration, size=_size, shown=_shown, visible=_visible
    )
    context = {
        "recipe": recipe,
        "resolved": json.dumps(recipe.model_dump(mode="json"), indent=2, ensure_ascii=False),
        "verdict": verdict,
        "span": _span(runs),
        "tiles": _tiles(runs),
        "scores": _part(runs, "evaluate", _scores),
        "waterfalls": _part(runs, "clean", _waterfalls),
        "lengths": _part(runs, "clean", lambda run: _lengths(run, recipe)),
        "rejects": _part(runs, "clean", _rejects),
        "pieces": _part(runs, "encode", _pieces),
        "curves": _part(runs, "train", _curves),
        "training": _part(runs, "train", _training),
        "samples": _part(runs, "translate", lambda run: _samples(runs, run, recipe)),
        "attention": _part(runs, "translate", _attention),
        "stages": _stages(runs),
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, environment.get_template("report.html").render(context))
    return output


def _part(runs: Mapping[str, StageRun], stage: str, build: Any) -> dict[str, Any]:
    """Return {"items": what the part shows}, or {"none": why there is nothing to show}."""
    if stage not in runs:
        return {"none": f"the stage {stage} is not part of this run"}
    result: dict[str, Any] = build(runs[stage])
    return result


def _span(runs: Mapping[str, StageRun]) -> dict[str, str]:
    if not runs:
        return {"started": "never", "ended": "never"}
    starts = [datetime.fromisoformat(run.manifest.started_at) for run in runs.values()]
    ends = [start + timedelta(seconds=run.manifest.seconds) for start, run in zip(starts, runs.values())]
    return {"started": _when(min(starts)), "ended": _when(max(ends))}


def _tiles(runs: Mapping[str, StageRun]) -> list[dict[str, str]]:
    tiles = []
    if "evaluate" in runs:
        for test in _scored(runs["evaluate"].manifest):
            tiles += [
                {
                    "label": f"{metric['title']} on {test['name']}",
                    "value": f"{metric['score']:.2f}",
                    "note": _interval(metric),
                }
                for metric in test["metrics"]
                if metric["title"] == "BLEU"
            ]
    if "clean" in runs:
        falls = [fall for fall in _falls(runs["clean"].manifest) if fall["split"] == "train"]
        read, kept = sum(fall["read"] for fall in falls), sum(fall["kept"] for fall in falls)
        note = f"{_percent(_share(kept, read))} of {_count(read)} read"
        tiles.append({"label": "Training rows kept", "value": _count(kept), "note": note})
    if "train" in runs:
        manifest = runs["train"].manifest
        counters = manifest.counters
        note = f"{_count(counters['updates'])} updates, {_count(counters['epochs'])} epochs"
        tiles.append({"label": "Training", "value": _duration(manifest.seconds), "note": note})
        note = f"best on dev: BLEU {counters['best_bleu']:.2f} at update {_count(counters['best_update'])}"
        tiles.append({"label": "Parameters", "value": _short(counters["parameters"]), "note": note})
    return tiles


def _scores(run: StageRun) -> dict[str, Any]:
    tests = _scored(run.manifest)
    return {"items": tests} if tests else {"none": "no test set was evaluated"}


def _scored(manifest: Manifest) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "rows": test["rows"],
            "metrics": [{"title": TITLES[metric], **figures} for metric, figures in test["metrics"].items()],
        }
        for name, test in manifest.counters["tests"].items()
    ]


def _waterfalls(run: StageRun) -> dict[str, Any]:
    falls = _falls(run.manifest)
    return {"items": falls} if falls else {"none": "no corpus was read"}


def _falls(manifest: Manifest) -> list[dict[str, Any]]:
    """Return each corpus with rows read and kept, the rules that dropped a row (and what was left), and the others."""
    falls = []
    for entry in manifest.counters["waterfall"]:
        left, steps = entry["read"], []
        for rule, dropped in entry["rejected"].items():
            left -= dropped
            share, left_share = _share(dropped, entry["read"]), _share(left, entry["read"])
            steps.append({"rule": rule, "dropped": dropped, "share": share, "left": left, "left_share": left_share})
        falls.append(
            {
                **{name: entry[name] for name in ("split", "corpus", "read", "kept")},
                "kept_share": _share(entry["kept"], entry["read"]),
                "steps": [step for step in steps if step["dropped"]],
                "untouched": [step["rule"] for step in steps if not step["dropped"]],
            }
        )
    return falls


def _lengths(run: StageRun, recipe: Recipe) -> dict[str, Any]:
    lengths = run.manifest.counters["lengths"]
    sides = (("src", recipe.languages.source), ("tgt", recipe.languages.target))
    return {
        "items": [
            Markup(
                charts.length_histogram(f"lengths-{side}", lengths["before"][side], lengths["after"][side], language)
            )
            for side, language in sides
        ],
        "longest": lengths["before"]["src"]["edges"][-1],
    }


def _rejects(run: StageRun) -> dict[str, Any]:
    rejected: dict[str, int] = {}  # over all corpora, in the order of the rules
    for entry in run.manifest.counters["waterfall"]:
        for rule, rows in entry["rejected"].items():
            rejected[rule] = rejected.get(rule, 0) + rows
    rejected = {rule: rows for rule, rows in rejected.items() if rows}
    if not rejected:
        return {"none": "no row was rejected"}
    samples = _reject_samples(run.folder / "rejects", rejected)
    return {
        "items": [{"rule": rule, "rejected": count, "rows": samples[rule]} for rule, count in rejected.items()],
    }


def _reject_samples(folder: Path, rejected: Mapping[str, int]) -> dict[str, list[dict[str, Any]]]:
    """Return the first rejected rows of each rule; reads no more of rejects/ than it needs, batch by batch."""
    samples: dict[str, list[dict[str, Any]]] = {rule: [] for rule in rejected}
    missing = sum(min(REJECTS, count) for count in rejected.values())
    for path in sorted(folder.glob("*/part-*.parquet")):
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(columns=["corpus", "src", "tgt", "rule", "score"]):
                for index, rule in enumerate(batch["rule"].to_pylist()):
                    if len(samples[rule]) < REJECTS:
                        samples[rule].append(batch.slice(index, 1).to_pylist()[0])
                        missing -= 1
                if not missing:
                    return samples
    return samples


def _pieces(run: StageRun) -> dict[str, Any]:
    return {
        "items": [
            {
                "split": split,
                "rows": figures["rows"],
                **{
                    side: {
                        "pieces": figures[f"{side}_pieces"],
                        "per_row": _share(figures[f"{side}_pieces"], figures["rows"]),
                        "unknown": figures[f"{side}_unknown"],
                        "unknown_share": _share(figures[f"{side}_unknown"], figures[f"{side}_pieces"]),
                    }
                    for side in ("src", "tgt")
                },
            }
            for split, figures in run.manifest.counters.items()
        ]
    }


def _curves(run: StageRun) -> dict[str, Any]:
    path = run.folder / METRICS_NAME
    if not path.is_file():
        return {"none": f"{path} is missing"}
    lines = [json.loads(line) for line in read_lines(path)]
    train = [line for line in lines if line["kind"] == "train"]
    validations = [line for line in lines if line["kind"] == "validation"]
    if not train or not validations:
        return {"none": f"{path} holds {len(train)} lines of training and {len(validations)} of validation"}
    best = run.manifest.counters["best_update"]
    return {
        "items": [Markup(charts.loss_curves(train, validations, best)), Markup(charts.bleu_curve(validations, best))]
    }


def _training(run: StageRun) -> dict[str, Any]:
    return {"items": {name.replace("_", " "): _shown(value) for name, value in run.manifest.counters.items()}}


def _samples(runs: Mapping[str, StageRun], run: StageRun, recipe: Recipe) -> dict[str, Any]:
    if "clean" not in runs:
        return {"none": "the stage clean, which holds sources and references, is not part of this run"}
    tests = []
    for test in read_tests(runs["clean"]):
        hypotheses = read_lines(hypotheses_path(run.folder, test.name))
        drawn = list(range(len(hypotheses)))
        if len(hypotheses) > RANKED_ROWS:
            drawn = sorted(random.Random(recipe.evaluate.bootstrap_seed).sample(drawn, RANKED_ROWS))
        ranked = sorted((sentence_chrf(hypotheses[row], test.references[row]), row) for row in drawn)
        chosen = [
            {
                "row": row + 1,
                "chrf": chrf,
                "rank": rank,
                "source": test.sources[row],
                "reference": test.references[row],
                "hypothesis": hypotheses[row],
            }
            for rank, (chrf, row) in _spread(ranked)
        ]
        tests.append({"name": test.name, "ranked": len(ranked), "rows": chosen})
    return {"items": tests}


def _spread(ranked: Sequence[tuple[float, int]]) -> list[tuple[str, tuple[float, int]]]:
    """Return the best, the worst and what lies evenly between, best first, each with its place in words."""
    shown = min(SAMPLES, len(ranked))
    if shown == 1:
        return [("the only row", ranked[0])]
    places = [round(step * (len(ranked) - 1) / (shown - 1)) for step in range(shown)]
    names = {0: "worst", len(ranked) - 1: "best"}
    return [
        (names.get(place, f"better than {100 * place / len(ranked):.0f} %"), ranked[place])
        for place in reversed(places)
    ]


def _attention(run: StageRun) -> dict[str, Any]:
    path = run.folder / ATTENTION_NAME
    if not path.is_file():
        return {"none": f"{path} is missing: the model has no attention to show"}
    examples = json.loads(path.read_text(encoding="utf-8"))
    if not examples:
        return {"none": "translation kept the attention of no row"}
    return {"items": [_heat_map(example) for example in examples[:HEAT_MAPS]]}


def _heat_map(example: Mapping[str, Any]) -> dict[str, Any]:
    """Return where the labels and cells of one heat map lie, in pixels; cells too pale to be seen are left out."""
    source, target = example["source_pieces"], example["target_pieces"]
    left = CHARACTER * max(len(piece) for piece in target) + 10
    # Column labels stand at 60 degrees: their height is that share of their length.
    top = round(CHARACTER * max(len(piece) for piece in source) * 0.87) + 14
    return {
        **{name: example[name] for name in ("test", "row", "source", "hypothesis")},
        "left": left,
        "top": top,
        "cell": CELL,
        "width": left + CELL * len(source) + top // 2 + 8,
        "height": top + CELL * len(target) + 2,
        "columns": [{"piece": piece, "x": left + CELL * index + CELL // 2} for index, piece in enumerate(source)],
        "rows": [{"piece": piece, "y": top + CELL * index + CELL // 2} for index, piece in enumerate(target)],
        "cells": [
            {
                "x": left + CELL * column,
                "y": top + CELL * row,
                "weight": weight,
                "title": f"{target[row]} ← {source[column]}: {weight:.2f}",
            }
            for row, weights in enumerate(example["attention"])
            for column, weight in enumerate(weights)
            if weight >= 0.02
        ],
    }


def _stages(runs: Mapping[str, StageRun]) -> list[dict[str, Any]]:
    total = sum(run.manifest.seconds for run in runs.values())
    stages: list[dict[str, Any]] = []
    for name in STAGES:
        if name not in runs:
            stages.append({"name": name, "none": "not part of this run"})
            continue
        run = runs[name]
        stages.append(
            {
                "name": name,
                "none": None,
                "started": _when(datetime.fromisoformat(run.manifest.started_at)),
                "seconds": run.manifest.seconds,
                "share": _share(run.manifest.seconds, total),
                "key": run.manifest.key,
                "folder": str(run.folder),
                "files": len(run.manifest.outputs),
                "bytes": sum(output.bytes for output in run.manifest.outputs),
            }
        )
    return stages


def _interval(metric: Mapping[str, Any]) -> str:
    low, high = metric["confidence"]
    return f"[{low:.2f}, {high:.2f}]"


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _count(value: float) -> str:
    return f"{value:,}"


def _percent(share: float) -> str:
    if 0 < share < 0.0005:
        return "<0.1 %"
    return f"{100 * share:.1f} %"


def _short(value: int) -> str:
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return str(value)


def _size(num_bytes: int) -> str:
    for size, unit in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if num_bytes >= size:
            return f"{num_bytes / size:.3g} {unit}"
    return f"{num_bytes} B"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _when(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _visible(text: str) -> str:
    """Return the text, cut where it is very long, with control characters replaced by their pictures (U+2400 on)."""
    if len(text) > SHOWN_CHARACTERS:
        text = f"{text[:SHOWN_CHARACTERS]}…"
    return "".join(chr(0x2400 + ord(character)) if character < " " else character for character in text)
