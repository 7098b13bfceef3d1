"""Every model learns: to copy and to reverse short sequences, or, where it has no source, a grammar.

Trained by the trainer's own update with Adam, and judged by greedy decoding of sequences that training has not seen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from nmt.architectures import ARCHITECTURES, architecture, build_model
from nmt.batches import MicroBatch, padded
from nmt.config import TrainConfig, TranslateConfig
from nmt.model.architecture import Variant
from nmt.model.batch_norm import collectors
from nmt.model.seq2seq import Seq2Seq
from nmt.optim import learning_rate, make_optimizer
from nmt.search import search
from nmt.step import FlatGradients, World, train_step
from pipelines.tokenizer import BOS_ID, EOS_ID

Sequence = npt.NDArray[np.int32]

FIRST, SIZE = 4, 16  # the symbols are the pieces behind the special ones
BATCH = 64
GOAL, STOP = 0.99, 0.998  # of the sequences that judge; of those that end training, so that there is a margin
UPDATES_BETWEEN_LOOKS = 25
HELD_OUT = 200


@dataclass(frozen=True)
class Lesson:
    """How a model is taught: its sizes, the peak of its learning rate, the most updates, the sequences' lengths."""

    keys: dict[str, Any] = field(default_factory=dict)
    rate: float = 5e-3
    updates: int = 600
    lengths: tuple[int, int] = (3, 8)


LESSONS = {
    "recurrent": Lesson({"embedding_dim": 32, "hidden_dim": 64}),
    "convolutional": Lesson({"embedding_dim": 32, "hidden_dim": 32}),
    "transformer": Lesson({"embedding_dim": 32, "feed_forward_dim": 64, "attention_heads": 4}),
}


def cases(wanted: Callable[[str], bool]) -> list[Any]:
    return [
        pytest.param(name, variant, id=f"{name}-{variant.name}")
        for name in ARCHITECTURES
        if wanted(name)
        for variant in architecture(name).variants
    ]


def copied(sequence: Sequence) -> Sequence:
    return sequence


def reversed_(sequence: Sequence) -> Sequence:
    return sequence[::-1]


def drawn(draw: np.random.Generator, number: int, lengths: tuple[int, int]) -> list[Sequence]:
    sizes = draw.integers(lengths[0], lengths[1] + 1, number)
    return [draw.integers(FIRST, SIZE, size).astype(np.int32) for size in sizes]


def ended(sequence: Sequence) -> Sequence:
    return np.append(sequence, EOS_ID).astype(np.int32)


def batch_of(sources: list[Sequence], targets: list[Sequence]) -> MicroBatch:
    src, src_lengths = padded([ended(source) for source in sources])
    target, target_lengths = padded([ended(target) for target in targets])
    previous = torch.cat([torch.full((len(targets), 1), BOS_ID), target[:, :-1]], dim=1)
    return MicroBatch(src, src_lengths, previous, target, target_lengths)


def shares_right(model: Seq2Seq, batch: MicroBatch) -> tuple[float, float]:
    """Return the shares of target pieces, EOS counted, and of whole targets that greedy decoding gets right."""
    found = search(model, batch.src, batch.src_lengths, TranslateConfig(method="greedy", max_length_factor=1.0))
    pieces, whole = 0, 0
    for hypothesis, target, length in zip(found, batch.target.tolist(), batch.target_lengths.tolist()):
        right = sum(a == b for a, b in zip([*hypothesis.ids, EOS_ID], target[:length]))
        pieces, whole = pieces + right, whole + (right == length == len(hypothesis.ids) + 1)
    return pieces / int(batch.target_lengths.sum()), whole / len(found)


def taught(
    model: Seq2Seq,
    lesson: Lesson,
    next_batch: Callable[[], MicroBatch],
    is_learned: Callable[[], bool],
) -> int:
    """Return the number of updates after which the model had learned, or all of them."""
    config = TrainConfig(learning_rate=lesson.rate, warmup_updates=20, label_smoothing=0.0)
    parameters = list(model.parameters())
    optimizer, flat = make_optimizer(config, parameters), FlatGradients(parameters, collectors(model))
    for update in range(lesson.updates):
        batch = next_batch()
        train_step(
            model, optimizer, flat, None, [(0, batch)], config,
            update=update, target_tokens=int(batch.target_lengths.sum()),
            rate=learning_rate(config, update, lesson.updates), world=World(),
        )  # fmt: skip
        if (update + 1) % UPDATES_BETWEEN_LOOKS == 0 and is_learned():
            return update + 1
    return lesson.updates


@pytest.mark.parametrize("task", [copied, reversed_], ids=["copy", "reversal"])
@pytest.mark.parametrize(("name", "variant"), cases(lambda name: True))
def test_it_learns_to_copy_and_to_reverse(
    name: str, variant: Variant, task: Callable[[Sequence], Sequence], record_property: Callable[[str, object], None]
) -> None:
    lesson = LESSONS[name]
    keys = {**lesson.keys, "dropout": 0.0, **variant.keys, "architecture": name}
    model = build_model(architecture(name).table.model_validate(keys), SIZE, SIZE, seed=1)
    draw = np.random.default_rng(7)
    held_out = drawn(draw, 2 * HELD_OUT, lesson.lengths)
    hidden = {tuple(sequence.tolist()) for sequence in held_out}
    deciding, judging = (
        batch_of(part, [task(sequence) for sequence in part]) for part in (held_out[:HELD_OUT], held_out[HELD_OUT:])
    )

    def next_batch() -> MicroBatch:
        sources = [s for s in drawn(draw, BATCH, lesson.lengths) if tuple(s.tolist()) not in hidden]
        return batch_of(sources, [task(source) for source in sources])

    updates = taught(model, lesson, next_batch, lambda: shares_right(model, deciding)[0] >= STOP)
    pieces, whole = shares_right(model, judging)
    record_property("updates", updates)
    record_property("sequences_right", whole)
    print(f"{name} {variant.name} {task.__name__}: {updates} updates, {pieces:.4f} of pieces, {whole:.2f} of sequences")
    assert pieces >= GOAL, f"{pieces:.4f} of pieces and {whole:.4f} of sequences after {updates} updates"
