"""What `seqloom train` prints, and its dry run: two updates and a validation, to know what training will need."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows import summary
from flows.config import Profile, Recipe, check_profile
from flows.stages import plan, run_up_to, stages_read_by
from nmt.architectures import build_model
from nmt.batches import target_tokens
from nmt.checkpoint import read_state, training_checkpoints
from nmt.config import PricesConfig, TrackingConfig
from nmt.model.flops import without_weights
from nmt.training.epochs import Window
from nmt.training.job import TrainJob
from nmt.training.metrics import METRICS_FILE, read_metrics
from nmt.training.progress import duration
from nmt.training.run import open_epochs
from nmt.training.validation import dev_batches, dev_rows
from pipelines.config import BeamConfig
from pipelines.errors import InputError
from pipelines.preview import sampled
from pipelines.stage import StageRun, WouldRun, planning
from pipelines.tokenizer import Tokenizer

UPDATES = 2  # the first one is slow: memory is taken and kernels are chosen in it. The second one is measured
DEV_ROWS = 64
SAMPLE_ROWS = 10_000  # of train, where the stages before training have not run
LEAST_VOCABULARY = 16


@dataclass(frozen=True)
class _Prepared:
    """Finished stages that training reads, of the recipe they are of.

    `vocabulary` is what the user's recipe asks for, None where it is theirs; `scale` is how many rows of train there
    are for one of theirs.
    """

    runs: dict[str, StageRun]
    recipe: Recipe
    vocabulary: int | None
    scale: float
    notes: tuple[str, ...]


def dry_run_and_print(
    recipe: Recipe, profile: Profile, workdir: Path, console: Console, *, use_ray: bool
) -> dict[str, Any]:
    """Return what training a recipe will need, and print it: parameters, memory, padding, speed, time, disk and cost.

    Two updates and a validation on a part of dev are done with all that the profile names, in a temporary folder of
    the workdir, of which nothing is left. Where the stages before training have not run, a sample is prepared.
    Raises InputError as the stages do, and where the profile does not fit.
    """
    check_profile(recipe, profile, use_ray=use_ray)
    with _temporary(workdir) as folder:
        prepared = _finished(recipe, profile, workdir) or _sampled(recipe, profile, workdir, folder)
        found = _tried(prepared, profile, folder, use_ray=use_ray)
    for note in found["notes"]:
        console.print(Text(f"note: {note}"), soft_wrap=True)
    print_rows("Dry run", _rows(found), console)
    return found


def print_rows(title: str, rows: summary.Rows, console: Console) -> None:
    """Print rows of a name and a value."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, show_header=False)
    for _ in rows.header:
        table.add_column(overflow="fold")
    for row in rows.rows:
        table.add_row(*row)
    console.print()
    console.print(table)


# What training reads


def _finished(recipe: Recipe, profile: Profile, workdir: Path) -> _Prepared | None:
    """Return the finished stages that training reads, or None where one of them has not run."""
    runs: dict[str, StageRun] = {}
    try:
        with planning():
            for name in stages_read_by("train", recipe):
                runs |= run_up_to(name, recipe, profile, workdir, given=runs)
    except WouldRun:
        return None
    return _Prepared(runs, recipe, None, 1.0, ())


