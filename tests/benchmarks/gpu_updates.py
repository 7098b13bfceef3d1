"""Batches of fixed shapes, and training's update in forms that a GPU can run without waiting for the host.

Shapes: B rows, S and T pieces (both the bucket's), N real target pieces of the batch that has most of its bucket.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from nmt.architectures import build_model
from nmt.batches import MicroBatch
from nmt.config import ModelTable, TrainConfig
from nmt.model.flops import count
from nmt.model.seq2seq import Seq2Seq
from nmt.precision import autocast
from nmt.training.gradients import FlatGradients
from nmt.training.optim import make_optimizer
from nmt.training.step import World, noise_seed, train_step
from pipelines.tokenizer import BOS_ID, EOS_ID

Numbers = npt.NDArray[np.int64]

BUCKETS = (16, 24, 32, 48, 64, 96, 128)
IGNORED = -100


class StaticBatch(NamedTuple):
    """A batch whose tensors have the bucket's shapes: ids as in MicroBatch, and where the real target pieces are.

    real [N]: numbers of positions of the flattened target; targets [N]: their pieces, IGNORED behind the last; tokens
    []: how many are real, float32.
    """

    src: Tensor
    src_lengths: Tensor
    previous: Tensor
    real: Tensor
    targets: Tensor
    tokens: Tensor


class Batch(NamedTuple):
    """A batch of a bucket, in both forms."""

    bucket: int
    micro: MicroBatch
    static: StaticBatch
    tokens: int


# The batches


def make_batches(tokens: int, longest: int, number: int, vocabulary: int, device: torch.device) -> list[Batch]:
    """Return so many full batches in the order in which a stream of pairs fills them: always the same ones."""
    generator = np.random.default_rng(1)
    buckets = [bucket for bucket in BUCKETS if bucket <= longest]
    waiting: dict[int, list[tuple[int, int]]] = {bucket: [] for bucket in buckets}
    made: list[tuple[int, list[tuple[int, int]]]] = []
    for pair in drawn_lengths(generator):
        bucket = next((bucket for bucket in buckets if max(pair) <= bucket), None)
        if bucket is None:
            continue
        waiting[bucket].append(pair)
        if len(waiting[bucket]) == max(1, tokens // bucket):
            made.append((bucket, waiting[bucket]))
            waiting[bucket] = []
        if len(made) == number:
            break
    capacity = {
        bucket: max(sum(tgt for _, tgt in pairs) for other, pairs in made if other == bucket) for bucket, _ in made
    }
    return [filled(bucket, pairs, capacity[bucket], vocabulary, generator, device) for bucket, pairs in made]


def drawn_lengths(generator: np.random.Generator) -> Iterator[tuple[int, int]]:
    """Yield the source and target pieces of pair after pair, EOS counted."""
    while True:
        src = np.exp(generator.normal(np.log(27.0), 0.6, 4096))
        tgt = src * np.exp(generator.normal(0.058, 0.157, 4096))
        yield from zip(*(np.maximum(2, np.rint(side)).astype(int).tolist() for side in (src, tgt)))


def filled(
    bucket: int,
    pairs: Sequence[tuple[int, int]],
    capacity: int,
    vocabulary: int,
    generator: np.random.Generator,
    device: torch.device,
) -> Batch:
    """Return a batch of pairs of these lengths, of random pieces."""
    src_lengths, tgt_lengths = np.asarray(pairs, dtype=np.int64).T
    src, tgt = (_random_ids(lengths, bucket, vocabulary, generator) for lengths in (src_lengths, tgt_lengths))
    previous = np.concatenate([np.full((len(pairs), 1), BOS_ID), tgt[:, :-1]], axis=1)
    tensors = (torch.from_numpy(array).to(device) for array in (src, src_lengths, previous, tgt, tgt_lengths))
    micro = MicroBatch(*tensors)
    positions = np.flatnonzero(np.arange(bucket) < tgt_lengths[:, None])
    real = np.zeros(capacity, dtype=np.int64)
    real[: len(positions)] = positions
    targets = np.full(capacity, IGNORED)
    targets[: len(positions)] = tgt.reshape(-1)[positions]
    static = StaticBatch(
        micro.src,
        micro.src_lengths,
        micro.previous,
        torch.from_numpy(real).to(device),
        torch.from_numpy(targets).to(device),
        torch.tensor(float(len(positions)), device=device),
    )
    return Batch(bucket, micro, static, len(positions))


def _random_ids(lengths: Numbers, width: int, vocabulary: int, generator: np.random.Generator) -> Numbers:
    ids = generator.integers(EOS_ID + 1, vocabulary, (len(lengths), width))
    positions = np.arange(width)
    ids[positions >= lengths[:, None]] = 0
    ids[positions == lengths[:, None] - 1] = EOS_ID
    return ids


def describe(batches: Sequence[Batch]) -> str:
    """Return how many batches there are, of what shapes."""
    pieces = sum(batch.tokens for batch in batches)
    cells = sum(batch.micro.target.numel() for batch in batches)
    buckets = sorted(batch.bucket for batch in batches)
    shapes = ", ".join(f"{buckets.count(bucket)} of bucket {bucket}" for bucket in dict.fromkeys(buckets))
    return (
        f"{len(batches)} updates: {shapes}; {pieces / len(batches):,.0f} target pieces each, "
        f"{1 - pieces / cells:.1%} of the target's cells padding"
    )


def forward_flops(table: ModelTable, vocabulary: int, batches: Sequence[Batch]) -> float:
    """Return the model FLOPs of the forward passes of all batches, over their real pieces."""
    sides = [(batch.micro.src_lengths, batch.micro.target_lengths) for batch in batches]
    lengths = np.concatenate([torch.stack(side).cpu().numpy() for side in sides], axis=1)
    return float(pair_flops(table, vocabulary, lengths.astype(np.float64)).sum())


def pair_flops(table: ModelTable, vocabulary: int, lengths: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the forward FLOPs of pairs of these source and target pieces [2, pairs]."""
    points = np.asarray([(4, 4), (8, 4), (4, 8), (8, 8), (12, 4), (4, 12)]).T
    build = partial(build_model, table, vocabulary, vocabulary)
    counts = [count(build, source_pieces=s, target_pieces=t).forward * t for s, t in points.T.tolist()]
    return _monomials(lengths) @ np.linalg.solve(_monomials(points.astype(np.float64)), counts)


