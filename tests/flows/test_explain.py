"""Why rows are gone: of a recipe that was prepared, changed since, or never run; and texts scored on the spot."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_cli import seqloom

from flows.config import Profile, Recipe
from flows.explain import Explanation, Said, explain_row, explain_text
from flows.stages import run_up_to
from nmt.config import RayConfig
from pipelines.config import (
    BeamConfig,
    CleanConfig,
    CorporaConfig,
    CorpusConfig,
    InputScoreConfig,
    LanguagesConfig,
    RulesConfig,
    ShardConfig,
)
from pipelines.errors import InputError
from pipelines.lookup import Match, Origin

PROFILE = Profile(beam=BeamConfig(processes=1), ray=RayConfig())
PLACES = ["by the river", "in the garden", "at the station", "on the market"]
ORTE = ["am Fluss", "im Garten", "am Bahnhof", "auf dem Markt"]
PAIRS = [(f"The child is playing {place}.", f"Das Kind spielt {ort}.") for place, ort in zip(PLACES, ORTE)]
HELD_OUT = ("The neighbours are singing in the kitchen.", "Die Nachbarn singen in der Küche.")
TRAIN = [
    ("src\ttgt\tquality"),
    ("\t".join(PAIRS[0]) + "\t0.9"),
    (f"{PAIRS[1][0]}\t\t0.9"),
    (f"  <b>{PAIRS[1][0]}</b> &amp; more\t{PAIRS[1][1]} &amp; mehr\t0.9"),
    (f"{PAIRS[0][0].upper()}\t{PAIRS[0][1]}\t0.9"),
    (f"{HELD_OUT[0]}\tHier steht etwas ganz anderes.\t0.9"),
    ("one field"),
    ("\t".join(PAIRS[2]) + "\t0.25"),
    ("\t".join(PAIRS[3]) + "\tnone"),
    (f"{PAIRS[3][0]} {PAIRS[2][0]}\tUne femme lit le journal au bord de la rivière.\t0.9"),
]


def recipe_in(folder: Path, **rules: float | None) -> Recipe:
    folder.mkdir(exist_ok=True)
    (folder / "train.tsv").write_text("\n".join(TRAIN), encoding="utf-8")
    for name, (src, tgt) in (("val", PAIRS[1]), ("news", HELD_OUT)):
        (folder / f"{name}.en").write_text(src + "\n", encoding="utf-8")
        (folder / f"{name}.de").write_text(tgt + "\n", encoding="utf-8")
    (folder / "mono.de").write_text(f"Ein Haus am See.\n{PAIRS[1][1]}\n", encoding="utf-8")

    def aligned(name: str) -> CorpusConfig:
        return CorpusConfig(name=name, source=str(folder / f"{name}.en"), target=str(folder / f"{name}.de"))

    captions = CorpusConfig(
        name="captions", tsv=str(folder / "train.tsv"), header=True, source_column="src", target_column="tgt",
        scores={"quality": InputScoreConfig(column="quality", min=0.5)},
    )  # fmt: skip
    return Recipe(
        name="small",
        languages=LanguagesConfig(source="en", target="de"),
        corpora=CorporaConfig(
            train=(captions,),
            dev=(aligned("val"),),
            test=(aligned("news"), aligned("val")),
            monolingual=(CorpusConfig(name="mono", target=str(folder / "mono.de")),),
        ),
        clean=CleanConfig(rules=RulesConfig(**rules)),
        shards=ShardConfig(rows_per_shard=3),
    )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Recipe, Path]]:
    """A recipe whose stages are finished up to `clean`, and its workdir."""
    folder = tmp_path_factory.mktemp("explain")
    recipe = recipe_in(folder / "corpora")
    run_up_to("clean", recipe, PROFILE, folder / "runs")
    yield recipe, folder / "runs"


def explained(prepared: tuple[Recipe, Path], row: str) -> Explanation:
    recipe, workdir = prepared
    return explain_row(recipe, PROFILE, workdir, row)


def said(found: Explanation) -> dict[str, Said]:
    return {one.rule: one for one in found.rules}


def test_a_row_that_stays_passes_every_rule(prepared: tuple[Recipe, Path]) -> None:
    found = explained(prepared, "captions:2")
    assert (found.origin, found.reason, found.match) == (Origin("train", "captions", 2), None, None)
    assert found.raw == found.texts == PAIRS[0]
    assert found.fate == "kept in clean/train/part-00000.parquet"
    assert {one.says for one in found.rules} == {"passes", "soft", "no score", "not scored"}
    length = len(PAIRS[0][0])
    assert said(found)["characters"] == Said("characters", length, "above 2000", "passes")
    assert said(found)["common_substring"] == Said("common_substring", None, "", "not scored")
    score = said(found)["input_quality"].score
    assert score is not None and math.isclose(score, 0.9, rel_tol=1e-6)


@pytest.mark.parametrize(
    ("line", "reason", "fate"),
    [
        (3, "empty", "rejected by empty with the score 0 (in rejects/train/part-00000.parquet)"),
        (4, "markup", "rejected by markup with the score 2 (in rejects/train/part-00000.parquet)"),
        (5, "folded_duplicate", "rejected by folded_duplicate (in rejects/train/part-00001.parquet)"),
        (6, "leakage_test", "rejected by leakage_test with the score 1 (in rejects/train/part-00001.parquet)"),
        (7, "malformed", "cannot be read: malformed (in rejects/train/part-00001.parquet)"),
        (8, "input_quality", "rejected by input_quality with the score 0.25 (in rejects/train/part-00002.parquet)"),
    ],
)
def test_a_row_that_is_gone_says_why(prepared: tuple[Recipe, Path], line: int, reason: str, fate: str) -> None:
    found = explained(prepared, f"captions:{line}")
    assert (found.reason, found.fate) == (reason, fate)
    drops = [one.rule for one in found.rules if one.says == "drops"]
    assert drops[:1] == ([reason] if reason in said(found) else [])


def test_the_row_that_is_repeated_or_leaked_is_shown(prepared: tuple[Recipe, Path]) -> None:
    assert explained(prepared, "captions:5").match == Match(Origin("train", "captions", 2), *PAIRS[0])
    assert explained(prepared, "captions:6").match == Match(Origin("test", "news", 1), *HELD_OUT)


def test_texts_stand_as_read_and_as_normalised(prepared: tuple[Recipe, Path]) -> None:
    found = explained(prepared, "captions:4")
    assert found.raw == (f"  <b>{PAIRS[1][0]}</b> &amp; more", f"{PAIRS[1][1]} &amp; mehr")
    assert found.texts == (f"<b>{PAIRS[1][0]}</b> & more", f"{PAIRS[1][1]} & mehr")
    malformed = explained(prepared, "captions:7")
    assert (malformed.raw, malformed.rules) == (("one field", None), ())


def test_a_costly_score_is_told_though_another_rule_drops_the_row(prepared: tuple[Recipe, Path]) -> None:
    language = said(explained(prepared, "captions:4"))["language"]
    assert language.score is not None and language.score < 0.7 and language.says == "passes"


def test_rows_of_one_side_and_of_dev_and_test_have_no_rules_of_pairs(prepared: tuple[Recipe, Path]) -> None:
    found = explained(prepared, "mono:2")
    assert (found.reason, found.texts) == ("leakage_dev", (None, PAIRS[1][1]))
    assert said(found)["length_ratio"].says == "not scored" and said(found)["words"].says == "passes"
    held_out = explained(prepared, "news:1")
    assert (held_out.fate, held_out.rules) == ("kept in clean/test/part-00000.parquet", ())
    assert held_out.notes[0].startswith("rows of dev and test are never judged by score")


@pytest.mark.parametrize(
    ("row", "what", "remedy"),
    [
        ("nowhere:1", "the recipe has no corpus 'nowhere'",
         "Give one of train/captions, dev/val, test/news, test/val, monolingual/mono"),
        ("val:1", "several splits have a corpus 'val'", "Give one of dev/val, test/val"),
        ("captions", "not of the form CORPUS:LINE", "As in --row train/captions:1; lines are counted from 1"),
        ("captions:0", "not of the form CORPUS:LINE", "As in --row train/captions:1; lines are counted from 1"),
        ("captions:two", "not of the form CORPUS:LINE", "As in --row train/captions:1; lines are counted from 1"),
        ("captions:11", "the corpus ends with line 10", "Give a line of text up to 10"),
        ("captions:1", "this line is a header, not a row", "Give a line of text up to 10"),
    ],
)  # fmt: skip
def test_a_row_that_is_not_there_is_an_input_error(
    prepared: tuple[Recipe, Path], row: str, what: str, remedy: str
) -> None:
    with pytest.raises(InputError) as raised:
        explained(prepared, row)
    assert (raised.value.what, raised.value.where, raised.value.remedy) == (what, f"--row {row}", remedy)


def test_a_corpus_is_named_with_its_split_where_two_have_the_name(prepared: tuple[Recipe, Path]) -> None:
    assert explained(prepared, "test/val:1").origin == Origin("test", "val", 1)


def test_stages_that_have_not_run_are_an_input_error(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path / "corpora")
    with pytest.raises(InputError, match="the stage 'score' has not finished for this recipe as it is now: it never"):
        explain_row(recipe, PROFILE, tmp_path / "runs", "captions:2")
    assert not (tmp_path / "runs").exists()


def test_a_recipe_that_changed_since_says_what_changed(prepared: tuple[Recipe, Path]) -> None:
    recipe, workdir = prepared
    changed = recipe.model_copy(update={"clean": CleanConfig(rules=RulesConfig(words=99))})
    with pytest.raises(InputError, match=r"the stage .clean. has not finished .*: config differs: criteria") as raised:
        explain_row(changed, PROFILE, workdir, "captions:2")
    assert "seqloom prepare" in raised.value.remedy


def test_a_text_is_scored_on_the_spot(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path / "corpora", words=5, url=None)
    found = explain_text(recipe, PROFILE, tmp_path / "runs", "One two&nbsp;three four five six.", "Eins zwei drei.")
    assert (found.origin, found.reason) == (None, "words")
    assert found.texts == ("One two three four five six.", "Eins zwei drei.")
    assert found.fate == "would be rejected by words with the score 6"
    assert said(found)["words"] == Said("words", 6.0, "above 5", "drops")
    assert said(found)["url"].says == "not scored"
    assert said(found)["terminal_punctuation"] == Said("terminal_punctuation", 0.0, "", "soft")
    assert "input_quality" not in said(found)
    assert found.notes[0].startswith("leakage is not checked: the stage 'score' has not finished")
    assert not (tmp_path / "runs").exists()


def test_a_text_of_the_test_set_would_leak(prepared: tuple[Recipe, Path]) -> None:
    recipe, workdir = prepared
    found = explain_text(recipe, PROFILE, workdir, HELD_OUT[0].upper(), "Etwas ganz anderes steht hier.")
    assert (found.reason, found.match) == ("leakage_test", Match(Origin("test", "news", 1), *HELD_OUT))
    assert found.fate == "would be rejected by leakage_test"
    both = explain_text(recipe, PROFILE, workdir, HELD_OUT[0], "")
    assert (both.reason, both.notes) == ("empty", ("it would leak as well: leakage_test",))
    new = explain_text(recipe, PROFILE, workdir, "A wholly new sentence.", "Ein ganz neuer Satz.")
    assert (new.reason, new.match, new.notes) == (None, None, ())
    assert new.fate == "would be kept, unless it repeats another row"


def test_a_text_of_one_side_is_judged_by_the_rules_of_one_side(prepared: tuple[Recipe, Path]) -> None:
    recipe, workdir = prepared
    found = explain_text(recipe, PROFILE, workdir, None, PAIRS[1][1])
    assert (found.texts, found.reason) == ((None, PAIRS[1][1]), "leakage_dev")
    assert said(found)["length_ratio"].says == "not scored" and said(found)["words"].score == 5.0


def test_what_train_gave_up_for_dev_leaks(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path / "corpora")
    lines = [f"House {place} is red.\tDas Haus {place} ist rot." for place in range(60)]
    (tmp_path / "corpora" / "all.tsv").write_text("\n".join(lines), encoding="utf-8")
    train = CorpusConfig(name="all", tsv=str(tmp_path / "corpora" / "all.tsv"))
    corpora = CorporaConfig(train=(train,), test=recipe.corpora.test, held_out={"dev": 0.3})
    recipe = recipe.model_copy(update={"corpora": corpora})
    runs = run_up_to("clean", recipe, PROFILE, tmp_path / "runs")
    kept = {entry["split"]: entry["kept"] for entry in runs["clean"].manifest.counters["waterfall"]}
    rows = [explain_row(recipe, PROFILE, tmp_path / "runs", f"all:{line}") for line in range(1, 61)]
    of_dev = [row for row in rows if row.fate.startswith("kept in clean/dev/")]
    assert 0 < len(of_dev) == kept["dev"]
    src, tgt = of_dev[0].texts
    found = explain_text(recipe, PROFILE, tmp_path / "runs", src, tgt)
    assert (found.reason, found.match) == ("leakage_dev", Match(of_dev[0].origin, src, tgt))


def test_a_text_that_is_no_utf8_is_an_input_error(prepared: tuple[Recipe, Path]) -> None:
    recipe, workdir = prepared
    with pytest.raises(InputError, match="the text is no UTF-8"):
        explain_text(recipe, PROFILE, workdir, "caf\udce9", "Café")


RECIPE = """
name: small
languages: {source: en, target: de}
corpora:
  train: [{name: captions, tsv: "${DATA}/train.tsv", header: true, source_column: src, target_column: tgt}]
  dev: [{name: val, source: "${DATA}/val.en", target: "${DATA}/val.de"}]
  test: [{name: news, source: "${DATA}/news.en", target: "${DATA}/news.de"}]
