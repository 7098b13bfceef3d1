"""How large a model is, and how much arithmetic a target piece takes: counted without its weights, in any size."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nmt.model.seq2seq import Seq2Seq

# The gradient of a product is two products of its size: one for what it multiplies, one for its weight.
# Source: Kaplan et al. 2020, "Scaling Laws for Neural Language Models", section 2.1.
TRAINING_FACTOR = 3
SOURCE_PIECES = 20
TARGET_PIECES = 20


class Cost(NamedTuple):
    """Parameters, shared ones once; FLOPs of a target piece in the forward pass, with its share of the source's."""

    parameters: int
    forward: float

    @property
    def training(self) -> float:
        """Return the FLOPs of one target piece in an update: the forward pass, and the gradients' two."""
        return TRAINING_FACTOR * self.forward


class Shape(NamedTuple):
    """Parameters of one shape and of names that differ in numbers alone, such as those of equal layers."""

    names: tuple[str, ...]
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Return the numbers in all of them."""
        return len(self.names) * math.prod(self.shape)

    @property
    def label(self) -> str:
        """Return the one name, or the names with ranges: `encoder.layers.{0-5}.norm.weight`."""
        places = list(zip(*(_NUMBER.findall(name) for name in self.names)))
        ranges = iter([_range([int(number) for number in place]) for place in places])
        return _NUMBER.sub(lambda _: next(ranges), self.names[0])


_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


def count(
    build: Callable[[], Seq2Seq], *, source_pieces: int = SOURCE_PIECES, target_pieces: int = TARGET_PIECES
) -> Cost:
    """Return what a model costs on one pair of so many pieces, teacher forced, the scores of all pieces included.

    Counted are the products of matrices, with vectors too, and convolutions: 2 FLOPs for each multiplication with its
    addition. Sums, functions of single numbers and look-ups are not. Attention to earlier pieces alone is counted
    whole, as it is computed with a mask. Nothing is computed and no weight takes memory: tensors have shapes only.
    """
    # Fused attention and oneDNN's fused LSTM are not counted as products: the one is taken apart, the other added up.
    mapping: dict[Any, Any] = {torch.ops.aten.mkldnn_rnn_layer: _fused_lstm, torch.ops.aten.mv: _matrix_vector}
    counter = FlopCounterMode(display=False, custom_mapping=mapping)
    with FakeTensorMode(), sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model = build()
        source = torch.zeros(1, source_pieces, dtype=torch.long)
        target = torch.zeros(1, target_pieces, dtype=torch.long)
        with counter:
            model.logits(model(source, torch.full((1,), source_pieces), target).vectors)
        return Cost(model.num_parameters(), counter.get_total_flops() / target_pieces)


def _fused_lstm(
    inputs: Sequence[int], from_input: Sequence[int], from_hidden: Sequence[int], *_: Any, **__: Any
) -> int:
    """Return the FLOPs of one layer and direction over inputs [T, B, I], with weights [4H, I] and [4H, H]."""
    return 2 * inputs[0] * inputs[1] * (math.prod(from_input) + math.prod(from_hidden))


def _matrix_vector(matrix: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * math.prod(matrix)


def shapes(model: torch.nn.Module) -> list[Shape]:
    """Return the shapes of a model's parameters in their order, those of equal layers together."""
    groups: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for name, parameter in model.named_parameters():
        groups.setdefault((_NUMBER.sub("*", name), tuple(parameter.shape)), []).append(name)
    return [shape for (_, size), names in groups.items() for shape in _joined(names, size)]


def _joined(names: Sequence[str], size: tuple[int, ...]) -> Iterator[Shape]:
    """Yield all names as one where they are all that ranges of numbers can make, otherwise each alone."""
    numbers = [tuple(map(int, _NUMBER.findall(name))) for name in names]
    ranges = [range(min(place), max(place) + 1) for place in zip(*numbers)]
    if sorted(numbers) == list(itertools.product(*ranges)):
        yield Shape(tuple(names), size)
    else:
        yield from (Shape((name,), size) for name in names)


def _range(numbers: Sequence[int]) -> str:
    first, last = min(numbers), max(numbers)
    return str(first) if first == last else f"{{{first}-{last}}}"


def without_weights(build: Callable[[], Seq2Seq]) -> Seq2Seq:
    """Return a model whose parameters have names and shapes alone, and take no memory."""
    with torch.device("meta"):
        return build()


def described(model: torch.nn.Module) -> str:
    """Return lines that tell a model's parameters: their number, and the names and shapes, equal layers in one line."""
    found = shapes(model)
    width = max(len(shape.label) for shape in found)
    total, tensors = sum(shape.numel for shape in found), sum(len(shape.names) for shape in found)
    lines = [f"  {shape.label:<{width}}  {_sizes(shape)}" for shape in found]
    return "\n".join([f"{total:,} parameters in {tensors} tensors", *lines])


def _sizes(shape: Shape) -> str:
    sizes = " x ".join(map(str, shape.shape))
    return sizes if len(shape.names) == 1 else f"{sizes}, {len(shape.names)} times"
