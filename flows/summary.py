"""What a run says at its end, as plain rows: the waterfall, what each rule dropped, the scores, a few translations.

The command prints them, the flow makes Prefect artifacts of them, and the report has the same figures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nmt.config import PricesConfig
from nmt.evaluate import hypotheses_path, read_lines, read_tests
from pipelines.config import Split
from pipelines.stage import StageRun

MAX_CORPORA = 5  # columns of the waterfall; with more corpora, those of a split stand together
JUDGED: tuple[Split, ...] = ("train", "monolingual")  # splits whose rows the rules judge

Entry = Mapping[str, Any]  # one of the waterfall: split, corpus, read, kept, rejected, and where judged alone, only
Criteria = Mapping[str, Sequence[Mapping[str, Any]]]  # of each judged corpus, by "split/name"


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
    return waterfall_rows(cleaned.manifest.counters["waterfall"])


def waterfall_rows(entries: Sequence[Entry]) -> Rows:
    """Return the same from the waterfall itself. Shares are of the rows read."""
    by_corpus = len(entries) <= MAX_CORPORA
    columns: dict[str, list[Entry]] = {}
    for entry in entries:
        name = f"{entry['split']} {entry['corpus']}" if by_corpus else entry["split"]
        columns.setdefault(name, []).append(entry)
    read = ["read", *(f"{_sum(column, 'read'):,}" for column in columns.values())]
    dropped = [[f"- {rule}", *(_rejected(column, rule) for column in columns.values())] for rule in dropping(entries)]
    kept = ["kept", *(_with_share(_sum(column, "kept"), _sum(column, "read")) for column in columns.values())]
    return Rows(["rows", *columns], [read, *dropped, kept])


def dropping(entries: Sequence[Entry]) -> list[str]:
    """Return the reasons for which any row went, in their order."""
    # A split lists all of its rules in their order, also those that rejected nothing.
    in_order = dict.fromkeys(rule for entry in entries for rule in entry["rejected"])
    return [rule for rule in in_order if any(entry["rejected"].get(rule) for entry in entries)]


def rules(entries: Sequence[Entry], criteria: Criteria) -> Rows:
    """Return for each rule of the judged corpora its thresholds, the rows it dropped, and would drop alone or only it.

    Rules that would drop no row are left out, as are the reasons that are no rules.
    """
    judged = [entry for entry in entries if entry["split"] in JUDGED]
    read = _sum(judged, "read")
    rows = []
    for rule in dict.fromkeys(criterion["name"] for found in criteria.values() for criterion in found):
        alone, only = (sum(entry.get(key, {}).get(rule, 0) for entry in judged) for key in ("alone", "only"))
        if alone:
            dropped = sum(entry["rejected"].get(rule, 0) for entry in judged)
            figures = [_with_share(count, read) if count else "." for count in (dropped, alone, only)]
            rows.append([rule, threshold(criteria, rule), *figures])
    return Rows(["rule", "drops", "dropped", "alone", "only"], rows)


def threshold(criteria: Criteria, rule: str) -> str:
    """Return what of a rule's scores is dropped, in words: one for each threshold that corpora give it."""
    found = dict.fromkeys(
        "nothing (soft)" if criterion["threshold"] is None else f"{criterion['worse']} {criterion['threshold']:g}"
        for of_corpus in criteria.values()
        for criterion in of_corpus
        if criterion["name"] == rule
    )
    return ", ".join(found)


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


def best_on_dev(counters: Mapping[str, Any]) -> str:
    """Return what training's best weights reached on dev, from its counters: BLEU, or a language model's perplexity."""
    if "best_bleu" in counters:
        return f"BLEU {counters['best_bleu']:.2f}"
    return f"perplexity {counters['best_perplexity']:.2f}"


def ledger(counters: Mapping[str, Any], prices: PricesConfig | None = None) -> Rows:
    """Return what a training run has cost, from its counters: a row a figure; none of a version that kept no ledger.

    The cost is by `prices` where they state any, else by those that training ended with.
    """
    found = counters.get("ledger")
    if found is None:
        return Rows(["training", "took"], [])
    hours = {
        "wall time": found["wall_hours"],
        "workers' time": found["worker_hours"],
        "GPUs' time": found["gpu_hours"],
        "of it lost or done again": found["again_hours"],
    }
    rows = [[name, f"{value:,.2f} h"] for name, value in hours.items() if value or name == "wall time"]
    rows.append(["restarts", f"{found['restarts']:,}"])
    if found["updates_again"]:
        rows.append(["updates done again", f"{found['updates_again']:,}"])
    rows.append(["updates", f"{found['updates']:,}"])
    rows.append(["target pieces", f"{found['target_tokens']:,}"])
    rows.append(["target pieces per second", f"{found['target_tokens_per_s']:,.0f}"])
    rows += [[f"of the time: {_SPENT[name]}", percent(share)] for name, share in found["shares"].items()]
    if prices is not None and (cost := prices.cost(found["worker_hours"], found["wall_hours"])) is not None:
        rows.append(["cost", f"{cost:,.2f} {prices.currency}"])
    elif "cost" in found:
        rows.append(["cost", f"{found['cost']:,.2f} {found['currency']}"])
    return Rows(["training", "took"], rows)


_SPENT = {
    "checkpoints": "checkpoints",
    "communication": "the sum over the workers",
    "data": "waiting for data",
    "validation": "validation",
    "waiting": "waiting for other workers",
}
_METRICS = {"bleu": "BLEU", "chrf": "chrF", "ter": "TER"}


def percent(share: float) -> str:
    """Return a share as a percentage with one decimal; of what is not nothing, but too little for it, `<0.1 %`."""
    if 0 < share < 0.0005:
        return "<0.1 %"
    return f"{100 * share:.1f} %"


def size(num_bytes: int) -> str:
    """Return a number of bytes with three digits and a unit: `12.3 MB`."""
    for unit_bytes, unit in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if num_bytes >= unit_bytes:
            return f"{num_bytes / unit_bytes:.3g} {unit}"
    return f"{num_bytes} B"


def visible(text: str, characters: int | None = None) -> str:
    """Return the text with control characters replaced by their pictures (U+2400 on), cut where it is longer."""
    if characters is not None and len(text) > characters:
        text = f"{text[:characters]}…"
    return "".join(chr(0x2400 + ord(character)) if character < " " else character for character in text)


def _sum(entries: Sequence[Entry], key: str) -> int:
    return sum(entry[key] for entry in entries)


def _rejected(entries: Sequence[Entry], rule: str) -> str:
    rows = sum(entry["rejected"].get(rule, 0) for entry in entries)
    return _with_share(rows, _sum(entries, "read")) if rows else "."


def _with_share(rows: int, whole: int) -> str:
    # Of one width, so that the numbers stand below each other.
    return f"{rows:,} {percent(rows / whole if whole else 0.0):>8}"
