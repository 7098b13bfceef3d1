"""Measure cleaning against people's verdicts on crawled pairs.

    python tests/benchmarks/quality.py FOLDER [--seeds 3] [--pairs de fr cs fi]

FOLDER holds en-de.tsv.gz and so on: with a header, columns src, tgt, label (V: valid), url_src, url_tgt, bicleaner and
release. These rows had passed Bicleaner at 0.5 before they were judged, so its score's own ROC area here is that of
what it had let through. Prints for each pair:

- the default rules: precision, recall of the valid rows, and J = recall - share of the invalid rows that stay;
  beside what others reach on the same rows (constants, measured with their releases; see PEERS);
- the ROC area of the learned combination, in cross-validation of five folds, by pair (rows of one pair of texts in one
  fold) and by site (also all rows of one registered domain, of either side, in one fold), averaged over seeds of the
  partition; its ablations; trained on the other releases (other judges) and applied to one; of single scores;
- what the combination reaches at a threshold that keeps 95 % of the valid rows, chosen on the training folds.

No label, no address and no score of others is a feature; the line "with Bicleaner" says where one is. The lexicon is
estimated on the same rows without their labels, each row being judged without its own share: in use it is likewise
estimated on the corpus that is cleaned.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.characters import Flags
from pipelines.config import CleanConfig, LanguagesConfig, QualityConfig, RulesConfig
from pipelines.corpus import RawBatch
from pipelines.files import opened
from pipelines.lexicon import LEXICAL_FEATURES, fit_lexicon
from pipelines.quality import (
    FOLDS,
    LENGTH_FEATURES,
    Features,
    adequacy,
    cross_validated,
    fit,
    folds,
    pair_features,
    roc_area,
)
from pipelines.scoring import Scoring, scored_batch
from pipelines.verdict import rule_column, scored_rules

# Precision, recall and J of bicleaner-hardrules 2.10.8 (without language identification, fluency and porn rules) and of
# OpusFilter 3.3.1 with its 14 default filters, and the ROC area of Bicleaner's score, on the same rows.
PEERS = {
    "de": ((0.540, 0.900, 0.064), (0.579, 0.611, 0.128), 0.584),
    "fr": ((0.535, 0.945, 0.071), (0.557, 0.664, 0.106), 0.592),
    "cs": ((0.392, 0.916, 0.071), (0.379, 0.451, 0.015), 0.599),
    "fi": ((0.244, 0.941, 0.027), (0.254, 0.628, 0.050), 0.574),
}
GOAL = 0.66
KEPT = 0.95
# Second-level domains under which anybody registers: the site is one label more.
SHARED_DOMAINS = frozenset({"ac", "co", "com", "edu", "gc", "go", "gov", "gv", "net", "or", "org"})


@dataclass(frozen=True)
class Rows:
    """Labelled rows of one language pair: texts, verdicts, and groups for the folds [rows]."""

    language: str
    src: pa.StringArray
    tgt: pa.StringArray
    valid: Flags
    bicleaner: npt.NDArray[np.float64]
    release: npt.NDArray[np.str_]
    by_pair: npt.NDArray[np.uint64]
    by_site: npt.NDArray[np.uint64]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pairs", nargs="+", default=list(PEERS), choices=list(PEERS))
    options = parser.parse_args()
    for language in options.pairs:
        report(read(options.folder / f"en-{language}.tsv.gz", language), options.seeds)


def read(path: Path, language: str) -> Rows:
    with opened(path) as file:
        lines = file.read().decode("utf-8").rstrip("\n").split("\n")
    names = lines[0].split("\t")
    cells = [line.split("\t") for line in lines[1:]]
    column = {name: [row[place] for row in cells] for place, name in enumerate(names)}
    texts = [f"{src}\t{tgt}" for src, tgt in zip(column["src"], column["tgt"])]
    sites = [
        (text, site(src), site(tgt)) for text, src, tgt in zip(texts, column["url_src"], column["url_tgt"], strict=True)
    ]
    return Rows(
        language,
        pa.array(column["src"]),
        pa.array(column["tgt"]),
        np.array([label == "V" for label in column["label"]]),
        np.array([float(value) for value in column["bicleaner"]]),
        np.array(column["release"]),
        connected([(text,) for text in texts]),
        connected(sites),
    )


def site(address: str) -> str:
    """Return the registered domain of an address."""
    host = urlsplit(address if "//" in address else f"//{address}").hostname or address
    labels = host.split(".")
    shared = len(labels) > 2 and len(labels[-1]) == 2 and labels[-2] in SHARED_DOMAINS
    return "site " + ".".join(labels[-3 if shared else -2 :])


def connected(names: Sequence[tuple[str, ...]]) -> npt.NDArray[np.uint64]:
    """Return a number for each row, the same for rows that share a name, and for those that share one with these."""
    above: dict[str, str] = {}

    def root(name: str) -> str:
        while above.setdefault(name, name) != name:
            above[name] = above[above[name]]
            name = above[name]
        return name

    for row in names:
        for name in row[1:]:
            above[root(name)] = root(row[0])
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(root(row[0]), len(numbers)) for row in names], dtype=np.uint64)


def features_of(rows: Rows) -> tuple[dict[str, npt.NDArray[np.float64]], Flags]:
    """Return all features, and which rows the default thresholds keep: [rows]."""
    languages = LanguagesConfig(source="en", target=rows.language)
    rules = RulesConfig()
    scoring = Scoring(languages, CleanConfig(), scored_rules([rules]))
    numbers = np.arange(len(rows.src), dtype=np.int64)
    batch, _ = scored_batch(
        scoring, RawBatch(numbers, rows.src, rows.tgt, pa.nulls(len(numbers), pa.string())), "", "train"
    )
    kept = np.ones(len(batch), dtype=np.bool_)
    for rule in (*scoring.cheap, *scoring.costly):
        threshold = getattr(rules, rule.name)
        if isinstance(threshold, float):
            scores = batch[rule_column(rule.name)].to_numpy(zero_copy_only=False)
            kept &= ~(scores > np.float32(threshold) if rule.worse == "above" else scores < np.float32(threshold))
    lexicon, _ = fit_lexicon(batch["src"], batch["tgt"], QualityConfig().iterations)
    return pair_features(batch, languages, lexicon), kept


def report(rows: Rows, seeds: int) -> None:
    started = time.process_time()
    features, kept = features_of(rows)
    ready = time.process_time()
    valid = rows.valid
    hardrules, opusfilter, bicleaner = PEERS[rows.language]
    sites = len(np.unique(rows.by_site))
    print(f"\nen-{rows.language}: {len(valid)} rows, {len(np.unique(rows.by_pair))} pairs, {sites} sites, ", end="")
    print(f"{valid.mean():.3f} valid (precision of keeping all); {ready - started:.1f} s for the features")
    print("  kept by                    precision recall     J")
    line("default rules", *decided(kept, valid))
    line("bicleaner-hardrules", *hardrules)
    line("OpusFilter's defaults", *opusfilter)
    for name, keep in at_recall(features, rows).items():
        line(f"combination, {name}", *decided(keep, valid))
    print("  ROC area                     by pair  by site  features")
    print(f"  {'Bicleaner score':27s}  {bicleaner:7.3f}")
    single = adequacy(features)
    print(f"  {'adequacy alone, no labels':27s}  {roc_area(np.nan_to_num(single, nan=0.0), valid):7.3f}")
    rules = [name for name in features if name not in (*LEXICAL_FEATURES, *LENGTH_FEATURES)]
    sizes = [name for name in ("characters", "words", *LENGTH_FEATURES) if name in features]
    chosen: dict[str, Sequence[str]] = {
        "combination": list(features),
        "without the lexicon": [name for name in features if name not in LEXICAL_FEATURES],
        "without lengths' differences": [name for name in features if name not in LENGTH_FEATURES],
        "without rules": [*LEXICAL_FEATURES, *LENGTH_FEATURES],
        "rules alone": rules,
        "lexicon alone": LEXICAL_FEATURES,
        "lengths alone": sizes,
    }
    chosen |= {f"without {kind}": [n for n in features if not n.endswith(kind)] for kind in kinds()}
    for name, names in chosen.items():
        areas(name, {name: features[name] for name in names}, rows, seeds)
    areas("with Bicleaner's score", {**features, "bicleaner": rows.bicleaner}, rows, seeds)
    for release in np.unique(rows.release).tolist():
        inside = rows.release == release
        # Of pairs that two releases share, no verdict of either is used.
        train = ~np.isin(rows.by_site, rows.by_site[inside])
        model, _ = fit({n: v[train] for n, v in features.items()}, valid[train])
        area = roc_area(model.logits({n: v[inside] for n, v in features.items()}), valid[inside])
        name = f"release {release}, fitted to others"
        print(f"  {name:36s} {area:7.3f}  {int(train.sum())} -> {int(inside.sum())} rows")


def kinds() -> list[str]:
    return list(dict.fromkeys(name.partition("_")[2] for name in LEXICAL_FEATURES))


def line(name: str, precision: float, recall: float, youden: float) -> None:
    print(f"  {name:27s}  {precision:.3f}  {recall:.3f}  {youden:.3f}")


def decided(keep: Flags, valid: Flags) -> tuple[float, float, float]:
    """Return precision, recall, and Youden's J."""
    recall = float(keep[valid].mean())
    return float(valid[keep].mean()), recall, recall - float(keep[~valid].mean())


