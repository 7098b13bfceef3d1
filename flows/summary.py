"""What a run says at its end, as plain rows: the waterfall, the scores and a few translations.

The command prints them, the flow makes Prefect artifacts of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nmt.evaluate import hypotheses_path, read_lines, read_tests
from pipelines.stage import StageRun

MAX_CORPORA = 5  # columns of the waterfall; with more corpora, those of a split stand together


@dataclass(frozen=True)
class Rows:
    """A table: the header's cells, and the cells of each row."""

    header: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        """Return the table in Markdown."""
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)

    def records(self) -> list[dict[str, Any]]:
        """Return one mapping a row, from the header's cells to the row's."""
        return [dict(zip(self.header, row, strict=True)) for row in self.rows]


@dataclass(frozen=True)
class Translation:
    """One row of a test set: texts as in the files, and what the model made of the source."""

    test: str
    source: str
    reference: str
    hypothesis: str


def waterfall(cleaned: StageRun) -> Rows:
    """Return the rows read, rejected by each rule that rejected any, and kept: one column a corpus, or a split."""
    entries = cleaned.manifest.counters["waterfall"]
    by_corpus = len(entries) <= MAX_CORPORA
    columns: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        name = f"{entry['split']} {entry['corpus']}" if by_corpus else entry["split"]
        columns.setdefault(name, []).append(entry)
    # A split lists all of its rules in their order, also those that rejected nothing.
    in_order = dict.fromkeys(rule for entry in entries for rule in entry["rejected"])
    rules = [rule for rule in in_order if any(entry["rejected"].get(rule) for entry in entries)]
    read = ["read", *(_sum(column, "read") for column in columns.values())]
    dropped = [[f"- {rule}", *(_rejected(column, rule) for column in columns.values())] for rule in rules]
    kept = ["kept", *(_sum(column, "kept") for column in columns.values())]
    return Rows(["rows", *columns], [read, *dropped, kept])


def scores(evaluated: StageRun) -> Rows:
    """Return one row for each test set and metric, with the 95 % interval and the signature."""
    return score_rows(evaluated.manifest.counters["tests"])


def score_rows(tests: Mapping[str, Any]) -> Rows:
    """Return one row for each test set and metric of `scores.json`."""
    rows = []
    for name, test in tests.items():
        for metric, result in test["metrics"].items():
            low, high = result["confidence"]
            figures = [f"{result['score']:.2f}", f"{low:.2f} to {high:.2f}"]
            rows.append([name, f"{test['rows']:,}", _METRICS[metric], *figures, result["signature"]])
    return Rows(["test set", "rows", "metric", "score", "95 % interval", "signature"], rows)


def translations(cleaned: StageRun, translated: StageRun, count: int) -> list[Translation]:
    """Return that many rows of the first test set, spread evenly over it; fewer where it has fewer."""
    test = read_tests(cleaned)[0]
    hypotheses = read_lines(hypotheses_path(translated.folder, test.name))
    total = len(test.sources)
    chosen = range(total) if total <= count else [(2 * i + 1) * total // (2 * count) for i in range(count)]
    return [Translation(test.name, test.sources[i], test.references[i], hypotheses[i]) for i in chosen]


_METRICS = {"bleu": "BLEU", "chrf": "chrF", "ter": "TER"}


def _sum(entries: Sequence[Mapping[str, Any]], key: str) -> str:
    return f"{sum(entry[key] for entry in entries):,}"


def _rejected(entries: Sequence[Mapping[str, Any]], rule: str) -> str:
    rows = sum(entry["rejected"].get(rule, 0) for entry in entries)
    return f"{rows:,}" if rows else "."
