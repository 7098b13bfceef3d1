"""Embeddings that begin with vectors of words: which piece takes which, coverage, freezing, and the stage with them."""

from __future__ import annotations

import gzip
import itertools
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from nmt.architectures import build_model
from nmt.batches import collate
from nmt.checkpoint import load_model, training_checkpoints
from nmt.config import ModelTable, TrainConfig
from nmt.model.recurrent_config import RecurrentConfig
from nmt.model.seq2seq import Seq2Seq
from nmt.pretrained import begin_with_vectors, check_dimensions, prepare, read_coverage, words_of
from nmt.train import train
from nmt.training.gradients import FlatGradients
from nmt.training.optim import Averages, make_optimizer, pretrained_tables, trained_parameters
from nmt.training.step import UpdateFigures, World, train_step
from pipelines.config import BeamConfig, ShardConfig, TokenizerConfig
from pipelines.encode import encode
from pipelines.errors import InputError
from pipelines.fit_tokenizer import fit_tokenizer
from pipelines.shards import ShardColumns, read_parts, read_shards
from pipelines.stage import StageRun, stage_key
from pipelines.tokenizer import EOS_ID, PAD_ID, Tokenizer
from tests.nmt.conftest import LANGUAGES, ToyStages
from tests.nmt.toy_runs import broken_off_at

DIM = 16
SMALL = RecurrentConfig(embedding_dim=DIM, hidden_dim=8, dropout=0.1)


def write_vectors(path: Path, words: Mapping[str, Sequence[float]]) -> str:
    """Write vectors as fastText does, and return the path."""
    dimension = len(next(iter(words.values())))
    lines = [f"{len(words)} {dimension}", *(f"{word} {' '.join(map(repr, row))}" for word, row in words.items())]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def random_vectors(words: Sequence[str], *, seed: int, scale: float = 0.4) -> dict[str, list[float]]:
    rows = np.random.default_rng(seed).normal(0.0, scale, (len(words), DIM)).astype(np.float32)
    return {word: row.tolist() for word, row in zip(words, rows)}


@pytest.fixture(scope="module")
def separate(toy: ToyStages, tmp_path_factory: pytest.TempPathFactory) -> ToyStages:
    """The toy stages with a tokeniser for each language."""
    root = tmp_path_factory.mktemp("separate")
    tokenizer = fit_tokenizer(LANGUAGES, TokenizerConfig(vocab_size=32, joint=False), toy.cleaned, root)
    return ToyStages(toy.cleaned, tokenizer, encode(ShardConfig(), toy.cleaned, tokenizer, BeamConfig(), root), toy.ray)


def ids_of(stages: ToyStages) -> tuple[Mapping[str, int], Mapping[str, int]]:
    tokenizer = Tokenizer.load(stages.tokenizer.folder)
    return tokenizer.source_vocabulary().ids, tokenizer.target_vocabulary().ids


def begun(config: ModelTable, stages: ToyStages, folder: Path) -> tuple[Seq2Seq, Seq2Seq]:
    """A new model, and the same one with the vectors of its config."""
    tokenizer = Tokenizer.load(stages.tokenizer.folder)
    fresh, model = (build_model(config, tokenizer.source_size, tokenizer.target_size, seed=3) for _ in range(2))
    prepare(config, tokenizer, read_parts(stages.encoded.folder / "shards" / "train"), folder)
    begin_with_vectors(model, folder)
    return fresh, model


# Which piece takes which vector


def test_a_piece_takes_its_own_text_then_the_word_without_its_mark_then_in_lower_case() -> None:
    assert words_of("▁House") == ("▁House", "House", "house")
    assert words_of("House") == ("House",)
    assert words_of("▁") == ("▁",)


def first_found(piece: str, words: Mapping[str, Sequence[float]]) -> Sequence[float] | None:
    return next((words[word] for word in words_of(piece) if word in words), None)


