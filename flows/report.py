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

import pyarrow.parquet as pq
from markupsafe import Markup

from flows import charts, summary
from flows.config import Recipe
from flows.pages import filled_in
from flows.stages import ALIGNING_STAGES, RATING_STAGES, STAGE_NAMES
from nmt.config import PricesConfig
from nmt.evaluate import hypotheses_path, read_lines, read_tests, sentence_chrf
from pipelines.config import CorporaConfig
from pipelines.explanations import BORDERLINE_DROPPED, BORDERLINE_KEPT, DROPPED, KEPT
from pipelines.lookup import Sample, samples
from pipelines.stage import Manifest, StageRun, write_atomically

METRICS_NAME = "metrics.jsonl"
ATTENTION_NAME = "attention.json"
TITLES = {"bleu": "BLEU", "chrf": "chrF", "ter": "TER"}
TRAINING_CURVES = {"learning_rate": "learning rate", "target_tokens_per_s": "target pieces per second"}
SAMPLES = 6  # translations shown of each test set
RANKED_ROWS = 300  # of a test set, drawn by chance, that the samples are chosen from
OPEN_CORPORA = 5  # waterfalls that are shown at once; with more corpora, those of the others open by a click
HEAT_MAPS = 3
SHOWN_CHARACTERS = 300
CELL = 22  # side of a cell of the heat map, and
CHARACTER = 8  # width of a label's character, in pixels


