"""The whole stage on a small corpus with every kind of fault: what goes, why, and that nothing else decides it."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipelines import clean as stage
from pipelines.clean import HELD_OUT_REASONS, TRAIN_REASONS, clean
from pipelines.config import (
    BeamConfig,
    CleanConfig,
    CorporaConfig,
    CorpusConfig,
    LanguagesConfig,
    NormalizeConfig,
    RulesConfig,
    ShardConfig,
)
from pipelines.corpus import ROW_ID_STRIDE
from pipelines.errors import InputError
from pipelines.filters import RULES
from pipelines.stage import StageRun

LANGUAGES = LanguagesConfig(source="en", target="de")
IN_PROCESS = BeamConfig()
TWO_PROCESSES = BeamConfig(options={"direct_running_mode": "multi_processing", "direct_num_workers": 2})

PEOPLE = [
    ("A man", "Ein Mann"),
    ("A woman", "Eine Frau"),
    ("A child", "Ein Kind"),
    ("An old teacher", "Ein alter Lehrer"),
]
DEEDS = [
    ("is sitting on the bench", "sitzt auf der Bank"),
    ("is reading a newspaper", "liest eine Zeitung"),
    ("is walking through the park", "geht durch den Park"),
    ("is waiting for the train", "wartet auf den Zug"),
]
PAIRS = [(f"{who} {does}.", f"{wer} {tut}.") for who, wer in PEOPLE for does, tut in DEEDS]
DEV, TEST = PAIRS[3], PAIRS[7]
GOOD = [pair for pair in PAIRS if pair not in (DEV, TEST)]

# (source, target, reason) in the order of the lines of the first corpus.
NOISY: list[tuple[str, str, str | None]] = [
    (*GOOD[0], None),
    (GOOD[1][0], "", "empty"),
    (*GOOD[1], None),
    (GOOD[2][0], "Geht.", "length_ratio"),
    (*GOOD[0], "duplicate"),
    (f"<p>{GOOD[2][0]}</p>", GOOD[2][1], "markup"),
    (GOOD[0][0].upper(), f"{GOOD[0][1]} !", "near_duplicate"),
    (GOOD[3][0], GOOD[3][0], "identical"),
    (DEV[0], "Ganz etwas anderes.", "leakage_dev"),
    (f"  {TEST[0].lower()}", TEST[1], "leakage_test"),
    (GOOD[4][0], "Une femme lit le journal au bord de la rivière.", "language"),
    (f"{GOOD[5][0]} &amp; more", f"{GOOD[5][1]} &amp; mehr", None),
]
# (bytes of the line, reason) of the second corpus, a TSV file.
TABLE: list[tuple[bytes, str | None]] = [
    ("\t".join(GOOD[6]).encode(), None),
    (b"one column only", "malformed"),
    (b"A caf\xe9 on the street corner\tEin Haus an der Ecke der Stra\xdfe", "invalid_utf8"),
    ("\t".join(GOOD[0]).encode(), "duplicate"),
    ("\t".join(GOOD[7]).encode(), None),
]


def write(folder: Path, name: str, pairs: list[tuple[str, str]], *, packed: bool = False) -> CorpusConfig:
    paths = []
    for side, language in enumerate(("en", "de")):
        data = "".join(pair[side] + "\n" for pair in pairs).encode()
        paths.append(folder / f"{name}.{language}{'.gz' if packed else ''}")
        paths[-1].write_bytes(gzip.compress(data) if packed else data)
    return CorpusConfig(name=name, source=str(paths[0]), target=str(paths[1]))


def corpora_in(folder: Path, *, packed: bool = False) -> CorporaConfig:
    folder.mkdir(exist_ok=True)
    table = folder / "table.tsv"
    table.write_bytes(b"en\tde\n" + b"\n".join(line for line, _ in TABLE))
    return CorporaConfig(
        train=(
            write(folder, "noisy", [(src, tgt) for src, tgt, _ in NOISY], packed=packed),
            CorpusConfig(name="table", tsv=str(table), source_column="en", target_column="de", header=True),
        ),
        dev=(write(folder, "val", [DEV, ("", "Leer."), ("<b>Stays&nbsp;</b>", "Was? 12 34 56")]),),
        test=(write(folder, "news", [TEST]), write(folder, "talks", [("Stop.", "Halt.")])),
    )


def run(
    corpora: CorporaConfig,
    root: Path,
    config: CleanConfig | None = None,
    *,
    rows: int = 4,
    beam: BeamConfig = IN_PROCESS,
) -> StageRun:
    return clean(LANGUAGES, corpora, config or CleanConfig(), ShardConfig(rows_per_shard=rows), beam, root)


def table_of(run: StageRun, part: str) -> list[dict[str, Any]]:
    paths = [run.folder / output.path for output in run.manifest.outputs if output.path.startswith(part + "/")]
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


def digests(run: StageRun) -> dict[str, str]:
    return {output.path: output.sha256 for output in run.manifest.outputs}


@pytest.fixture(scope="module")
def cleaned(tmp_path_factory: pytest.TempPathFactory) -> StageRun:
    folder = tmp_path_factory.mktemp("clean")
    return run(corpora_in(folder / "data"), folder / "stages")


def test_every_rejected_row_has_its_reason(cleaned: StageRun) -> None:
    found = {row["row_id"]: row["rule"] for row in table_of(cleaned, "rejects/train")}
    noisy = {line: reason for line, (_, _, reason) in enumerate(NOISY) if reason}
    table = {ROW_ID_STRIDE + line: reason for line, (_, reason) in enumerate(TABLE, start=1) if reason}
    assert found == noisy | table


def test_kept_rows_are_normalised_and_in_order(cleaned: StageRun) -> None:
    rows = table_of(cleaned, "clean/train")
    assert [(row["row_id"], row["corpus"], row["src"], row["tgt"]) for row in rows] == [
        (0, "noisy", *GOOD[0]),
        (2, "noisy", *GOOD[1]),
        (11, "noisy", f"{GOOD[5][0]} & more", f"{GOOD[5][1]} & mehr"),
        (ROW_ID_STRIDE + 1, "table", *GOOD[6]),
        (ROW_ID_STRIDE + 5, "table", *GOOD[7]),
    ]


def test_kept_rows_have_a_score_of_each_rule(cleaned: StageRun) -> None:
    rows = table_of(cleaned, "clean/train")
    assert list(rows[0])[4:] == [f"score_{rule.name}" for rule in RULES]
    assert rows[0]["score_words"] == 7
    assert rows[0]["score_identical"] == 0
    assert rows[0]["score_numbers"] is None
    assert rows[0]["score_language"] < 0.5


def test_rejects_hold_the_text_and_the_score_that_decided(cleaned: StageRun) -> None:
    rows = {row["row_id"]: row for row in table_of(cleaned, "rejects/train")}
    assert rows[5] == {
        "row_id": 5,
        "corpus": "noisy",
        "src": f"<p>{GOOD[2][0]}</p>",
        "tgt": GOOD[2][1],
        "rule": "markup",
        "score": 2.0,
    }
    assert rows[4]["score"] is None
    malformed, invalid = rows[ROW_ID_STRIDE + 2], rows[ROW_ID_STRIDE + 3]
    assert (malformed["src"], malformed["tgt"]) == ("one column only", None)
    assert (invalid["src"], invalid["tgt"]) == (
        "A caf\\xe9 on the street corner",
        "Ein Haus an der Ecke der Stra\\xdfe",
    )


def test_dev_and_test_lose_only_what_no_one_can_translate(cleaned: StageRun) -> None:
    dev = table_of(cleaned, "clean/dev")
    ordinal = 2
    assert dev[1] == {
        "row_id": ordinal * ROW_ID_STRIDE + 2,
        "corpus": "val",
        "src": "<b>Stays </b>",
        "tgt": "Was? 12 34 56",
        "src_raw": "<b>Stays&nbsp;</b>",
        "tgt_raw": "Was? 12 34 56",
    }
    assert [(row["rule"], row["tgt"]) for row in table_of(cleaned, "rejects/dev")] == [("empty", "Leer.")]
    assert [(row["corpus"], row["src"]) for row in table_of(cleaned, "clean/test")] == [
        ("news", TEST[0]),
        ("talks", "Stop."),
    ]
    assert table_of(cleaned, "rejects/test") == []


def test_the_waterfall_adds_up(cleaned: StageRun) -> None:
    waterfall = cleaned.manifest.counters["waterfall"]
    counted = [(e["split"], e["corpus"], e["read"], e["kept"], sum(e["rejected"].values())) for e in waterfall]
    assert counted == [
        ("train", "noisy", 12, 3, 9),
        ("train", "table", 5, 2, 3),
        ("dev", "val", 3, 2, 1),
        ("test", "news", 1, 1, 0),
        ("test", "talks", 1, 1, 0),
    ]
    # Through JSON, the reasons keep their order: it is that in which they are asked.
    assert [tuple(entry["rejected"]) for entry in waterfall] == [TRAIN_REASONS] * 2 + [HELD_OUT_REASONS] * 3
    assert waterfall[0]["rejected"]["near_duplicate"] == 1
    assert waterfall[1]["rejected"]["malformed"] == 1


def test_length_histograms_count_readable_and_kept_rows_of_train(cleaned: StageRun) -> None:
    lengths = cleaned.manifest.counters["lengths"]
    assert sum(lengths["before"]["src"]["rows"]) == len(NOISY) + len(TABLE) - 2
    assert sum(lengths["after"]["tgt"]["rows"]) == 5
    kept = [len(row["src"]) for row in table_of(cleaned, "clean/train")]
    expected = [sum(low <= length < low + 10 for length in kept) for low in range(0, 500, 10)]
    assert lengths["after"]["src"] == {"edges": list(range(0, 501, 10)), "rows": expected}


def test_parts_are_numbered_over_the_corpora_and_work_is_gone(cleaned: StageRun) -> None:
    paths = sorted(output.path for output in cleaned.manifest.outputs)
    # The piece of lines 4 to 7 keeps no row, and so has no part.
    assert [path for path in paths if path.startswith("clean/train")] == [
        f"clean/train/part-0000{number}.parquet" for number in range(4)
    ]
    assert [path for path in paths if path.startswith("rejects/test")] == ["rejects/test/part-00000.parquet"]
    assert sorted(path.name for path in cleaned.folder.iterdir()) == ["clean", "manifest.json", "rejects"]


def test_an_unchanged_stage_is_reused_wherever_its_files_lie(cleaned: StageRun, tmp_path: Path) -> None:
    again = run(corpora_in(tmp_path / "elsewhere"), cleaned.folder.parent)
    assert again.reused
    assert again.folder == cleaned.folder
    assert str(tmp_path) not in (cleaned.folder / "manifest.json").read_text(encoding="utf-8")


def test_another_threshold_is_another_stage(cleaned: StageRun, tmp_path: Path) -> None:
    config = CleanConfig(rules=RulesConfig(identical=None, language=None), duplicates="exact")
    other = run(corpora_in(tmp_path / "data"), cleaned.folder.parent, config)
    assert not other.reused
    reasons = {row["row_id"]: row["rule"] for row in table_of(other, "rejects/train")}
    assert [reasons.get(line) for line in (4, 6, 7, 10)] == ["duplicate", None, None, None]


def test_duplicates_stay_on_demand(tmp_path: Path) -> None:
    kept = run(corpora_in(tmp_path / "data"), tmp_path / "stages", CleanConfig(duplicates="keep"))
    assert {4, 6} <= {row["row_id"] for row in table_of(kept, "clean/train")}


def test_normalisation_follows_the_config(tmp_path: Path) -> None:
    config = CleanConfig(normalize=NormalizeConfig(unescape_html=False), rules=RulesConfig(markup=None, language=None))
    kept = run(corpora_in(tmp_path / "data"), tmp_path / "stages", config)
    assert f"{GOOD[5][0]} &amp; more" in [row["src"] for row in table_of(kept, "clean/train")]


def test_compressed_files_give_the_same_bytes(cleaned: StageRun, tmp_path: Path) -> None:
    packed = run(corpora_in(tmp_path / "data", packed=True), tmp_path / "stages")
    assert digests(packed) == digests(cleaned)


def test_two_processes_give_the_same_bytes(cleaned: StageRun, tmp_path: Path) -> None:
    both = run(corpora_in(tmp_path / "data"), tmp_path / "stages", beam=TWO_PROCESSES)
    assert digests(both) == digests(cleaned)
    assert both.manifest.counters == cleaned.manifest.counters


def test_the_size_of_the_pieces_changes_no_row(cleaned: StageRun, tmp_path: Path) -> None:
    whole = run(corpora_in(tmp_path / "data"), tmp_path / "stages", rows=1000)
    for part in ("clean/train", "rejects/train", "clean/dev", "clean/test"):
        assert table_of(whole, part) == table_of(cleaned, part)


# --- Refused ---------------------------------------------------------------------------------------------------------


def small(tmp_path: Path, train: list[tuple[str, str]]) -> CorporaConfig:
    return CorporaConfig(
        train=(write(tmp_path, "t", train),), dev=(write(tmp_path, "d", [DEV]),), test=(write(tmp_path, "e", [TEST]),)
    )


def test_a_train_of_which_nothing_is_left_is_refused(tmp_path: Path) -> None:
    corpora = small(tmp_path, [("<p>one</p>", "<p>eins</p>"), ("<p>two</p>", "<p>zwei</p>"), ("", "drei")])
    with pytest.raises(InputError, match=r"3 of 3 rows of train are rejected: markup 2, empty 1\. .*clean\.rules"):
        run(corpora, tmp_path / "stages")


def test_more_rejects_than_allowed_are_refused(tmp_path: Path) -> None:
    corpora = small(tmp_path, [GOOD[0], GOOD[0], GOOD[1]])
    with pytest.raises(InputError, match=r"1 of 3 rows of train are rejected: duplicate 1\. .*max_reject_rate"):
        run(corpora, tmp_path / "stages", CleanConfig(max_reject_rate=0.3))


def test_more_leakage_than_allowed_is_refused(tmp_path: Path) -> None:
    corpora = small(tmp_path, [GOOD[0], TEST, GOOD[1]])
    with pytest.raises(InputError, match=r"1 of 3 rows of train occur in dev or test, more than 10\.00%"):
        run(corpora, tmp_path / "stages", CleanConfig(max_leakage_rate=0.1))


def test_a_test_set_without_a_row_is_refused(tmp_path: Path) -> None:
    corpora = small(tmp_path, GOOD[:2]).model_copy(update={"test": (write(tmp_path, "e", [("a", ""), ("", "b")]),)})
    with pytest.raises(InputError, match=r"corpora\.test: all 2 rows of 'e' are rejected: empty 2"):
        run(corpora, tmp_path / "stages")


def test_a_language_that_the_rule_does_not_know_is_refused(tmp_path: Path) -> None:
    languages = LanguagesConfig(source="en", target="xx")
    corpora = small(tmp_path, GOOD[:2])
    with pytest.raises(InputError, match=r"clean\.rules\.language: the language model does not know 'xx'"):
        clean(languages, corpora, CleanConfig(), ShardConfig(), IN_PROCESS, tmp_path / "stages")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"direct_running_mode": "multi_threading"}, "loses rows"),
        ({"direct_num_wokers": 2}, "Beam has no option 'direct_num_wokers'"),
        ({"runner": "PrismRunner"}, "the runner has a key of its own"),
    ],
)
def test_beam_options_that_cannot_be_used_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run(small(tmp_path, GOOD[:2]), tmp_path / "stages", beam=BeamConfig(options=options))


def test_a_runner_that_beam_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"beam\.runner: Beam cannot start the runner 'NoRunner'"):
        run(small(tmp_path, GOOD[:2]), tmp_path / "stages", beam=BeamConfig(runner="NoRunner"))


def test_lost_rows_fail_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published = stage._published

    def losing(*args: Any) -> list[str]:
        return [path for path in published(*args) if not path.startswith("rejects/train")]

    monkeypatch.setattr(stage, "_published", losing)
    with pytest.raises(RuntimeError, match=r"train: 3 rows read, 3 counted, 2 written"):
        run(small(tmp_path, [GOOD[0], GOOD[0], GOOD[1]]), tmp_path / "stages")


def test_beam_says_nothing_that_is_not_asked_for() -> None:
    script = (
        "from pipelines.runner import beam, run_pipeline; from pipelines.config import BeamConfig; import logging;"
        "run_pipeline(lambda p: p | beam.Create([1]), BeamConfig()); assert not logging.getLogger().handlers"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=os.environ, check=True)
    assert (done.stdout, done.stderr) == ("", "")