def assert_begun(weight: torch.Tensor, before: torch.Tensor, expected: Mapping[int, Sequence[float]]) -> None:
    """Rows that are expected are exactly there; the others have their direction and the spread of those."""
    assert expected
    for number, row in expected.items():
        assert weight[number].tolist() == row
    others = [number for number in range(len(weight)) if number not in expected and number != PAD_ID]
    spread = torch.tensor(list(expected.values())).std(correction=0)
    torch.testing.assert_close(weight[others].std(correction=0), spread)
    scale = weight[others] / before[others]
    torch.testing.assert_close(scale, scale[0, 0].expand_as(scale))
    assert weight[PAD_ID].tolist() == [0.0] * DIM


def test_each_table_of_two_vocabularies_begins_with_its_vectors(separate: ToyStages, tmp_path: Path) -> None:
    source = random_vectors(["house", "tree", "dog", "▁cat", "cat", "s"], seed=1)
    target = random_vectors(["baum", "Katze", "und", "rot", "unseen"], seed=2)
    config = SMALL.model_copy(
        update={
            "share_embeddings": False,
            "source_vectors": write_vectors(tmp_path / "en.vec", source),
            "target_vectors": write_vectors(tmp_path / "de.vec", target),
        }
    )
    fresh, model = begun(config, separate, tmp_path)
    source_ids, target_ids = ids_of(separate)
    assert {"▁house", "▁cat"} <= set(source_ids) and "▁Baum" in target_ids
    found = {number: row for piece, number in source_ids.items() if (row := first_found(piece, source)) is not None}
    assert found[source_ids["▁cat"]] == source["▁cat"]
    assert_begun(model.source_embedding.table.weight, fresh.source_embedding.table.weight, found)
    found = {number: row for piece, number in target_ids.items() if (row := first_found(piece, target)) is not None}
    assert found[target_ids["▁Baum"]] == target["baum"]
    assert_begun(model.target_embedding.table.weight, fresh.target_embedding.table.weight, found)
    tables = {"source_embedding.table.weight", "target_embedding.table.weight"}
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, fresh.get_parameter(name)) == (name not in tables), name


def test_a_shared_table_takes_the_sources_vectors_first(toy: ToyStages, tmp_path: Path) -> None:
    both = ["rot", "red", "tree", "Haus"]
    source, target = random_vectors(both[:3], seed=1), random_vectors(both, seed=2)
    config = SMALL.model_copy(
        update={
            "source_vectors": write_vectors(tmp_path / "en.vec", source),
            "target_vectors": write_vectors(tmp_path / "de.vec", target),
        }
    )
    fresh, model = begun(config, toy, tmp_path)
    words = {**target, **source}
    found = {number: row for piece, number in ids_of(toy)[0].items() if (row := first_found(piece, words)) is not None}
    assert [found[ids_of(toy)[0][f"▁{word}"]] for word in ("rot", "Haus")] == [source["rot"], target["Haus"]]
    assert_begun(model.source_embedding.table.weight, fresh.source_embedding.table.weight, found)
    assert model.target_embedding is model.source_embedding
    assert list(read_coverage(tmp_path)) == ["shared"]


def test_special_pieces_have_no_vector(toy: ToyStages, tmp_path: Path) -> None:
    words = random_vectors(["<unk>", "<s>", "</s>", "<pad>", "tree"], seed=1)
    config = SMALL.model_copy(update={"source_vectors": write_vectors(tmp_path / "en.vec", words)})
    fresh, model = begun(config, toy, tmp_path)
    assert read_coverage(tmp_path)["shared"].found == 1
    assert_begun(
        model.source_embedding.table.weight,
        fresh.source_embedding.table.weight,
        {ids_of(toy)[0]["▁tree"]: words["tree"]},
    )


