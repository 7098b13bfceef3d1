"""Cross-entropy with label smoothing over the real target pieces.

Shapes: N real target pieces of a micro-batch, V target pieces in the vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from nmt.batches import MicroBatch
from nmt.model.embeddings import wide
from nmt.model.seq2seq import Seq2Seq


class Loss(NamedTuple):
    """A micro-batch's summed loss (a scalar with a graph), weight (target pieces) and summed nll."""

    total: Tensor
    weight: int
    nll: Tensor


class _SmoothedCrossEntropy(torch.autograd.Function):
    """The summed loss and its gradient in closed form: one float32 [N, V] is held, where autograd would hold four."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
        scores = wide(logits)
        log_norm = torch.logsumexp(scores, dim=-1)
        nll = log_norm - scores.gather(-1, targets[:, None]).squeeze(-1)
        uniform = log_norm - scores.mean(dim=-1)
        ctx.save_for_backward(logits, log_norm, targets)
        ctx.smoothing = smoothing
        return ((1.0 - smoothing) * nll + smoothing * uniform).sum(), nll.sum()

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, _grad_nll: Tensor) -> tuple[Tensor, None, None]:
        logits, log_norm, targets = ctx.saved_tensors
        smoothing, size = ctx.smoothing, logits.shape[-1]
        grad = (logits - log_norm[:, None]).exp_()
        grad -= smoothing / size
        rows = torch.arange(len(targets), device=targets.device)
        grad[rows, targets] -= 1.0 - smoothing
        return grad.mul_(grad_total).to(logits.dtype), None, None


def smoothed_cross_entropy(logits: Tensor, targets: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """Return the summed label-smoothed loss and the summed negative log-likelihood of logits [N, V], targets [N].

    (1 - s) * nll + s * mean over the vocabulary of -log p, as torch.nn.functional.cross_entropy(label_smoothing=s).
    Only the first has a gradient. Source: Szegedy et al. 2016, "Rethinking the Inception Architecture", section 7.
    """
    total, nll = _SmoothedCrossEntropy.apply(logits, targets, smoothing)  # type: ignore[no-untyped-call]
    return total, nll.detach()


def supervised(model: Seq2Seq, batch: MicroBatch, generator: torch.Generator | None, *, label_smoothing: float) -> Loss:
    """Return the loss of teacher forcing on a micro-batch. Only real positions go through the output layer."""
    vectors = model(batch.src, batch.src_lengths, batch.previous, generator).vectors
    real = batch.target_mask()
    targets = batch.target[real]
    total, nll = smoothed_cross_entropy(model.logits(vectors[real]), targets, label_smoothing)
    return Loss(total, len(targets), nll)
