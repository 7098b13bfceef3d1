"""The convolutional encoder-decoder: gated convolutions, and attention in every layer of the decoder.

Source: Gehring et al. 2017, "Convolutional Sequence to Sequence Learning" (below: the paper), and where it leaves a
detail open, its authors' own implementation.
Shapes: B batch, S source length, T target steps, E embedding_dim, H hidden_dim, W kernel_width, L decoder layers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple, Self, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from nmt.config import ModelTable
from nmt.model.architecture import Architecture, Variant
from nmt.model.embeddings import dropout, wide
from nmt.model.seq2seq import Decoded, Encoded, Seq2Seq
from pipelines.tokenizer import PAD_ID

_EMBEDDING_STD = 0.1  # of pieces and positions: section 3.5


class ConvolutionalConfig(ModelTable):
    """A convolutional encoder-decoder. `dropout` acts on embeddings, on each convolution's input and on the output."""

    architecture: Literal["convolutional"] = "convolutional"
    hidden_dim: int = Field(default=256, ge=1)
    encoder_layers: int = Field(default=4, ge=1, le=64)
    decoder_layers: int = Field(default=3, ge=1, le=64)
    kernel_width: int = Field(default=3, ge=1)  # pieces that a convolution sees, odd
    max_positions: int = Field(default=1024, ge=1)  # with a vector of their own; those beyond have the last one's

    @model_validator(mode="after")
    def _kernel_has_a_middle(self) -> Self:
        if self.kernel_width % 2 == 0:
            raise ValueError(f"kernel_width {self.kernel_width} must be odd, so that a piece is its kernel's middle")
        return self


class Product(NamedTuple):
    """A linear map of vectors [*, inputs] to [*, outputs], its weight normalised."""

    weight: Tensor
    bias: Tensor

    def __call__(self, vectors: Tensor) -> Tensor:
        return F.linear(vectors, self.weight, self.bias)


class NormedLinear(nn.Module):
    """A linear map whose weight is g v / ||v||, a length g and a direction v for each output.

    Its own two parameters, and not torch's parametrisation: that would normalise the weight anew at each step of a
    search, where a `product` is made once for all steps. At the start v is drawn from N(0, variance / inputs), g is
    ||v|| and the bias 0. Source: Salimans and Kingma 2016, "Weight Normalization", eq. 2; the paper, section 3.5.
    """

    def __init__(self, inputs: int, outputs: int, *, variance: float = 1.0) -> None:
        super().__init__()
        self.weight_v = nn.Parameter(torch.randn(outputs, inputs) * math.sqrt(variance / inputs))
        self.weight_g = nn.Parameter(self.weight_v.detach().norm(dim=1, keepdim=True))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def product(self) -> Product:
        """Return the map, of the dtype that products have under autocast."""
        weight = self.weight_v * (self.weight_g / self.weight_v.norm(dim=1, keepdim=True))
        if torch.is_autocast_enabled(weight.device.type):
            weight = weight.to(torch.get_autocast_dtype(weight.device.type))
        return Product(weight, self.bias)

    def forward(self, vectors: Tensor) -> Tensor:
        """Return the map of vectors [*, inputs]: [*, outputs]."""
        return self.product()(vectors)


class Positions(nn.Module):
    """A vector for each of the first positions; every later one has that of the last."""

    def __init__(self, max_positions: int, embedding_dim: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(max_positions, embedding_dim) * _EMBEDDING_STD)

    def forward(self, number: int, first: int) -> Tensor:
        """Return the vectors [number, E] of so many positions from `first` on."""
        places = torch.arange(first, first + number, device=self.table.device)
        return F.embedding(places.clamp_(max=len(self.table) - 1), self.table)