def test_coverage_counts_pieces_and_running_pieces_of_train(
    separate: ToyStages, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = random_vectors(["house", "tree"], seed=1)
    path = write_vectors(tmp_path / "en.vec", words)
    text = Path(path).read_text(encoding="utf-8").replace("2 16", "3 16", 1)
    Path(path).write_text(text + "house" + " 1" * DIM + "\n", encoding="utf-8")
    config = SMALL.model_copy(update={"share_embeddings": False, "source_vectors": path})
    with caplog.at_level(logging.INFO, logger="nmt"):
        begun(config, separate, tmp_path)
    ids = ids_of(separate)[0]
    shards = read_shards(separate.encoded.folder / "shards" / "train")
    running = [number for number in shards.src.tolist() if number != EOS_ID]
    taken = {ids["▁house"], ids["▁tree"]}
    share = sum(number in taken for number in running) / len(running)
    coverage = read_coverage(tmp_path)["source"]
    assert (coverage.pieces, coverage.found, coverage.running_pieces) == (len(ids), 2, len(running))
    assert 0 < coverage.covered == pytest.approx(share, abs=1e-6)
    assert coverage.repeated_words == 1
    said = f"source embeddings: vectors for 2 of {len(ids)} pieces, {100 * share:.1f} % of the running pieces of train"
    assert said in caplog.messages


def test_vectors_of_another_dimension_are_refused_by_the_key(tmp_path: Path) -> None:
    config = SMALL.model_copy(update={"target_vectors": write_vectors(tmp_path / "de.vec", {"und": [1.0, 2.0]})})
    with pytest.raises(InputError, match=r"model.target_vectors: .*have 2 components, embedding_dim is 16"):
        check_dimensions(config)


def test_vectors_of_which_no_piece_has_one_are_refused(toy: ToyStages, tmp_path: Path) -> None:
    words = random_vectors(["maison", "arbre"], seed=1)
    config = SMALL.model_copy(update={"source_vectors": write_vectors(tmp_path / "fr.vec", words)})
    with pytest.raises(InputError, match=r"model.source_vectors: none of the \d+ pieces of the tokeniser is a word"):
        begun(config, toy, tmp_path)


def test_freezing_without_vectors_is_refused() -> None:
    with pytest.raises(ValueError, match="set source_vectors or target_vectors, or leave it at 0"):
        RecurrentConfig(freeze_embeddings_updates=5)
    with pytest.raises(ValueError, match="freeze_embeddings_updates"):
        RecurrentConfig(source_vectors="a.vec", freeze_embeddings_updates=-1)
    assert RecurrentConfig(source_vectors="a.vec", freeze_embeddings_updates="always").vectors()


# Which tables there are: shared or not, tied or not, with one vocabulary or two


@pytest.mark.parametrize(("share", "tie", "sizes"), [
    (share, tie, sizes) for share, tie, sizes in itertools.product([True, False], [True, False], [(19, 19), (19, 23)])
    if not share or sizes[0] == sizes[1]
])  # fmt: skip
def test_embeddings_are_learned_shared_and_tied_in_every_combination(
    share: bool, tie: bool, sizes: tuple[int, int]
) -> None:
    config = SMALL.model_copy(update={"share_embeddings": share, "tie_target_embeddings": tie, "dropout": 0.0})
    model = build_model(config, *sizes).double()
    source, target = model.source_embedding.table.weight, model.target_embedding.table.weight
    assert (source is target) == share
    assert (model.output_matrix is target) == tie
    assert (source.shape, target.shape) == ((sizes[0], DIM), (sizes[1], DIM))
    tables = {id(source): source, id(target): target, id(model.output_matrix): model.output_matrix}
    others = [p for name, p in model.named_parameters() if "embedding" not in name and name != "output_weight"]
    assert model.num_parameters() == sum(p.numel() for p in [*tables.values(), *others])

    batch = collate(toy_rows(sizes), np.asarray([0, 3, 5]))
    vectors = model(batch.src, batch.src_lengths, batch.previous).vectors
    assert model.logits(vectors).shape[-1] == sizes[1]
    model.logits(vectors).logsumexp(-1).sum().backward()
    used = {*batch.previous.unique().tolist()} | ({*batch.src.unique().tolist()} if share else set())
    got = set(target.grad.abs().sum(1).nonzero().flatten().tolist())
    assert got == (set(range(sizes[1])) if tie else used - {PAD_ID})
    assert source.grad.abs().sum() > 0


def test_shared_embeddings_of_two_vocabularies_of_other_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="share_embeddings needs one vocabulary, found 19 and 23 pieces"):
        build_model(SMALL, 19, 23)


