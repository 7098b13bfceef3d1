"""Greedy and beam search: pure and batched.

Shapes: B sentences still searched, K beam_size, S source length, V target pieces. Row b * K + k is sentence b's beam k.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nmt.config import TranslateConfig
from nmt.model.embeddings import wide
from nmt.model.seq2seq import Encoded, Seq2Seq
from pipelines.tokenizer import BOS_ID, EOS_ID, PAD_ID, UNK_ID


@dataclass(frozen=True)
class Hypothesis:
    """A translation: piece ids without EOS, its log probability (nats, EOS included) and its rank score."""

    ids: list[int]
    log_probability: float
    score: float


def max_target_pieces(config: TranslateConfig, source_pieces: int) -> int:
    """Return the most pieces, EOS counted, that a translation of so many source pieces may have."""
    return int(config.max_length_factor * source_pieces) + config.max_length_offset


@torch.inference_mode()
def search(model: Seq2Seq, src: Tensor, src_lengths: Tensor, config: TranslateConfig) -> list[Hypothesis]:
    """Return the best hypothesis of each source: ids [B, S], right-padded, with `src_lengths` [B] real pieces each.

    A sentence's result does not depend on the others of its batch, nor on padding, beyond rounding.
    """
    limits = [max_target_pieces(config, length) for length in src_lengths.tolist()]
    encoded = model.encode(src, src_lengths)
    if config.method == "greedy" or config.beam_size == 1:
        return _greedy(model, encoded, limits, config.length_penalty, src.device)
    return _beam(model, encoded, limits, config, src.device)


def _rank_score(log_probability: float, length: int, length_penalty: float) -> float:
    """Return log P(y|x) / |y|^alpha, EOS counted in |y|: Wu et al. 2016, eq. 14, in the plain power form of Marian."""
    return log_probability / float(length**length_penalty)


def _log_probabilities(model: Seq2Seq, vectors: Tensor) -> Tensor:
    log_probabilities = torch.log_softmax(wide(model.logits(vectors)), dim=-1)
    # Never part of a target: padding, BOS, and the unknown piece, for which no text stands.
    log_probabilities[:, [PAD_ID, BOS_ID, UNK_ID]] = float("-inf")
    return log_probabilities


def _greedy(
    model: Seq2Seq, encoded: Encoded, limits: list[int], length_penalty: float, device: torch.device
) -> list[Hypothesis]:
    results: list[Hypothesis | None] = [None] * len(limits)
    ids: list[list[int]] = [[] for _ in limits]
    totals = [0.0] * len(limits)
    alive = list(range(len(limits)))
    previous = torch.full((len(limits), 1), BOS_ID, device=device)
    while alive:
        vectors, state, _ = model.decode(previous, encoded)
        best, chosen = _log_probabilities(model, vectors[:, 0]).max(dim=-1)
        kept = []
        for row, (sentence, piece, gain) in enumerate(zip(alive, chosen.tolist(), best.tolist())):
            totals[sentence] += gain
            if piece != EOS_ID:
                ids[sentence].append(piece)
            if piece == EOS_ID or len(ids[sentence]) >= limits[sentence]:
                length = len(ids[sentence]) + (piece == EOS_ID)
                score = _rank_score(totals[sentence], length, length_penalty)
                results[sentence] = Hypothesis(ids[sentence], totals[sentence], score)
            else:
                kept.append(row)
        encoded = Encoded(encoded.memory, state)
        if len(kept) < len(alive):
            rows = torch.tensor(kept, dtype=torch.long, device=chosen.device)
            alive = [alive[row] for row in kept]
            encoded, chosen = Encoded(encoded.memory.select(rows), state.select(rows)), chosen[rows]
        previous = chosen[:, None]
    return [result for result in results if result is not None]


def _beam(
    model: Seq2Seq, encoded: Encoded, limits: list[int], config: TranslateConfig, device: torch.device
) -> list[Hypothesis]:
    """Beam search as of Sutskever et al. 2014, section 3.2.

    Of the 2K best continuations of a sentence, those among the first K that end are finished, and the first K that do
    not end are searched on. A sentence is done when K hypotheses are finished or its limit is reached, where what is
    still open counts as finished, so there is always a result.
    """
    size = config.beam_size
    finished: list[list[Hypothesis]] = [[] for _ in limits]
    alive = list(range(len(limits)))
    encoded = _repeated(encoded, len(limits), size, device)
    # Only the first beam starts: K equal ones would give each continuation K times.
    scores = torch.full((len(limits), size), float("-inf"), device=device)
    scores[:, 0] = 0.0
    history = torch.empty((len(limits), size, 0), dtype=torch.long, device=device)
    previous = torch.full((len(limits) * size, 1), BOS_ID, device=device)
    step = 0
    while alive:
        step += 1
        vectors, state, _ = model.decode(previous, encoded)
        gains = _log_probabilities(model, vectors[:, 0])
        num_pieces = gains.shape[-1]
        totals = (scores[:, :, None] + gains.view(len(alive), size, num_pieces)).flatten(1)
        best, flat = totals.topk(2 * size, dim=-1)
        beams, pieces = flat // num_pieces, flat % num_pieces
        ends = pieces == EOS_ID
        _collect(finished, alive, history, best, beams, ends, step, config)

        # The first K that do not end, in order: a stable sort puts them before those that do.
        order = ends.to(torch.uint8).sort(dim=-1, stable=True).indices[:, :size]
        scores, beams, pieces = best.gather(1, order), beams.gather(1, order), pieces.gather(1, order)
        history = torch.cat([history.gather(1, beams[:, :, None].expand(-1, -1, step - 1)), pieces[:, :, None]], dim=-1)
        kept = []
        for row, sentence in enumerate(alive):
            if len(finished[sentence]) < size and step < limits[sentence]:
                kept.append(row)
            elif len(finished[sentence]) < size:
                _close(finished[sentence], history[row], scores[row], step, config)
        offsets = torch.arange(len(alive), device=device)[:, None] * size
        rows = (beams + offsets).flatten()
        if len(kept) < len(alive):
            index = torch.tensor(kept, dtype=torch.long, device=device)
            rows = rows.view(len(alive), size)[index].flatten()
            alive = [alive[row] for row in kept]
            scores, pieces, history = scores[index], pieces[index], history[index]
            encoded = Encoded(encoded.memory.select(rows), state.select(rows))
        else:
            # Beams of one sentence share its memory: only the state moves.
            encoded = Encoded(encoded.memory, state.select(rows))
        previous = pieces.reshape(-1, 1)
    return [max(hypotheses, key=lambda hypothesis: hypothesis.score) for hypotheses in finished]


def _repeated(encoded: Encoded, number: int, size: int, device: torch.device) -> Encoded:
    return encoded.select(torch.arange(number, device=device).repeat_interleave(size))


def _collect(
    finished: list[list[Hypothesis]],
    alive: list[int],
    history: Tensor,
    best: Tensor,
    beams: Tensor,
    ends: Tensor,
    step: int,
    config: TranslateConfig,
) -> None:
    for row, rank in ends[:, : config.beam_size].nonzero().tolist():
        log_probability = float(best[row, rank])
        # Fewer than K open beams: the rest are at minus infinity.
        if log_probability == float("-inf") or len(finished[alive[row]]) >= config.beam_size:
            continue
        ids = history[row, int(beams[row, rank])].tolist()
        score = _rank_score(log_probability, step, config.length_penalty)
        finished[alive[row]].append(Hypothesis(ids, log_probability, score))


def _close(finished: list[Hypothesis], history: Tensor, scores: Tensor, step: int, config: TranslateConfig) -> None:
    for ids, log_probability in zip(history.tolist(), scores.tolist()):
        if log_probability > float("-inf"):
            score = _rank_score(log_probability, step, config.length_penalty)
            finished.append(Hypothesis(ids, log_probability, score))
