"""Stage 7: translations and references -> scores with signatures and confidence intervals.

    evaluate_tests(EvaluateConfig(), cleaned, translated, root)

Inputs: `clean/test` of the cleaning stage (tgt_raw, as in the file, is the reference) and `hypotheses/` of translation.
Outputs:

    evaluate-<key>/
    └── scores.json       {"tests": {name: {"rows", "metrics": {metric: {"score", "signature", "confidence"}}}}}

A test set of a thousand rows takes a few seconds. The metrics and the bootstrap are sacreBLEU's own; its bootstrap
needs about 80 kB of memory for each row of the test set at a thousand resamples.

Source: Post (2018), A Call for Clarity in Reporting BLEU Scores; Koehn (2004), Statistical Significance Tests for
Machine Translation Evaluation (the bootstrap, and the paired one).
"""

from __future__ import annotations

import gzip
import json
import logging
import os
import threading
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from sacrebleu.metrics import BLEU, CHRF, TER
from sacrebleu.significance import PairedTest

from nmt.config import EvaluateConfig
from pipelines.errors import InputError
from pipelines.stage import StageResult, StageRun, run_stage, write_atomically

STAGE_NAME = "evaluate"
STAGE_VERSION = 2
SCORES_NAME = "scores.json"
# Whoever chooses these for BLEU has texts without blanks between words.
_TER_OF_CHARACTERS = ("zh", "ja-mecab", "char")
_SEED_VARIABLE = "SACREBLEU_SEED"
_SEED_LOCK = threading.Lock()

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PairedComparison:
    """Two systems on one test set: BLEU of each (0 to 100), the p-value of their difference, and the signature."""

    bleu: float
    baseline_bleu: float
    p_value: float
    signature: str


@dataclass(frozen=True)
class EvaluationSet:
    """One test set as it stands in `clean/test`: its texts before normalisation, in the order of row_id."""

    name: str
    sources: list[str]
    references: list[str]


def score(hypotheses: Sequence[str], references: Sequence[str], config: EvaluateConfig) -> dict[str, Any]:
    """Return {metric: {"score", "signature", "confidence": [low, high]}}; BLEU and chrF on 0 to 100, TER from 0 up.

    TER counts edits of words; of Chinese and Japanese characters where `bleu_tokenize` is zh, ja-mecab or char, for
    which its signature has norm:yes and asian:yes. Lower TER is better.
    The interval is the 95 % one of sacreBLEU's bootstrap, around the mean of the resamples.
    Raises InputError when there is no row, or the two have not the same number of rows.
    """
    _check_rows(hypotheses, references, "the hypotheses")
    scores: dict[str, Any] = {}
    with _bootstrap_seed(config.bootstrap_seed):
        for name in config.metrics:
            metric = _metric(name, config)
            result = metric.corpus_score(list(hypotheses), [list(references)], n_bootstrap=config.bootstrap_resamples)
            scores[name] = {
                "score": float(result.score),
                "signature": str(metric.get_signature()),
                "confidence": [float(result._mean - result._ci), float(result._mean + result._ci)],
            }
    return scores


def corpus_bleu(hypotheses: Sequence[str], references: Sequence[str], tokenize: str) -> float:
    """Return BLEU on 0 to 100, cased, without a confidence interval: what validation during training needs.

    Raises InputError when there is no row, or the two have not the same number of rows.
    """
    _check_rows(hypotheses, references, "the hypotheses")
    # A young model may well put a blank before each full stop: no reason for a warning at each validation.
    metric = _bleu(tokenize, force=True)
    return float(metric.corpus_score(list(hypotheses), [list(references)]).score)