# Freezing


def toy_rows(sizes: tuple[int, int] = (19, 19)) -> ShardColumns:
    rng = np.random.default_rng(4)
    lengths = rng.integers(2, 7, 8)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    src, tgt = (rng.integers(4, size, offsets[-1]).astype(np.int32) for size in sizes)
    return ShardColumns(np.arange(8), src, offsets, tgt, offsets)


def updates(model: Seq2Seq, config: TrainConfig, number: int) -> Iterator[tuple[UpdateFigures, torch.optim.Optimizer]]:
    trained = trained_parameters(model)
    optimizer, flat, averages = make_optimizer(config, trained), FlatGradients(trained), Averages(trained, 0.9)
    for update in range(number):
        batch = collate(toy_rows(), np.asarray([update % 8, (update + 3) % 8]))
        figures = train_step(
            model, optimizer, flat, averages, [(0, batch)], config,
            update=update, target_tokens=int(batch.target_mask().sum()), rate=0.01, world=World(),
        )  # fmt: skip
        if not isinstance(model.config.freeze_embeddings_updates, str):
            tables = {id(table) for table in pretrained_tables(model)}
            averaged = [a for p, a in zip(averages.trained, averages.averages) if id(p) in tables]
            frozen = update < model.config.freeze_embeddings_updates
            assert all(torch.equal(a, t) == frozen for a, t in zip(averaged, pretrained_tables(model)))
        yield figures, optimizer


OPTIMISERS = ["adam", "adamw", "sgd"]
SIDES = {"source": {"source_vectors": "en.vec"}, "target": {"target_vectors": "de.vec"}}


def frozen_model(freeze: int | str, side: str, *, share: bool = False) -> Seq2Seq:
    config = SMALL.model_copy(
        update={"share_embeddings": share, "freeze_embeddings_updates": freeze, "dropout": 0.0, **SIDES[side]}
    )
    return build_model(config, 19, 19, seed=2)


@pytest.mark.parametrize("optimizer", OPTIMISERS)
@pytest.mark.parametrize("share", [False, True], ids=["separate", "shared"])
@pytest.mark.parametrize("side", SIDES)
def test_the_table_stays_bit_for_bit_in_the_first_updates_and_trains_then(
    side: str, share: bool, optimizer: str
) -> None:
    config = TrainConfig.model_validate({"optimizer": optimizer, "weight_decay": 0.1, "clip_norm": 0.05})
    model = frozen_model(3, side, share=share)
    table = getattr(model, f"{side}_embedding").table.weight
    (held,) = pretrained_tables(model)
    assert held is table
    others = {name: p for name, p in model.named_parameters() if p is not table}
    first = table.detach().clone()
    for update, _ in enumerate(updates(model, config, 5)):
        assert torch.equal(table, first) == (update < 3), update
    fresh = frozen_model(3, side, share=share)
    assert not any(torch.equal(p, fresh.get_parameter(name)) for name, p in others.items() if p.grad.any())