class _ScaledGradient(torch.autograd.Function):
    """The identity, whose gradient is scaled."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return vectors.view_as(vectors)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.scale, None


def halved(first: Tensor, second: Tensor) -> Tensor:
    """Return the sum times sqrt(0.5), float32 at least: of two of one variance it has the same. Section 3.4."""
    return (wide(first) + wide(second)) * math.sqrt(0.5)


def windows(vectors: Tensor, width: int) -> Tensor:
    """Return each run of `width` vectors side by side: [B, N - width + 1, width * H] of [B, N, H].

    So a convolution is one matrix product, W [2d, kd] in the paper's section 3.2, whatever the number of steps.
    """
    number = vectors.shape[1] - width + 1
    return torch.cat([vectors[:, offset : offset + number] for offset in range(width)], dim=-1)


def gated_convolution(vectors: Tensor, width: int, product: Product) -> Tensor:
    """Return A sigmoid(B) [B, N - width + 1, H] of the halves [A B] of a convolution of [B, N, H]. Section 3.2."""
    return F.glu(product(windows(vectors, width)), dim=-1)


class EncoderOutput(NamedTuple):
    """Outputs [B, S, E], the embeddings that the encoder was given with positions [B, S, E], a mask [B, S]."""

    outputs: Tensor
    embedded: Tensor
    mask: Tensor


class Encoder(nn.Module):
    """Gated convolutions over the source, as many outputs as pieces. Section 3.2."""

    def __init__(self, config: ConvolutionalConfig) -> None:
        super().__init__()
        self.config = config
        kept = 1.0 - config.dropout
        self.positions = Positions(config.max_positions, config.embedding_dim)
        self.enter = NormedLinear(config.embedding_dim, config.hidden_dim, variance=kept)
        self.layers = nn.ModuleList(_convolution(config) for _ in range(config.encoder_layers))
        self.leave = NormedLinear(config.hidden_dim, config.embedding_dim)

    def forward(self, embedded: Tensor, lengths: Tensor, generator: torch.Generator | None) -> EncoderOutput:
        """Return what the decoder attends to, of `embedded` [B, S, E] with `lengths` [B] real pieces each.

        Each of the decoder's L attentions sends a gradient, as keys and as values: that of the outputs is scaled by
        1 / (2 L), that of the embeddings beside them is not. Section 3.4; the 2 is the implementation's.
        """
        config, steps = self.config, embedded.shape[1]
        mask = torch.arange(steps, device=embedded.device)[None, :] < lengths[:, None]
        embedded = dropout(embedded + self.positions(steps, 0), config.dropout, generator)
        vectors, side = wide(self.enter(embedded)), config.kernel_width // 2
        for layer in cast(Iterable[NormedLinear], self.layers):
            # Zeros behind a source's end, as there are before its beginning: no padding is ever seen.
            inputs = dropout(vectors.masked_fill(~mask[:, :, None], 0.0), config.dropout, generator)
            found = gated_convolution(F.pad(inputs, (0, 0, side, side)), config.kernel_width, layer.product())
            vectors = halved(found, vectors)
        scaled: Tensor = _ScaledGradient.apply(self.leave(vectors), 0.5 / config.decoder_layers)  # type: ignore[no-untyped-call]
        return EncoderOutput(scaled, embedded, mask)


def _convolution(config: ConvolutionalConfig) -> NormedLinear:
    # A gate halves the entries and a half of what is left is lost: four times the variance makes up for it.
    inputs, variance = config.kernel_width * config.hidden_dim, 4.0 * (1.0 - config.dropout)
    return NormedLinear(inputs, 2 * config.hidden_dim, variance=variance)


class LayerProducts(NamedTuple):
    """The maps of a decoder layer: the convolution, the states' to queries, and the contexts' to states."""

    convolution: Product
    query: Product
    context: Product


class DecoderLayer(nn.Module):
    """A gated convolution over the previous pieces, and what its attention needs."""

    def __init__(self, config: ConvolutionalConfig) -> None:
        super().__init__()
        self.convolution = _convolution(config)
        self.query = NormedLinear(config.hidden_dim, config.embedding_dim)
        self.context = NormedLinear(config.embedding_dim, config.hidden_dim)

    def products(self) -> LayerProducts:
        """Return the layer's maps."""
        return LayerProducts(self.convolution.product(), self.query.product(), self.context.product())


class Memory(NamedTuple):
    """What a decoder attends to, keys and values [B, S, E] and a mask [B, S]; and its maps, which all rows share."""

    keys: Tensor
    values: Tensor
    mask: Tensor
    enter: Product
    layers: tuple[LayerProducts, ...]
    leave: Product

    def select(self, rows: Tensor) -> Memory:
        """Return the memory of these rows of the batch, in this order."""
        return self._replace(keys=self.keys[rows], values=self.values[rows], mask=self.mask[rows])


