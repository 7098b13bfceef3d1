"""R-Drop: two passes over a micro-batch with different dropout, and the divergence between what they predict.

Source: Liang et al. 2021, "R-Drop: Regularized Dropout for Neural Networks", eq. 2 to 4. The loss here is half of
theirs, so that it is that of teacher forcing where both passes agree, and `rdrop_weight` is their alpha:
(nll_1 + nll_2) / 2 + alpha / 4 * (KL(p_1 || p_2) + KL(p_2 || p_1)), each nll label-smoothed, as in their code.
Shapes: N positions, D units, V pieces.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nmt.batches import MicroBatch
from nmt.model.embeddings import wide
from nmt.model.seq2seq import Seq2Seq
from nmt.objectives.cross_entropy import rows_at_once
from nmt.objectives.supervised import Loss, forced


class _PairedCrossEntropy(torch.autograd.Function):
    """Some positions at a time: their gradient is worked out with their loss, so that no [N, V] is ever held.

    With d = log p_1 - log p_2 the sum of both divergences is sum_v (p_1 - p_2) d, and its gradient by the scores of the
    first pass p_1 (d - sum_v p_1 d) + p_1 - p_2; of the second it is the same with 1 and 2 exchanged.
    """

    @staticmethod
    def forward(
        ctx: Any,
        first: Tensor,
        second: Tensor,
        weight: Tensor,
        bias: Tensor,
        targets: Tensor,
        smoothing: float,
        alpha: float,
    ) -> tuple[Tensor, Tensor]:
        kind = first.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else first.dtype
        ctx.dtypes = (first.dtype, second.dtype, weight.dtype, bias.dtype)
        total, nll = wide(first.new_zeros(())), wide(first.new_zeros(()))
        by_vectors = [wide(torch.empty_like(vectors)) for vectors in (first, second)]
        by_weight, by_bias = wide(torch.zeros_like(weight)), wide(torch.zeros_like(bias))
        with torch.autocast(kind, enabled=False):
            weight, bias = weight.to(dtype), bias.to(dtype)
            rows = rows_at_once(first, len(weight))
            for start in range(0, len(targets), rows):
                part = slice(start, start + rows)
                pair = [vectors[part].to(dtype) for vectors in (first, second)]
                logs = [wide(F.linear(vectors, weight, bias)).log_softmax(-1) for vectors in pair]
                part_total, part_nll, by_scores = _losses(logs, targets[part], smoothing, alpha)
                total, nll = total + part_total, nll + part_nll
                for into, vectors, gradient in zip(by_vectors, pair, by_scores):
                    by_bias += gradient.sum(0)
                    gradient = gradient.to(dtype)
                    into[part] = wide(gradient @ weight)
                    by_weight += wide(gradient.t() @ vectors)
        ctx.save_for_backward(*by_vectors, by_weight, by_bias)
        return total, nll

    @staticmethod
    def backward(
        ctx: Any, grad_total: Tensor, _grad_nll: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, None, None, None]:
        first, second, weight, bias = (
            (found * grad_total).to(dtype) for found, dtype in zip(ctx.saved_tensors, ctx.dtypes)
        )
        return first, second, weight, bias, None, None, None


def _losses(logs: list[Tensor], targets: Tensor, smoothing: float, alpha: float) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return the summed loss and nll of both passes' log p [n, V], and the loss's gradients by their scores [n, V]."""
    probabilities = [log.exp() for log in logs]
    apart, change = probabilities[0] - probabilities[1], logs[0] - logs[1]
    total = alpha / 4 * (apart * change).sum()
    nll, gradients = total.new_zeros(()), []
    for log, p, sign in zip(logs, probabilities, (1.0, -1.0)):
        of_targets = -0.5 * log.gather(1, targets[:, None]).sum()
        nll = nll + of_targets
        total = total + (1.0 - smoothing) * of_targets - 0.5 * smoothing * log.mean(-1).sum()
        signed = sign * change
        gradient = alpha / 4 * (p * (signed - (p * signed).sum(-1, keepdim=True)) + sign * apart)
        gradient += 0.5 * (p - smoothing / log.shape[1])
        gradient.scatter_add_(1, targets[:, None], gradient.new_full((len(targets), 1), 0.5 * (smoothing - 1.0)))
        gradients.append(gradient)
    return total, nll, gradients


def paired_cross_entropy(
    first: Tensor, second: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, *, smoothing: float, alpha: float
) -> tuple[Tensor, Tensor]:
    """Return the summed loss of R-Drop, see above, and the mean of both passes' summed negative log-likelihoods.

    `first` and `second` [N, D] are what the two passes hand the output layer `weight` [V, D], `bias` [V]; `targets`
    [N]. Only the loss has a gradient, and that none of its own. Beside the gradients some rows of [*, V] are held.
    """
    total, nll = _PairedCrossEntropy.apply(first, second, weight, bias, targets, smoothing, alpha)  # type: ignore[no-untyped-call]
    return total, nll.detach()


def rdrop(
    model: Seq2Seq,
    batch: MicroBatch,
    generator: torch.Generator | None,
    *,
    label_smoothing: float,
    alpha: float,
    alignment_weight: float = 0.0,
) -> Loss:
    """Return the loss of two passes on a micro-batch, of which the second goes on where the first left the generator.

    With an `alignment_weight` the loss of guided attention is the mean of both passes'.
    """
    first = forced(model, batch, generator, alignment_weight=alignment_weight)
    second = forced(model, batch, generator, alignment_weight=alignment_weight)
    total, nll = paired_cross_entropy(
        first.vectors, second.vectors, model.output_matrix, model.output_bias, first.targets,
        smoothing=label_smoothing, alpha=alpha,
    )  # fmt: skip
    return Loss(total + 0.5 * (first.guidance + second.guidance), len(first.targets), nll)
