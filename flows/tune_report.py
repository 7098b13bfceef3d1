"""The report of a search: its trials as a table, its charts, and the page tune.html that holds both.

    report(recipe.name, outcome.config, outcome.records, command, outcome.folder.report)

The page loads nothing from anywhere.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from flows.charts import BLUE, INK, MUTED, ORANGE, svg
from flows.config import ParameterConfig, TuneConfig
from flows.pages import filled_in
from flows.summary import Rows
from flows.tune_records import METRIC_NAMES, TrialRecord, best_first, best_of
from flows.tune_space import HIGHER_IS_BETTER, is_logarithmic
from pipelines.stage import write_atomically

MAX_LABEL = 14  # characters of a choice below a chart


def report(name: str, config: TuneConfig, records: Sequence[TrialRecord], command: str, output: Path) -> Path:
    """Return `output`, now the page of a search that has ended; `command` runs its best point."""
    context = {
        "name": name,
        "folds": config.folds,
        "measured": _measured(config),
        "tiles": _tiles(config, records),
        "command": command,
        "curves": Markup(score_curves(config, records)),
        "parameters": [Markup(parameter_chart(key, config, records)) for key in config.space],
        "table": trial_rows(config, records),
        "numbers": NUMBERS,
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, filled_in("tune.html", context))
    return output


def trial_rows(config: TuneConfig, records: Sequence[TrialRecord]) -> Rows:
    """Return one row a trial, best first: number, score, deviation, what became of it, its point, what it took."""
    metric = METRIC_NAMES[config.metric]
    header = ["trial", metric, *(["deviation", "folds"] if config.folds else []), *config.space]
    header += ["validations", "seconds", "state"]
    rows = []
    for record in best_first(records, config):
        folds = [_figure(record.deviation), f"{len(record.begun())}/{config.folds}"] if config.folds else []
        point = [_shown(record.point[key]) for key in config.space]
        took = [f"{record.validations:,}", f"{record.seconds:,.0f}", _state(record)]
        rows.append([str(record.trial), _figure(record.score), *folds, *point, *took])
    return Rows(header, rows)


NUMBERS = frozenset({*METRIC_NAMES.values(), "deviation", "folds", "validations", "seconds"})  # columns of figures


def score_curves(config: TuneConfig, records: Sequence[TrialRecord]) -> str:
    """Return the score of each trial after each validation, the best trial last and in its own colour."""
    best = best_of(records, config)
    shown = [record for record in records if record.same_as is None and record.begun()]

    def draw(axes: Any) -> None:
        for record in sorted(shown, key=lambda record: record is best):
            scores = record.running_means()
            is_best = record is best
            axes.plot(
                range(1, len(scores) + 1),
                scores,
                color=ORANGE if is_best else BLUE,
                alpha=1.0 if is_best else 0.45,
                linewidth=1.8 if is_best else 1.0,
                marker="o" if len(scores) == 1 and record.state != "stopped" else None,
                markersize=3.5,
            )
            if record.state == "stopped":
                color = ORANGE if is_best else BLUE
                axes.plot([len(scores)], scores[-1:], "o", markersize=5, markerfacecolor="none", color=color)
        axes.set(xlabel="validation", ylabel=f"{METRIC_NAMES[config.metric]} on dev")

    return svg("curves", "Score of each trial by validation", draw)


def parameter_chart(key: str, config: TuneConfig, records: Sequence[TrialRecord]) -> str:
    """Return the score of each trial against its value of a key: on a scale of logarithms where it was drawn on one."""
    parameter = config.space[key]
    best = best_of(records, config)
    shown = [record for record in records if record.begun()]

    def draw(axes: Any) -> None:
        labels = _labels(parameter)
        for record in sorted(shown, key=lambda record: record is best):
            value = record.point[key]
            axes.plot(
                [labels.index(_label(value)) if labels else value],
                [record.score],
                "o",
                color=ORANGE if record is best else BLUE,
                markersize=7 if record is best else 4.5,
                markerfacecolor="none" if record.state == "stopped" else None,
            )
        if labels:
            axes.set_xticks(range(len(labels)), labels)
            axes.set_xlim(-0.5, len(labels) - 0.5)
        else:
            _scale(axes, parameter)
        axes.set_xlabel(key, color=INK)
        axes.set_ylabel(f"{METRIC_NAMES[config.metric]} on dev", color=MUTED)

    name = re.sub(r"\W+", "-", key)
    return svg(f"parameter-{name}", f"Score by {key}", draw, integer_x=parameter.integers is not None)


def _scale(axes: Any, parameter: ParameterConfig) -> None:
    """Show the whole range that a parameter was drawn from."""
    from matplotlib.ticker import LogLocator

    low, high = parameter.integers or parameter.uniform or parameter.log_uniform or (0.0, 1.0)
    if not is_logarithmic(parameter):
        margin = _MARGIN * (high - low)
        axes.set_xlim(low - margin, high + margin)
        return
    factor = (high / low) ** _MARGIN
    axes.set_xscale("log")
    axes.set_xlim(low / factor, high * factor)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if high / low >= _MANY else (1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(lambda place, _: f"{place:g}")
    axes.xaxis.set_minor_formatter(lambda place, _: "")


_MARGIN = 0.03  # beside the range, as a share of it
_MANY = 100.0  # between the bounds: enough powers of ten to be read by


def _labels(parameter: ParameterConfig) -> list[str]:
    """Return the labels of a choice, of which numbers are shown as such; none of a range."""
    if parameter.choice is None:
        return []
    return [_label(value) for value in parameter.choice]


def _label(value: Any) -> str:
    text = _shown(value)
    return text if len(text) <= MAX_LABEL else text[: MAX_LABEL - 1] + "…"


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _state(record: TrialRecord) -> str:
    if record.same_as is not None:
        return f"as trial {record.same_as}"
    if record.state == "stopped":
        return f"stopped at validation {record.validations}"
    return f"failed: {record.reason}" if record.state == "failed" else record.state


def _measured(config: TuneConfig) -> str:
    better = "higher is better" if config.metric in HIGHER_IS_BETTER else "lower is better"
    of = f"the mean over {config.folds} folds of train" if config.folds else "on dev"
    return f"{METRIC_NAMES[config.metric]}, {of}; {better}. Points drawn from seed {config.seed}."


def _tiles(config: TuneConfig, records: Sequence[TrialRecord]) -> list[dict[str, str]]:
    best = best_of(records, config)
    states = [record.state for record in records]
    seconds = sum(record.seconds for record in records if record.same_as is None)
    tiles = []
    if best is not None:
        spread = "" if best.deviation is None else f", deviation {best.deviation:.3g}"
        note = f"trial {best.trial}{spread}"
        tiles.append({"label": METRIC_NAMES[config.metric], "value": _figure(best.score), "note": note})
    ended = f"{states.count('done')} done, {states.count('stopped')} stopped early, {states.count('failed')} failed"
    tiles.append({"label": "Trials", "value": str(len(records)), "note": ended})
    tiles.append({"label": "Training", "value": f"{seconds / 3600:.2f} h", "note": "of all trials together"})
    return tiles
