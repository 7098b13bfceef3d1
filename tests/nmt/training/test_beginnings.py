"""What training begins with: a published model's weights, by the same tokeniser or another, and what stays frozen."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from nmt.architectures import build_model
from nmt.batches import collate
from nmt.checkpoint import CheckpointConfig, save_model, training_checkpoints
from nmt.config import ModelTable, TrainConfig, TranslateConfig
from nmt.model.batch_norm import collectors
from nmt.model.language_model import RecurrentLanguageModelConfig
from nmt.model.recurrent_config import RecurrentConfig
from nmt.model.seq2seq import Seq2Seq
from nmt.model.transformer_config import TransformerConfig
from nmt.published import Translation, describe, load_published
from nmt.train import train
from nmt.training.beginnings import begin_with_model, check_beginnings, digests, freeze, frozen_parameters
from nmt.training.gradients import FlatGradients
from nmt.training.optim import Averages, make_optimizer, trained_parameters
from nmt.training.step import World, train_step
from pipelines.config import BeamConfig, NormalizeConfig, ShardConfig, TokenizerConfig
from pipelines.encode import encode
from pipelines.errors import InputError
from pipelines.fit_tokenizer import fit_tokenizer
from pipelines.shards import ShardColumns
from pipelines.stage import StageRun
from pipelines.tokenizer import Tokenizer
from tests.nmt.conftest import LANGUAGES, ToyStages
from tests.nmt.toy_runs import broken_off_at

TABLE = RecurrentConfig(embedding_dim=8, hidden_dim=8, dropout=0.1)
UNTIED = TABLE.model_copy(update={"tie_target_embeddings": False, "share_embeddings": False})
NORMED = TABLE.model_copy(update={"batch_norm": True})
LANGUAGE_MODEL = RecurrentLanguageModelConfig(embedding_dim=8, hidden_dim=8, share_embeddings=False)
CONFIG = TrainConfig(
    max_epochs=2, microbatch_tokens=160, microbatches_per_update=4, learning_rate=0.01, warmup_updates=0,
    weight_decay=0.1, ema_decay=0.5, checkpoint_updates=2,
)  # fmt: skip


def published(folder: Path, table: ModelTable, tokenizer: Path, *, seed: int = 5) -> Path:
    """Return the folder of a published model with the weights of a seed, moved by a little more than its biases."""
    loaded = Tokenizer.load(tokenizer)
    model = build_model(table, loaded.source_size, loaded.target_size, seed=seed)
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter += 0.01 * (number + 1)
    config = CheckpointConfig(
        model=table, source_size=loaded.source_size, target_size=loaded.target_size, tokenizer=loaded.digest, update=9
    )
    save_model(folder / "checkpoint", model, config)
    shutil.copytree(tokenizer, folder / "tokenizer", ignore=shutil.ignore_patterns("manifest.json"))
    translation = Translation(languages=LANGUAGES, normalize=NormalizeConfig(), translate=TranslateConfig())
    (folder / "translation.json").write_text(translation.model_dump_json(), encoding="utf-8")
    describe("parent", {}, folder)
    return folder


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoint" / "model.safetensors")


@pytest.fixture(scope="module")
def another(toy: ToyStages, tmp_path_factory: pytest.TempPathFactory) -> ToyStages:
    """The toy stages with another tokeniser, of other pieces."""
    root = tmp_path_factory.mktemp("another")
    tokenizer = fit_tokenizer(LANGUAGES, TokenizerConfig(kind="bpe", vocab_size=44), toy.cleaned, root)
    return ToyStages(toy.cleaned, tokenizer, encode(ShardConfig(), toy.cleaned, tokenizer, BeamConfig(), root), toy.ray)


def run(toy: ToyStages, root: Path, table: ModelTable = TABLE, **changes: Any) -> StageRun:
    config = CONFIG.model_copy(update=changes)
    return train(table, config, toy.encoded, toy.cleaned, toy.tokenizer, toy.ray, root, use_ray=False)


def newest_weights(found: StageRun) -> Mapping[str, torch.Tensor]:
    return load_file(training_checkpoints(found.folder / "checkpoints")[-1] / "model.safetensors")


# The weights of a published model


@pytest.mark.parametrize("table", [TABLE, UNTIED, NORMED, LANGUAGE_MODEL], ids=["tied", "untied", "normed", "lm"])
def test_of_the_same_tokeniser_all_weights_are_taken(toy: ToyStages, tmp_path: Path, table: ModelTable) -> None:
    folder = published(tmp_path / "model", table, toy.tokenizer.folder)
    tokenizer = Tokenizer.load(toy.tokenizer.folder)
    model = build_model(table, tokenizer.source_size, tokenizer.target_size, seed=1)
    begin_with_model(model, tokenizer, folder)
    found = model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in stored(folder).items())


@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("table", [TABLE, UNTIED, LANGUAGE_MODEL], ids=["tied", "untied", "lm"])
def test_of_another_tokeniser_rows_go_by_the_text_of_pieces_and_other_weights_are_taken(
    toy: ToyStages, tmp_path: Path, table: ModelTable, joint: bool
) -> None:
    if table is TABLE:
        joint = True  # it shares its embeddings
    configs = (TokenizerConfig(vocab_size=30, joint=joint), TokenizerConfig(kind="bpe", vocab_size=34, joint=joint))
    folders = [fit_tokenizer(LANGUAGES, config, toy.cleaned, tmp_path).folder for config in configs]
    folder = published(tmp_path / "model", table, folders[0])
    theirs, ours = (Tokenizer.load(found) for found in folders)
    model = build_model(table, ours.source_size, ours.target_size, seed=1)
    fresh = build_model(table, ours.source_size, ours.target_size, seed=1).state_dict()
    begin_with_model(model, ours, folder)
    vocabularies = {
        "source": (theirs.source_pieces(range(theirs.source_size)), ours.source_pieces(range(ours.source_size))),
        "target": (theirs.target_pieces(range(theirs.target_size)), ours.target_pieces(range(ours.target_size))),
    }
    assert (vocabularies["source"] == vocabularies["target"]) is joint
    of_pieces = {"source_embedding.table.weight": "source", "target_embedding.table.weight": "target"}
    of_pieces |= {"output_weight": "target", "output_bias": "target"}
    for name, tensor in stored(folder).items():
        found = model.state_dict()[name]
        if name not in of_pieces:
            assert torch.equal(found, tensor)
            continue
        old, new = vocabularies[of_pieces[name]]
        assert 4 < len(set(old) & set(new)) < len(new)
        for number, piece in enumerate(new):
            assert torch.equal(found[number], tensor[old.index(piece)] if piece in old else fresh[name][number])


def test_a_run_is_named_by_the_weights_and_not_by_where_they_lie(toy: ToyStages, tmp_path: Path) -> None:
    first = published(tmp_path / "first", TABLE, toy.tokenizer.folder)
    same = published(tmp_path / "same", TABLE, toy.tokenizer.folder)
    (tmp_path / "link").symlink_to(same)
    other = published(tmp_path / "other", TABLE, toy.tokenizer.folder, seed=6)
    keys = [digests(CONFIG.model_copy(update={"start_from": str(folder)})) for folder in (first, tmp_path / "link")]
    assert keys[0] == keys[1] != digests(CONFIG.model_copy(update={"start_from": str(other)}))
    assert digests(CONFIG) == {}


def test_training_begins_with_the_weights_and_says_so(
    toy: ToyStages, another: ToyStages, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = published(tmp_path / "model", TABLE, toy.tokenizer.folder)
    with caplog.at_level(logging.INFO):
        # A rate at which nothing moves: what is published is what it began with.
        found = run(toy, tmp_path / "a", start_from=str(folder), learning_rate=1e-30, weight_decay=0.0)
    assert all(torch.equal(newest_weights(found)[name], tensor) for name, tensor in stored(folder).items())
    size = Tokenizer.load(toy.tokenizer.folder).source_size
    assert found.manifest.counters["started_from"] == {
        "name": "parent",
        "version": load_published(folder).description.version,
        "tokenizer": "same",
        "pieces": {"source": {"pieces": size, "copied": size}, "target": {"pieces": size, "copied": size}},
    }
    assert found.manifest.inputs["start_from"] == digests(TrainConfig(start_from=str(folder)))["start_from"]
    assert "start_from" not in found.manifest.config["train"]
    assert "training begins with the weights of parent" in caplog.text
    other = run(another, tmp_path / "b", start_from=str(folder), max_epochs=1)
    counters = other.manifest.counters["started_from"]
    ours, theirs = (Tokenizer.load(stages.tokenizer.folder) for stages in (another, toy))
    shared = set(ours.source_pieces(range(44))) & set(theirs.source_pieces(range(size)))
    assert counters["tokenizer"] == "another"
    assert counters["pieces"]["source"] == {"pieces": 44, "copied": len(shared)}


def test_a_run_that_broke_off_continues_from_its_checkpoint_and_not_from_the_model(
    toy: ToyStages, tmp_path: Path
) -> None:
    folder = published(tmp_path / "model", TABLE, toy.tokenizer.folder)
    whole = run(toy, tmp_path / "whole", start_from=str(folder), freeze=("encoder",))
    with broken_off_at(5):
        run(toy, tmp_path / "broken", start_from=str(folder), freeze=("encoder",))
    continued = run(toy, tmp_path / "broken", start_from=str(folder), freeze=("encoder",))
    expected = newest_weights(whole)
    assert all(torch.equal(newest_weights(continued)[name], tensor) for name, tensor in expected.items())
    assert continued.manifest.counters["started_from"] == whole.manifest.counters["started_from"]


def test_another_table_is_refused_and_its_keys_are_named(toy: ToyStages, tmp_path: Path) -> None:
    folder = published(tmp_path / "model", TABLE, toy.tokenizer.folder)
    config = TrainConfig(start_from=str(folder))
    check_beginnings(TABLE, config)
    with pytest.raises(InputError, match=r"train.start_from: .*cell lstm, here gru, hidden_dim 8, here 16") as raised:
        check_beginnings(TABLE.model_copy(update={"cell": "gru", "hidden_dim": 16}), config)
    assert "dropout" not in str(raised.value)
    # Stronger dropout for a small corpus is of training, not of the weights.
    check_beginnings(TABLE.model_copy(update={"dropout": 0.4, "recurrent_dropout": 0.3, "word_dropout": 0.1}), config)
    with pytest.raises(InputError, match=r"architecture recurrent, here transformer"):
        check_beginnings(TransformerConfig(), config)


def test_what_is_no_published_model_or_has_changed_is_refused(toy: ToyStages, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no published model here"):
        check_beginnings(TABLE, TrainConfig(start_from=str(tmp_path)))
    folder = published(tmp_path / "model", TABLE, toy.tokenizer.folder)
    with (folder / "checkpoint" / "model.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(InputError, match="a file of the published model has changed"):
        check_beginnings(TABLE, TrainConfig(start_from=str(folder)))


def test_weights_and_vectors_at_once_are_refused(toy: ToyStages, tmp_path: Path) -> None:
    folder = published(tmp_path / "model", TABLE, toy.tokenizer.folder)
    with pytest.raises(InputError, match=r"model.source_vectors: embeddings cannot begin both"):
        check_beginnings(TABLE.model_copy(update={"source_vectors": "en.vec"}), TrainConfig(start_from=str(folder)))


# Frozen parts


def toy_shards() -> ShardColumns:
    rng = np.random.default_rng(4)
    offsets = np.concatenate([[0], np.cumsum(rng.integers(2, 7, 8))])
    ids = rng.integers(4, 19, offsets[-1]).astype(np.int32)
    return ShardColumns(np.arange(8), ids, offsets, ids[::-1].copy(), offsets)


def updated(model: Seq2Seq, beginnings: tuple[str, ...], config: TrainConfig = CONFIG) -> torch.optim.Optimizer:
    """Do three updates of a model with frozen parts, and return the optimiser."""
    freeze(model, beginnings)
    trained = trained_parameters(model)
    optimizer, flat = make_optimizer(config, trained), FlatGradients(trained, collectors(model))
    averages = Averages(trained, config.ema_decay)
    batch = collate(toy_shards(), np.arange(8))
    for update in range(3):
        train_step(
            model, optimizer, flat, averages, [(0, batch)], config,
            update=update, target_tokens=int(batch.target_lengths.sum()), rate=0.1, world=World(),
        )  # fmt: skip
    return optimizer


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd", "adafactor"])
@pytest.mark.parametrize("part", ["encoder", "source_embedding", "decoder.attention", "output_bias"])
def test_frozen_parts_stay_bit_for_bit_and_have_no_moments_and_the_others_move(part: str, optimizer: str) -> None:
    model = build_model(TABLE, 19, 19)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = CONFIG.model_copy(update={"optimizer": optimizer})
    state = updated(model, (part,), config).state_dict()
    frozen = {name for name, _ in model.named_parameters() if name.startswith(part)}
    assert frozen
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == {name for name, _ in model.named_parameters()} - frozen
    assert len(state["param_groups"][0]["params"]) == len(moved)


def test_either_name_of_a_shared_table_freezes_it() -> None:
    for part in ("source_embedding", "target_embedding"):
        model = build_model(TABLE, 19, 19)
        before = model.output_matrix.clone()
        updated(model, (part,))
        assert torch.equal(model.output_matrix, before)
        assert frozen_parameters(model, (part,)) == [model.source_embedding.table.weight]


def test_a_beginning_is_of_whole_words() -> None:
    model = build_model(TransformerConfig(encoder_layers=11, decoder_layers=1, embedding_dim=8), 19, 19)
    named = dict(model.named_parameters())
    found = frozen_parameters(model, ("encoder.layers.1",))
    assert {id(parameter) for parameter in found} == {
        id(parameter) for name, parameter in named.items() if name.startswith("encoder.layers.1.")
    }
    assert not any(id(named[name]) in {id(x) for x in found} for name in named if ".10." in name)


def test_a_frozen_batch_norm_keeps_its_statistics_and_is_one_of_evaluation() -> None:
    model = build_model(NORMED, 19, 19)
    updated(model, ("encoder",))
    assert collectors(model) == []
    norms = [module for module in model.modules() if hasattr(module, "running_mean")]
    assert norms
    assert all(not module.running_mean.any() and (module.running_var == 1.0).all() for module in norms)
    trained = build_model(NORMED, 19, 19)
    updated(trained, ("decoder",))
    assert all(module.running_mean.any() for module in collectors(trained))


def test_a_beginning_of_no_name_and_one_of_all_are_refused() -> None:
    with pytest.raises(InputError, match=r"train.freeze: no parameter's name begins with 'enc'.* source_embedding, "):
        check_beginnings(TABLE, TrainConfig(freeze=("enc",)))
    known = ("source_embedding", "encoder", "decoder", "output_bias")
    with pytest.raises(InputError, match="all parameters are frozen"):
        check_beginnings(TABLE, TrainConfig(freeze=known))
    check_beginnings(TABLE, TrainConfig(freeze=known[:-1]))


def test_a_table_is_not_frozen_for_always_and_for_some_updates() -> None:
    table = TABLE.model_copy(update={"source_vectors": "en.vec", "freeze_embeddings_updates": 5})
    with pytest.raises(InputError, match=r"train.freeze: a table that train.freeze keeps"):
        check_beginnings(table, TrainConfig(freeze=("target_embedding",)))
    check_beginnings(table, TrainConfig(freeze=("encoder",)))


def test_a_run_with_frozen_parts_counts_them(toy: ToyStages, tmp_path: Path) -> None:
    found = run(toy, tmp_path, freeze=("encoder", "source_embedding"), max_epochs=1)
    tokenizer = Tokenizer.load(toy.tokenizer.folder)
    fresh = build_model(TABLE, tokenizer.source_size, tokenizer.target_size, seed=CONFIG.seed)
    weights = newest_weights(found)
    named = dict(fresh.named_parameters())
    frozen = {name for name in named if name.startswith(("encoder.", "source_embedding."))}
    assert {name for name in named if torch.equal(weights[name], named[name])} == frozen
    assert found.manifest.counters["frozen_parameters"] == sum(named[name].numel() for name in frozen)
    assert "started_from" not in found.manifest.counters