def _sampled(recipe: Recipe, profile: Profile, workdir: Path, folder: Path) -> _Prepared:
    """Return those stages of a sample, done in a folder."""
    missing = [stage.name for stage in plan(recipe, profile, workdir) if stage.runs]
    first = ", ".join(missing[: missing.index("train")])
    sample = sampled(recipe.languages, recipe.corpora, recipe.clean, SAMPLE_ROWS, folder)
    of_train = [found for found in sample.drawn if found.split == "train"]
    drawn, total = (sum(getattr(found, name) for found in of_train) for name in ("rows", "total"))
    notes = [f"training would first run {first}; this is of {drawn:,} of {total:,} rows of train", *sample.notes]
    small = recipe.model_copy(update={"corpora": sample.corpora, "clean": sample.clean})
    where = profile.model_copy(update={"beam": BeamConfig(processes=1)})
    small, cleaned = _with_vocabulary(small, where, folder)
    if small.tokenizer.vocab_size < recipe.tokenizer.vocab_size:
        notes.append(
            f"so few rows give a vocabulary of {small.tokenizer.vocab_size:,} pieces, not of "
            f"{recipe.tokenizer.vocab_size:,}: memory, files and time will be more; parameters are counted with all"
        )
    runs = cleaned
    for name in stages_read_by("train", small):
        runs |= run_up_to(name, small, where, folder, given=runs)
    return _Prepared(runs, small, recipe.tokenizer.vocab_size, total / drawn, tuple(notes))


def _with_vocabulary(recipe: Recipe, profile: Profile, folder: Path) -> tuple[Recipe, dict[str, StageRun]]:
    """Return the recipe with a vocabulary that the sample can give, and its stages up to the tokeniser."""
    while True:
        try:
            return recipe, run_up_to("fit_tokenizer", recipe, profile, folder)
        except InputError as error:
            smaller = recipe.tokenizer.vocab_size * 4 // 5
            if "vocab_size" not in error.where or smaller < LEAST_VOCABULARY:
                raise
            tokenizer = recipe.tokenizer.model_copy(update={"vocab_size": smaller})
            recipe = recipe.model_copy(update={"tokenizer": tokenizer})


def _part_of_dev(runs: Mapping[str, StageRun], folder: Path) -> dict[str, StageRun]:
    """Return the stages with a part of dev in the place of dev; the rest of their files is where it was."""
    changed = dict(runs)
    for name, where in (("encode", "shards"), ("clean", "clean")):
        own = folder / "part" / name / where
        own.mkdir(parents=True)
        (own / "train").symlink_to((runs[name].folder / where / "train").resolve(), target_is_directory=True)
        (own / "dev").mkdir()
        table = pa.concat_tables(
            [pq.read_table(path) for path in sorted((runs[name].folder / where / "dev").glob("part-*.parquet"))]
        )
        chosen = np.linspace(0, len(table) - 1, num=min(DEV_ROWS, len(table))).astype(int)
        pq.write_table(table.take(chosen), own / "dev" / "part-00000.parquet")
        changed[name] = replace(runs[name], folder=own.parent)
    return changed


# The trial


@dataclass(frozen=True)
class _Validation:
    """A validation on a part of dev: how long it took, and how many rows the busiest worker scored in it."""

    seconds: float
    rows: int


def _tried(prepared: _Prepared, profile: Profile, folder: Path, *, use_ray: bool) -> dict[str, Any]:
    """Return what was found, as JSON values."""
    recipe = prepared.recipe
    changes = {
        "max_updates": UPDATES, "log_updates": 1, "checkpoint_updates": None, "checkpoint_minutes": None,
        "validate_epochs": 1, "validate_updates": None, "average_checkpoints": 1,
    }  # fmt: skip
    short = recipe.model_copy(update={"train": recipe.train.model_copy(update=changes)})
    where = profile.model_copy(update={"tracking": TrackingConfig()})
    given = _part_of_dev(prepared.runs, folder)
    trained = run_up_to("train", short, where, folder / "trial", given=given, use_ray=use_ray)["train"]
    records = read_metrics(trained.folder / METRICS_FILE)
    train, validation = ([record for record in records if record["kind"] == kind] for kind in ("train", "validation"))
    checkpoint = training_checkpoints(trained.folder / "checkpoints")[-1]
    ledger = trained.manifest.counters["ledger"]
    plan_of = _planned(prepared, profile)
    figures = {
        "notes": [*prepared.notes, *_notes_of_windows(prepared, plan_of["row_bytes"])],
        "parameters": _parameters(prepared),
        "num_workers": train[-1]["num_workers"],
        "memory_gib": max(*train[-1]["memory_gib"], ledger["memory_gib"]),
        **({"gpu_memory_gib": ledger["gpu_memory_gib"]} if "gpu_memory_gib" in ledger else {}),
        "padding": plan_of["padding"],
        "target_tokens_per_update": plan_of["target_tokens_per_update"],
        "target_tokens_per_s": round(train[-1]["target_tokens_per_s"], 1),
        "checkpoint_bytes": _bytes(checkpoint),
        "model_bytes": _bytes(trained.folder / "best"),
    }
    planned = round((read_state(checkpoint).total_updates or UPDATES) * prepared.scale)
    beside = profile.ray.validation_workers if use_ray else 0
    dev = dev_rows(given["encode"].folder / "shards", recipe.model_table().only_side())
    batches = dev_batches(dev, recipe.train)
    scorers = 1 if beside else figures["num_workers"]
    busiest = max(sum(map(len, batches[rank::scorers])) for rank in range(scorers))
    tried = _Validation(validation[-1]["seconds"], busiest)
    return figures | _estimates(figures, prepared, profile.prices, planned, tried, beside=beside)


