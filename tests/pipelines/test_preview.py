"""A preview against whole runs of the stages: the same rows, the same decisions, at the same lines."""

from __future__ import annotations

import gzip
import logging
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pipelines.preview as module
from pipelines.clean import clean
from pipelines.config import (
    BeamConfig,
    CleanConfig,
    CorporaConfig,
    CorpusConfig,
    DuplicatesConfig,
    InputScoreConfig,
    LanguagesConfig,
    LeakageConfig,
    QualityConfig,
    ShardConfig,
)
from pipelines.corpus import ROW_ID_STRIDE
from pipelines.errors import InputError
from pipelines.explanations import BORDERLINE_DROPPED, DROPPED
from pipelines.lookup import Origin
from pipelines.preview import HELD_OUT_NOTE, QUALITY_NOTE, REPETITIONS_NOTE, RUN_ROWS, Drawn, preview, spread
from pipelines.score import score
from pipelines.stage import StageRun

LANGUAGES = LanguagesConfig(source="en", target="de")
BEAM = BeamConfig(processes=1)
THINGS = [("house", "Haus"), ("boat", "Boot"), ("book", "Buch"), ("dress", "Kleid"), ("village", "Dorf")]
DEV = ("The neighbours are singing in the kitchen.", "Die Nachbarn singen in der Küche.")
TEST = ("Nobody has seen the yellow bicycle again.", "Niemand hat das gelbe Fahrrad wiedergesehen.")


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of temporary folders, which is empty at the end as nothing of a preview stays."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert not list(folder.iterdir())


def noisy(place: int) -> tuple[bytes, bytes]:
    """Line `place` of the noisy corpus: each kind of fault at some places."""
    (thing, ding), number = THINGS[place % len(THINGS)], place // len(THINGS)
    src, tgt = f"The {thing} has cost {number} euros today.", f"Das {ding} hat heute {number} Euro gekostet."
    match place % 23:
        case 3:
            tgt = ""
        case 7:
            src = f"<p>{src}</p>"
        case 9:
            tgt = "Ja."
        case 11:
            src, tgt = f"{DEV[0].upper()} {'!' * (place % 4)}", "Etwas ganz anderes steht hier."
        case 13:
            return src.encode() + b"\xff", tgt.encode()
        case 17:
            src, tgt = "It is raining.", "Es regnet."
    return src.encode(), tgt.encode()


def aligned(folder: Path, name: str, lines: list[tuple[bytes, bytes]], *, packed: bool = False) -> CorpusConfig:
    paths = []
    for side, language in enumerate(("en", "de")):
        data = b"".join(line[side] + b"\n" for line in lines)
        paths.append(folder / f"{name}.{language}{'.gz' if packed else ''}")
        paths[-1].write_bytes(gzip.compress(data) if packed else data)
    return CorpusConfig(name=name, source=str(paths[0]), target=str(paths[1]))


def table(folder: Path, rows: int) -> CorpusConfig:
    lines = ["en\tscore\tde"]
    for place in range(rows):
        number = "none" if place % 5 == 0 else f"{place % 10 / 10}"
        lines.append(f"He waits since {place} days.\t{number}\tEr wartet seit {place} Tagen.")
    lines[4] = "one field only"
    path = folder / "table.tsv"
    path.write_text("\n".join(lines), encoding="utf-8")
    scores = {"laser": InputScoreConfig(column="score", min=0.35)}
    return CorpusConfig(
        name="table", tsv=str(path), source_column="en", target_column="de", header=True, scores=scores,
        rules={"length_ratio": 1.3},
    )  # fmt: skip


def corpora_in(folder: Path, *, rows: int = 300, packed: bool = False) -> CorporaConfig:
    folder.mkdir(exist_ok=True)
    (folder / "mono.de").write_bytes(b"".join(f"Wir warten seit {place} Tagen.\n\n".encode() for place in range(40)))
    return CorporaConfig(
        train=(aligned(folder, "noisy", [noisy(place) for place in range(rows)], packed=packed), table(folder, 60)),
        dev=(aligned(folder, "val", [(DEV[0].encode(), DEV[1].encode()), (b"", b"Leer.")]),),
        test=(aligned(folder, "news", [(TEST[0].encode(), TEST[1].encode())]),),
        monolingual=(CorpusConfig(name="mono", target=str(folder / "mono.de")),),
    )


def run(corpora: CorporaConfig, root: Path, config: CleanConfig | None = None) -> StageRun:
    config = config or CleanConfig()
    scored = score(LANGUAGES, corpora, config, ShardConfig(), BEAM, root)
    return clean(LANGUAGES, corpora, config, scored, BEAM, root)


