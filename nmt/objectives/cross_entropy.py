"""The output layer and cross-entropy with label smoothing in one.

Shapes: N positions, D units, V pieces.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nmt.model.embeddings import wide

# Scores computed at once, in elements: on a CPU what stays in the cache between the product and the softmax, on a GPU
# what keeps it busy.
_CHUNK_CPU, _CHUNK_GPU = 2**21, 2**26


class _LinearCrossEntropy(torch.autograd.Function):
    """One [N, V] is held, in the products' dtype: first the probabilities, then the gradient by the scores.

    With smoothing s the loss of a row is lse - (1 - s) * score of its target - s * mean score, and its gradient by the
    scores p - (1 - s) * onehot - s / V. The mean score is the product with the mean of the weight's rows, and the last
    term of the gradient is of rank one, so that neither needs a pass over [N, V].
    """

    @staticmethod
    def forward(
        ctx: Any, vectors: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, smoothing: float
    ) -> tuple[Tensor, Tensor]:
        ctx.dtypes, ctx.smoothing, size = (vectors.dtype, weight.dtype, bias.dtype), smoothing, len(weight)
        kind = vectors.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else vectors.dtype
        with torch.autocast(kind, enabled=False):
            mean_weight, mean_bias = wide(weight).mean(0), wide(bias).mean()
            mean_score = wide(vectors) @ mean_weight + mean_bias
            vectors, weight, bias = vectors.to(dtype), weight.to(dtype), bias.to(dtype)
            rows = rows_at_once(vectors, size)
            gradient = vectors.new_empty(len(targets), size)
            parts = zip(torch.split(gradient, rows), torch.split(vectors, rows), torch.split(targets, rows))
            log_norm, score = zip(*(_softmax(part, F.linear(x, weight, bias), y) for part, x, y in parts))
            nll = torch.cat(log_norm) - torch.cat(score)
            spread = torch.cat(log_norm) - mean_score
            gradient.scatter_add_(1, targets[:, None], gradient.new_full((len(targets), 1), smoothing - 1.0))
        ctx.save_for_backward(gradient, vectors, weight, mean_weight)
        return ((1.0 - smoothing) * nll + smoothing * spread).sum(), nll.sum()

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, _grad_nll: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        gradient, vectors, weight, mean_weight = ctx.saved_tensors
        number, size = gradient.shape
        uniform = ctx.smoothing / size
        with torch.autocast(vectors.device.type, enabled=False):
            by_vectors = wide(gradient @ weight).sub_(ctx.smoothing * mean_weight)
            by_weight = wide(gradient.t() @ vectors).sub_(uniform * wide(vectors).sum(0))
            by_bias = gradient.sum(0, dtype=mean_weight.dtype).sub_(uniform * number)
        found = (by_vectors, by_weight, by_bias)
        by_vectors, by_weight, by_bias = (x.mul_(grad_total).to(dtype) for x, dtype in zip(found, ctx.dtypes))
        return by_vectors, by_weight, by_bias, None, None


def rows_at_once(like: Tensor, size: int) -> int:
    """Return how many rows of scores of `size` pieces are computed at once on the device of a tensor."""
    return max(1, (_CHUNK_CPU if like.device.type == "cpu" else _CHUNK_GPU) // size)


def _softmax(into: Tensor, scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Write the softmax of scores [n, V] `into` [n, V]; return its log norm and the score of the targets, [n] each."""
    highest, score = wide(scores.amax(-1)), wide(scores.gather(1, targets[:, None]).squeeze(1))
    torch.softmax(scores, -1, out=into)
    # exp(highest - lse) is the highest probability: a pass over the cache in place of sums of exponentials.
    return highest - wide(into.amax(-1)).log(), score


def linear_cross_entropy(
    vectors: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, smoothing: float
) -> tuple[Tensor, Tensor]:
    """Return the summed label-smoothed loss and the summed negative log-likelihood of scores vectors @ weight.T + bias.

    `vectors` [N, D], `weight` [V, D], `bias` [V], `targets` [N]. The loss is (1 - s) * nll + s * mean over the
    vocabulary of -log p, as torch.nn.functional.cross_entropy(label_smoothing=s). Only the first has a gradient. Under
    autocast products and probabilities are of its dtype: in bfloat16 a row's loss has the rounding of its scores.
    Source: Szegedy et al. 2016, "Rethinking the Inception Architecture", section 7.
    """
    total, nll = _LinearCrossEntropy.apply(vectors, weight, bias, targets, smoothing)  # type: ignore[no-untyped-call]
    return total, nll.detach()