def _notes_of_windows(prepared: _Prepared, row_bytes: float) -> list[str]:
    """Return what the rows of two windows take, where the trial had only those of a sample."""
    rows = prepared.runs["encode"].manifest.counters["train"]["rows"]
    more = min(round(rows * prepared.scale), 2 * prepared.recipe.train.window_rows) - rows
    if more <= 0:
        return []
    held = summary.size(round(more * row_bytes))
    return [f"each worker will hold {held} more: rows of train, two windows of them at the most (train.window_rows)"]


def _estimates(
    figures: Mapping[str, Any],
    prepared: _Prepared,
    prices: PricesConfig,
    planned: int,
    tried: _Validation,
    *,
    beside: int,
) -> dict[str, Any]:
    """Return updates, seconds, disk and cost of the whole training, without early stopping.

    `beside` is how many workers validate beside those of training: each a validation by itself.
    """
    config = prepared.recipe.train
    updates = min(planned, config.max_updates or planned)
    per_update = figures["target_tokens_per_update"] / figures["target_tokens_per_s"]
    of_epoch = planned / config.max_epochs
    dev = prepared.runs["encode"].manifest.counters["dev"]["rows"]
    if "dev" in prepared.recipe.corpora.held_out:
        dev *= prepared.scale  # a share of the rows that were drawn
    validation = tried.seconds * max(dev / (1 if beside else figures["num_workers"]) / tried.rows, 1.0)
    number = updates // config.validate_updates if config.validate_updates else 0
    number += round(updates / of_epoch) // config.validate_epochs if config.validate_epochs else 0
    waits = 0.0 if beside else max(number, 1) * validation
    seconds = updates * per_update + waits
    hours = seconds / 3600
    cost = prices.cost(hours * (figures["num_workers"] + beside), hours)
    best = config.average_checkpoints + 1  # the best so far, and the folder best/
    found: dict[str, Any] = {
        "updates": updates,
        "updates_per_epoch": round(of_epoch),
        "seconds_per_update": round(per_update, 4),
        "seconds_per_epoch": round(of_epoch * per_update, 1),
        "seconds_per_validation": round(validation, 1),
        "seconds": round(seconds, 1),
        "disk_bytes": config.keep_checkpoints * figures["checkpoint_bytes"] + best * figures["model_bytes"],
    }
    return found | ({"cost": round(cost, 2), "currency": prices.currency} if cost is not None else {})


