"""Time updates of training in one process, without Ray.

    python tests/benchmarks/training_speed.py SHARDS --vocabulary 4000 [--updates 10] [--threads 1] [--tokens 2048]

SHARDS is the folder `shards` of an encode stage. Prints, for each attention, with and without input feeding, in float32
and in bfloat16: the median of target pieces per CPU-second over the updates, the first one left out.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch

from nmt.architectures import build_model
from nmt.batches import collate, plan_epoch, target_tokens
from nmt.config import TrainConfig
from nmt.model.recurrent_config import RecurrentConfig
from nmt.optim import make_optimizer
from nmt.step import FlatGradients, World, train_step
from pipelines.epoch_rows import trainable_rows
from pipelines.shards import ShardColumns, read_shards


def pieces_per_cpu_second(
    shards: ShardColumns, model_config: RecurrentConfig, config: TrainConfig, vocabulary: int, updates: int
) -> float:
    """Return the median over the updates but the first: target pieces, EOS counted, by process time."""
    torch.set_float32_matmul_precision(config.matmul_precision)
    src, tgt = shards.src_lengths(), shards.tgt_lengths()
    plan = plan_epoch(config, 0, src, tgt, trainable_rows(src, tgt, config.max_pieces))
    model = build_model(model_config, vocabulary, vocabulary)
    parameters = list(model.parameters())
    optimizer, flat = make_optimizer(config, parameters), FlatGradients(parameters)
    rates = []
    for number, update in enumerate(plan[: updates + 1]):
        batches = [(i, collate(shards, rows)) for i, rows in enumerate(update)]
        pieces, start = target_tokens(update, tgt), time.process_time()
        train_step(
            model, optimizer, flat, None, batches, config,
            update=number, target_tokens=pieces, rate=1e-3, world=World(),
        )  # fmt: skip
        rates.append(pieces / (time.process_time() - start))
    return statistics.median(rates[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path)
    parser.add_argument("--vocabulary", type=int, required=True)
    parser.add_argument("--updates", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=2048)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    shards = read_shards(options.shards / "train")
    for precision in ("float32", "bfloat16"):
        for attention in ("additive", "general"):
            for feeding in (True, False):
                model = RecurrentConfig.model_validate({"attention": attention, "input_feeding": feeding})
                config = TrainConfig.model_validate(
                    {"precision": precision, "matmul_precision": "medium", "microbatch_tokens": options.tokens}
                )
                rate = pieces_per_cpu_second(shards, model, config, options.vocabulary, options.updates)
                print(f"{precision} {attention} input_feeding={feeding}: {rate:,.0f} target pieces per CPU-second")


if __name__ == "__main__":
    main()