class DecoderState(NamedTuple):
    """The last inputs of each layer's convolution [L, B, W - 1, H], and the position of the next piece."""

    inputs: Tensor
    position: int

    def select(self, rows: Tensor) -> DecoderState:
        """Return the state of these rows of the batch, in this order."""
        return self._replace(inputs=self.inputs[:, rows])


def attend(queries: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
    """Return contexts [B, T, E] and weights [B, T, S], float32 at least, of queries [B, T, E]. Section 3.3."""
    scores = wide(torch.bmm(queries.to(memory.keys.dtype), memory.keys.transpose(1, 2)))
    weights = scores.masked_fill(~memory.mask[:, None, :], float("-inf")).softmax(-1)
    return torch.bmm(weights.to(memory.values.dtype), memory.values), weights


class Decoder(nn.Module):
    """Gated convolutions over the previous target pieces, with attention in each layer. Sections 3.2 and 3.3."""

    def __init__(self, config: ConvolutionalConfig) -> None:
        super().__init__()
        self.config = config
        self.output_dim = config.embedding_dim
        self.positions = Positions(config.max_positions, config.embedding_dim)
        self.enter = NormedLinear(config.embedding_dim, config.hidden_dim, variance=1.0 - config.dropout)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.leave = NormedLinear(config.hidden_dim, config.embedding_dim)

    def start(self, encoder_output: EncoderOutput) -> Encoded:
        """Return the memory, and a state of zeros: what stands before the first piece.

        Values are outputs and embeddings together, times m sqrt(1/m) where the source has m pieces: a mean of m would
        have less variance. Section 3.4.
        """
        outputs, embedded, mask = encoder_output
        lengths = mask.sum(1).to(embedded.dtype)
        values = halved(outputs, embedded) * lengths.sqrt()[:, None, None]
        products = tuple(layer.products() for layer in cast(Iterable[DecoderLayer], self.layers))
        memory = Memory(outputs, values.to(outputs.dtype), mask, self.enter.product(), products, self.leave.product())
        shape = (len(products), len(mask), self.config.kernel_width - 1, self.config.hidden_dim)
        return Encoded(memory, DecoderState(wide(embedded).new_zeros(shape), 0))

    def forward(
        self, embedded: Tensor, encoded: Encoded, generator: torch.Generator | None, *, need_weights: bool = False
    ) -> Decoded:
        """Return vectors [B, T, E], the state after the last step, and the mean of the layers' weights [B, T, S].

        `embedded` [B, T, E] are the previous target pieces; a convolution sees the W - 1 before each and itself.
        """
        memory, state = cast(tuple[Memory, DecoderState], encoded)
        config, steps = self.config, embedded.shape[1]
        embedded = dropout(embedded + self.positions(steps, state.position), config.dropout, generator)
        vectors, inputs, weights = wide(memory.enter(embedded)), [], []
        for layer, before in zip(memory.layers, state.inputs.unbind(0), strict=True):
            seen = torch.cat([before, dropout(vectors, config.dropout, generator)], dim=1)
            inputs.append(seen[:, steps:])
            found = gated_convolution(seen, config.kernel_width, layer.convolution)
            context, weight = attend(halved(layer.query(found), embedded), memory)
            vectors = halved(halved(found, layer.context(context)), vectors)
            weights.append(weight)
        output = dropout(memory.leave(vectors), config.dropout, generator)
        mean = torch.stack(weights).mean(0) if need_weights else None
        return Decoded(output, DecoderState(torch.stack(inputs), state.position + steps), mean)


def build(config: ConvolutionalConfig, source_size: int, target_size: int) -> Seq2Seq:
    """Return a new convolutional encoder-decoder, embeddings and output layer drawn as in section 3.5."""
    model = Seq2Seq(config, source_size, target_size, Encoder(config), Decoder(config))
    with torch.no_grad():
        for embedding in (model.source_embedding, model.target_embedding):
            nn.init.normal_(embedding.table.weight, std=_EMBEDDING_STD)
            embedding.table.weight[PAD_ID].zero_()
    if not config.tie_target_embeddings:
        nn.init.normal_(model.output_weight, std=math.sqrt((1.0 - config.dropout) / config.embedding_dim))
    return model


ARCHITECTURE = Architecture(
    "convolutional",
    ConvolutionalConfig,
    build,
    (Variant("convolutional", 'Gehring et al. 2017, "Convolutional Sequence to Sequence Learning"', {}),),
)
