"""Updates of fairseq on given batches, timed. Runs in fairseq's own virtual environment: see peers_training.py.

    python fairseq_steps.py BATCHES --system lstm [--path bare|trainer|own] [--matmul-precision medium] [--threads 1]

`bare` is fairseq's model, criterion and Adam and nothing else; `trainer` its Trainer's `train_step`, on the same
batches; `own` its Trainer over batches that it makes itself of the same rows, collated in the time measured.
"""

from __future__ import annotations

import logging
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from fairseq import options
from fairseq.data import Dictionary, LanguagePairDataset
from fairseq.data.iterators import GroupedIterator
from fairseq.data.language_pair_dataset import collate
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.tasks.translation import TranslationTask
from fairseq.trainer import Trainer
from step_timing import Padded, cast, parser, prepare, read_batches, report, target_pieces, timed
from torch import Tensor

_RNN = [
    "--arch=lstm", "--encoder-embed-dim=256", "--encoder-hidden-size=256", "--encoder-bidirectional",
    "--decoder-embed-dim=256", "--decoder-hidden-size=512", "--dropout=0.3",
]  # fmt: skip
_TRANSFORMER = [
    f"--{side}-{name}"
    for side in ("encoder", "decoder")
    for name in ("embed-dim=256", "ffn-embed-dim=1024", "attention-heads=4", "layers=3")
]
SYSTEMS = {
    # What stands in the output layer: 512 units and a matrix of its own, or the shared embeddings of 256.
    "lstm": [*_RNN, "--decoder-out-embed-dim=512"],
    "lstm-tied": [*_RNN, "--decoder-out-embed-dim=256", "--share-all-embeddings"],
    "transformer": ["--arch=transformer", *_TRANSFORMER, "--share-all-embeddings", "--dropout=0.1"],
}
# The ids of padding, unknown, BOS and EOS in a fresh Dictionary, by our ids; all others are the same.
_IDS = [1, 3, 0, 2]


def main() -> None:
    arguments = parser(__doc__, list(SYSTEMS))
    arguments.add_argument("--path", choices=("bare", "trainer", "own"), default="bare")
    arguments.add_argument("--own-tokens", type=int, default=4096, help="of a batch that fairseq makes itself")
    chosen = arguments.parse_args()
    logging.disable(logging.WARNING)
    prepare(chosen)
    vocabulary, updates = read_batches(chosen.batches)
    config, task = settings(SYSTEMS[chosen.system], vocabulary, len(updates[0]), chosen.own_tokens)
    model = task.build_model(config.model)
    trainer = Trainer(config, task, model, task.build_criterion(config.criterion))
    update = make_update(chosen, trainer, task, updates)
    timings = timed(cast(update, chosen.precision), warmup=chosen.warmup, updates=chosen.updates)
    # Its Transformer's encoder holds its weights twice, once for inference: only what is trained counts.
    report(timings, (parameter for parameter in model.parameters() if parameter.grad is not None))


def settings(arch: Sequence[str], vocabulary: int, accumulated: int, own_tokens: int) -> tuple[Any, TranslationTask]:
    """Return the config and the task that fairseq's own command line makes, over a dictionary of this size."""
    command = [
        "no-data", *arch, "--task=translation", "--source-lang=en", "--target-lang=de", "--cpu",
        "--criterion=label_smoothed_cross_entropy", "--label-smoothing=0.1", "--optimizer=adam",
        "--adam-betas=(0.9, 0.98)", "--lr=0.001", "--lr-scheduler=fixed", "--clip-norm=1.0",
        f"--max-tokens={own_tokens}", f"--update-freq={accumulated}", "--no-save", "--num-workers=0",
    ]  # fmt: skip
    config = convert_namespace_to_omegaconf(options.parse_args_and_arch(options.get_training_parser(), command))
    dictionary = Dictionary()
    for number in range(vocabulary - len(dictionary)):
        dictionary.add_symbol(f"piece{number}")
    return config, TranslationTask(config.task, dictionary, dictionary)