@pytest.mark.parametrize("optimizer", OPTIMISERS)
def test_after_the_border_the_table_begins_as_a_parameter_of_the_first_update(optimizer: str) -> None:
    config = TrainConfig.model_validate({"optimizer": optimizer, "weight_decay": 0.1, "clip_norm": 1e9})
    model, reference = (frozen_model(3, "source").double() for _ in range(2))
    table, name = model.source_embedding.table.weight, "source_embedding.table.weight"
    before: dict[str, torch.Tensor] = {}
    for update, _ in enumerate(updates(model, config, 4)):
        if update == 2:
            before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    # By hand: the fourth update's gradient from where the third ended, and torch's optimiser for this table alone.
    reference.load_state_dict(before)
    batch = collate(toy_rows(), np.asarray([3, 6]))
    vectors = reference(batch.src, batch.src_lengths, batch.previous).vectors
    real = batch.target_mask()
    torch.nn.functional.cross_entropy(
        reference.logits(vectors)[real], batch.target[real], label_smoothing=config.label_smoothing
    ).backward()
    alone = reference.get_parameter(name)
    by_hand = make_optimizer(config, [alone])
    by_hand.param_groups[0]["lr"] = 0.01
    by_hand.step()
    assert not torch.equal(table, before[name])
    torch.testing.assert_close(table, alone, rtol=1e-9, atol=1e-12)


def test_a_frozen_gradient_does_not_count_in_the_clipped_norm() -> None:
    config = TrainConfig(clip_norm=1e9)
    norms = {}
    for freeze in (0, 1, "always"):
        model = frozen_model(freeze, "source")
        (figures, _) = next(updates(model, config, 1))
        norms[freeze] = figures.gradient_norm
    assert norms[1] == norms["always"] < norms[0]
    model = frozen_model(0, "source")
    next(updates(model, config, 1))
    others = [p.grad for p in model.parameters() if p is not model.source_embedding.table.weight]
    norm = torch.linalg.vector_norm(torch.cat([gradient.flatten() for gradient in others])).item()
    assert norms[1] == pytest.approx(norm, rel=1e-6)


@pytest.mark.parametrize("optimizer", OPTIMISERS)
def test_always_means_no_gradient_no_optimiser_state_and_no_weight_decay(optimizer: str) -> None:
    config = TrainConfig.model_validate({"optimizer": optimizer, "weight_decay": 0.1})
    model = frozen_model("always", "target", share=False)
    table = model.target_embedding.table.weight
    first, bias = table.detach().clone(), model.output_bias.detach().clone()
    for _, optimizer_of_model in updates(model, config, 3):
        assert table.grad is None and not table.requires_grad
        assert table not in optimizer_of_model.state
        assert all(p is not table for group in optimizer_of_model.param_groups for p in group["params"])
    assert torch.equal(table, first)
    assert not torch.equal(model.output_bias, bias)
    assert model.output_matrix is table  # tied: the output layer's weight stays too


# The stage

TRAIN = TrainConfig(
    max_epochs=3, patience=9, microbatch_tokens=160, microbatches_per_update=4, learning_rate=0.01, warmup_updates=4,
    ema_decay=0.9, checkpoint_updates=2, log_updates=2, weight_decay=0.01,
)  # fmt: skip
BORDER = 5


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vectors")
    write_vectors(folder / "de.vec", random_vectors(["Haus", "Katze", "Baum", "rot"], seed=2))
    return folder / "de.vec"


def run_train(toy: ToyStages, root: Path, path: Path, freeze: int | str = BORDER) -> StageRun:
    model = SMALL.model_copy(update={"target_vectors": str(path), "freeze_embeddings_updates": freeze})
    return train(model, TRAIN, toy.encoded, toy.cleaned, toy.tokenizer, toy.ray, root, use_ray=False)


@pytest.fixture(scope="module")
def whole(toy: ToyStages, vectors: Path, tmp_path_factory: pytest.TempPathFactory) -> StageRun:
    return run_train(toy, tmp_path_factory.mktemp("whole"), vectors)


def newest(root: Path) -> Path:
    return training_checkpoints(next(root.glob("train-*")) / "checkpoints")[-1]


