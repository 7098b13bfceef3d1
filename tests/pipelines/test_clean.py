"""The whole stage on a small corpus with every kind of fault: what goes, why, and that nothing else decides it."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipelines import clean as stage
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
    NormalizeConfig,
    RulesConfig,
    ShardConfig,
)
from pipelines.corpus import ROW_ID_STRIDE
from pipelines.decisions import HELD_OUT_REASONS, reasons
from pipelines.errors import InputError
from pipelines.score import score
from pipelines.stage import StageRun
from pipelines.verdict import corpus_criteria, scored_rules

LANGUAGES = LanguagesConfig(source="en", target="de")
IN_PROCESS = BeamConfig(processes=1)
TWO_PROCESSES = BeamConfig(processes=2)

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
    (GOOD[0][0].upper(), f"{GOOD[0][1]} !", "folded_duplicate"),
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
    config = config or CleanConfig()
    scored = score(LANGUAGES, corpora, config, ShardConfig(rows_per_shard=rows), beam, root)
    return clean(LANGUAGES, corpora, config, scored, beam, root)


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
    assert list(rows[0])[4:] == [f"score_{name}" for name in scored_rules([RulesConfig()])]
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
        "match": None,
    }
    assert (rows[4]["score"], rows[4]["match"]) == (None, 0)
    assert rows[6]["match"] == 0
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
    of_train = reasons(corpus_criteria(RulesConfig(), CorpusConfig(name="a", tsv="a.tsv")))
    assert [tuple(entry["rejected"]) for entry in waterfall] == [of_train] * 2 + [HELD_OUT_REASONS] * 3
    assert waterfall[0]["rejected"]["folded_duplicate"] == 1
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
    names = sorted(path.name for path in cleaned.folder.iterdir())
    assert names == ["clean", "explanations", "manifest.json", "rejects"]


def test_an_unchanged_stage_is_reused_wherever_its_files_lie(cleaned: StageRun, tmp_path: Path) -> None:
    again = run(corpora_in(tmp_path / "elsewhere"), cleaned.folder.parent)
    assert again.reused
    assert again.folder == cleaned.folder
    assert str(tmp_path) not in (cleaned.folder / "manifest.json").read_text(encoding="utf-8")


def test_another_threshold_is_another_stage(cleaned: StageRun, tmp_path: Path) -> None:
    rules = RulesConfig(identical="soft", language="soft")
    config = CleanConfig(rules=rules, duplicates=DuplicatesConfig(folded=None))
    folders = set(cleaned.folder.parent.iterdir())
    other = run(corpora_in(tmp_path / "data"), cleaned.folder.parent, config)
    assert not other.reused
    # No row was scored anew.
    assert (
        set(cleaned.folder.parent.iterdir()) - folders
        == {other.folder, *other.folder.parent.glob(".clean-*")} - folders
    )
    reasons = {row["row_id"]: row["rule"] for row in table_of(other, "rejects/train")}
    assert [reasons.get(line) for line in (4, 6, 7, 10)] == ["duplicate", None, None, None]


def test_duplicates_stay_on_demand(tmp_path: Path) -> None:
    kept = run(
        corpora_in(tmp_path / "data"),
        tmp_path / "stages",
        CleanConfig(duplicates=DuplicatesConfig(exact=None, folded=None)),
    )
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


def test_workers_of_beams_own_give_the_same_bytes(cleaned: StageRun, tmp_path: Path) -> None:
    own = BeamConfig(options={"direct_running_mode": "multi_processing", "direct_num_workers": 2})
    both = run(corpora_in(tmp_path / "data"), tmp_path / "stages", beam=own)
    assert digests(both) == digests(cleaned)


@pytest.mark.cluster
def test_a_dask_cluster_gives_the_same_bytes(cleaned: StageRun, tmp_path: Path) -> None:
    from dask.distributed import LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50) as cluster:
        options = {"dask_client_address": cluster.scheduler_address, "dask_partition_size": 1}
        dask = BeamConfig(runner="DaskRunner", options=options)
        both = run(corpora_in(tmp_path / "data", packed=True), tmp_path / "stages", beam=dask)
    assert digests(both) == digests(cleaned)
    assert both.manifest.counters == cleaned.manifest.counters


def test_the_size_of_the_pieces_changes_no_row(cleaned: StageRun, tmp_path: Path) -> None:
    whole = run(corpora_in(tmp_path / "data"), tmp_path / "stages", rows=1000)
    for part in ("clean/train", "rejects/train", "clean/dev", "clean/test"):
        assert table_of(whole, part) == table_of(cleaned, part)


# --- What explains it ----------------------------------------------------------------------------------------------


def explanation(run: StageRun, name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(run.folder / f"explanations/{name}.parquet").to_pylist()
    return rows


def test_the_waterfall_says_what_each_rule_would_drop_alone(cleaned: StageRun) -> None:
    first = cleaned.manifest.counters["waterfall"][0]
    rows = {row["reason"]: row for row in explanation(cleaned, "waterfall") if row["corpus"] == "noisy"}
    assert list(rows) == ["read", *first["rejected"], "kept"]
    assert (rows["read"]["rows"], rows["kept"]["rows"], rows["read"]["alone"]) == (12, 3, None)
    # The one-word target is dropped by its length alone.
    assert (rows["length_ratio"]["rows"], rows["length_ratio"]["alone"], rows["length_ratio"]["only"]) == (1, 1, 1)
    # Markup on one side alone is the matter of two rules, so that either would drop the row without the other.
    assert (rows["markup"]["alone"], first["alone"]["markup_mismatch"], first["only"]["markup"]) == (1, 1, 0)


def test_histograms_hold_readable_and_kept_rows(cleaned: StageRun) -> None:
    rows = [row for row in explanation(cleaned, "histograms") if row["rule"] == "words"]
    assert sum(row["before"] for row in rows) == len(NOISY) + len(TABLE) - 2
    assert sum(row["after"] for row in rows) == 5
    within = [row for row in rows if row["corpus"] == "train/table" and row["low"] <= 6 < row["high"]]
    assert [(row["low"], row["high"]) for row in within] == [(5.0, 7.0)]


def test_samples_show_what_was_dropped_and_what_nearly_was(cleaned: StageRun) -> None:
    samples = explanation(cleaned, "samples")
    dropped = {(row["rule"], row["row_id"]) for row in samples if row["kind"] == "dropped"}
    reasons = {(row["rule"], row["row_id"]) for row in table_of(cleaned, "rejects/train")}
    assert dropped == reasons
    markup = [row for row in samples if row["rule"] == "markup" and row["kind"] == "borderline dropped"]
    assert [(row["row_id"], row["score"], row["threshold"]) for row in markup] == [(5, 2.0, 0.0)]
    kept = [row["row_id"] for row in samples if row["kind"] == "kept"]
    assert sorted(kept) == [row["row_id"] for row in table_of(cleaned, "clean/train")]
    nearly = [row for row in samples if row["rule"] == "length_ratio" and row["kind"] == "borderline kept"]
    assert len(nearly) == 5
    assert nearly == sorted(nearly, key=lambda row: 2.5 - row["score"])


# --- More of what decides ------------------------------------------------------------------------------------------


def corpora_of(folder: Path, pairs: list[tuple[str, str]], **more: Any) -> CorporaConfig:
    folder.mkdir(exist_ok=True)
    corpora = small(folder, pairs)
    return CorporaConfig.model_validate({**corpora.model_dump(), **more})


def rejected(run: StageRun) -> dict[int, str]:
    return {row["row_id"]: row["rule"] for row in table_of(run, "rejects/train")}


def test_a_looser_threshold_lets_through_what_has_no_costly_score_yet(tmp_path: Path) -> None:
    marked = (f"<p>{GOOD[1][0]}</p>", f"<p>{GOOD[1][1]}</p>")
    foreign = ("<b>" + GOOD[2][0], "<b>Une femme lit le journal au bord de la rivière.")
    corpora = corpora_of(tmp_path / "data", [GOOD[0], marked, foreign])
    loose = run(corpora, tmp_path / "stages", CleanConfig(rules=RulesConfig(markup="soft")))
    assert rejected(loose) == {2: "language"}
    assert all(row["score_language"] is not None for row in table_of(loose, "clean/train"))


def test_the_best_scored_of_some_repetitions_stays(tmp_path: Path) -> None:
    table = tmp_path / "scored.tsv"
    rows = [(*GOOD[0], 0.2), (*GOOD[0], 0.9), (*GOOD[1], 0.5), (*GOOD[0], 0.9), (*GOOD[2], 0.1)]
    table.write_text("".join(f"{src}\t{tgt}\t{value}\n" for src, tgt, value in rows))
    scores = {"score": InputScoreConfig(column=2, min=0.15)}
    corpus = CorpusConfig(name="t", tsv=str(table), scores=scores)
    corpora = corpora_of(tmp_path / "data", GOOD[:1]).model_copy(update={"train": (corpus,)})
    best = run(corpora, tmp_path / "stages", CleanConfig(duplicates=DuplicatesConfig(keep="input_score")))
    assert rejected(best) == {0: "duplicate", 3: "duplicate", 4: "input_score"}
    assert {row["match"] for row in table_of(best, "rejects/train")[:2]} == {1}
    assert [row["input_score"] for row in table_of(best, "clean/train")] == pytest.approx([0.9, 0.5])
    with pytest.raises(InputError, match=r"clean\.duplicates\.keep: no row has a score 'quality'.*input_score"):
        run(corpora, tmp_path / "stages", CleanConfig(duplicates=DuplicatesConfig(keep="quality")))


def test_one_side_alone_may_be_what_repeats(tmp_path: Path) -> None:
    pairs = [GOOD[0], (GOOD[0][0], GOOD[1][1]), (GOOD[2][0], GOOD[1][1])]
    corpora = corpora_of(tmp_path / "data", pairs)
    by = {
        side: run(corpora, tmp_path / "stages", CleanConfig(duplicates=DuplicatesConfig(exact=side))) for side in SIDES
    }
    assert rejected(by["pair"]) == {}
    assert rejected(by["source"]) == {1: "duplicate"}
    assert rejected(by["target"]) == {2: "duplicate"}


SIDES: tuple[Any, ...] = ("pair", "source", "target")


def test_text_that_recurs_apart_from_its_digits_is_boilerplate(tmp_path: Path) -> None:
    pages = [(f"Page {n} of the catalogue", f"Seite {n} des {word} Katalogs") for n, word in enumerate("abcd")]
    config = CleanConfig(duplicates=DuplicatesConfig(max_uses=2), rules=RulesConfig(language=None))
    found = run(corpora_of(tmp_path / "data", [GOOD[0], *pages]), tmp_path / "stages", config)
    assert rejected(found) == {3: "boilerplate", 4: "boilerplate"}
    folding = CleanConfig(duplicates=DuplicatesConfig(folded="source", fold_digits=True), rules=config.rules)
    folded = run(corpora_of(tmp_path / "data", [GOOD[0], *pages]), tmp_path / "stages", folding)
    assert rejected(folded) == {2: "folded_duplicate", 3: "folded_duplicate", 4: "folded_duplicate"}


def near(folder: Path, root: Path, *, rows: int, beam: BeamConfig = IN_PROCESS) -> StageRun:
    longer = "and looking at the people who are passing by on the other side of the wide street this morning"
    länger = "und schaut den Leuten zu, die heute Morgen auf der anderen Seite der breiten Straße vorbeigehen"
    pairs = [(f"{src[:-1]} {longer}.", f"{tgt[:-1]} {länger}.") for src, tgt in GOOD[:4]]
    like = [(src.replace("wide", "broad"), tgt.replace("breiten", "großen")) for src, tgt in pairs[:2]]
    return run(
        corpora_of(folder, [*pairs, GOOD[5], *like]),
        root,
        CleanConfig(duplicates=DuplicatesConfig(near="pair", similarity=0.7)),
        rows=rows,
        beam=beam,
    )


def test_like_rows_go_whichever_piece_they_are_in(tmp_path: Path) -> None:
    together = near(tmp_path / "data", tmp_path / "stages", rows=100)
    found = table_of(together, "rejects/train")
    assert {row["rule"] for row in found} == {"near_duplicate"}
    assert {5, 6} <= {row["row_id"] for row in found}
    assert all(row["match"] < row["row_id"] for row in found)
    apart = near(tmp_path / "data", tmp_path / "stages", rows=2, beam=TWO_PROCESSES)
    assert table_of(apart, "rejects/train") == found


def test_a_share_of_train_can_be_held_out_by_its_text(tmp_path: Path) -> None:
    # Each source stands there twice, with another target: both rows must come to the same split.
    pairs = [(f"{src} {n}.", f"{tgt} {n} {way}.") for n, (src, tgt) in enumerate(GOOD * 3) for way in ("so", "anders")]
    noisy = [*pairs, ("<p>one</p>", "<p>eins</p>")]
    corpora = corpora_of(tmp_path / "data", noisy, dev=(), test=(), held_out={"dev": 0.2, "test": 0.3})
    split = run(corpora, tmp_path / "stages", CleanConfig(rules=RulesConfig(numbers=None, language=None)))
    texts = {name: table_of(split, f"clean/{name}") for name in ("train", "dev", "test")}
    assert all(texts.values())
    rows = [row["row_id"] for name in texts for row in texts[name]] + list(rejected(split))
    rows += [row["row_id"] for name in ("dev", "test") for row in table_of(split, f"rejects/{name}")]
    assert sorted(rows) == list(range(len(noisy)))
    for side in ("src", "tgt"):
        sides = [{row[side] for row in texts[name]} for name in texts]
        assert not sides[0] & (sides[1] | sides[2])
    assert not {row["src"] for row in texts["dev"]} & {row["src"] for row in texts["test"]}
    assert all(row["src_raw"] is not None for row in texts["dev"])
    waterfall = {entry["split"]: entry for entry in split.manifest.counters["waterfall"]}
    assert sum(entry["read"] for entry in waterfall.values()) == len(noisy)


def test_texts_of_one_language_go_through_the_same_stage(tmp_path: Path) -> None:
    lines = ["Ein Hund läuft über die grüne Wiese.", "", "<b>fett</b>", "ein HUND läuft über die grüne Wiese"]
    lines += [TEST[1], "The dog is running over the meadow now.", "Noch ein ganz anderer Satz steht hier."]
    (tmp_path / "mono.de").write_text("".join(f"{line}\n" for line in lines))
    mono = {"name": "web", "target": str(tmp_path / "mono.de")}
    cleaned = run(corpora_of(tmp_path / "data", GOOD[:3], monolingual=[mono]), tmp_path / "stages", rows=3)
    found = {row["row_id"] % ROW_ID_STRIDE: row["rule"] for row in table_of(cleaned, "rejects/monolingual")}
    assert found == {1: "empty", 2: "markup", 3: "folded_duplicate", 4: "leakage_test", 5: "language"}
    kept = table_of(cleaned, "clean/monolingual")
    assert [(row["src"], row["tgt"]) for row in kept] == [(None, lines[0]), (None, lines[6])]
    assert cleaned.manifest.counters["waterfall"][-1]["kept"] == 2


def test_a_corpus_may_have_thresholds_of_its_own(tmp_path: Path) -> None:
    corpora = corpora_of(tmp_path / "data", [GOOD[0], (f"<p>{GOOD[1][0]}</p>", GOOD[1][1])])
    own = corpora.train[0].model_copy(update={"rules": {"markup": 5, "markup_mismatch": "soft", "words": 6}})
    found = run(corpora.model_copy(update={"train": (own,)}), tmp_path / "stages")
    long = {row for row, pair in enumerate([GOOD[0], GOOD[1]]) if max(len(text.split()) for text in pair) > 6}
    assert set(rejected(found)) == long
    assert set(rejected(found).values()) <= {"words"}


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
        run(corpora, tmp_path / "stages", CleanConfig(leakage=LeakageConfig(max_rate=0.1)))


def test_a_test_set_without_a_row_is_refused(tmp_path: Path) -> None:
    corpora = small(tmp_path, GOOD[:2]).model_copy(update={"test": (write(tmp_path, "e", [("a", ""), ("", "b")]),)})
    with pytest.raises(InputError, match=r"corpora\.test: all 2 rows of 'e' are rejected: empty 2"):
        run(corpora, tmp_path / "stages")


def test_a_language_that_the_rule_does_not_know_is_refused(tmp_path: Path) -> None:
    languages = LanguagesConfig(source="en", target="xx")
    corpora = small(tmp_path, GOOD[:2])
    with pytest.raises(InputError, match=r"clean\.rules\.language: the language model does not know 'xx'"):
        score(languages, corpora, CleanConfig(), ShardConfig(), IN_PROCESS, tmp_path / "stages")


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
    with pytest.raises(RuntimeError, match=r"train: 3 rows read, 2 written"):
        run(small(tmp_path, [GOOD[0], GOOD[0], GOOD[1]]), tmp_path / "stages")


def test_beam_says_nothing_that_is_not_asked_for() -> None:
    script = (
        "from pipelines.runner import beam, run_pipeline; from pipelines.config import BeamConfig; import logging;"
        "run_pipeline(lambda p: p | beam.Create([1]), BeamConfig()); assert not logging.getLogger().handlers"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=os.environ, check=True)
    assert (done.stdout, done.stderr) == ("", "")


# --- Interrupted -----------------------------------------------------------------------------------------------------


def script(tmp_path: Path, before: str, processes: int) -> subprocess.CompletedProcess[str]:
    """Run both stages over 40 small pieces in a process of their own, after some lines of code."""
    lines = [
        "import json, os, resource, signal, sys",
        "from pathlib import Path",
        "from pipelines import decisions, scoring",
        "from pipelines.clean import clean",
        "from pipelines.config import *",
        "from pipelines.errors import InputError",
        "from pipelines.score import score",
        "languages, config = LanguagesConfig(source='en', target='de'), CleanConfig(rules=RulesConfig(language=None))",
        f"corpora = CorporaConfig.model_validate_json(Path({str(tmp_path / 'corpora.json')!r}).read_text())",
        f"beam, root = BeamConfig(processes={processes}), Path({str(tmp_path / 'stages')!r})",
        before,
        "try:",
        "    scored = score(languages, corpora, config, ShardConfig(rows_per_shard=10), beam, root)",
        "    cleaned = clean(languages, corpora, config, scored, beam, root)",
        "except InputError as error:",
        "    sys.exit(str(error))",
        "print(json.dumps({output.path: output.sha256 for output in cleaned.manifest.outputs}))",
    ]
    command = [sys.executable, "-c", "\n".join(lines)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ, timeout=300)


@pytest.fixture
def forty_pieces(tmp_path: Path) -> Path:
    pairs = [(f"{src[:-1]} {n}.", f"{tgt[:-1]} {n}.") for n in range(29) for src, tgt in GOOD]
    corpora = corpora_of(tmp_path / "data", pairs[:400])
    (tmp_path / "corpora.json").write_text(corpora.model_dump_json())
    return tmp_path


def test_a_killed_run_does_only_what_is_left(forty_pieces: Path) -> None:
    undisturbed = script(forty_pieces, "root = root / 'undisturbed'", 1)
    assert undisturbed.returncode == 0, undisturbed.stderr
    # The first run is killed at its 20th piece, the second one when it has written the 20th part of clean/.
    count = "calls = []\ndef dying(*args, do=scoring.score_piece):\n    calls.append(1)\n"
    count += "    if len(calls) == 20: os.kill(os.getpid(), signal.SIGKILL)\n    return do(*args)\n"
    of_score = count + "import pipelines.score as stage; stage.score_piece = dying"
    assert script(forty_pieces, of_score, 1).returncode == -signal.SIGKILL
    scored = list((forty_pieces / "stages").glob("score-*/scored/train/part-*"))
    assert 17 <= len(scored) <= 19  # dev and test are pieces too
    times = {path: path.stat().st_mtime_ns for path in scored}
    of_clean = count.replace("scoring.score_piece", "decisions.write_part")
    assert (
        script(forty_pieces, of_clean + "import pipelines.clean as stage; stage.write_part = dying", 1).returncode == -9
    )
    assert {path: path.stat().st_mtime_ns for path in scored} == times
    finished = script(forty_pieces, "", 2)
    assert finished.returncode == 0, finished.stderr
    assert json.loads(finished.stdout) == json.loads(undisturbed.stdout)


def test_a_full_disk_ends_the_run_with_a_remedy_and_the_next_one_goes_on(forty_pieces: Path) -> None:
    full = script(forty_pieces, "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))", 1)
    assert full.returncode == 1
    assert "no room to write the stage's files" in full.stderr
    assert "Traceback" not in full.stderr
    (folder,) = (forty_pieces / "stages").glob("score-*")
    assert not (folder / "manifest.json").exists()
    assert [path for path in folder.rglob(".tmp-*") if path.is_file()] == []
    assert script(forty_pieces, "", 1).returncode == 0
