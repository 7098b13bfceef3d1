"""Updates of Seqloom on given batches, timed: one process, or one of several workers, without Ray.

    python tests/benchmarks/training_speed.py BATCHES --system general [--precision bfloat16] [--threads 1]

peers_training.py writes BATCHES and runs this for all systems. An update is what training does: nmt/training/step.py.
"""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist
from step_timing import Padded, parser, prepare, read_batches, report, target_pieces, timed

from nmt.allocation import keep_freed_memory
from nmt.architectures import build_model, model_table
from nmt.batches import MicroBatch
from nmt.config import TrainConfig
from nmt.training.gradients import FlatGradients
from nmt.training.optim import make_optimizer
from nmt.training.step import World, train_step
from pipelines.tokenizer import BOS_ID

_RECURRENT: dict[str, Any] = {"embedding_dim": 256, "hidden_dim": 512, "dropout": 0.3}
SYSTEMS = {
    "additive-feeding": {**_RECURRENT, "attention": "additive", "input_feeding": True},
    "additive": {**_RECURRENT, "attention": "additive", "input_feeding": False},
    "general-feeding": {**_RECURRENT, "attention": "general", "input_feeding": True},
    "general": {**_RECURRENT, "attention": "general", "input_feeding": False},
    "transformer": {
        "architecture": "transformer", "embedding_dim": 256, "attention_heads": 4, "feed_forward_dim": 1024,
        "encoder_layers": 3, "decoder_layers": 3, "dropout": 0.1,
    },
}  # fmt: skip


def main() -> None:
    arguments = parser(__doc__, list(SYSTEMS))
    arguments.add_argument("--rank", type=int, default=0)
    arguments.add_argument("--workers", type=int, default=1, help="of whom this process is the one of --rank")
    arguments.add_argument("--store", help="a file that does not exist yet, through which the workers meet")
    options = arguments.parse_args()
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")  # as in training, and read at first use
    keep_freed_memory()  # as in training
    prepare(options)
    if options.workers > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{options.store}", rank=options.rank, world_size=options.workers
        )
    vocabulary, updates = read_batches(options.batches)
    world = World(options.rank, options.workers)
    mine = [
        [(i, as_microbatch(batch)) for i, batch in enumerate(update) if i % world.size == world.rank]
        for update in updates
    ]
    tokens = [target_pieces(update) for update in updates]
    model = build_model(model_table(SYSTEMS[options.system]), vocabulary, vocabulary)
    config = TrainConfig(precision=options.precision, matmul_precision=options.matmul_precision)
    parameters = list(model.parameters())
    optimizer, flat = make_optimizer(config, parameters), FlatGradients(parameters)

    def update(number: int) -> tuple[int, float]:
        place = number % len(mine)
        figures = train_step(
            model, optimizer, flat, None, mine[place], config,
            update=number, target_tokens=tokens[place], rate=config.learning_rate, world=world,
        )  # fmt: skip
        return tokens[place], figures.loss

    report(timed(update, warmup=options.warmup, updates=options.updates), parameters)
    if world.size > 1:
        dist.destroy_process_group()


def as_microbatch(batch: Padded) -> MicroBatch:
    """Return a micro-batch of the file as training's."""
    bos = torch.full((len(batch.tgt), 1), BOS_ID)
    previous = torch.cat([bos, batch.tgt[:, :-1]], dim=1)
    return MicroBatch(batch.src, batch.src_lengths, previous, batch.tgt, batch.tgt_lengths)


if __name__ == "__main__":
    main()
