"""Alignments of micro-batches: rows found in their files, few of those in memory; training that is guided by them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from nmt import alignments as module
from nmt.alignments import Alignments
from nmt.batches import collate
from nmt.checkpoint import load_model, training_checkpoints
from nmt.config import ModelTable, TrainConfig
from nmt.model.language_model import RecurrentLanguageModelConfig
from nmt.model.recurrent_config import RecurrentConfig
from nmt.model.transformer_config import TransformerConfig
from nmt.train import train
from nmt.training.metrics import read_metrics
from pipelines.align import align
from pipelines.alignments import PartLinks, read_alignments
from pipelines.config import AlignConfig, AugmentConfig, BeamConfig, ShardConfig, TokenizerConfig
from pipelines.encode import encode
from pipelines.errors import InputError
from pipelines.fit_tokenizer import fit_tokenizer
from pipelines.shards import ShardColumns, columns_of, read_shards
from pipelines.stage import StageRun
from tests.nmt.conftest import LANGUAGES, ToyStages

CONFIG = TrainConfig(
    max_epochs=8, microbatch_tokens=160, microbatches_per_update=1, learning_rate=0.02, warmup_updates=4,
    guided_alignment_weight=1.0, validate_epochs=8,
)  # fmt: skip
SMALL = RecurrentConfig(embedding_dim=16, hidden_dim=16, dropout=0.1)


class Window(NamedTuple):
    shards: ShardColumns


def write(folder: Path, parts: list[dict[int, list[tuple[int, int]]]]) -> Path:
    """Write files with the links of rows, (source, target), by their row_id."""
    folder.mkdir()
    for number, rows in enumerate(parts):
        columns = {
            "row_id": pa.array(list(rows), pa.int64()),
            "src": pa.array([[s for s, _ in links] for links in rows.values()], pa.list_(pa.uint16())),
            "tgt": pa.array([[t for _, t in links] for links in rows.values()], pa.list_(pa.uint16())),
        }
        table = pa.table(columns).replace_schema_metadata({"seqloom.alignment_format": "1"})
        pq.write_table(table, folder / f"part-{number:05d}.parquet")
    return folder


PARTS = [
    {3: [(0, 0), (1, 2)], 5: [], 8: [(2, 1)]},
    {},
    {20: [(0, 1), (0, 0), (2, 2)], 21: [(1, 0)]},
    {30: [(2, 0)]},
]


def window() -> Window:
    ids = [3, 5, 8, 20, 21, 30]
    rows = [np.array([7, 8, 9, 3], dtype=np.int32)] * len(ids)
    return Window(columns_of(np.array(ids), rows, rows))


def test_links_are_found_by_row_id_whatever_the_order_and_twice_where_a_row_comes_twice(tmp_path: Path) -> None:
    found = Alignments(write(tmp_path / "a", PARTS), 100)
    asked = [21, 3, 30, 5, 20, 3]
    places, src, tgt = found.links(np.array(asked))
    every = {row_id: links for part in PARTS for row_id, links in part.items()}
    exact = sorted((place, s, t) for place, row_id in enumerate(asked) for s, t in every[row_id])
    assert sorted(zip(places.tolist(), src.tolist(), tgt.tolist())) == exact
    assert [part.tolist() for part in found.links(np.array([], dtype=np.int64))] == [[], [], []]


def test_a_micro_batch_has_the_links_of_its_rows_and_made_rows_have_none(tmp_path: Path) -> None:
    rows = np.array([3, 0, 6, 4])  # row 6 is none of the shards'
    batch = collate(window().shards, np.array([3, 0, 1, 4]))
    found = Alignments(write(tmp_path / "a", PARTS), 100).aligned(batch, window(), rows).alignment
    expected = torch.zeros(4, 4, 4, dtype=torch.bool)
    for place, links in ((0, PARTS[2][20]), (1, PARTS[0][3]), (3, PARTS[2][21])):
        for s, t in links:
            expected[place, t, s] = True
    assert found is not None
    assert torch.equal(found, expected)


@pytest.mark.parametrize(("most_rows", "reads"), [(100, 3), (5, 4), (1, 4)])
def test_files_are_read_when_asked_of_and_few_are_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most_rows: int, reads: int
) -> None:
    read: list[str] = []

    def counted(path: Path) -> PartLinks:
        read.append(path.name)
        return read_alignments(path)

    monkeypatch.setattr(module, "read_alignments", counted)
    alignments = Alignments(write(tmp_path / "a", PARTS), most_rows)
    assert read == []
    for row_ids in ([3, 8], [5], [20], [21, 30], [3]):
        alignments.links(np.array(row_ids))
        held = [len(part.row_id) for part in alignments._held.values()]
        assert sum(held) <= most_rows or len(held) == 1
    # 3 + 2 + 1 rows: which are still held when row 3 is asked for again says the bound.
    assert len(read) == reads


def test_a_row_without_an_entry_is_named(tmp_path: Path) -> None:
    alignments = Alignments(write(tmp_path / "a", PARTS), 100)
    for row_id in (4, 22, 99):
        with pytest.raises(InputError, match=f"a: there is no alignment of row {row_id}"):
            alignments.links(np.array([3, row_id]))


# Training


@pytest.fixture(scope="module")
def aligned(toy: ToyStages, tmp_path_factory: pytest.TempPathFactory) -> StageRun:
    return align(AlignConfig(), toy.encoded, toy.tokenizer, BeamConfig(processes=1), tmp_path_factory.mktemp("aligned"))


def run(
    toy: ToyStages,
    aligned: StageRun | None,
    root: Path,
    *,
    config: TrainConfig = CONFIG,
    model: ModelTable = SMALL,
    workers: int | None = None,
) -> StageRun:
    ray = toy.ray.model_copy(update={"num_workers": workers or 1})
    return train(
        model, config, toy.encoded, toy.cleaned, toy.tokenizer, ray, root, use_ray=workers is not None, aligned=aligned
    )


def weights(found: StageRun) -> dict[str, torch.Tensor]:
    return load_file(training_checkpoints(found.folder / "checkpoints")[-1] / "model.safetensors")


def attended(toy: ToyStages, aligned: StageRun, found: StageRun) -> float:
    """Return the mean weight that attention has at the links of train."""
    model, _ = load_model(found.folder / "best")
    shards = read_shards(toy.encoded.folder / "shards" / "train")
    alignments = Alignments(aligned.folder / "alignments" / "train", 10_000)
    rows = np.arange(len(shards))
    batch = alignments.aligned(collate(shards, rows), Window(shards), rows)
    given = model(batch.src, batch.src_lengths, batch.previous, need_weights=True).weights
    assert batch.alignment is not None
    return given.detach()[batch.alignment].mean().item()


@pytest.fixture(scope="module")
def guided(toy: ToyStages, aligned: StageRun, tmp_path_factory: pytest.TempPathFactory) -> StageRun:
    return run(toy, aligned, tmp_path_factory.mktemp("guided"))


def test_the_toy_language_is_aligned_backwards(toy: ToyStages, aligned: StageRun) -> None:
    # Targets have their words in the opposite order.
    tension = aligned.manifest.counters["tension"]
    assert tension["target"] == pytest.approx(0.1, abs=0.01)
    assert aligned.manifest.counters["links"] > 0.5 * aligned.manifest.counters["tgt_pieces"]


def test_attention_follows_the_alignments_where_it_is_guided(
    toy: ToyStages, aligned: StageRun, guided: StageRun, tmp_path: Path
) -> None:
    plain = run(toy, aligned, tmp_path, config=CONFIG.model_copy(update={"guided_alignment_weight": 0.0}))
    assert attended(toy, aligned, guided) > 1.5 * attended(toy, aligned, plain)
    assert guided.manifest.inputs["aligned"] == aligned.manifest.digest()
    assert "aligned" not in plain.manifest.inputs


@pytest.mark.slow
def test_two_workers_are_guided_as_one_is(toy: ToyStages, aligned: StageRun, guided: StageRun, tmp_path: Path) -> None:
    found = weights(run(toy, aligned, tmp_path, workers=2))
    for name, expected in weights(guided).items():
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-5)


def test_all_objectives_train_together(toy: ToyStages, aligned: StageRun, tmp_path: Path) -> None:
    config = CONFIG.model_copy(
        update={"rdrop_weight": 1.0, "scheduled_sampling": 0.5, "scheduled_sampling_updates": 5, "max_epochs": 2}
    )
    table = TransformerConfig(
        embedding_dim=16, encoder_layers=1, decoder_layers=1, attention_heads=2, feed_forward_dim=32, dropout=0.1
    )
    found = run(toy, aligned, tmp_path, config=config, model=table)
    assert found.manifest.counters["stopped"] == "max_epochs"


def test_augmented_rows_train_without_links(toy: ToyStages, tmp_path: Path) -> None:
    # Its tokeniser knows all that noise may write.
    tokenizer = fit_tokenizer(LANGUAGES, TokenizerConfig(vocab_size=305, byte_fallback=True), toy.cleaned, tmp_path)
    encoded = encode(ShardConfig(), toy.cleaned, tokenizer, BeamConfig(processes=1), tmp_path, with_text=True)
    aligned = align(AlignConfig(iterations=1), encoded, tokenizer, BeamConfig(processes=1), tmp_path)
    config = CONFIG.model_copy(update={"max_epochs": 1, "validate_epochs": 1, "log_updates": 1})
    found = train(
        SMALL, config, encoded, toy.cleaned, tokenizer, toy.ray, tmp_path,
        use_ray=False, aligned=aligned, augment=AugmentConfig(merge=0.3, noise_words=0.3),
    )  # fmt: skip
    augmented = [line["augmented_rows"] for line in read_metrics(found.folder / "metrics.jsonl") if "padding" in line]
    assert 50 < augmented[0] < 240


def test_guidance_without_alignments_or_without_attention_is_refused(
    toy: ToyStages, aligned: StageRun, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"train.guided_alignment_weight: .* Run the stage align before"):
        run(toy, None, tmp_path)
    silent = SMALL.model_copy(update={"attention": "none"})
    for table in (silent, RecurrentLanguageModelConfig()):
        config = CONFIG.model_copy(update={"early_stopping_metric": "loss"})
        with pytest.raises(InputError, match=r"train.guided_alignment_weight: .* this model has none"):
            run(toy, aligned, tmp_path, model=table, config=config)