def reasons_by_line(cleaned: StageRun, split: str, ordinal: int) -> dict[int, str | None]:
    """The reason why each line of a corpus went, None where it stayed."""
    reasons: dict[int, str | None] = {}
    for kind in ("clean", "rejects"):
        for row in pq.read_table(cleaned.folder / kind / split).to_pylist():
            if row["row_id"] // ROW_ID_STRIDE == ordinal:
                reasons[row["row_id"] % ROW_ID_STRIDE + 1] = row.get("rule")
    return reasons


@given(st.integers(0, 5000), st.integers(0, 5000))
def test_rows_are_drawn_in_runs_that_are_spread_evenly(total: int, wanted: int) -> None:
    places = spread(total, wanted).tolist()
    assert len(places) == min(total, wanted)
    assert places == sorted(set(places))
    assert all(0 <= place < total for place in places)
    left_out = total - len(places)
    runs = [places[start : start + RUN_ROWS] for start in range(0, len(places), RUN_ROWS)]
    assert all(run[-1] - run[0] == len(run) - 1 for run in runs)
    if runs:
        ends = [-1, *(run[-1] for run in runs)]
        gaps = [run[0] - end - 1 for run, end in zip(runs, ends)] + [total - 1 - places[-1]]
        assert sum(gaps) == left_out
        # Half a share before the first and behind the last run, a whole one between two.
        assert all(abs(gap - left_out / len(runs)) < 1 for gap in gaps[1:-1])
        assert all(abs(gap - left_out / len(runs) / 2) < 1 for gap in (gaps[0], gaps[-1]))


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_a_preview_of_all_rows_is_the_run(tmp_path: Path, packed: bool) -> None:
    corpora = corpora_in(tmp_path / "corpora", packed=packed)
    found = preview(LANGUAGES, corpora, CleanConfig(), 1000)
    cleaned = run(corpora, tmp_path / "stages")
    assert found.drawn == (
        Drawn("train", "noisy", 300, 300), Drawn("train", "table", 60, 60), Drawn("monolingual", "mono", 80, 80),
    )  # fmt: skip
    assert found.waterfall == cleaned.manifest.counters["waterfall"]
    assert found.criteria == cleaned.manifest.config["criteria"]
    # Each kind of decision is there to be the same.
    dropped = {reason for entry in found.waterfall for reason, rows in entry["rejected"].items() if rows}
    assert dropped >= {
        "empty", "markup", "length_ratio", "leakage_dev", "invalid_utf8", "malformed", "duplicate", "input_laser",
    }  # fmt: skip
    assert found.notes == (REPETITIONS_NOTE,)


def test_rows_of_a_sample_are_judged_as_in_the_run_at_their_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MIN_ROWS", 1)
    monkeypatch.setattr(module, "RUN_ROWS", 7)
    monkeypatch.setattr(module, "_PIECE_ROWS", 32)
    corpora = corpora_in(tmp_path / "corpora", rows=500, packed=True)
    found = preview(LANGUAGES, corpora, CleanConfig(), 112)
    # Shares of 112 rows, by the corpora's 500 and 60.
    assert found.drawn[:2] == (Drawn("train", "noisy", 100, 500), Drawn("train", "table", 12, 60))
    cleaned = run(corpora, tmp_path / "stages")
    for ordinal, drawn, total, first_line in ((0, 100, 500, 1), (1, 12, 60, 2)):
        reasons = reasons_by_line(cleaned, "train", ordinal)
        lines = [place + first_line for place in spread(total, drawn).tolist()]
        # In the sample a row may be the first of those that are equal.
        counted = Counter(reasons[line] for line in lines if reasons[line] != "duplicate")
        rejected = Counter(found.waterfall[ordinal]["rejected"]) - Counter()
        assert {reason: rows for reason, rows in rejected.items() if reason != "duplicate"} == {
            reason: rows for reason, rows in counted.items() if reason is not None
        }
        assert found.waterfall[ordinal]["read"] == drawn
    drawn_lines = {
        Origin("train", name, place + first)
        for name, total, drawn, first in (("noisy", 500, 100, 1), ("table", 60, 12, 2))
        for place in spread(total, drawn).tolist()
    }
    shown = [sample for sample in found.samples if sample.origin.split == "train"]
    assert shown and {sample.origin for sample in shown} <= drawn_lines
    for sample in shown:
        if sample.kind in (DROPPED, BORDERLINE_DROPPED):
            reasons = reasons_by_line(cleaned, "train", ["noisy", "table"].index(sample.origin.corpus))
            assert reasons[sample.origin.line] == sample.rule
            if sample.rule == "leakage_dev":
                assert sample.match is not None and sample.match.origin == Origin("dev", "val", 1)
            if sample.rule == "duplicate":
                assert sample.match is not None and sample.match.origin in drawn_lines
                assert (sample.match.src, sample.match.tgt) == (sample.src, sample.tgt)


