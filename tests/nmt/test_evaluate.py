from __future__ import annotations

import gzip
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nmt.config import EvaluateConfig
from nmt.evaluate import (
    compare,
    corpus_bleu,
    corpus_chrf,
    evaluate_files,
    evaluate_tests,
    read_lines,
    read_tests,
    score,
    sentence_chrf,
)
from pipelines.errors import InputError
from pipelines.stage import StageResult, StageRun, run_stage

CONFIG = EvaluateConfig(bootstrap_resamples=100)
REFERENCES = [f"The {i} brown foxes jump over the {i + 7} lazy dogs of this town." for i in range(20)]
WRONG = [line.replace("jump", "fall").replace("lazy", "old") for line in REFERENCES]
HALF_WRONG = WRONG[:10] + REFERENCES[10:]


def test_a_perfect_translation_has_perfect_scores() -> None:
    scores = score(REFERENCES, REFERENCES, CONFIG)
    assert {name: round(figures["score"], 6) for name, figures in scores.items()} == {
        "bleu": 100.0,
        "chrf": 100.0,
        "ter": 0.0,
    }
    assert scores["bleu"]["confidence"] == pytest.approx([100.0, 100.0])


def test_bleu_is_the_geometric_mean_of_ngram_precisions_times_the_brevity_penalty() -> None:
    # "a b c d e f" against "a b c d e g": 5/6, 4/5, 3/4 and 2/3 n-grams match, at equal length.
    expected = 100 * (5 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** 0.25
    assert corpus_bleu(["a b c d e f"], ["a b c d e g"], "13a") == pytest.approx(expected)


def test_bleu_tells_upper_from_lower_case() -> None:
    assert corpus_bleu(["the big red house stands"], ["The big red house stands"], "13a") < 100


def test_ter_counts_edits_over_reference_words() -> None:
    config = EvaluateConfig(metrics=("ter",), bootstrap_resamples=100)
    assert score(["a b c x"], ["a b c d"], config)["ter"]["score"] == pytest.approx(25.0)


@pytest.mark.parametrize("tokenize", ["zh", "char"])
def test_ter_counts_characters_where_words_have_no_blanks_between_them(tokenize: Any) -> None:
    config = EvaluateConfig(metrics=("ter",), bleu_tokenize=tokenize, bootstrap_resamples=100)
    ter = score(["一只猫在跑。"], ["一只狗在跑。"], config)["ter"]
    assert ter["score"] == pytest.approx(100 / 6)  # one of five characters and a full stop
    assert "|norm:yes|" in ter["signature"] and "|asian:yes|" in ter["signature"]


def test_the_signature_names_tokeniser_case_bootstrap_and_seed() -> None:
    config = EvaluateConfig(metrics=("bleu",), bleu_tokenize="intl", bootstrap_resamples=100, bootstrap_seed=7)
    signature = score(HALF_WRONG, REFERENCES, config)["bleu"]["signature"]
    parts = dict(part.split(":") for part in signature.split("|"))
    assert (parts["nrefs"], parts["bs"], parts["seed"], parts["case"], parts["tok"]) == (
        "1",
        "100",
        "7",
        "mixed",
        "intl",
    )


def test_only_the_metrics_that_are_asked_for_are_computed() -> None:
    config = EvaluateConfig(metrics=("chrf",), bootstrap_resamples=100)
    assert list(score(WRONG, REFERENCES, config)) == ["chrf"]


def test_the_interval_holds_the_score_and_depends_on_the_seed_alone() -> None:
    first = score(HALF_WRONG, REFERENCES, CONFIG)["bleu"]
    again = score(HALF_WRONG, REFERENCES, CONFIG)["bleu"]
    other = score(HALF_WRONG, REFERENCES, CONFIG.model_copy(update={"bootstrap_seed": 1}))["bleu"]
    low, high = first["confidence"]
    assert low < first["score"] < high
    assert first == again
    assert other["score"] == first["score"] and other["confidence"] != first["confidence"]


@pytest.mark.parametrize("before", [None, "99"])
def test_the_environment_is_as_it_was_and_decides_nothing(before: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = score(HALF_WRONG, REFERENCES, CONFIG)
    if before is None:
        monkeypatch.delenv("SACREBLEU_SEED", raising=False)
    else:
        monkeypatch.setenv("SACREBLEU_SEED", before)
    assert score(HALF_WRONG, REFERENCES, CONFIG) == expected
    assert os.environ.get("SACREBLEU_SEED") == before


def test_unequal_numbers_of_rows_are_refused_with_both_numbers() -> None:
    with pytest.raises(InputError, match="19 rows, but there are 20 references"):
        score(REFERENCES[1:], REFERENCES, CONFIG)


def test_no_rows_are_refused() -> None:
    with pytest.raises(InputError, match="no row to score"):
        corpus_bleu([], [], "13a")


def test_an_empty_hypothesis_is_scored_as_zero() -> None:
    assert corpus_bleu([""], ["a b c d"], "13a") == 0.0


def test_corpus_chrf_is_that_of_the_paper() -> None:
    # Popović 2015, eq. 1 with beta 2: precision and recall are means over the n-grams of 1 to 6 characters.
    hypotheses, references = ["the red house", "a small dog runs"], ["the big red house", "the small dog ran"]
    precision, recall = [], []
    for order in range(1, 7):
        matched = found = expected = 0
        for hypothesis, reference in zip(hypotheses, references):
            counts = [
                Counter(text[i : i + order] for i in range(len(text) - order + 1))
                for text in (hypothesis.replace(" ", ""), reference.replace(" ", ""))
            ]
            matched += (counts[0] & counts[1]).total()
            found += counts[0].total()
            expected += counts[1].total()
        precision.append(matched / found)
        recall.append(matched / expected)
    p, r = sum(precision) / 6, sum(recall) / 6
    assert corpus_chrf(hypotheses, references) == pytest.approx(100 * 5 * p * r / (4 * p + r))
    with pytest.raises(InputError, match="2 references"):
        corpus_chrf(["a"], ["a", "b"])


def test_sentence_chrf_is_full_for_equal_and_zero_for_disjoint_text() -> None:
    assert sentence_chrf("abcdefg", "abcdefg") == pytest.approx(100.0)
    assert sentence_chrf("abcdefg", "hijklmn") == 0.0


def test_a_clear_difference_has_a_small_p_value_and_seed_zero_is_a_seed() -> None:
    config = CONFIG.model_copy(update={"bootstrap_seed": 0})
    first, again = (compare(WRONG, REFERENCES, REFERENCES, config) for _ in range(2))
    assert first.baseline_bleu == pytest.approx(100.0) and first.bleu < 60
    assert first.p_value < 0.05
    assert first == again


def test_a_difference_in_one_row_of_many_may_be_chance() -> None:
    one_wrong = [WRONG[0], *REFERENCES[1:]]
    assert compare(one_wrong, REFERENCES, REFERENCES, CONFIG).p_value > 0.05


def test_a_tokeniser_that_is_not_installed_is_named_with_the_command() -> None:
    with pytest.raises(InputError, match=r"'ja-mecab' is not installed.*pip install sacrebleu\[ja\]"):
        corpus_bleu(["a"], ["a"], "ja-mecab")


def test_lines_end_with_a_line_feed_only(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes("a\u2028b\r\n\nc\rd\x85\r\r\n".encode())
    assert read_lines(path) == ["a\u2028b", "", "c\rd\x85\r"]


def test_a_gzip_file_scores_as_the_plain_one(tmp_path: Path) -> None:
    plain, packed, references = tmp_path / "h.txt", tmp_path / "h.txt.gz", tmp_path / "r.txt"
    plain.write_text("\n".join(HALF_WRONG), encoding="utf-8")
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    references.write_text("\r\n".join(REFERENCES) + "\r\n", encoding="utf-8", newline="")
    result = evaluate_files(plain, references, CONFIG)
    assert result == {"rows": 20, "metrics": score(HALF_WRONG, REFERENCES, CONFIG)}
    assert evaluate_files(packed, references, CONFIG) == result


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (None, "h.txt", r"h\.txt: cannot be read \(No such file"),
        (b"", "h.txt", r"h\.txt: the file has no line"),
        (b"a\nb\xff\n", "h.txt", r"h\.txt:2: not UTF-8"),
        (gzip.compress(b"a\nb\n" * 99, mtime=0)[:-9], "h.gz", r"h\.gz: not a whole gzip file"),
        (b"plain", "h.gz", r"h\.gz: not a whole gzip file"),
        (b"a\n", "h.txt", r"h\.txt: 1 lines, but .*r\.txt has 2"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(content: bytes | None, name: str, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    (tmp_path / "r.txt").write_text("a\nb\n", encoding="utf-8")
    with pytest.raises(InputError, match=message):
        evaluate_files(tmp_path / name, tmp_path / "r.txt", CONFIG)


def _cleaned(root: Path) -> StageRun:
    """Two test sets, in two shards whose rows are not in order; references differ from their normalised form."""

    def body(folder: Path) -> StageResult:
        rows = [(5 * 2**40 + i, "second", line) for i, line in enumerate(REFERENCES[:5])]
        rows += [(4 * 2**40 + i, "first", line) for i, line in enumerate(REFERENCES)]
        paths = []
        for number, part in enumerate((rows[:8], rows[8:])):
            path = folder / f"clean/test/part-{number:05d}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            columns = {
                "row_id": [row[0] for row in part],
                "corpus": [row[1] for row in part],
                "src_raw": [f"source of {row[2]}" for row in part],
                "tgt_raw": [row[2] for row in part],
                "tgt": ["normalised"] * len(part),
            }
            pq.write_table(pa.table(columns), path)
            paths.append(str(path.relative_to(folder)))
        return StageResult(paths, {})

    return run_stage("clean", 1, {}, {}, root, body)


def _translated(root: Path, hypotheses: dict[str, list[str]]) -> StageRun:
    def body(folder: Path) -> StageResult:
        (folder / "hypotheses").mkdir()
        for name, lines in hypotheses.items():
            text = "".join(f"{line}\n" for line in lines)
            (folder / "hypotheses" / f"{name}.txt").write_text(text, encoding="utf-8", newline="")
        return StageResult([f"hypotheses/{name}.txt" for name in hypotheses], {})

    return run_stage("translate", 1, {}, {"hypotheses": json.dumps(hypotheses)}, root, body)


def test_test_sets_come_in_the_order_of_their_row_ids(tmp_path: Path) -> None:
    first, second = read_tests(_cleaned(tmp_path))
    assert (first.name, second.name) == ("first", "second")
    assert first.references == REFERENCES and second.references == REFERENCES[:5]
    assert second.sources[0] == f"source of {REFERENCES[0]}"


def test_the_stage_scores_each_test_set_against_the_raw_references(tmp_path: Path) -> None:
    hypotheses = {"first": HALF_WRONG, "second": REFERENCES[:5]}
    run = evaluate_tests(CONFIG, _cleaned(tmp_path), _translated(tmp_path, hypotheses), tmp_path)
    scores = json.loads((run.folder / "scores.json").read_text(encoding="utf-8"))
    assert list(scores["tests"]) == ["first", "second"]
    assert scores["tests"]["first"] == {"rows": 20, "metrics": score(HALF_WRONG, REFERENCES, CONFIG)}
    assert scores["tests"]["second"]["metrics"]["bleu"]["score"] == pytest.approx(100.0)
    assert run.manifest.counters == scores
    assert [output.path for output in run.manifest.outputs] == ["scores.json"]


def test_unchanged_translations_are_not_scored_again(tmp_path: Path) -> None:
    hypotheses = {"first": HALF_WRONG, "second": REFERENCES[:5]}
    cleaned, translated = _cleaned(tmp_path), _translated(tmp_path, hypotheses)
    assert not evaluate_tests(CONFIG, cleaned, translated, tmp_path).reused
    assert evaluate_tests(CONFIG, cleaned, translated, tmp_path).reused


@pytest.mark.parametrize(
    ("hypotheses", "message"),
    [
        ({"first": HALF_WRONG}, r"second\.txt: cannot be read"),
        ({"first": HALF_WRONG[1:], "second": REFERENCES[:5]}, r"first\.txt: 19 rows, but there are 20 references"),
    ],
)
def test_missing_hypotheses_are_named_with_their_file(
    hypotheses: dict[str, list[str]], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        evaluate_tests(CONFIG, _cleaned(tmp_path), _translated(tmp_path, hypotheses), tmp_path)