def _monomials(lengths: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    s, t = lengths
    return np.stack([np.ones_like(s), s, t, s * s, t * t, s * t], axis=-1)


# The updates


@dataclass
class Run:
    """A model in training."""

    model: Seq2Seq
    config: TrainConfig
    optimizer: torch.optim.Optimizer
    flat: FlatGradients
    generator: torch.Generator
    device: torch.device

    def seed(self, update: int) -> None:
        self.generator.manual_seed(noise_seed(self.config.seed, update, 0))


Update = Callable[[int, Batch], Tensor | float]


def weights(model: Seq2Seq) -> Tensor:
    """Return all weights as one vector on the host."""
    return torch.nn.utils.parameters_to_vector(model.parameters()).detach().cpu()


def new_run(table: ModelTable, vocabulary: int, precision: str, mode: str, device: torch.device) -> Run:
    torch.set_float32_matmul_precision("highest" if precision == "float32" else "high")
    torch.backends.cudnn.allow_tf32 = precision != "float32"
    config = TrainConfig(precision="bfloat16" if precision == "bfloat16" else "float32")
    model = build_model(table, vocabulary, vocabulary).to(device)
    parameters = list(model.parameters())
    if device.type == "cuda" and mode != "eager":
        # Its learning rate and its count of updates are on the GPU, as a graph needs them.
        rate = torch.tensor(config.learning_rate, device=device)
        optimizer: torch.optim.Optimizer = torch.optim.Adam(
            parameters, rate, betas=config.adam_betas, fused=True, capturable=True
        )
    else:
        optimizer = make_optimizer(config, parameters)
    return Run(model, config, optimizer, FlatGradients(parameters), torch.Generator(device), device)


def update_of(run: Run, mode: str, batches: Sequence[Batch]) -> Update:
    """Return the function that does an update of its number on a batch and returns the loss per target piece."""
    match mode:
        case "eager":
            return partial(eager_update, run)
        case "static":
            return partial(static_update, run, static_loss)
        case "compiled":
            return partial(static_update, run, compiled_loss())
        case "graphs":
            return graphs(run, batches)
    raise ValueError(f"no mode {mode!r}")


def eager_update(run: Run, number: int, batch: Batch) -> float:
    """Do training's own update."""
    return train_step(
        run.model, run.optimizer, run.flat, None, [(0, batch.micro)], run.config,
        update=number, target_tokens=batch.tokens, rate=run.config.learning_rate, world=World(device=run.device),
    ).loss  # fmt: skip


Loss = Callable[[Seq2Seq, StaticBatch, torch.Generator, float], Tensor]


def static_loss(model: Seq2Seq, batch: StaticBatch, generator: torch.Generator, smoothing: float) -> Tensor:
    """Return the summed loss of a batch; the shape of nothing depends on what is real."""
    vectors = model(batch.src, batch.src_lengths, batch.previous, generator).vectors
    logits = model.logits(vectors.flatten(0, 1).index_select(0, batch.real))
    return F.cross_entropy(
        logits.float(), batch.targets, ignore_index=IGNORED, reduction="sum", label_smoothing=smoothing
    )


def compiled_loss() -> Loss:
    """Return the static loss, compiled for each shape that it is given."""
    import torch._dynamo

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    torch._dynamo.config.recompile_limit = 1024
    torch._dynamo.config.accumulated_recompile_limit = 65536
    compiled: Loss = torch.compile(static_loss, dynamic=False)
    return compiled


def static_update(run: Run, loss: Loss, number: int, batch: Batch) -> Tensor:
    run.seed(number)
    return device_update(run, loss, batch.static)


def device_update(run: Run, loss: Loss, batch: StaticBatch) -> Tensor:
    """Do an update of which the host waits for nothing: what can be captured."""
    run.flat.buffer.zero_()
    with autocast(run.config.precision, run.device):
        total = loss(run.model, batch, run.generator, run.config.label_smoothing)
    total.backward()  # type: ignore[no-untyped-call]
    gradients = run.flat.gradients
    gradients.div_(batch.tokens)
    norm = torch.linalg.vector_norm(gradients)
    gradients.mul_((run.config.clip_norm / norm).clamp(max=1.0))
    run.optimizer.step()
    return total.detach() / batch.tokens


class Captured(NamedTuple):
    """The update of one bucket as a graph: it reads `inputs` and writes `loss`."""

    graph: torch.cuda.CUDAGraph
    inputs: StaticBatch
    loss: Tensor


def graphs(run: Run, batches: Sequence[Batch]) -> Update:
    """Return the update that replays the graph of the batch's bucket. All share memory, so the largest comes first."""
    pool, captured = torch.cuda.graph_pool_handle(), {}
    by_bucket = {batch.bucket: batch for batch in batches}
    for bucket in sorted(by_bucket, reverse=True):
        captured[bucket] = capture(run, by_bucket[bucket].static, pool)

    def update(number: int, batch: Batch) -> Tensor:
        made = captured[batch.bucket]
        for held, given in zip(made.inputs, batch.static):
            held.copy_(given)
        # A replay starts from the seed that the generator has then, not from that of the capture.
        run.seed(number)
        made.graph.replay()
        return made.loss.clone()

    return update


def capture(run: Run, batch: StaticBatch, pool: Any) -> Captured:
    """Return the graph of an update; the weights and the optimiser's state are as before."""
    inputs = StaticBatch(*(tensor.clone() for tensor in batch))
    before = [parameter.detach().clone() for parameter in run.model.parameters()]
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # what libraries set up at first use cannot be captured
            device_update(run, static_loss, inputs)
    torch.cuda.current_stream().wait_stream(stream)
    with torch.no_grad():
        for parameter, held in zip(run.model.parameters(), before):
            parameter.copy_(held)
        for state in run.optimizer.state.values():
            for tensor in state.values():
                tensor.zero_()
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(run.generator)
    with torch.cuda.graph(graph, pool=pool):
        loss = device_update(run, static_loss, inputs)
    return Captured(graph, inputs, loss)