def test_a_row_that_cannot_be_read_is_shown_as_it_stands(tmp_path: Path) -> None:
    found = preview(LANGUAGES, corpora_in(tmp_path / "corpora"), CleanConfig(), 1000)
    malformed = [sample for sample in found.samples if sample.rule == "malformed"]
    assert [(sample.origin, sample.src, sample.tgt) for sample in malformed] == [
        (Origin("train", "table", 5), "one field only", None)
    ]
    invalid = [sample.origin.line for sample in found.samples if sample.rule == "invalid_utf8"]
    assert invalid == [14, 37, 60, 83, 106]


def test_what_ends_a_run_is_shown_by_a_preview(tmp_path: Path) -> None:
    config = CleanConfig(max_reject_rate=0.0, leakage=LeakageConfig(max_rate=0.0))
    corpora = corpora_in(tmp_path / "corpora")
    with pytest.raises(InputError, match="rows of train are rejected"):
        run(corpora, tmp_path / "stages", config)
    assert preview(LANGUAGES, corpora, config, 1000).waterfall[0]["rejected"]["leakage_dev"] == 13


def test_quality_is_left_out_and_the_first_of_equal_rows_stays(tmp_path: Path) -> None:
    corpora = corpora_in(tmp_path / "corpora")
    config = CleanConfig(quality=QualityConfig(), duplicates=DuplicatesConfig(keep="quality"))
    found = preview(LANGUAGES, corpora, config, 1000)
    assert found.notes[:2] == (REPETITIONS_NOTE, QUALITY_NOTE)
    assert found.notes[2] == "of repetitions the first row stays here, not the one of the best quality"
    assert found.waterfall == preview(LANGUAGES, corpora, CleanConfig(), 1000).waterfall


def test_rows_held_out_of_train_are_held_out_of_a_sample(tmp_path: Path) -> None:
    corpora = corpora_in(tmp_path / "corpora", rows=1000)
    corpora = CorporaConfig(train=corpora.train[:1], test=corpora.test, held_out={"dev": 0.2})
    found = preview(LANGUAGES, corpora, CleanConfig(), 600)
    train, dev, test = found.waterfall
    assert (dev["split"], dev["corpus"], test["corpus"]) == ("dev", "noisy", "news")
    assert train["read"] + dev["read"] == 600
    assert 60 < dev["read"] < 180
    assert found.notes == (REPETITIONS_NOTE, HELD_OUT_NOTE)


def test_a_corpus_of_which_no_drawn_row_can_be_read_is_named(tmp_path: Path) -> None:
    lines = [(b"bad \xff", b"auch \xff")] * 500 + [(b"good", b"gut")] + [(b"bad \xff", b"auch \xff")] * 500
    broken = aligned(tmp_path, "broken", lines)
    corpora = corpora_in(tmp_path / "corpora").model_copy(update={"train": (broken,)})
    with pytest.raises(InputError) as raised:
        preview(LANGUAGES, corpora, CleanConfig(), 200)
    assert raised.value.where == broken.source
    assert raised.value.what == "none of 200 rows drawn from 'broken' of train can be read: invalid_utf8 200"


def test_what_is_wrong_with_the_drawn_rows_names_the_file_of_the_corpus(tmp_path: Path) -> None:
    lines = [(b"a text", b"")] * 500 + [(b"good", b"gut")] + [(b"a text", b"")] * 500
    half = aligned(tmp_path, "half", lines)
    corpora = corpora_in(tmp_path / "corpora").model_copy(update={"train": (half,)})
    with pytest.raises(InputError) as raised:
        preview(LANGUAGES, corpora, CleanConfig(), 200)
    assert raised.value.where == half.source
    assert raised.value.what.startswith("in the rows drawn: a language without text: no line of 'half'")
    assert raised.value.remedy.endswith("or draw more rows")


def test_a_file_that_is_missing_is_told_as_in_a_run(tmp_path: Path) -> None:
    corpora = corpora_in(tmp_path / "corpora")
    Path(str(corpora.test[0].source)).unlink()
    with pytest.raises(InputError, match="no such file"):
        preview(LANGUAGES, corpora, CleanConfig(), 200)


def test_the_log_is_quiet_meanwhile_and_as_before_afterwards(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("pipelines")
    level = log.level
    log.setLevel(logging.INFO)
    try:
        preview(LANGUAGES, corpora_in(tmp_path / "corpora"), CleanConfig(), 300)
        assert log.level == logging.INFO
        assert not caplog.records
    finally:
        log.setLevel(level)
