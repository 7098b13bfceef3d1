"""Attention of the sample translations: distributions over the source's pieces, as JSON and as pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from nmt.architectures import build_model
from nmt.model.recurrent_config import RecurrentConfig
from nmt.model.transformer_config import TransformerConfig
from nmt.training.attention_maps import attention_maps, picture, write_maps
from nmt.translator import AttentionMap, as_record
from pipelines.tokenizer import BOS_ID, Tokenizer
from tests.nmt.conftest import ToyStages

SAMPLES = [
    {"source": "red house", "reference": "Haus rot", "hypothesis": "Haus und rot"},
    {"source": "dog", "reference": "Hund", "hypothesis": ""},
]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tokenizer(toy: ToyStages) -> Tokenizer:
    return Tokenizer.load(toy.tokenizer.folder)


@pytest.mark.parametrize(
    "config",
    [
        RecurrentConfig(embedding_dim=8, hidden_dim=8, attention="additive"),
        TransformerConfig(embedding_dim=8, attention_heads=2, feed_forward_dim=16, encoder_layers=1, decoder_layers=1),
    ],
    ids=lambda config: config.architecture,
)
def test_a_map_is_the_models_attention_along_the_hypothesis(
    config: RecurrentConfig | TransformerConfig, tokenizer: Tokenizer
) -> None:
    model = build_model(config, tokenizer.source_size, tokenizer.target_size, seed=1)
    (found,) = attention_maps(model, SAMPLES, tokenizer, CPU)
    source, target = tokenizer.encode_source(["red house"])[0], tokenizer.encode_target(["Haus und rot"])[0]
    with torch.inference_mode():
        expected = model(
            torch.tensor([source]),
            torch.tensor([len(source)]),
            torch.tensor([[BOS_ID, *target[:-1]]]),
            need_weights=True,
        ).weights[0]
    assert np.asarray(found["attention"]) == pytest.approx(expected.numpy(), abs=5e-5)
    assert np.asarray(found["attention"]).sum(axis=1) == pytest.approx(np.ones(len(target)), abs=1e-3)
    # The names are those of attention.json of the stage translate.
    assert set(as_record(AttentionMap([], [], []))) <= set(found)
    assert found["source_pieces"] == tokenizer.source_pieces(source)
    assert found["target_pieces"] == tokenizer.target_pieces(target)
    assert (found["source"], found["hypothesis"]) == ("red house", "Haus und rot")


def test_a_model_without_attention_has_no_map(tokenizer: Tokenizer) -> None:
    config = RecurrentConfig(embedding_dim=8, hidden_dim=8, attention="none", input_feeding=False)
    model = build_model(config, tokenizer.source_size, tokenizer.target_size, seed=1)
    assert attention_maps(model, SAMPLES, tokenizer, CPU) == []


def test_samples_without_a_translation_have_no_map(tokenizer: Tokenizer) -> None:
    model = build_model(RecurrentConfig(embedding_dim=8, hidden_dim=8), 48, 48, seed=1)
    assert attention_maps(model, SAMPLES[1:], tokenizer, CPU) == []
    assert attention_maps(model, [], tokenizer, CPU) == []


def test_maps_are_written_by_update(tmp_path: Path) -> None:
    maps = [{"source": "日本", "attention": [[1.0]]}]
    path = write_maps(tmp_path, 40, maps)
    assert path == tmp_path / "attention" / "update-00000040.json"
    assert json.loads(path.read_text(encoding="utf-8")) == maps
    assert "日本" in path.read_text(encoding="utf-8")


def test_a_picture_is_darkest_where_attention_is_highest() -> None:
    attention = {
        "source_pieces": ["▁日本", "$a_b$", "</s>"], "target_pieces": ["▁x", "</s>"],
        "attention": [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]],
    }  # fmt: skip
    pixels = picture(attention).astype(float)
    assert pixels.shape[2] == 3
    # The darkest blue of the scale fills two of the six cells; white the other four.
    blue = (pixels == np.asarray([8.0, 48.0, 107.0])).all(axis=2)
    rows, columns = np.nonzero(blue)
    assert len(rows) > 200
    height, middle = rows.max() - rows.min(), (columns.min() + columns.max()) / 2
    upper, lower = columns[rows < rows.min() + height / 4], columns[rows > rows.max() - height / 4]
    assert upper.max() < middle < lower.min()