def corpus_chrf(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """Return chrF on 0 to 100, without a confidence interval. Source: Popović (2015), chrF.

    Raises InputError when there is no row, or the two have not the same number of rows.
    """
    _check_rows(hypotheses, references, "the hypotheses")
    return float(CHRF().corpus_score(list(hypotheses), [list(references)]).score)


def sentence_chrf(hypothesis: str, reference: str) -> float:
    """Return chrF of one sentence, 0 to 100. Source: Popović (2015), chrF."""
    return float(CHRF().sentence_score(hypothesis, [reference]).score)


def compare(
    hypotheses: Sequence[str], baseline: Sequence[str], references: Sequence[str], config: EvaluateConfig
) -> PairedComparison:
    """Return how a system does against a baseline, by sacreBLEU's paired bootstrap test on BLEU.

    The p-value is of the two-sided test; it means nothing where the two scores are equal.
    Raises InputError when there is no row, or the three have not the same number of rows.
    """
    _check_rows(hypotheses, references, "the hypotheses")
    _check_rows(baseline, references, "the baseline's hypotheses")
    systems = [("baseline", list(baseline)), ("system", list(hypotheses))]
    metrics = {"BLEU": _bleu(config.bleu_tokenize, force=True)}
    # PairedTest takes the seed 0 for "no seed", and would give another p-value each time.
    with _bootstrap_seed(max(1, config.bootstrap_seed)):
        test = PairedTest(systems, metrics, [list(references)], test_type="bs", n_samples=config.bootstrap_resamples)
        signatures, results = test()
    before, after = results["BLEU"]
    return PairedComparison(float(after.score), float(before.score), float(after.p_value), str(signatures["BLEU"]))


def evaluate_tests(config: EvaluateConfig, cleaned: StageRun, translated: StageRun, root: Path) -> StageRun:
    """Return the finished stage `evaluate`, whose counters hold what scores.json holds.

    Raises InputError when a test set has no hypotheses, or not one for each row.
    """

    def body(folder: Path) -> StageResult:
        tests = {}
        for test in read_tests(cleaned):
            path = hypotheses_path(translated.folder, test.name)
            hypotheses = read_lines(path)
            _check_rows(hypotheses, test.references, str(path))
            tests[test.name] = {"rows": len(hypotheses), "metrics": score(hypotheses, test.references, config)}
            _log_scores(test.name, tests[test.name])
        scores = {"tests": tests}
        write_atomically(folder / SCORES_NAME, json.dumps(scores, indent=1, ensure_ascii=False) + "\n")
        return StageResult([SCORES_NAME], scores)

    inputs = {"clean": cleaned.manifest.digest(), "translate": translated.manifest.digest()}
    return run_stage(STAGE_NAME, STAGE_VERSION, config.model_dump(mode="json"), inputs, root, body)


def evaluate_files(hypotheses: Path, references: Path, config: EvaluateConfig) -> dict[str, Any]:
    """Return {"rows", "metrics": as of `score`} of two aligned files, plain or .gz, one sentence a line.

    Raises InputError naming the file that is missing, broken, not UTF-8, empty, or of another length.
    """
    hypothesis_lines, reference_lines = read_lines(hypotheses), read_lines(references)
    for path, lines in ((hypotheses, hypothesis_lines), (references, reference_lines)):
        if not lines:
            raise InputError("the file has no line", where=str(path), remedy="Give a file with one sentence a line")
    if len(hypothesis_lines) != len(reference_lines):
        raise InputError(
            f"{len(hypothesis_lines)} lines, but {references} has {len(reference_lines)}",
            where=str(hypotheses),
            remedy="Give two files whose lines stand for each other",
        )
    return {"rows": len(hypothesis_lines), "metrics": score(hypothesis_lines, reference_lines, config)}


def read_lines(path: Path) -> list[str]:
    """Return the lines of a UTF-8 file, plain or .gz; a line ends with \\n only, and one \\r before it is dropped.

    Raises InputError naming the file, and the line where it is not UTF-8.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"not a whole gzip file ({error})", where=str(path), remedy="Fetch the file again") from error
    except OSError as error:
        raise InputError(
            f"cannot be read ({error.strerror})", where=str(path), remedy="Give the path of a text file"
        ) from error
    lines = content.split(b"\n")
    if not lines[-1]:
        lines.pop()  # what follows the last \n is no line
    return [_decoded(line.removesuffix(b"\r"), path, number) for number, line in enumerate(lines, start=1)]


def hypotheses_path(translated: Path, test: str) -> Path:
    """Return where translation has written the hypotheses of a test set."""
    return translated / "hypotheses" / f"{test}.txt"


def read_tests(cleaned: StageRun) -> list[EvaluationSet]:
    """Return the test sets of a cleaned corpus, in the order of the recipe (row_id begins with it).

    Raises InputError when there is none.
    """
    folder = cleaned.folder / "clean" / "test"
    columns = ["row_id", "corpus", "src_raw", "tgt_raw"]
    tables = [pq.read_table(path, columns=columns) for path in sorted(folder.glob("part-*.parquet"))]
    if not tables or not sum(table.num_rows for table in tables):
        raise InputError("no row of a test set here", where=str(folder), remedy="Give a test corpus that has rows")
    table = pa.concat_tables(tables).sort_by("row_id")
    return [_evaluation_set(table, name) for name in pc.unique(table["corpus"]).to_pylist()]


def _evaluation_set(table: pa.Table, name: str) -> EvaluationSet:
    rows = table.filter(pc.equal(table["corpus"], name))
    return EvaluationSet(name, rows["src_raw"].to_pylist(), rows["tgt_raw"].to_pylist())


def _metric(name: str, config: EvaluateConfig) -> Any:
    match name:
        case "bleu":
            return _bleu(config.bleu_tokenize, force=False)
        case "chrf":
            return CHRF()
        case "ter":
            characters = config.bleu_tokenize in _TER_OF_CHARACTERS
            return TER(normalized=characters, asian_support=characters)
        case _:
            raise AssertionError(f"no such metric: {name}")


def _bleu(tokenize: str, *, force: bool) -> BLEU:
    try:
        return BLEU(tokenize=tokenize, force=force)
    except RuntimeError as error:
        # sacreBLEU's message on a dictionary that is not installed spans lines; its last one is the command.
        command = str(error).strip().splitlines()[-1].strip()
        raise InputError(
            f"the tokeniser {tokenize!r} is not installed",
            where="evaluate.bleu_tokenize",
            remedy=f"Run `{command}`, or choose another",
        ) from error


@contextmanager
def _bootstrap_seed(seed: int) -> Iterator[None]:
    """Seed sacreBLEU's bootstrap, which reads its seed from the environment and from nowhere else."""
    with _SEED_LOCK:
        before = os.environ.get(_SEED_VARIABLE)
        os.environ[_SEED_VARIABLE] = str(seed)
        try:
            yield
        finally:
            if before is None:
                del os.environ[_SEED_VARIABLE]
            else:
                os.environ[_SEED_VARIABLE] = before


def _check_rows(hypotheses: Sequence[str], references: Sequence[str], where: str) -> None:
    if not references:
        raise InputError("there is no row to score", where="the references", remedy="Give at least one reference")
    if len(hypotheses) != len(references):
        raise InputError(
            f"{len(hypotheses)} rows, but there are {len(references)} references",
            where=where,
            remedy="Translate the whole test set, one line for each row",
        )


def _decoded(line: bytes, path: Path, number: int) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"not UTF-8 ({error.reason})", where=f"{path}:{number}", remedy="Mend the line, or convert the file"
        ) from error


def _log_scores(name: str, test: Mapping[str, Any]) -> None:
    for metric, result in test["metrics"].items():
        low, high = result["confidence"]
        log.info(
            "%s: %s %.2f [%.2f, %.2f] on %d rows, %s",
            name, metric, result["score"], low, high, test["rows"], result["signature"],
        )  # fmt: skip