def make_update(
    chosen: Namespace, trainer: Trainer, task: TranslationTask, updates: Sequence[Sequence[Padded]]
) -> Callable[[int], tuple[int, float]]:
    """Return the function of an update's number that does it and returns its target pieces and loss per piece."""
    if chosen.path == "own":
        stream = own_batches(trainer, task, updates)
        return lambda _number: trained(trainer, next(stream))
    samples = [[as_sample(batch, task.target_dictionary) for batch in update] for update in updates]
    if chosen.path == "trainer":
        return lambda number: trained(trainer, samples[number % len(samples)])
    assert [sum(sample["ntokens"] for sample in update) for update in samples] == list(map(target_pieces, updates))
    return lambda number: bare(trainer, samples[number % len(samples)])


def bare(trainer: Trainer, samples: Sequence[dict[str, Any]]) -> tuple[int, float]:
    """Do what Trainer.train_step does with a batch, without its bookkeeping."""
    optimizer, tokens, total = trainer.optimizer, 0, torch.zeros(())
    trainer.model.train()
    optimizer.zero_grad()
    for sample in samples:
        loss, size, _ = trainer.criterion(trainer.model, sample)
        optimizer.backward(loss)
        total += loss.detach()
        tokens += size
    optimizer.multiply_grads(1.0 / tokens)
    optimizer.clip_grad_norm(1.0)
    optimizer.step()
    return tokens, float(total) / tokens


def trained(trainer: Trainer, samples: Sequence[dict[str, Any]]) -> tuple[int, float]:
    """Do one update as fairseq's own training loop does."""
    output = trainer.train_step(samples)
    tokens = sum(sample["ntokens"] for sample in samples)
    return tokens, float(output["loss"]) * np.log(2.0)  # fairseq's figure is in bits


def translated(ids: Tensor) -> Tensor:
    """Return our ids as those of fairseq's Dictionary."""
    return torch.where(ids < len(_IDS), torch.tensor(_IDS)[ids.clamp(max=len(_IDS) - 1)], ids)


def rows_of(batch: Padded) -> Iterator[tuple[Tensor, Tensor]]:
    """Return the rows of a micro-batch, without their padding, in fairseq's ids."""
    for src, src_length, tgt, tgt_length in zip(*batch._replace(src=translated(batch.src), tgt=translated(batch.tgt))):
        yield src[:src_length], tgt[:tgt_length]


def as_sample(batch: Padded, dictionary: Dictionary) -> dict[str, Any]:
    """Return a micro-batch as fairseq's own collation makes it of the same rows: the same padded shape."""
    rows = [{"id": number, "source": src, "target": tgt} for number, (src, tgt) in enumerate(rows_of(batch))]
    sample: dict[str, Any] = collate(rows, dictionary.pad(), dictionary.eos())
    assert sample["net_input"]["src_tokens"].shape == batch.src.shape and sample["target"].shape == batch.tgt.shape
    return sample


def own_batches(
    trainer: Trainer, task: TranslationTask, updates: Sequence[Sequence[Padded]]
) -> Iterator[list[dict[str, Any]]]:
    """Yield fairseq's own batches of all rows, epoch after epoch."""
    rows = [row for update in updates for batch in update for row in rows_of(batch)]
    sources, targets = zip(*rows)
    dictionary = task.source_dictionary
    task.datasets["train"] = LanguagePairDataset(
        sources, np.asarray([len(row) for row in sources]), dictionary,
        targets, np.asarray([len(row) for row in targets]), dictionary,
    )  # fmt: skip
    epochs = trainer.get_train_iterator(epoch=1, load_dataset=False)
    while True:
        accumulated = trainer.cfg.optimization.update_freq[0]
        yield from GroupedIterator(epochs.next_epoch_itr(fix_batches_to_gpus=False), accumulated)


if __name__ == "__main__":
    sys.exit(main())
