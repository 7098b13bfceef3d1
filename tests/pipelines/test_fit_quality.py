"""The stage fit_quality: what the lexicon and the model are fitted on, and what is refused."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from scored_corpus import CONFIG, LANGUAGES, encoded, labelled_file, scored_stage, translated_pairs

from pipelines.config import CleanConfig, LabelledConfig, NormalizeConfig, QualityConfig, ResourcesConfig, RulesConfig
from pipelines.errors import InputError
from pipelines.fit_quality import fit_quality, read_labelled
from pipelines.lexicon import LEXICON_FILES, Lexicon
from pipelines.quality import Quality
from pipelines.stage import StageRun

LINES = [*encoded(translated_pairs(240)), b"one column", b"caf\xe9\tKaffee", *encoded([("bat " * 30, "tabi " * 30)])]


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> StageRun:
    return scored_stage(tmp_path_factory.mktemp("scored"), LINES)


def run(scored: StageRun, config: QualityConfig, root: Path, clean: CleanConfig = CONFIG) -> StageRun:
    return fit_quality(scored, LANGUAGES, config, clean, root / "stages")


def words_of(fitted: StageRun) -> dict[str, int]:
    table = pq.read_table(fitted.folder / "lexicon" / "source_words.parquet")
    return dict(zip(table["word"].to_pylist(), table["count"].to_pylist()))


# --- The lexicon -----------------------------------------------------------------------------------------------------


def test_the_lexicon_is_estimated_on_rows_that_pass_the_rules(scored: StageRun, tmp_path: Path) -> None:
    fitted = run(scored, QualityConfig(iterations=3), tmp_path)
    counters = fitted.manifest.counters
    assert (counters["rows"], counters["passing"], counters["sampled_rows"]) == (243, 240, 240)
    words = [word for src, _ in translated_pairs(240) for word in src.split()]
    assert words_of(fitted) == {word: words.count(word) for word in set(words)}
    assert counters["labelled"] is None
    assert [set(entry) for entry in counters["iterations"]] == [{"target", "source"}] * 3
    assert counters["source_words"] == counters["target_words"] == 30
    assert counters["entries"] == len(Lexicon.load(fitted.folder / "lexicon").keys)
    assert [output.path for output in fitted.manifest.outputs] == sorted(f"lexicon/{name}" for name in LEXICON_FILES)


def test_a_sample_is_spread_evenly_over_what_passes(scored: StageRun, tmp_path: Path) -> None:
    fitted = run(scored, QualityConfig(sample_rows=60), tmp_path)
    assert fitted.manifest.counters["sampled_rows"] == 60
    words = [word for src, _ in translated_pairs(240)[::4] for word in src.split()]
    assert words_of(fitted) == {word: words.count(word) for word in set(words)}


def test_rows_that_become_dev_or_test_are_not_looked_at(tmp_path: Path) -> None:
    scored = scored_stage(tmp_path, LINES, dev=(), held_out={"dev": 0.5})
    counters = run(scored, QualityConfig(), tmp_path).manifest.counters
    assert 80 < counters["passing"] < 160


def test_no_row_that_passes_is_bad_input(tmp_path: Path) -> None:
    scored = scored_stage(tmp_path, [b"one column", *encoded([("bat " * 30, "tabi " * 30)])])
    with pytest.raises(InputError, match="none of the 2 rows of train passes"):
        run(scored, QualityConfig(), tmp_path)


# --- The model -------------------------------------------------------------------------------------------------------


def labelled(path: Path, **more: object) -> QualityConfig:
    return QualityConfig(labelled=(LabelledConfig.model_validate({"tsv": str(path), **more}),))


def test_the_model_tells_right_pairs_from_wrong_ones(scored: StageRun, tmp_path: Path) -> None:
    file = labelled_file(tmp_path / "labelled.tsv", extra=["no columns"])
    fitted = run(scored, labelled(file), tmp_path)
    figures = fitted.manifest.counters["labelled"]
    assert (figures["rows"], figures["valid"], figures["unreadable"]) == (200, 100, 1)
    assert figures["roc_area"] > 0.95
    assert [entry["keeps_valid"] for entry in figures["thresholds"]] == [0.99, 0.95, 0.9, 0.8]
    assert figures["thresholds"][1]["drops_invalid"] > 0.7
    for name in ("threshold", "drops_invalid"):
        values = [entry[name] for entry in figures["thresholds"]]
        assert values == sorted(values)
    assert -0.3 < figures["log_likelihood"] < 0
    assert figures["iterations"] > 1
    model = Quality.load(fitted.folder / "quality.json")
    assert {term.name for term in model.terms} == set(figures["spreads"])
    assert {"words", "numbers", "tgt_translated", "word_difference"} <= set(figures["spreads"])
    assert max(figures["spreads"], key=figures["spreads"].get).startswith(("src_", "tgt_"))


def test_labels_that_follow_nothing_are_seen_to(scored: StageRun, tmp_path: Path) -> None:
    file = labelled_file(tmp_path / "labelled.tsv")
    header, *rows = file.read_text().splitlines()
    labels = np.random.default_rng(0).permutation([row.rsplit("\t", 1)[1] for row in rows])
    file.write_text("\n".join([header, *(f"{row.rsplit(chr(9), 1)[0]}\t{label}" for row, label in zip(rows, labels))]))
    assert 0.35 < run(scored, labelled(file), tmp_path).manifest.counters["labelled"]["roc_area"] < 0.65


def test_several_files_count_together(scored: StageRun, tmp_path: Path) -> None:
    one, other = labelled_file(tmp_path / "one.tsv", 40), labelled_file(tmp_path / "other.tsv", 60)
    config = QualityConfig(labelled=(LabelledConfig(tsv=str(one)), LabelledConfig(tsv=str(other))))
    assert run(scored, config, tmp_path).manifest.counters["labelled"]["rows"] == 100


def test_too_few_pairs_have_no_cross_validation(scored: StageRun, tmp_path: Path) -> None:
    file = labelled_file(tmp_path / "labelled.tsv", 2)
    figures = run(scored, labelled(file), tmp_path).manifest.counters["labelled"]
    assert (figures["roc_area"], figures["thresholds"]) == (None, [])


def test_the_same_input_gives_the_same_output(scored: StageRun, tmp_path: Path) -> None:
    file = labelled_file(tmp_path / "labelled.tsv")
    runs = [run(scored, labelled(file), tmp_path / name) for name in ("one", "other")]
    assert runs[0].manifest.outputs == runs[1].manifest.outputs
    assert runs[0].manifest.counters == runs[1].manifest.counters


# --- The key ---------------------------------------------------------------------------------------------------------


def key(scored: StageRun, config: QualityConfig, root: Path, clean: CleanConfig = CONFIG) -> str:
    return run(scored, config, root, clean).manifest.key


def test_what_decides_the_output_is_in_the_key(scored: StageRun, tmp_path: Path) -> None:
    file = labelled_file(tmp_path / "labelled.tsv", 20)
    moved = labelled_file(tmp_path / "moved.tsv", 20)
    words = tmp_path / "words.txt"
    words.write_text("bad\n")
    base = key(scored, labelled(file), tmp_path)
    assert key(scored, labelled(moved), tmp_path) == base
    assert key(scored, labelled(file), tmp_path, CONFIG.model_copy(update={"max_reject_rate": 0.9})) == base
    rules = RulesConfig(language=None, words=100.0)
    others = [
        key(scored, QualityConfig(), tmp_path),
        key(scored, labelled(file, valid=("A",)), tmp_path),
        key(scored, labelled(file).model_copy(update={"iterations": 2}), tmp_path),
        key(scored, labelled(file).model_copy(update={"sample_rows": 50}), tmp_path),
        key(scored, labelled(labelled_file(tmp_path / "more.tsv", 22)), tmp_path),
        key(scored, labelled(file), tmp_path, CONFIG.model_copy(update={"rules": rules})),
        key(
            scored,
            labelled(file),
            tmp_path,
            CONFIG.model_copy(update={"normalize": NormalizeConfig(unify_quotes=True)}),
        ),
        key(
            scored,
            labelled(file),
            tmp_path,
            CONFIG.model_copy(update={"resources": ResourcesConfig(source_profanity=str(words))}),
        ),
    ]
    assert len({base, *others}) == 1 + len(others)


# --- Labelled pairs --------------------------------------------------------------------------------------------------


def written(path: Path, lines: Sequence[bytes], end: bytes = b"\n") -> LabelledConfig:
    path.write_bytes(end.join(lines) + end)
    return LabelledConfig(tsv=str(path))


def test_labelled_pairs_are_read_by_the_names_of_their_columns(tmp_path: Path) -> None:
    lines = [b"\xef\xbb\xbflabel\tx\ttgt\tsrc", b"V\t0\teins\tone", b" A \t0\tzwei\ttwo", b"W\t0\tdrei\tthree"]
    pairs = read_labelled(written(tmp_path / "a.tsv", lines, b"\r\n"))
    assert pairs.src.to_pylist() == ["one", "two", "three"]
    assert pairs.tgt.to_pylist() == ["eins", "zwei", "drei"]
    assert pairs.valid.tolist() == [True, False, False]
    config = written(tmp_path / "b.tsv", lines).model_copy(update={"valid": ("A", "W"), "source_column": "tgt"})
    assert read_labelled(config).valid.tolist() == [False, True, True]
    assert read_labelled(config).src.to_pylist() == ["eins", "zwei", "drei"]


def test_labelled_rows_that_cannot_be_read_are_counted(tmp_path: Path) -> None:
    lines = [b"src\ttgt\tlabel", b"one\teins\tV", b"two\tzwei", b"caf\xe9\tKaffee\tV", b"three\tdrei\tA\tmore", b""]
    pairs = read_labelled(written(tmp_path / "a.tsv", lines))
    assert pairs.src.to_pylist() == ["one", "three"]
    assert pairs.unreadable == 3


def test_labelled_pairs_may_be_compressed(tmp_path: Path) -> None:
    path = tmp_path / "labelled.tsv.gz"
    path.write_bytes(gzip.compress(b"src\ttgt\tlabel\none\teins\tV\ntwo\tdrei\tA\n"))
    assert read_labelled(LabelledConfig(tsv=str(path))).valid.tolist() == [True, False]


@pytest.mark.parametrize(
    ("lines", "what"),
    [
        ([b"src\ttgt\tverdict", b"one\teins\tV"], "the header has no column 'label', but src, tgt, verdict"),
        ([b"src\ttgt\tlabel", b"one\teins\tA"], "0 of 1 labelled pairs are valid; the labels are 'A'"),
        ([b"src\ttgt\tlabel", b"one\teins\tV"], "1 of 1 labelled pairs are valid"),
        ([b"src\ttgt\tlabel"], "0 of 0 labelled pairs are valid"),
        ([b""], "the header has no column 'src'"),
    ],
)
def test_labelled_pairs_that_cannot_be_used_are_bad_input(tmp_path: Path, lines: list[bytes], what: str) -> None:
    with pytest.raises(InputError, match=what):
        read_labelled(written(tmp_path / "a.tsv", lines))


def test_a_missing_file_of_labelled_pairs_is_bad_input(scored: StageRun, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"labelled\.tsv"):
        run(scored, labelled(tmp_path / "labelled.tsv"), tmp_path)
