"""Every model learns: to copy and to reverse short sequences, or, where it has no source, to go on by a grammar.

Trained by the trainer's own update with Adam, and judged by greedy decoding of sequences that training has not begun
with. Each takes seconds: training ends when the model gets other unseen sequences right.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from nmt.architectures import ARCHITECTURES, architecture, build_model
from nmt.batches import MicroBatch, padded
from nmt.config import TrainConfig, TranslateConfig
from nmt.model.architecture import Variant
from nmt.model.batch_norm import collectors
from nmt.model.seq2seq import Encoded, Seq2Seq
from nmt.search import search
from nmt.training.gradients import FlatGradients
from nmt.training.optim import make_optimizer
from nmt.training.schedules import learning_rate
from nmt.training.step import World, train_step
from pipelines.tokenizer import BOS_ID, EOS_ID

Symbols = npt.NDArray[np.int32]

FIRST, SYMBOLS = 4, 12  # symbols are the pieces behind the special ones
SIZE = FIRST + SYMBOLS
BATCH, ENDING, JUDGING = 64, 600, 600  # sequences of an update, of those that end training, of those that judge
GOAL, STOP = 0.99, 0.999  # of the pieces that judge, and of those that end training, so that there is a margin
UPDATES_BETWEEN_LOOKS = 25


@dataclass(frozen=True)
class Lesson:
    """How a model is taught: its sizes, the peak of its learning rate, the most updates, the sequences' lengths."""

    keys: dict[str, Any] = field(default_factory=dict)
    rate: float = 1e-2
    updates: int = 300
    lengths: tuple[int, int] = (3, 5)


LESSONS = {
    "recurrent": Lesson({"embedding_dim": 32, "hidden_dim": 64}),
    "transformer": Lesson(
        {
            "embedding_dim": 32,
            "feed_forward_dim": 64,
            "attention_heads": 4,
            "encoder_layers": 2,
            "decoder_layers": 2,
        },
        rate=5e-3,
    ),
    "convolutional": Lesson({"embedding_dim": 32, "hidden_dim": 32, "encoder_layers": 2, "decoder_layers": 2}),
    "recurrent_lm": Lesson({"embedding_dim": 32, "hidden_dim": 64}, updates=400),
}
# One vector for a whole source holds less, and it takes longer to learn to read it.
WITHOUT_ATTENTION = Lesson(LESSONS["recurrent"].keys, updates=600)
# Twelve layers of an encoder, each of which adds little at first: they take twice as long as two.
DEEP = replace(LESSONS["transformer"], updates=800)


def lesson_of(name: str, variant: Variant) -> Lesson:
    if variant.keys.get("attention") == "none":
        return WITHOUT_ATTENTION
    return DEEP if variant.keys.get("encoder_layers", 0) >= 12 else LESSONS.get(name, Lesson())


def cases(*, has_source: bool) -> list[Any]:
    """Return the variants with a source, or those without, of all architectures."""
    return [
        pytest.param(name, variant, id=f"{name}-{variant.name}")
        for name in ARCHITECTURES
        if architecture(name).table.has_source == has_source
        for variant in architecture(name).variants
    ]


def new_model(name: str, variant: Variant, lesson: Lesson) -> Seq2Seq:
    """Return a model without dropout: each sequence is new."""
    table = architecture(name).table
    noise = {key: 0.0 for key in table.model_fields if "dropout" in key}
    keys = {**lesson.keys, **variant.keys, **noise, "architecture": name}
    return build_model(table.model_validate(keys), SIZE, SIZE, seed=1)


def ended(sequence: Symbols) -> Symbols:
    return np.append(sequence, EOS_ID).astype(np.int32)


def batch_of(sources: list[Symbols], targets: list[Symbols]) -> MicroBatch:
    src, src_lengths = padded([ended(source) for source in sources])
    target, target_lengths = padded([ended(target) for target in targets])
    previous = torch.cat([torch.full((len(targets), 1), BOS_ID), target[:, :-1]], dim=1)
    return MicroBatch(src, src_lengths, previous, target, target_lengths)


def teach(
    model: Seq2Seq, lesson: Lesson, next_batch: Callable[[], MicroBatch], share_right: Callable[[], float]
) -> int:
    """Train until the share is STOP at two looks in a row, or to the lesson's end; return the number of updates."""
    config = TrainConfig(learning_rate=lesson.rate, warmup_updates=20, label_smoothing=0.0)
    parameters = list(model.parameters())
    optimizer, flat = make_optimizer(config, parameters), FlatGradients(parameters, collectors(model))
    looks_passed = 0
    for update in range(lesson.updates):
        batch = next_batch()
        train_step(
            model, optimizer, flat, None, [(0, batch)], config,
            update=update, target_tokens=int(batch.target_lengths.sum()),
            rate=learning_rate(config, update, lesson.updates, embedding_dim=1, epoch=0, plateau_rate=1.0),
            world=World(),
        )  # fmt: skip
        if (update + 1) % UPDATES_BETWEEN_LOOKS == 0:
            looks_passed = looks_passed + 1 if share_right() >= STOP else 0
        if looks_passed == 2:
            return update + 1
    return lesson.updates


# With a source


def copied(sequence: Symbols) -> Symbols:
    return sequence


def reversed_(sequence: Symbols) -> Symbols:
    return sequence[::-1]


