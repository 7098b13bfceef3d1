"""Updates over the same batches, timed: what the scripts of all systems share. Needs torch and numpy alone.

A file of batches (`.npz`) holds `vocabulary`, and of micro-batch m of update u the arrays `u.m.src`, `u.m.tgt`,
`u.m.src_lengths` and `u.m.tgt_lengths`: ids [B, S] and [B, T], padded on the right with 0; 1 is the unknown piece, 2
BOS and 3 EOS. Source and target end with EOS, and the target has no BOS before it.

A script takes the arguments of `parser`, does one update after the other and prints one line of JSON: see `report`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

PRECISIONS = ("float32", "bfloat16")


class Padded(NamedTuple):
    """A micro-batch as it stands in the file: int64 src [B, S], tgt [B, T], and the real pieces of each row [B]."""

    src: Tensor
    src_lengths: Tensor
    tgt: Tensor
    tgt_lengths: Tensor


class Timing(NamedTuple):
    """Of one update: seconds by the clock, CPU seconds of this process, target pieces, loss per piece (nats).

    `foreign` is how many cores other processes kept busy meanwhile.
    """

    wall: float
    cpu: float
    tokens: int
    loss: float
    foreign: float


def write_batches(path: Path, vocabulary: int, updates: Iterable[Sequence[Padded]]) -> None:
    """Write a file of batches."""
    arrays: dict[str, Any] = {"vocabulary": np.asarray(vocabulary)}
    for number, update in enumerate(updates):
        for place, batch in enumerate(update):
            arrays |= {f"{number}.{place}.{name}": tensor.numpy() for name, tensor in batch._asdict().items()}
    np.savez(path, **arrays)


def read_batches(path: Path) -> tuple[int, list[list[Padded]]]:
    """Return the size of the vocabulary and the updates of a file of batches."""
    with np.load(path) as arrays:
        updates: list[list[Padded]] = []
        while f"{len(updates)}.0.src" in arrays:
            number, update = len(updates), list[Padded]()
            while f"{number}.{len(update)}.src" in arrays:
                prefix = f"{number}.{len(update)}"
                update.append(Padded(*(torch.from_numpy(arrays[f"{prefix}.{name}"]) for name in Padded._fields)))
            updates.append(update)
        return int(arrays["vocabulary"]), updates


def target_pieces(update: Sequence[Padded]) -> int:
    """Return the real target pieces of an update, EOS counted."""
    return sum(int(batch.tgt_lengths.sum()) for batch in update)


def parser(description: str | None, systems: Sequence[str]) -> argparse.ArgumentParser:
    """Return the arguments that every system's script takes."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("batches", type=Path, help="a file of batches, as peers_training.py writes it")
    made.add_argument("--system", choices=systems, required=True)
    made.add_argument("--precision", choices=PRECISIONS, default="float32")
    made.add_argument("--matmul-precision", choices=("highest", "high", "medium"), default="highest")
    made.add_argument("--threads", type=int, default=1)
    made.add_argument("--core", type=int, help="the one core to run on; without it, any")
    made.add_argument("--warmup", type=int, default=4, help="updates before those that are timed")
    made.add_argument("--updates", type=int, default=20, help="updates that are timed")
    return made


def prepare(options: argparse.Namespace) -> None:
    """Set cores, threads and precision of this process as the arguments say."""
    if options.core is not None:
        os.sched_setaffinity(0, {options.core})
    torch.set_num_threads(options.threads)
    torch.set_float32_matmul_precision(options.matmul_precision)
    torch.manual_seed(1)


def cast(update: Callable[[int], tuple[int, float]], precision: str) -> Callable[[int], tuple[int, float]]:
    """Return the update, each in an autocast of its own: autocast keeps the weights that it has cast until it ends.

    For systems that offer none on a CPU: it is what they could have, around their whole update.
    """

    def within(number: int) -> tuple[int, float]:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            return update(number)

    return within


def timed(update: Callable[[int], tuple[int, float]], *, warmup: int, updates: int) -> list[Timing]:
    """Return the timings of `update(number)` for the numbers from `warmup` on; it returns target pieces and loss."""
    timings = []
    for number in range(warmup + updates):
        busy, wall, cpu = _busy_seconds(), time.perf_counter(), time.process_time()
        tokens, loss = update(number)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        others = max(0.0, _busy_seconds() - busy - cpu) / wall
        timings.append(Timing(wall, cpu, tokens, loss, others))
    return timings[warmup:]


def _busy_seconds() -> float:
    """Return the CPU seconds of all processes of this machine so far; 0 where the kernel does not say."""
    try:
        user, nice, system = Path("/proc/stat").read_text(encoding="ascii").split()[1:4]
    except OSError:
        return 0.0
    return (int(user) + int(nice) + int(system)) / os.sysconf("SC_CLK_TCK")


def report(timings: Sequence[Timing], parameters: Iterable[Tensor], **more: Any) -> None:
    """Print one line of JSON: the lists wall, cpu, tokens, loss and foreign, the parameters' number, and peak MB."""
    columns = {name: [getattr(timing, name) for timing in timings] for name in Timing._fields}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(columns | {"parameters": sum(p.numel() for p in parameters), "peak_mb": round(peak)} | more))