def report(
    runs: Mapping[str, StageRun],
    recipe: Recipe,
    output: Path,
    verdict: Mapping[str, Any] | None = None,
    prices: PricesConfig | None = None,
) -> Path:
    """Return `output`, now the report of the finished stages in `runs` (by their names; each may be missing).

    `verdict` is what `flows.registry.publish` returned, None where the gate has not been asked; `prices` are of the
    profile, as `summary.ledger` takes them.
    """
    context = {
        "recipe": recipe,
        "resolved": json.dumps(recipe.model_dump(mode="json"), indent=2, ensure_ascii=False),
        "verdict": verdict,
        "span": _span(runs),
        "tiles": _tiles(runs),
        "scores": _part(runs, "evaluate", _scores),
        "waterfalls": _part(runs, "clean", _waterfalls),
        "lengths": _part(runs, "clean", lambda run: _lengths(run, recipe)),
        "histograms": _part(runs, "clean", _histograms),
        "examples": _part(runs, "clean", lambda run: _examples(run, recipe.corpora)),
        "pieces": _part(runs, "encode", _pieces),
        "curves": _part(runs, "train", _curves),
        "training": _part(runs, "train", _training),
        "ledger": _part(runs, "train", lambda run: _ledger(run, prices)),
        "samples": _part(runs, "translate", lambda run: _samples(runs, run, recipe)),
        "attention": _part(runs, "translate", _attention),
        "stages": _stages(runs),
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    page = filled_in(
        "report.html",
        context,
        count=_count,
        percent=summary.percent,
        duration=_duration,
        size=summary.size,
        shown=_shown,
        visible=_visible,
    )
    write_atomically(output, page)
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
        note = f"{summary.percent(_share(kept, read))} of {_count(read)} read"
        tiles.append({"label": "Training rows kept", "value": _count(kept), "note": note})
    if "train" in runs:
        manifest = runs["train"].manifest
        counters = manifest.counters
        note = f"{_count(counters['updates'])} updates, {_count(counters['epochs'])} epochs"
        tiles.append({"label": "Training", "value": _duration(manifest.seconds), "note": note})
        note = f"best on dev: {summary.best_on_dev(counters)} at update {_count(counters['best_update'])}"
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
    return {"items": falls, "open": OPEN_CORPORA} if falls else {"none": "no corpus was read"}


def _falls(manifest: Manifest) -> list[dict[str, Any]]:
    """Return each corpus with rows read and kept, and the reasons: those that dropped a row or would have, the others.

    `alone` and `only` of a reason are None where it is no rule, or the corpus is not judged.
    """
    falls = []
    for entry in manifest.counters["waterfall"]:
        left, steps = entry["read"], []
        for rule, dropped in entry["rejected"].items():
            left -= dropped
            steps.append(
                {
                    "rule": rule,
                    "dropped": dropped,
                    "share": _share(dropped, entry["read"]),
                    "left_share": _share(left, entry["read"]),
                    "alone": entry.get("alone", {}).get(rule),
                    "only": entry.get("only", {}).get(rule),
                }
            )
        falls.append(
            {
                **{name: entry[name] for name in ("split", "corpus", "read", "kept")},
                "kept_share": _share(entry["kept"], entry["read"]),
                "judged": "alone" in entry,
                "steps": [step for step in steps if step["dropped"] or step["alone"]],
                "untouched": [step["rule"] for step in steps if not step["dropped"] and not step["alone"]],
            }
        )
    return falls


def _histograms(run: StageRun) -> dict[str, Any]:
    """Return charts of the scores of each rule that would drop a row, then of the soft ones; each split by itself."""
    criteria, entries = run.manifest.config["criteria"], run.manifest.counters["waterfall"]
    table = pq.read_table(run.folder / "explanations" / "histograms.parquet")
    bins: dict[tuple[str, str], dict[float, tuple[int, int]]] = {}  # rows before and after by the bin's lower end
    for row in table.to_pylist():
        rows = bins.setdefault((row["corpus"].partition("/")[0], row["rule"]), {})
        before, after = rows.get(row["low"], (0, 0))
        rows[row["low"]] = (before + row["before"], after + row["after"])
    hard: list[dict[str, Any]] = []
    soft: list[dict[str, Any]] = []
    for (split, rule), rows in bins.items():
        of_split = {name: found for name, found in criteria.items() if name.startswith(f"{split}/")}
        thresholds = _thresholds(of_split, rule)
        alone = sum(entry.get("alone", {}).get(rule, 0) for entry in entries if entry["split"] == split)
        if alone or (not thresholds and any(before for before, _ in rows.values())):
            as_read, kept = ([counts[when] for counts in rows.values()] for when in (0, 1))
            chart = Markup(charts.score_histogram(rule, list(rows), as_read, kept, thresholds))
            item = {"rule": rule, "split": split, "soft": not thresholds, "chart": chart}
            (hard if thresholds else soft).append(item)
    return {"items": hard + soft} if hard or soft else {"none": "no rule would drop a row, and none is soft"}


def _thresholds(criteria: Mapping[str, Sequence[Mapping[str, Any]]], rule: str) -> list[tuple[str, float]]:
    """Return each side and score beyond which a row goes; several where corpora differ, none of a soft rule."""
    found = {
        (criterion["worse"], criterion["threshold"])
        for of_corpus in criteria.values()
        for criterion in of_corpus
        if criterion["name"] == rule and criterion["threshold"] is not None
    }
    return sorted(found)


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


def _examples(run: StageRun, corpora: CorporaConfig) -> dict[str, Any]:
    """Return rows of each reason that dropped any, and some that were kept."""
    entries = [entry for entry in run.manifest.counters["waterfall"] if entry["split"] in summary.JUDGED]
    groups: dict[tuple[str | None, str], list[Sample]] = {}
    for sample in samples(run, corpora):
        groups.setdefault((sample.rule, sample.kind), []).append(sample)
    items = [
        {
            "rule": rule,
            "dropped": sum(entry["rejected"].get(rule, 0) for entry in entries),
            "threshold": summary.threshold(run.manifest.config["criteria"], rule),
            "groups": [{"title": title, "rows": groups.get((rule, kind), [])} for kind, title in _KINDS.items()],
        }
        for rule in summary.dropping(entries)
    ]
    kept = groups.get((None, KEPT), [])
    return {"items": items, "kept": kept} if items or kept else {"none": "no corpus was judged"}


_KINDS = {
    DROPPED: "Dropped, drawn by chance",
    BORDERLINE_DROPPED: "Dropped, nearest to the threshold",
    BORDERLINE_KEPT: "Kept, nearest to the threshold",
}


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
    curves = [Markup(charts.loss_curves(train, validations, best))]
    # A language model has no translations, and runs of older versions have fewer figures.
    scores = [name for name in ("bleu", "chrf") if all(name in line for line in validations)]
    curves += [Markup(charts.score_curve(name, TITLES[name], validations, best)) for name in scores]
    curves += [
        Markup(charts.training_curve(name, title, train))
        for name, title in TRAINING_CURVES.items()
        if all(name in line for line in train)
    ]
    return {"items": curves, "scores": [TITLES[name] for name in scores]}


def _training(run: StageRun) -> dict[str, Any]:
    counters = {name: value for name, value in run.manifest.counters.items() if name != "ledger"}
    return {"items": {name.replace("_", " "): _shown(value) for name, value in counters.items()}}


def _ledger(run: StageRun, prices: PricesConfig | None) -> dict[str, Any]:
    rows = summary.ledger(run.manifest.counters, prices).rows
    return {"items": dict(rows)} if rows else {"none": "training was done by a version that kept no ledger"}


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
    for name in STAGE_NAMES:
        if name not in runs:
            if name in RATING_STAGES | ALIGNING_STAGES:
                continue
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


def _short(value: int) -> str:
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return str(value)


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
    return summary.visible(text, SHOWN_CHARACTERS)
