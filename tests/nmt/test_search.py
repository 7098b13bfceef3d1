"""Search against a plain, unbatched one and against the best of all sequences."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from nmt.architectures import build_model
from nmt.config import TranslateConfig
from nmt.model.recurrent_config import RecurrentConfig
from nmt.model.seq2seq import Encoded, Seq2Seq
from nmt.search import max_target_pieces, search
from pipelines.tokenizer import BOS_ID, EOS_ID

SIZE = 9
SRC = torch.tensor([[4, 5, 6, 3], [7, 3, 0, 0], [8, 4, 3, 0]])
LENGTHS = torch.tensor([4, 2, 3])


def sharp_model(feeding: bool) -> Seq2Seq:
    """Return a model whose distributions are uneven enough for beams to differ."""
    config = RecurrentConfig(embedding_dim=6, hidden_dim=8, input_feeding=feeding)
    model = build_model(config, SIZE, SIZE, seed=2).double()
    with torch.no_grad():
        model.target_embedding.table.weight.mul_(12.0)
        model.output_bias[EOS_ID] = -1.0
    return model


def next_scores(model: Seq2Seq, row: int, ids: list[int]) -> list[float]:
    length = int(LENGTHS[row])
    encoded = model.encode(SRC[row : row + 1, :length], LENGTHS[row : row + 1])
    vectors, _, _ = model.decode(torch.tensor([[BOS_ID, *ids]]), Encoded(encoded.memory, encoded.state))
    scores = torch.log_softmax(model.logits(vectors[0, -1]), dim=-1)
    scores[[0, 1, 2]] = float("-inf")
    return scores.tolist()


def plain_beam(model: Seq2Seq, row: int, config: TranslateConfig) -> tuple[list[int], float]:
    limit = max_target_pieces(config, int(LENGTHS[row]))
    beams: list[tuple[float, list[int]]] = [(0.0, [])]
    finished: list[tuple[float, list[int]]] = []
    for step in range(1, limit + 1):
        options = [
            (total + gain, ids, piece)
            for total, ids in beams
            for piece, gain in enumerate(next_scores(model, row, ids))
            if gain > float("-inf")
        ]
        options.sort(key=lambda option: -option[0])
        options = options[: 2 * config.beam_size]
        for total, ids, piece in options[: config.beam_size]:
            if piece == EOS_ID and len(finished) < config.beam_size:
                finished.append((total / step**config.length_penalty, ids))
        beams = [(total, [*ids, piece]) for total, ids, piece in options if piece != EOS_ID][: config.beam_size]
        if len(finished) >= config.beam_size:
            break
    else:
        finished += [(total / limit**config.length_penalty, ids) for total, ids in beams]
    score, ids = max(finished, key=lambda pair: pair[0])
    return ids, score


@pytest.mark.parametrize("feeding", [True, False])
@pytest.mark.parametrize(("size", "penalty"), [(2, 0.0), (3, 1.0), (5, 0.6)])
def test_batched_beam_search_is_a_plain_one_sentence_by_sentence(feeding: bool, size: int, penalty: float) -> None:
    model = sharp_model(feeding)
    config = TranslateConfig(beam_size=size, length_penalty=penalty, max_length_factor=1.5, max_length_offset=2)
    for row, found in enumerate(search(model, SRC, LENGTHS, config)):
        ids, score = plain_beam(model, row, config)
        assert found.ids == ids
        assert found.score == pytest.approx(score, rel=1e-6)


def test_greedy_takes_the_best_piece_at_each_step() -> None:
    model = sharp_model(True)
    config = TranslateConfig(method="greedy", max_length_factor=1.5, max_length_offset=2)
    for row, found in enumerate(search(model, SRC, LENGTHS, config)):
        ids: list[int] = []
        for _ in range(max_target_pieces(config, int(LENGTHS[row]))):
            scores = next_scores(model, row, ids)
            piece = scores.index(max(scores))
            if piece == EOS_ID:
                break
            ids.append(piece)
        assert found.ids == ids


def test_a_beam_as_wide_as_all_sequences_finds_the_best_of_them() -> None:
    model = sharp_model(True)
    config = TranslateConfig(beam_size=60, length_penalty=0.0, max_length_factor=1e-9, max_length_offset=2)
    found = search(model, SRC[1:2], LENGTHS[1:2], config)[0]
    pieces = range(3, SIZE)
    best = -math.inf
    first = next_scores(model, 1, [])
    for piece, second in itertools.product(pieces, pieces):
        if piece == EOS_ID:
            best = max(best, first[piece])
        else:
            best = max(best, first[piece] + next_scores(model, 1, [piece])[second])
    assert found.log_probability == pytest.approx(best, rel=1e-9)


def test_no_translation_is_longer_than_its_limit() -> None:
    model = sharp_model(True)
    with torch.no_grad():
        model.output_bias[EOS_ID] = -1e6
    for method, size in (("greedy", 1), ("beam", 3)):
        config = TranslateConfig(method=method, beam_size=size, max_length_factor=2.0, max_length_offset=1)
        assert [len(found.ids) for found in search(model, SRC, LENGTHS, config)] == [9, 5, 7]