def drawn(draw: np.random.Generator, number: int, lengths: tuple[int, int]) -> list[Symbols]:
    sizes = draw.integers(lengths[0], lengths[1] + 1, number)
    return [draw.integers(FIRST, SIZE, size).astype(np.int32) for size in sizes]


def shares_right(model: Seq2Seq, batch: MicroBatch) -> tuple[float, float]:
    """Return the shares of target pieces, EOS counted, and of whole targets that greedy decoding gets right."""
    found = search(model, batch.src, batch.src_lengths, TranslateConfig(method="greedy", max_length_factor=1.0))
    pieces, whole = 0, 0
    for hypothesis, target, length in zip(found, batch.target.tolist(), batch.target_lengths.tolist()):
        right = sum(a == b for a, b in zip([*hypothesis.ids, EOS_ID], target[:length]))
        pieces, whole = pieces + right, whole + (right == length)
    return pieces / int(batch.target_lengths.sum()), whole / len(found)


@pytest.mark.parametrize("task", [copied, reversed_], ids=["copy", "reversal"])
@pytest.mark.parametrize(("name", "variant"), cases(has_source=True))
def test_it_learns_to_copy_and_to_reverse(
    name: str, variant: Variant, task: Callable[[Symbols], Symbols], record_property: Callable[[str, object], None]
) -> None:
    lesson, draw = lesson_of(name, variant), np.random.default_rng(7)
    model = new_model(name, variant, lesson)
    held_out = drawn(draw, ENDING + JUDGING, lesson.lengths)
    unseen = {tuple(sequence.tolist()) for sequence in held_out}

    def with_targets(sources: list[Symbols]) -> MicroBatch:
        return batch_of(sources, [task(source) for source in sources])

    def next_batch() -> MicroBatch:
        sources = drawn(draw, BATCH, lesson.lengths)
        return with_targets([source for source in sources if tuple(source.tolist()) not in unseen])

    ending, judging = with_targets(held_out[:ENDING]), with_targets(held_out[ENDING:])
    updates = teach(model, lesson, next_batch, lambda: shares_right(model, ending)[0])
    pieces, whole = shares_right(model, judging)
    report = {"updates": updates, "pieces_right": round(pieces, 4), "sequences_right": round(whole, 4)}
    for key, value in report.items():
        record_property(key, value)
    print(f"{name} {variant.name} {task.__name__}: {report}")
    assert pieces >= GOAL, report


# Without one


def by_grammar(starts: Symbols, length: int, slips: Callable[[Symbols], Symbols] | None = None) -> Symbols:
    """Return sequences [B, length] that begin with `starts` [B, 2 or more]: a symbol follows from the two before it.

    Behind an even symbol the next one goes up, behind an odd one down. `slips` may change a symbol, from which it then
    goes on: what such sequences have in common is the rule alone.
    """
    columns = [start - FIRST for start in starts.T]
    while len(columns) < length:
        following = (columns[-1] + np.where(columns[-2] % 2, -1, 1)) % SYMBOLS
        columns.append(following if slips is None else slips(following))
    return np.stack(columns, axis=1).astype(np.int32) + FIRST


@torch.inference_mode()
def continued(model: Seq2Seq, starts: Tensor, length: int) -> Tensor:
    """Return `starts` [B, *] and what the model finds most probable behind them, step by step: [B, length]."""
    encoded = model.encode(torch.full((len(starts), 1), EOS_ID), torch.ones(len(starts), dtype=torch.long))
    found, previous = starts, torch.cat([torch.full((len(starts), 1), BOS_ID), starts], dim=1)
    while found.shape[1] < length:
        vectors, state, _ = model.decode(previous, encoded)
        encoded, previous = Encoded(encoded.memory, state), model.logits(vectors[:, -1:]).argmax(-1)
        found = torch.cat([found, previous], dim=1)
    return found


@pytest.mark.parametrize(("name", "variant"), cases(has_source=False))
def test_a_language_model_learns_to_go_on_by_a_grammar(
    name: str, variant: Variant, record_property: Callable[[str, object], None]
) -> None:
    lesson, draw, length, given = lesson_of(name, variant), np.random.default_rng(7), 12, 4
    model = new_model(name, variant, lesson)

    def random_symbols(*shape: int) -> Symbols:
        return draw.integers(FIRST, SIZE, shape).astype(np.int32)

    def slips(symbols: Symbols) -> Symbols:
        return np.where(draw.random(len(symbols)) < 0.3, random_symbols(len(symbols)) - FIRST, symbols)

    def next_batch() -> MicroBatch:
        targets = list(by_grammar(random_symbols(BATCH, 2), length, slips))
        return batch_of([targets[0][:0]] * BATCH, targets)

    def share_right(starts: Symbols) -> float:
        found = continued(model, torch.from_numpy(starts).long(), length).numpy()
        return float((found == by_grammar(starts, length))[:, given:].mean())

    ending, judging = random_symbols(ENDING, given), random_symbols(JUDGING, given)
    updates = teach(model, lesson, next_batch, lambda: share_right(ending))
    report = {"updates": updates, "pieces_right": round(share_right(judging), 4)}
    for key, value in report.items():
        record_property(key, value)
    print(f"{name} {variant.name}: {report}")
    assert report["pieces_right"] >= GOAL, report
