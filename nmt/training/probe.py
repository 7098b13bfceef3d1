"""A trial of the largest micro-batches on a GPU before the first update: what is too large is known at the start."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch

from nmt.batches import MicroBatch
from nmt.config import TrainConfig
from nmt.model.seq2seq import Seq2Seq
from nmt.training.gradients import FlatGradients
from nmt.training.memory import Part, fits
from nmt.training.optim import state_numbers
from nmt.training.step import adder
from pipelines.errors import InputError
from pipelines.tokenizer import BOS_ID, EOS_ID

log = logging.getLogger(__name__)

_GIB = 2**30


class Trial(NamedTuple):
    """A micro-batch of rows of so many pieces on both sides, and its peak of memory (bytes); None: too large."""

    rows: int
    pieces: int
    peak: int | None


def largest_shapes(microbatch_tokens: int, longest: int) -> list[tuple[int, int]]:
    """Return (rows, pieces) of the largest micro-batches: of the longest rows, of those half as long, and so on."""
    lengths = [longest]
    while lengths[-1] > 8:
        lengths.append(lengths[-1] // 2)
    return [(max(1, microbatch_tokens // length), length) for length in lengths]


def trials(
    shapes: Sequence[tuple[int, int]], compute: Callable[[int, int], None], peak: Callable[[], int]
) -> Iterator[Trial]:
    """Yield a trial of each shape; after a first of several rows that is too large, also one of a single row.

    `compute` is given rows and pieces, and `peak` says what was taken since it was last asked.
    """
    remaining = list(shapes)
    while remaining:
        rows, pieces = remaining.pop(0)
        fitted = fits(compute, rows, pieces)
        taken = peak()  # asked for in any case, as the next trial begins anew with it
        yield Trial(rows, pieces, taken if fitted else None)
        if not fitted and rows > 1 and pieces == shapes[0][1]:
            remaining.insert(0, (1, pieces))


def judge(found: Sequence[Trial], available: int, undivided: str | None) -> int:
    """Return the highest peak of trials that fitted, of `available` bytes; log it, and what will be computed in parts.

    Raises InputError where a single row was too large, or where there may be no parts and a micro-batch was.
    """
    too_large = [trial for trial in found if trial.peak is None]
    for trial in too_large:
        if trial.rows == 1 or undivided is not None:
            reason = f", and is not split: {undivided}" if trial.rows > 1 else ""
            raise InputError(
                f"a micro-batch of {trial.rows} x {trial.pieces} pieces does not fit into {available / _GIB:.1f} GiB "
                f"of memory{reason}",
                where="train.max_pieces" if trial.rows == 1 else "train.microbatch_tokens",
                remedy="Lower it, or train a smaller model, or where there is more memory",
            )
    highest = max((trial.peak for trial in found if trial.peak is not None), default=0)
    log.info("the largest micro-batches take %.2f of %.2f GiB of memory", highest / _GIB, available / _GIB)
    if too_large:
        shapes = ", ".join(f"{trial.rows} x {trial.pieces}" for trial in too_large)
        log.warning(
            "micro-batches of %s pieces do not fit into memory and are computed in parts, which takes longer; with a "
            "lower train.microbatch_tokens, and more microbatches_per_update, they would fit",
            shapes,
        )
    return highest


def trial_batch(rows: int, pieces: int, config: TrainConfig, *, has_source: bool) -> MicroBatch:
    """Return a micro-batch of rows of so many pieces on both sides; without a source of none on that one."""
    source_pieces = pieces if has_source else 0
    target = torch.full((rows, pieces), EOS_ID)
    previous = target.clone()
    previous[:, 0] = BOS_ID
    alignment = None
    if config.guided_alignment_weight > 0.0:
        alignment = torch.ones(rows, pieces, source_pieces, dtype=torch.bool)
    return MicroBatch(
        torch.full((rows, source_pieces), EOS_ID),
        torch.full((rows,), source_pieces),
        previous,
        target,
        torch.full((rows,), pieces),
        alignment,
    )


def idle_microbatch(config: TrainConfig, *, has_source: bool) -> MicroBatch:
    """Return a micro-batch of one row, whose target has no piece: all sums over it are 0."""
    batch = trial_batch(1, 1, config, has_source=has_source)
    unlinked = None if batch.alignment is None else torch.zeros_like(batch.alignment)
    return batch._replace(target_lengths=torch.zeros_like(batch.target_lengths), alignment=unlinked)


def trial_of(
    model: Seq2Seq, flat: FlatGradients, config: TrainConfig, device: torch.device
) -> Callable[[int, int], None]:
    """Return what computes the gradients of a micro-batch of so many rows and pieces, and changes nothing else."""

    def compute(rows: int, pieces: int) -> None:
        batch = trial_batch(rows, pieces, config, has_source=model.config.has_source)
        update = config.scheduled_sampling_updates  # by then a model is asked twice
        flat.zero()
        adder(model, flat, [(0, batch)], config, update=update, device=device)(Part(0, 0, rows, rows))

    return compute


def probe(
    model: Seq2Seq,
    flat: FlatGradients,
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
    device: torch.device,
    longest: int,
) -> int:
    """Return the peak of memory (bytes) of the largest micro-batches on a GPU, rows of up to `longest` pieces each.

    Weights, moments and statistics stay as they are, and no worker waits for another. Moments that the first update
    will make are counted. Raises InputError as `judge` does.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    numbers = 0 if optimizer.state else state_numbers(config, parameters)
    moments = torch.empty(numbers, dtype=parameters[0].dtype, device=device)

    def peak() -> int:
        found = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return found

    peak()
    shapes = largest_shapes(config.microbatch_tokens, longest)
    found = list(trials(shapes, trial_of(model, flat, config, device), peak))
    available = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    del moments
    flat.zero()
    torch.cuda.empty_cache()
    return judge(found, available, flat.undivided())
