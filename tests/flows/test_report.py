from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from finished_runs import (
    SIZE,
    SOURCES,
    finished_runs,
    language_model_recipe,
    language_model_runs,
    small_recipe,
    worsened,
)

from flows.report import report
from pipelines.stage import StageRun

SCRIPT = "<script>alert('x')</script>"


class Page(HTMLParser):
    """The tags, ids and visible text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.text = ""
        self.feed(html)
        self.text = re.sub(r"\s+", " ", self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.text += " "
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("href", "src", "srcset", "xlink:href", "action", "data"):
                self.references.append(value or "")

    def handle_data(self, data: str) -> None:
        self.text += data


def _html(runs: dict[str, StageRun], output: Path, **options: Any) -> str:
    return report(runs, small_recipe(), output, **options).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, StageRun]:
    sources = [f"{line} {SCRIPT}" for line in SOURCES]
    return finished_runs(tmp_path_factory.mktemp("stages"), hypotheses=worsened(10), sources=sources)


@pytest.fixture(scope="module")
def html(runs: dict[str, StageRun], tmp_path_factory: pytest.TempPathFactory) -> str:
    return _html(runs, tmp_path_factory.mktemp("report") / "report.html")


def test_the_waterfall_shows_what_each_rule_dropped(html: str) -> None:
    text = Page(html).text
    assert "captions train 87.5 % kept Rows Alone Only read 12,000 empty −240 2.0 % 240 200" in text
    assert "length_ratio 0 12 0 language −1,259 10.5 % 1,300 1,250 duplicate −1 <0.1 % kept 10,500 87.5 %" in text
    # Dev and test are not judged by score.
    assert "val dev 100.0 % kept Rows read 20 kept 20 100.0 % 1 reason without a row empty" in text


def test_scores_stand_with_interval_and_signature(html: str, runs: dict[str, StageRun]) -> None:
    text = Page(html).text
    for name, figures in runs["evaluate"].manifest.counters["tests"]["news"]["metrics"].items():
        low, high = figures["confidence"]
        title = {"bleu": "BLEU", "chrf": "chrF", "ter": "TER"}[name]
        assert f"{title} {figures['score']:.2f} [{low:.2f}, {high:.2f}] {figures['signature']}" in text


def test_nothing_is_loaded_from_outside(html: str) -> None:
    page = Page(html)
    assert "http://" not in html and "https://" not in html
    assert not {"script", "link", "img", "iframe", "object", "embed"} & set(page.tags)
    assert "url(" not in re.sub(r"url\(#", "", html) and "@import" not in html
    assert all(reference.startswith("#") for reference in page.references)


def test_what_the_page_refers_to_is_there_once(html: str) -> None:
    page = Page(html)
    assert len(page.ids) == len(set(page.ids))
    used = {reference[1:] for reference in page.references} | set(re.findall(r"url\(#([^)]+)\)", html))
    assert used <= set(page.ids)


def test_charts_and_heat_map_are_inline_svg(html: str) -> None:
    # Losses, BLEU, chrF, learning rate, speed, two histograms of lengths, one heat map; scores of three rules that drop
    # and a soft one.
    assert Page(html).tags.count("svg") == 8 + 4
    text = Page(html).text
    assert "best 41.25" in text and "best 61.75" in text
    for title in ("Learning rate by update", "Target pieces per second by update", "chrF on dev by update"):
        assert f'aria-label="{title}"' in html
    assert "; BLEU and chrF on dev are of real translations. The dashed line and the ring mark the update" in text


def test_the_ledger_says_what_training_took(html: str) -> None:
    assert (
        "What it took wall time 3.50 h workers' time 10.00 h of it lost or done again 0.50 h restarts 1 "
        "updates done again 12 updates 400 target pieces 98,765 target pieces per second 4,322 "
        "of the time: the sum over the workers 12.5 % of the time: waiting for data <0.1 % "
        "of the time: validation 10.0 % cost 15.88 EUR Model"
    ) in Page(html).text


def test_training_of_an_older_version_has_no_ledger_and_fewer_curves(tmp_path: Path) -> None:
    runs = finished_runs(tmp_path / "stages")
    counters = {name: value for name, value in runs["train"].manifest.counters.items() if name != "ledger"}
    manifest = runs["train"].manifest.model_copy(update={"counters": counters})
    metrics = runs["train"].folder / "metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    for line in lines:
        for name in ("learning_rate", "target_tokens_per_s", "chrf"):
            line.pop(name, None)
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    older = runs | {"train": StageRun(runs["train"].folder, manifest, reused=True)}
    html = _html(older, tmp_path / "report.html")
    assert Page(html).tags.count("svg") == 5 + 4
    assert "none: training was done by a version that kept no ledger" in Page(html).text
    assert "; BLEU on dev is of real translations." in Page(html).text


def test_text_of_a_corpus_is_escaped(html: str) -> None:
    assert SCRIPT not in html and "<script" not in html
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;" in html  # a source sentence
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html  # a rejected row
    assert "a␀b &amp; c" in html


def test_scores_are_shown_of_rules_that_drop_and_of_soft_ones(html: str) -> None:
    section = html[html.index('<section id="rules">') : html.index('<section id="examples">')]
    assert re.findall(r"<h3>(\w+)</h3>", section) == ["empty", "length_ratio", "language", "terminal_punctuation"]
    assert re.findall(r">([a-z]+ [\d.]+)</text>", section) == ["below 1", "above 2.5", "above 0.7"]


def test_examples_stand_under_their_rule(html: str) -> None:
    text = Page(html).text
    assert (
        "language 1,259 rows, above 0.7 Dropped, drawn by chance Row Source Target Score "
        "captions:3 <script>alert(1)</script> a␀b & c 0.875 Dropped, nearest to the threshold Row Source Target Score "
        "captions:3 <script>alert(1)</script> a␀b & c 0.875 Kept, nearest to the threshold Row Source Target Score "
        "captions:5 A cat sleeps. Eine Katze schläft 0.625 captions:1 A dog. Ein Hund. 0.125"
    ) in text
    assert "captions:2 empty Leer. 0 " in text


def test_a_repetition_stands_with_the_row_that_it_repeats(html: str) -> None:
    expected = "captions:4 A dog. Ein Hund. as train/captions:1 A dog. Ein Hund."
    assert f"duplicate 1 row Dropped, drawn by chance Row Source Target Score {expected}" in Page(html).text


def test_many_corpora_are_an_overview_and_open_by_a_click(tmp_path: Path) -> None:
    few, many = (
        [
            {"split": "test", "corpus": f"c{place}", "read": 10, "kept": 9, "rejected": {"empty": 1}}
            for place in range(n)
        ]
        for n in (5, 7)
    )
    shown = {
        n: _html({"clean": finished_runs(tmp_path / n, waterfall=w)["clean"]}, tmp_path / f"{n}.html")
        for n, w in (("few", few), ("many", many))
    }
    assert shown["few"].count('<details class="card" open>') == 5
    assert "Split Corpus Read Kept" not in Page(shown["few"]).text
    assert shown["many"].count('<details class="card" open>') == 5
    assert shown["many"].count('<details class="card">') == 2
    assert "Split Corpus Read Kept test c0 10 9 90.0 % test c1" in Page(shown["many"]).text


def test_samples_go_from_the_best_to_the_worst_row(html: str) -> None:
    scores = [float(score) for score in re.findall(r"chrF (\d+\.\d)<", html)]
    assert len(scores) == 6
    assert scores == sorted(scores, reverse=True)
    assert scores[0] == 100.0 and scores[-1] < 80
    assert "· best" in html and "· worst" in html


def test_the_heat_map_has_a_cell_for_each_weight_that_can_be_seen(html: str) -> None:
    heat = html[html.index('class="heat"') :]
    heat = heat[: heat.index("</svg>")]
    assert heat.count("<title>") == 10
    assert "<title>▁Hund ← ▁dog: 0.90</title>" in heat


def test_tokeniser_figures_are_rates(html: str) -> None:
    assert "train 20 en 250 12.5 1 0.4 % de 300 15.0 0 0.0 %" in Page(html).text


def test_each_stage_stands_with_key_and_folder(html: str, runs: dict[str, StageRun]) -> None:
    for run in runs.values():
        assert run.manifest.key in html and str(run.folder) in html


def test_the_same_runs_give_the_same_bytes(html: str, runs: dict[str, StageRun], tmp_path: Path) -> None:
    assert _html(runs, tmp_path / "again.html") == html


@pytest.mark.parametrize(
    ("verdict", "shown"),
    [
        (None, "Gate not asked"),
        ({"published": True, "version": "0123456789ab", "reasons": ["no model is live"]}, "Published 0123456789ab"),
        ({"published": False, "reasons": ["BLEU 3 < 5"]}, "Blocked by the gate BLEU 3 < 5"),
    ],
)
def test_the_verdict_of_the_gate_is_shown(
    verdict: dict[str, Any] | None, shown: str, runs: dict[str, StageRun], tmp_path: Path
) -> None:
    assert shown in Page(_html(runs, tmp_path / "report.html", verdict=verdict)).text


def test_a_stage_that_has_not_run_is_said_to_be_missing(runs: dict[str, StageRun], tmp_path: Path) -> None:
    text = Page(_html({"clean": runs["clean"]}, tmp_path / "report.html")).text
    for stage in ("encode", "train", "translate", "evaluate"):
        assert f"none: the stage {stage} is not part of this run" in text
    assert "kept 10,500" in text


def test_a_report_without_any_stage_says_so(tmp_path: Path) -> None:
    assert Page(_html({}, tmp_path / "report.html")).text.count("not part of this run") >= 6


def test_a_model_without_attention_says_so(tmp_path: Path) -> None:
    runs = finished_runs(tmp_path / "stages")
    (runs["translate"].folder / "attention.json").write_text(json.dumps([]), encoding="utf-8")
    assert "none: translation kept the attention of no row" in Page(_html(runs, tmp_path / "report.html")).text


def test_a_language_models_report_has_training_and_no_bleu(tmp_path: Path) -> None:
    runs = language_model_runs(tmp_path / "stages")
    html = report(runs, language_model_recipe(), tmp_path / "report.html").read_text(encoding="utf-8")
    text = Page(html).text
    assert "best on dev: perplexity 12.00 at update 300" in text
    assert 'aria-label="Loss of training and dev by update"' in html
    assert "BLEU on dev" not in html
    assert "best perplexity per character 2.702" in text
    assert "Model architecture recurrent_lm" in text
    for stage in ("translate", "evaluate"):
        assert f"none: the stage {stage} is not part of this run" in text


def test_a_stage_without_a_judged_corpus_says_so(tmp_path: Path) -> None:
    waterfall = [{"split": "test", "corpus": "news", "read": SIZE, "kept": SIZE, "rejected": {"empty": 0}}]
    text = Page(_html(finished_runs(tmp_path / "stages", waterfall=waterfall), tmp_path / "report.html")).text
    assert "none: no corpus was judged" in text
    assert "none: no rule would drop a row, and none is soft" in text
