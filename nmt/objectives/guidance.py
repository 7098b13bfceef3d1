"""Guided alignment: attention is drawn to the source pieces that a word aligner gives each target piece.

Source: Chen et al. 2016, "Guided Alignment Training for Topic-Aware Neural Machine Translation", section 3 (the
cross-entropy); Garg et al. 2019, "Jointly Learning to Align and Translate with Transformer Models", eq. 3 (a row of the
alignment is a distribution, and a target piece without a link has no part in the loss).
Shapes: B batch, T target length, S source length.
"""

from __future__ import annotations

from torch import Tensor

# A weight of attention below has no gradient of its own: that of its logarithm would be beyond all bounds, and be
# multiplied by the loss scale of float16.
_LEAST = 1e-9


def guidance(weights: Tensor | None, alignment: Tensor | None) -> Tensor:
    """Return the summed cross-entropy of attention `weights` [B, T, S] against the links of `alignment` [B, T, S].

    `alignment` is True where the target piece that a step predicts is linked to a source piece. The links of a target
    piece share its weight of 1 evenly; one without adds nothing, so that padding and rows without links do not.
    Raises ValueError where the model has no attention, or the micro-batch came without an alignment.
    """
    if weights is None:
        raise ValueError("guided alignment needs a model with attention over the source")
    if alignment is None:
        raise ValueError("guided alignment needs micro-batches with an alignment")
    links = alignment.to(weights.dtype)
    shares = links / links.sum(-1, keepdim=True).clamp(min=1.0)
    return -(shares * weights.clamp(min=_LEAST).log()).sum()
