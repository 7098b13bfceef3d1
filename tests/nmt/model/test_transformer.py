"""The whole transformer: torch's own, padding, batching, step by step, weights, precision, its keys."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from nmt.architectures import build_model, model_table
from nmt.config import TranslateConfig
from nmt.model.multi_head_attention import look_back
from nmt.model.positions import sinusoids
from nmt.model.seq2seq import Encoded, Seq2Seq
from nmt.model.transformer import ARCHITECTURE, Decoder, Encoder
from nmt.model.transformer_config import TransformerConfig
from nmt.search import search
from pipelines.tokenizer import BOS_ID, EOS_ID
from tests.nmt.model.test_transformer_layers import torchs_decoder_layer, torchs_encoder_layer

SIZE, E = 23, 12
SIZES = {"embedding_dim": E, "attention_heads": 3, "feed_forward_dim": 20, "encoder_layers": 2, "decoder_layers": 2}


def table(**keys: Any) -> TransformerConfig:
    return TransformerConfig.model_validate({**SIZES, **keys})


MODELS = [
    table(positions=positions, decoder=decoder, norm=norm, activation=activation, word_dropout=0.1)
    for (positions, decoder), (norm, activation) in itertools.product(
        itertools.product(["sinusoidal", "learned", "rotary"], ["self_attention", "ssru"]),
        [("pre", "gated"), ("post", "relu")],
    )
]


def name(config: TransformerConfig) -> str:
    return f"{config.positions}-{config.decoder}-{config.norm}-{config.activation}"


def model_of(config: TransformerConfig) -> Seq2Seq:
    return build_model(config, SIZE, SIZE).double()


def batch() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    src = torch.randint(4, SIZE, (3, 6), generator=generator)
    previous = torch.randint(4, SIZE, (3, 7), generator=generator)
    return src, torch.tensor([6, 2, 4]), previous


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def logits(model: Seq2Seq, src: Tensor, lengths: Tensor, previous: Tensor) -> Tensor:
    return model.logits(model(src, lengths, previous).vectors)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_the_whole_model_is_torchs_transformer(norm: str) -> None:
    config = table(norm=norm, activation="gelu")
    model = model_of(config)
    src, lengths, previous = batch()
    assert isinstance(model.encoder, Encoder)
    assert isinstance(model.decoder, Decoder)
    encoder = [torchs_encoder_layer(layer, config) for layer in model.encoder.layers]  # type: ignore[arg-type]
    decoder = [torchs_decoder_layer(layer, config) for layer in model.decoder.layers]  # type: ignore[arg-type]
    final = nn.LayerNorm(E).double() if norm == "pre" else nn.Identity()

    def inputs(ids: Tensor) -> Tensor:
        embedded = model.source_embedding.table.weight[ids] * math.sqrt(E)
        return embedded + sinusoids(ids.shape[1], E, ids.device, dtype=torch.float64)

    padding = torch.arange(6) >= lengths[:, None]
    source, x = inputs(src), inputs(previous)
    for layer in encoder:
        source = layer(source, src_key_padding_mask=padding)
    for layer in decoder:
        causal = ~look_back(7, 0, x.device)[0, 0]
        x = layer(x, final(source), tgt_mask=causal, memory_key_padding_mask=padding)
    close(model(src, lengths, previous).vectors, final(x))


@pytest.mark.parametrize("config", MODELS, ids=name)
def test_padding_changes_nothing_and_neither_do_the_batchs_other_rows(config: TransformerConfig) -> None:
    model = model_of(config)
    src, lengths, previous = batch()
    whole = logits(model, src, lengths, previous)
    noisy = torch.cat([src, torch.randint(0, SIZE, (3, 4))], dim=1)
    for row, length in enumerate(lengths.tolist()):
        noisy[row, length:] = torch.randint(0, SIZE, (10 - length,))
    close(logits(model, noisy, lengths, previous), whole)
    for row, length in enumerate(lengths.tolist()):
        alone = logits(model, src[row : row + 1, :length], lengths[row : row + 1], previous[row : row + 1])
        close(alone[0], whole[row])


@pytest.mark.parametrize("config", MODELS, ids=name)
def test_a_target_piece_sees_none_that_comes_after_it(config: TransformerConfig) -> None:
    model = model_of(config)
    src, lengths, previous = batch()
    changed = previous.clone()
    changed[:, 4:] = torch.randint(0, SIZE, (3, 3))
    close(logits(model, src, lengths, changed)[:, :4], logits(model, src, lengths, previous)[:, :4])


@pytest.mark.parametrize("config", MODELS, ids=name)
def test_padding_gets_no_gradient_and_gives_none(config: TransformerConfig) -> None:
    def gradients(width: int) -> list[Tensor]:
        model = model_of(config)
        src, lengths, previous = batch()
        src = torch.nn.functional.pad(src, (0, width), value=7)
        logits(model, src, lengths, previous).pow(2).sum().backward()
        return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]

    narrow, wide = gradients(0), gradients(5)
    assert len(narrow) == len(list(model_of(config).parameters()))
    for found, expected in zip(wide, narrow):
        close(found, expected)


@pytest.mark.parametrize("chunks", [[1] * 7, [1, 4, 2], [3, 1, 3]], ids=str)
@pytest.mark.parametrize("config", MODELS, ids=name)
def test_steps_one_at_a_time_or_some_at_a_time_give_what_all_at_once_give(
    config: TransformerConfig, chunks: list[int]
) -> None:
    model = model_of(config)
    src, lengths, previous = batch()
    encoded = model.encode(src, lengths)
    together, _, weights = model.decode(previous, encoded, need_weights=True)
    parts = []
    for chunk in previous.split(chunks, dim=1):
        parts.append(model.decode(chunk, encoded, need_weights=True))
        encoded = Encoded(encoded.memory, parts[-1].state)
    close(torch.cat([part.vectors for part in parts], dim=1), together)
    assert weights is not None
    close(torch.cat([part.weights for part in parts if part.weights is not None], dim=1), weights)


@pytest.mark.parametrize("config", MODELS, ids=name)
def test_selected_rows_go_on_as_those_rows_alone(config: TransformerConfig) -> None:
    model = model_of(config)
    src, lengths, previous = batch()
    encoded = model.encode(src, lengths)
    whole, state, _ = model.decode(previous[:, :3], encoded)
    rows = torch.tensor([2, 0, 2, 1])
    selected = Encoded(encoded.memory, state).select(rows)
    found = model.decode(previous[rows, 3:], selected).vectors
    close(found, model.decode(previous, encoded).vectors[rows, 3:])
    close(model.decode(previous[rows, :3], encoded.select(rows)).vectors, whole[rows])


@pytest.mark.parametrize("config", MODELS, ids=name)
def test_weights_are_distributions_over_the_real_source_and_change_no_vector(config: TransformerConfig) -> None:
    model = model_of(config)
    src, lengths, previous = batch()
    plain, asked = model(src, lengths, previous), model(src, lengths, previous, need_weights=True)
    assert plain.weights is None
    assert torch.equal(asked.vectors, plain.vectors)
    assert asked.weights.shape == (3, 7, 6)
    close(asked.weights.sum(dim=-1), torch.ones(3, 7, dtype=torch.float64))
    assert not asked.weights.masked_select((torch.arange(6) >= lengths[:, None])[:, None]).any()


def test_noise_is_a_function_of_the_generators_seed_alone() -> None:
    config = table(attention_dropout=0.2, activation_dropout=0.2, word_dropout=0.1)
    model = model_of(config)
    src, lengths, previous = batch()

    def with_seed(seed: int, global_seed: int) -> Tensor:
        torch.manual_seed(global_seed)
        return model(src, lengths, previous, torch.Generator().manual_seed(seed)).vectors

    assert torch.equal(with_seed(1, 1), with_seed(1, 2))
    assert not torch.equal(with_seed(1, 1), with_seed(2, 1))


@pytest.mark.parametrize("rate", ["dropout", "attention_dropout", "activation_dropout", "word_dropout"])
def test_each_rate_of_dropout_acts_in_training_and_not_in_evaluation(rate: str) -> None:
    src, lengths, previous = batch()
    model = model_of(table(**{"dropout": 0.0, rate: 0.5}))
    generator = torch.Generator().manual_seed(1)
    assert not torch.equal(model(src, lengths, previous, generator).vectors, model(src, lengths, previous).vectors)
    without = model_of(table(dropout=0.0))
    close(model(src, lengths, previous).vectors, without(src, lengths, previous).vectors)


@pytest.mark.parametrize("config", MODELS, ids=name)
def test_bfloat16_is_near_float32_forward_and_backward(config: TransformerConfig) -> None:
    config = config.model_copy(update={"embedding_dim": 96, "feed_forward_dim": 192})

    def run(*, bfloat16: bool) -> tuple[Tensor, Tensor, Tensor]:
        model = build_model(config, SIZE, SIZE)
        src, lengths, previous = batch()
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            decoded = model(src, lengths, previous, need_weights=True)
            scores = model.logits(decoded.vectors)
        assert decoded.weights.dtype == torch.float32
        scores.float().logsumexp(dim=-1).sum().backward()
        return scores.float(), decoded.weights, model.source_embedding.table.weight.grad

    # The gradient's bound is wider: a unit near zero that changes its sign has relu's gradient or none.
    for found, expected, bound in zip(run(bfloat16=True), run(bfloat16=False), (0.01, 0.01, 0.05)):
        assert (found - expected).norm() < bound * expected.norm()


@pytest.mark.parametrize("config", MODELS[:6], ids=name)
def test_steps_in_bfloat16_are_near_all_steps_at_once(config: TransformerConfig) -> None:
    model = build_model(config, SIZE, SIZE)
    src, lengths, previous = batch()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        encoded = model.encode(src, lengths)
        together = model.decode(previous, encoded).vectors
        for t in range(7):
            vector, state, _ = model.decode(previous[:, t : t + 1], encoded)
            torch.testing.assert_close(vector[:, 0].float(), together[:, t].float(), rtol=0.05, atol=0.1)
            encoded = Encoded(encoded.memory, state)


def test_the_search_scores_are_those_of_teacher_forcing() -> None:
    model = model_of(table(positions="rotary"))
    src, lengths, _ = batch()
    for row, hypothesis in enumerate(search(model, src, lengths, TranslateConfig(beam_size=3))):
        pieces = torch.tensor([*hypothesis.ids, EOS_ID])
        previous = torch.tensor([[BOS_ID, *hypothesis.ids]])
        scores = logits(model, src[row : row + 1, : lengths[row]], lengths[row : row + 1], previous)[0].log_softmax(-1)
        steps = scores[torch.arange(len(pieces)), pieces]
        # A hypothesis that reached its limit has no EOS.
        assert hypothesis.log_probability in (
            pytest.approx(steps.sum().item(), abs=1e-9),
            pytest.approx(steps[:-1].sum().item(), abs=1e-9),
        )


def test_learned_positions_end_where_the_table_does() -> None:
    model = model_of(table(positions="learned", max_positions=7))
    src, lengths, previous = batch()
    _, state, _ = model.decode(previous, encoded := model.encode(src, lengths))
    with pytest.raises(ValueError, match="8 positions, but the model has learned 7"):
        model.decode(previous[:, :1], Encoded(encoded.memory, state))
    with pytest.raises(ValueError, match="max_positions"):
        model.encode(torch.full((1, 8), 5), torch.tensor([8]))


def test_pre_norm_has_a_norm_after_the_last_layer_and_post_norm_has_none() -> None:
    pre, post = (build_model(table(norm=norm), SIZE, SIZE) for norm in ("pre", "post"))
    assert pre.num_parameters() - post.num_parameters() == 2 * 2 * E


def test_the_base_model_has_the_papers_number_of_parameters() -> None:
    base = TransformerConfig(norm="post", feed_forward_dim=2048)
    model = build_model(base, 37_000, 37_000)
    layer = 4 * (512 * 512 + 512) + 2 * 512 * 2048 + 2048 + 512
    encoder, decoder = layer + 2 * 2 * 512, layer + 4 * (512 * 512 + 512) + 3 * 2 * 512
    assert model.num_parameters() == 6 * (encoder + decoder) + 37_000 * 512 + 37_000
    assert round(model.num_parameters() / 1e6) in range(60, 66)  # table 3: 65 million


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"embedding_dim": 10, "attention_heads": 4}, "attention_heads 4 must divide embedding_dim 10"),
        ({"embedding_dim": 9, "attention_heads": 3}, "embedding_dim 9 must be even for sinusoidal positions"),
        ({"embedding_dim": 9, "attention_heads": 3, "positions": "rotary"}, "rotary positions need an even"),
        ({"norm": "before"}, "norm"),
        ({"encoder_layers": 0}, "encoder_layers"),
        ({"cell": "lstm"}, "cell"),
    ],
)
def test_keys_that_cannot_work_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        model_table({"architecture": "transformer", **keys})


@pytest.mark.parametrize("variant", ARCHITECTURE.variants, ids=lambda variant: variant.name)
def test_every_variant_is_a_model_that_decodes(variant: Any) -> None:
    sizes = {key: value for key, value in SIZES.items() if key not in variant.keys}
    config = model_table({"architecture": "transformer", **sizes, **variant.keys})
    src, lengths, previous = batch()
    assert logits(build_model(config, SIZE, SIZE), src, lengths, previous).shape == (3, 7, SIZE)
