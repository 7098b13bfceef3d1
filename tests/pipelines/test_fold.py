from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cleaned_stage import PAIRS

from pipelines.config import BeamConfig, LanguagesConfig, ShardConfig, TokenizerConfig
from pipelines.encode import encode
from pipelines.errors import InputError
from pipelines.fit_tokenizer import fit_tokenizer
from pipelines.fold import fold, fold_numbers
from pipelines.shards import read_shards
from pipelines.stage import StageResult, StageRun, run_stage

LANGUAGES = {"source": "en", "target": "de"}
# Each source three times in other spellings, with targets of its own, spread over the parts.
SPELLINGS = ("{}", "{}!", "«{}»")


def rows(first: int, pairs: list[tuple[str, str]], split: str) -> pa.Table:
    columns = {
        "row_id": pa.array(range(first, first + len(pairs)), pa.int64()),
        "corpus": [split] * len(pairs),
        "src": [source for source, _ in pairs],
        "tgt": [target for _, target in pairs],
    }
    if split == "train":
        columns["score_characters"] = pa.array([float(len(source)) for source, _ in pairs], pa.float32())
    else:
        columns |= {"src_raw": columns["src"], "tgt_raw": columns["tgt"]}
    return pa.table(columns)


def cleaned(root: Path, parts: list[list[tuple[str, str]]]) -> StageRun:
    def body(folder: Path) -> StageResult:
        tables, first = {}, 0
        for number, pairs in enumerate(parts):
            tables[f"clean/train/part-{number:05d}.parquet"] = rows(first, pairs, "train")
            first += len(pairs)
        for split in ("dev", "test"):
            tables[f"clean/{split}/part-00000.parquet"] = rows(2**40, [("held out", "zurückgehalten")], split)
        for path, table in tables.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table, folder / path)
        return StageResult(tables, {})

    config = {"languages": LANGUAGES, "normalize": {}, "parts": parts}
    return run_stage("clean", 1, config, {}, root, body)


@pytest.fixture
def many(tmp_path: Path) -> StageRun:
    spelled = [[(form.format(source), f"{n} {target}") for source, target in PAIRS] for n, form in enumerate(SPELLINGS)]
    return cleaned(tmp_path, spelled)


def read(run: StageRun, split: str) -> pa.Table:
    paths = [output.path for output in run.manifest.outputs if output.path.startswith(f"clean/{split}/")]
    return pa.concat_tables([pq.read_table(run.folder / path) for path in sorted(paths)])


def all_folds(run: StageRun, folds: int) -> list[StageRun]:
    return [fold(run, folds, index, run.folder.parent) for index in range(folds)]


def test_each_row_of_train_is_dev_in_exactly_one_fold(many: StageRun) -> None:
    dev = [read(run, "dev")["row_id"].to_pylist() for run in all_folds(many, 4)]
    assert sorted(row for found in dev for row in found) == list(range(3 * len(PAIRS)))
    assert all(found for found in dev)


def test_a_fold_trains_on_the_rows_of_all_others_as_they_were(many: StageRun) -> None:
    whole = read(many, "train")
    for run in all_folds(many, 3):
        train, dev = read(run, "train"), read(run, "dev")
        kept = np.isin(whole["row_id"].to_numpy(), dev["row_id"].to_numpy(), invert=True)
        assert train.equals(whole.filter(pa.array(kept)))
        assert run.manifest.counters == {"rows": len(whole), "train": len(train), "dev": len(dev)}


def test_rows_of_one_source_are_in_one_fold_whatever_their_case_and_punctuation(many: StageRun) -> None:
    folds_of: dict[str, set[int]] = {}
    for index, run in enumerate(all_folds(many, 4)):
        for source in read(run, "dev")["src"].to_pylist():
            folds_of.setdefault(source.strip("!«»"), set()).add(index)
    assert len(folds_of) == len(PAIRS)
    assert all(len(found) == 1 for found in folds_of.values())


def test_dev_has_its_target_as_the_reference(many: StageRun) -> None:
    dev = read(fold(many, 3, 1, many.folder.parent), "dev")
    assert dev.column_names == ["row_id", "corpus", "src", "tgt", "src_raw", "tgt_raw"]
    assert dev["tgt_raw"].equals(dev["tgt"]) and dev["src_raw"].equals(dev["src"])
    assert dev["row_id"].to_pylist() == sorted(dev["row_id"].to_pylist())


def test_no_row_of_the_recipes_dev_or_test_is_in_a_fold(many: StageRun) -> None:
    for run in all_folds(many, 3):
        assert {output.path.split("/")[1] for output in run.manifest.outputs} == {"train", "dev"}
        assert "held out" not in read(run, "dev")["src"].to_pylist() + read(run, "train")["src"].to_pylist()


def test_the_same_fold_has_the_same_bytes_anywhere(tmp_path: Path) -> None:
    runs = [fold(cleaned(tmp_path / name, [PAIRS]), 3, 2, tmp_path / name) for name in ("one", "other")]
    assert runs[0].manifest.digest() == runs[1].manifest.digest()
    assert not runs[1].reused
    assert fold(cleaned(tmp_path / "one", [PAIRS]), 3, 2, tmp_path / "one").reused


def test_a_row_keeps_its_fold_when_others_come(tmp_path: Path) -> None:
    few = fold_numbers(pa.array([source for source, _ in PAIRS[:9]]), 5)
    more = fold_numbers(pa.array([source for source, _ in PAIRS]), 5)
    assert few.tolist() == more[:9].tolist()


def test_folds_are_of_about_the_same_size() -> None:
    numbers = fold_numbers(pa.array([f"sentence {n}" for n in range(5000)]), 5)
    # Of 5,000 rows each fold has 1,000 but for chance, whose deviation is 28.
    assert all(850 < size < 1150 for size in np.bincount(numbers, minlength=5))


def test_a_part_without_a_row_of_the_fold_gives_no_file(tmp_path: Path) -> None:
    alone = [[pair] for pair in PAIRS[:6]]
    run = fold(cleaned(tmp_path, alone), 2, 0, tmp_path)
    names = sorted(output.path for output in run.manifest.outputs if output.path.startswith("clean/train/"))
    assert names == [f"clean/train/part-{number:05d}.parquet" for number in range(run.manifest.counters["train"])]
    assert all(output.rows for output in run.manifest.outputs)


def test_a_fold_without_a_row_is_refused(tmp_path: Path) -> None:
    run = cleaned(tmp_path, [PAIRS[:1]])
    number = int(fold_numbers(pa.array([PAIRS[0][0]]), 2)[0])
    with pytest.raises(InputError, match=r"fold \d of 2 has no row: train has 1 rows") as error:
        fold(run, 2, 1 - number, tmp_path)
    assert error.value.where == "tune.folds"
    with pytest.raises(InputError, match=r"fold \d holds every row"):
        fold(run, 2, number, tmp_path)


def test_tokeniser_and_shards_are_made_of_a_fold_as_of_clean(many: StageRun) -> None:
    root = many.folder.parent
    run = fold(many, 3, 0, root)
    tokenizer = fit_tokenizer(LanguagesConfig(**LANGUAGES), TokenizerConfig(vocab_size=70), run, root)
    encoded = encode(ShardConfig(), run, tokenizer, BeamConfig(processes=1), root)
    for split in ("train", "dev"):
        shards = read_shards(encoded.folder / "shards" / split)
        assert shards.row_id.tolist() == read(run, split)["row_id"].to_pylist()
