from __future__ import annotations

import re

from flows.charts import bleu_curve, length_histogram, loss_curves

TRAIN = [{"update": update, "loss": 5.0 - update / 100} for update in (10, 20, 30)]
VALIDATIONS = [{"update": 20, "loss": 4.9, "bleu": 12.5}, {"update": 30, "loss": 4.8, "bleu": 11.0}]
HISTOGRAM = {"edges": [0, 10, 20, 500, 900], "rows": [3, 4, 0, 0]}


def _texts(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def test_the_curves_name_what_they_show() -> None:
    texts = _texts(loss_curves(TRAIN, VALIDATIONS, best_update=20))
    assert {"train", "dev", "best", "update", "loss"} <= set(texts)


def test_the_best_bleu_is_written_beside_its_point() -> None:
    assert "best 12.50" in _texts(bleu_curve(VALIDATIONS, best_update=20))


def test_a_histogram_ends_with_its_last_bin_that_has_rows() -> None:
    texts = _texts(length_histogram("lengths", HISTOGRAM, HISTOGRAM, "de"))
    ticks = [int(text) for text in texts if text.isdigit()]
    assert "characters (de)" in texts and "20" in texts
    assert max(ticks) < 100


def test_a_histogram_without_a_row_can_be_drawn() -> None:
    empty = {"edges": [0, 10, 20], "rows": [0, 0]}
    assert length_histogram("lengths", empty, empty, "de").startswith("<svg")


def test_a_chart_is_one_svg_element_without_a_foreign_address() -> None:
    svg = bleu_curve(VALIDATIONS, best_update=20)
    assert svg.startswith("<svg") and svg.endswith("</svg>")
    assert "http" not in svg and "<metadata" not in svg
    assert 'viewBox="' in svg.partition(">")[0] and ' width="' not in svg.partition(">")[0]


def test_the_same_figures_give_the_same_bytes_and_ids_of_their_own() -> None:
    first, again = (length_histogram("one", HISTOGRAM, HISTOGRAM, "de") for _ in range(2))
    other = length_histogram("two", HISTOGRAM, HISTOGRAM, "de")
    assert first == again
    assert not set(re.findall(r'id="([^"]+)"', first)) & set(re.findall(r'id="([^"]+)"', other))