@pytest.mark.parametrize("lost_in", [1, 3, 5, 7], ids=["before a checkpoint", "before", "at", "behind the border"])
def test_a_run_that_broke_off_around_the_border_continues_bit_for_bit(
    toy: ToyStages, vectors: Path, whole: StageRun, tmp_path: Path, lost_in: int
) -> None:
    with broken_off_at(lost_in):
        run_train(toy, tmp_path, vectors)
    found = run_train(toy, tmp_path, vectors)
    for name in ("model", "optimizer", "averages"):
        expected = load_file(newest(whole.folder.parent) / f"{name}.safetensors")
        tensors = load_file(newest(tmp_path) / f"{name}.safetensors")
        assert tensors.keys() == expected.keys()
        assert all(torch.equal(tensors[key], tensor) for key, tensor in expected.items())
    coverage = found.manifest.counters["embedding_coverage"]
    assert coverage == whole.manifest.counters["embedding_coverage"]


def test_a_table_that_is_always_frozen_is_published_as_it_began(toy: ToyStages, vectors: Path, tmp_path: Path) -> None:
    run = run_train(toy, tmp_path, vectors, "always")
    model, _ = load_model(run.folder / "best")
    config = SMALL.model_copy(update={"target_vectors": str(vectors)})
    tokenizer = Tokenizer.load(toy.tokenizer.folder)
    began = build_model(config, tokenizer.source_size, tokenizer.target_size, seed=TRAIN.seed)
    prepare(config, tokenizer, read_parts(toy.encoded.folder / "shards" / "train"), tmp_path)
    begin_with_vectors(began, tmp_path)
    assert torch.equal(model.target_embedding.table.weight, began.target_embedding.table.weight)
    assert not torch.equal(model.output_bias, began.output_bias)
    moments = {key.partition("/")[0] for key in load_file(newest(tmp_path) / "optimizer.safetensors")}
    assert len(moments) == len(list(model.parameters())) - 1


def test_coverage_is_among_the_counters(toy: ToyStages, whole: StageRun) -> None:
    ids = ids_of(toy)[0]
    found = whole.manifest.counters["embedding_coverage"]["shared"]
    assert (found["pieces"], found["found"]) == (len(ids), 4)
    assert 0 < found["covered"] < 0.5


def test_the_key_depends_on_what_the_file_holds_and_not_on_where_it_lies(
    toy: ToyStages, vectors: Path, whole: StageRun, tmp_path: Path
) -> None:
    manifest = whole.manifest
    assert str(vectors) not in manifest.model_dump_json()
    assert manifest.config["model"]["freeze_embeddings_updates"] == BORDER
    elsewhere = tmp_path / "moved.txt"
    shutil.copy(vectors, elsewhere)
    assert run_train(toy, whole.folder.parent, elsewhere).reused
    assert manifest.key == stage_key("train", manifest.version, manifest.config, manifest.inputs)
    packed = tmp_path / "other.vec.gz"
    packed.write_bytes(gzip.compress(vectors.read_bytes()))
    with pytest.raises(_Planned):
        _plan(toy, whole.folder.parent, packed)


class _Planned(Exception):
    pass


def _plan(toy: ToyStages, root: Path, path: Path) -> None:
    from pipelines.stage import WouldRun, planning

    try:
        with planning():
            run_train(toy, root, path)
    except WouldRun as would:
        raise _Planned(would.inputs["target_vectors"]) from would


def test_a_trained_model_loads_where_there_are_no_vectors(whole: StageRun, vectors: Path) -> None:
    text = (whole.folder / "best" / "config.json").read_text(encoding="utf-8")
    assert vectors.name not in text
    model, config = load_model(whole.folder / "best")
    assert config.model.vectors() == {}
    assert config.model.freeze_embeddings_updates == 0
    assert model.config.embedding_dim == DIM
    assert not (whole.folder / "pretrained.safetensors").exists()
