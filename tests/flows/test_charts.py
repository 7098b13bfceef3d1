from __future__ import annotations

import re

import pytest

from flows.charts import length_histogram, loss_curves, score_curve, score_histogram, training_curve

TRAIN = [{"update": update, "loss": 5.0 - update / 100} for update in (10, 20, 30)]
VALIDATIONS = [{"update": 20, "loss": 4.9, "bleu": 12.5}, {"update": 30, "loss": 4.8, "bleu": 11.0}]
HISTOGRAM = {"edges": [0, 10, 20, 500, 900], "rows": [3, 4, 0, 0]}


def _texts(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def test_the_curves_name_what_they_show() -> None:
    texts = _texts(loss_curves(TRAIN, VALIDATIONS, best_update=20))
    assert {"train", "dev", "best", "update", "loss"} <= set(texts)


def test_the_best_score_is_written_beside_its_point() -> None:
    texts = _texts(score_curve("bleu", "BLEU", VALIDATIONS, best_update=20))
    assert {"best 12.50", "BLEU on dev", "update"} <= set(texts)


def test_updates_that_were_all_left_out_have_no_loss_to_draw() -> None:
    gap = [*TRAIN, {"update": 40, "loss": None}]
    assert loss_curves(gap, VALIDATIONS, best_update=20) == loss_curves(TRAIN, VALIDATIONS, best_update=20)


def test_a_figure_of_training_has_its_title_and_ids_of_its_own() -> None:
    lines = [{"update": update, "learning_rate": 0.001 * update} for update in (10, 20, 30)]
    svg = training_curve("learning_rate", "learning rate", lines)
    assert {"learning rate", "update", "0.03"} <= set(_texts(svg))
    assert 'aria-label="Learning rate by update"' in svg
    ids = re.findall(r'id="([^"]+)"', svg)
    assert ids and all(name.startswith("learning-rate-") for name in ids)


def test_a_histogram_ends_with_its_last_bin_that_has_rows() -> None:
    texts = _texts(length_histogram("lengths", HISTOGRAM, HISTOGRAM, "de"))
    ticks = [int(text) for text in texts if text.isdigit()]
    assert "characters (de)" in texts and "20" in texts
    assert max(ticks) < 100


def test_a_histogram_without_a_row_can_be_drawn() -> None:
    empty = {"edges": [0, 10, 20], "rows": [0, 0]}
    assert length_histogram("lengths", empty, empty, "de").startswith("<svg")


EDGES = [0.0, 1.0, 2.0, 3.0, 5.0, 10.0]


def _bars(svg: str) -> list[list[tuple[float, float]]]:
    """The left edge and the height of each bar, as read and kept."""
    paths = re.findall(r'<path d="([^"]*)" fill=', svg)
    return [[(float(x), float(tall)) for x, tall in re.findall(r"M([\d.]+) 128v-([\d.]+)h", path)] for path in paths]


def test_scores_are_drawn_on_a_scale_of_powers_of_ten() -> None:
    before, after = _bars(score_histogram("words", EDGES, [1, 10, 100, 1000, 0, 0], [1, 0, 10, 0, 0, 0], []))
    # The field is 300 wide and 110 high; 1000 rows are the fourth of four decades' lines, one row stands 0.35 above 0.
    assert before == [(36.0, 8.9), (111.0, 34.1), (186.0, 59.4), (261.0, 84.7)]
    assert after == [(36.0, 8.9), (186.0, 34.1)]


def test_bins_without_a_row_beyond_the_others_are_left_out() -> None:
    svg = score_histogram("words", EDGES, [0, 0, 5, 0, 0, 7], [0, 0, 5, 0, 0, 0], [])
    assert [x for x, _ in _bars(svg)[0]] == [36.0, 261.0]
    assert {"2", "10"} <= set(_texts(svg)) and "0" not in _texts(svg)


@pytest.mark.parametrize(
    ("worse", "value", "place"),
    [
        ("above", 2.5, 2.5),
        ("above", 2.0, 2.0),
        ("below", 1.0, 1.0),
        ("above", 4.0, 3.5),
        ("above", 0.0, 1.0),  # only the rows of the first bin stay
        ("above", 10.0, 5.0),
        ("below", 40.0, 5.0),
    ],
)
def test_the_threshold_stands_where_it_lies_in_its_bin(worse: str, value: float, place: float) -> None:
    svg = score_histogram("words", EDGES, [1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1], [(worse, value)])
    (mark,) = re.findall(r'<path d="M([\d.]+) 6V128"', svg)
    assert float(mark) == 36 + place * 50
    assert f"{worse} {value:g}" in _texts(svg)


def test_scores_that_no_row_has_can_be_drawn() -> None:
    svg = score_histogram("words", EDGES, [0] * 6, [0] * 6, [("above", 2.0)])
    assert svg.startswith("<svg") and svg.endswith("</svg>") and _bars(svg) == [[], []]


def test_a_chart_is_one_svg_element_without_a_foreign_address() -> None:
    svg = score_curve("bleu", "BLEU", VALIDATIONS, best_update=20)
    assert svg.startswith("<svg") and svg.endswith("</svg>")
    assert "http" not in svg and "<metadata" not in svg
    assert 'viewBox="' in svg.partition(">")[0] and ' width="' not in svg.partition(">")[0]


def test_the_same_figures_give_the_same_bytes_and_ids_of_their_own() -> None:
    first, again = (length_histogram("one", HISTOGRAM, HISTOGRAM, "de") for _ in range(2))
    other = length_histogram("two", HISTOGRAM, HISTOGRAM, "de")
    assert first == again
    assert not set(re.findall(r'id="([^"]+)"', first)) & set(re.findall(r'id="([^"]+)"', other))