def _planned(prepared: _Prepared, profile: Profile) -> dict[str, float]:
    """Return padding, mean target pieces of an update and bytes of a row, of the first window of the first epoch."""
    recipe, runs = prepared.recipe, prepared.runs
    job = TrainJob(
        model=recipe.model_table(),
        train=recipe.train,
        folder="",
        shards=str(runs["encode"].folder / "shards"),
        references="",
        tokenizer=str(runs["fit_tokenizer"].folder),
        bleu_tokenize=recipe.evaluate.bleu_tokenize,
        threads=profile.ray.threads_per_worker,
        augment=recipe.augment,
        weights={corpus.name: corpus.weight for corpus in recipe.corpora.train},
        curriculum={corpus.name: (corpus.from_epoch, corpus.until_epoch) for corpus in recipe.corpora.train},
    )
    with open_epochs(job) as epochs:
        window = epochs.window(0)
    real = padded = 0
    for rows in (rows for update in window.updates for rows in update):
        src, tgt = window.src_lengths[rows], window.tgt_lengths[rows]
        real += int(src.sum() + tgt.sum())
        padded += len(rows) * int(src.max() + tgt.max())
    pieces = sum(target_tokens(update, window.tgt_lengths) for update in window.updates)
    return {
        "padding": round(1.0 - real / padded, 4),
        "target_tokens_per_update": round(pieces / len(window.updates), 1),
        "row_bytes": sum(array.nbytes for array in _arrays(window)) / len(window.shards),
    }


def _arrays(window: Window) -> Iterator[npt.NDArray[Any]]:
    for columns in (window.shards, window.made):
        yield from vars(columns).values()
    yield from (window.rows, window.src_lengths, window.tgt_lengths)
    yield from (rows for update in window.updates for rows in update)


def _parameters(prepared: _Prepared) -> int:
    """Return the parameters of the model; of a sample with as many pieces as the recipe asks for."""
    tokenizer = Tokenizer.load(prepared.runs["fit_tokenizer"].folder)
    sizes = (tokenizer.source_size, tokenizer.target_size)
    if prepared.vocabulary is not None:
        sizes = (prepared.vocabulary, prepared.vocabulary)
    return without_weights(lambda: build_model(prepared.recipe.model_table(), *sizes)).num_parameters()


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _rows(found: Mapping[str, Any]) -> summary.Rows:
    rows = [
        ["parameters", f"{found['parameters']:,}"],
        ["workers", f"{found['num_workers']}"],
        ["memory of a worker", f"{found['memory_gib']:.2f} GiB at its peak"],
    ]
    if "gpu_memory_gib" in found:
        rows.append(["memory of a GPU", f"{found['gpu_memory_gib']:.2f} GiB at its peak"])
    rows += [
        ["padding", summary.percent(found["padding"])],
        ["target pieces of an update", f"{found['target_tokens_per_update']:,.0f}"],
        ["target pieces per second", f"{found['target_tokens_per_s']:,.0f}"],
        ["updates", f"{found['updates']:,}, of an epoch {found['updates_per_epoch']:,}"],
        ["time of an epoch", f"about {duration(found['seconds_per_epoch'])}"],
        ["time of a validation", f"about {duration(found['seconds_per_validation'])}"],
        ["time in all", f"about {duration(found['seconds'])}, where early stopping does not end it"],
        ["a checkpoint", summary.size(found["checkpoint_bytes"])],
        ["disk", f"{summary.size(found['disk_bytes'])} for checkpoints and models"],
    ]
    if "cost" in found:
        rows.append(["cost", f"about {found['cost']:,.2f} {found['currency']}"])
    return summary.Rows(["", ""], rows)


@contextmanager
def _temporary(workdir: Path) -> Iterator[Path]:
    """Yield a folder in the workdir, which all workers see; it is gone at the end, and so is a workdir made for it."""
    made = [folder for folder in (workdir.absolute(), *workdir.absolute().parents) if not folder.exists()]
    workdir.mkdir(parents=True, exist_ok=True)
    try:
        with TemporaryDirectory(prefix=".dry-run-", dir=workdir.absolute()) as name:
            yield Path(name)
    finally:
        with suppress(OSError):  # something else has written there meanwhile
            for folder in made:
                folder.rmdir()