"""


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    recipe_in(tmp_path / "corpora")
    (tmp_path / "small.yaml").write_text(RECIPE, encoding="utf-8")
    return [str(tmp_path / "small.yaml"), "--define", f"DATA={tmp_path / 'corpora'}"]


def test_the_command_prints_the_texts_the_fate_and_each_rule(arguments: list[str], tmp_path: Path) -> None:
    options = [*arguments, "--workdir", str(tmp_path / "runs")]
    result = seqloom("explain", *options, "--text", "A dog\x07 <b>runs</b>.", "")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert "  source          A dog <b>runs</b>." in lines
    assert "  source, as read A dog␇ <b>runs</b>." in lines
    assert "  target          (empty)" in lines
    assert "would be rejected by empty with the score 0" in lines
    assert ["markup", "above", "0", "2", "drops"] in [line.split() for line in lines]
    asked = json.loads(seqloom("explain", *options, "--target", "Ein Hund läuft.", "--json").stdout)
    assert asked["texts"] == {"source": None, "target": "Ein Hund läuft."}
    assert asked["reason"] is None and asked["fate"] == "would be kept, unless it repeats another row"
    assert {rule["rule"]: rule["says"] for rule in asked["rules"]}["words"] == "passes"


def test_the_command_shows_the_other_row(prepared: tuple[Recipe, Path], tmp_path: Path) -> None:
    recipe, workdir = prepared
    path = tmp_path / "small.yaml"
    path.write_text(recipe.model_dump_json(exclude_defaults=True), encoding="utf-8")
    result = seqloom("explain", path, "--workdir", workdir, "--row", "captions:5")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == "train/captions:5"
    assert "rejected by folded_duplicate (in rejects/train/part-00001.parquet)" in lines
    place = lines.index("the other row is train/captions:2")
    assert lines[place + 1 : place + 3] == [f"  source          {PAIRS[0][0]}", f"  target          {PAIRS[0][1]}"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "nothing to explain is given"),
        (["--row", "captions:2", "--source", "A dog."], "--row and --source are given, of which one is enough"),
    ],
)
def test_the_command_explains_one_thing(arguments: list[str], options: list[str], says: str) -> None:
    result = seqloom("explain", *arguments, *options)
    assert result.exit_code == 2
    assert says in result.stderr


def test_the_command_shows_a_preview(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = seqloom("preview", *arguments, "--rows", "100")
    assert result.exit_code == 0, result.stderr
    lines = [line.rstrip() for line in result.stdout.splitlines()]
    assert lines[0] == "train/captions: 9 of 9 rows (100.0 %)"
    cells = [line.split() for line in lines]
    assert ["-", "markup", "1", "11.1", "%", ".", "."] in cells
    assert ["empty", "below", "1", "1", "11.1", "%", "1", "11.1", "%", "1", "11.1", "%"] in cells
    place = lines.index("folded_duplicate: 1 row")
    assert lines[place + 1].split() == ["dropped", "train/captions:5"]
    assert lines[place + 4].split() == ["as", "train/captions:2"]
    assert lines[-1].startswith("note: a repetition is found only where both of its rows are drawn")
    assert not (tmp_path / "runs").exists()


def test_a_preview_is_one_json_object(arguments: list[str]) -> None:
    result = seqloom("preview", *arguments, "--json", "--set", "clean.rules.markup=null")
    found = json.loads(result.stdout)
    assert found["drawn"] == [{"split": "train", "corpus": "captions", "rows": 9, "total": 9}]
    assert found["waterfall"][0]["read"] == 9
    assert "markup" not in found["waterfall"][0]["rejected"]
    repeated = [sample for sample in found["samples"] if sample["rule"] == "folded_duplicate"]
    assert [(sample["origin"], sample["match"]["origin"]) for sample in repeated] == [
        ("train/captions:5", "train/captions:2")
    ]