def at_recall(features: Features, rows: Rows) -> dict[str, Flags]:
    """Return what is kept at the threshold that keeps KEPT of the valid rows among those that the model was fitted to.

    The threshold of a fold comes from cross-validation inside of its training rows.
    """
    found = {}
    for name, groups in (("by pair", rows.by_pair), ("by site", rows.by_site)):
        keep = np.zeros(len(rows.valid), dtype=np.bool_)
        fold = folds(groups)
        for number in range(FOLDS):
            inside = fold == number
            some = {n: values[~inside] for n, values in features.items()}
            model, _ = fit(some, rows.valid[~inside])
            inner = cross_validated(some, rows.valid[~inside], folds(groups[~inside], seed=1))
            threshold = np.quantile(inner[rows.valid[~inside]], 1 - KEPT)
            keep[inside] = model.logits({n: values[inside] for n, values in features.items()}) >= threshold
        found[name] = keep
    return found


def areas(name: str, features: Mapping[str, npt.NDArray[np.float64]], rows: Rows, seeds: int) -> None:
    found = [
        np.mean(
            [
                roc_area(cross_validated(features, rows.valid, folds(groups, seed=seed)), rows.valid)
                for seed in range(seeds)
            ]
        )
        for groups in (rows.by_pair, rows.by_site)
    ]
    reached = "" if name != "combination" else "  reached" if min(found) >= GOAL else f"  below {GOAL}"
    print(f"  {name:27s}  {found[0]:7.3f}  {found[1]:7.3f}  {len(features)}{reached}", flush=True)


if __name__ == "__main__":
    main()
