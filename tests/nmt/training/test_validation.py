"""What the weights reach on dev: against plain loops, and sacreBLEU called by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sacrebleu
import torch
import torch.nn.functional as F

from nmt.architectures import build_model
from nmt.config import TrainConfig, TranslateConfig
from nmt.model.recurrent_config import RecurrentConfig
from nmt.model.seq2seq import Seq2Seq
from nmt.model.transformer_config import TransformerConfig
from nmt.search import search
from nmt.training.job import TrainJob
from nmt.training.step import World
from nmt.training.validation import check_dev, perplexity, read_dev, score_model, score_rows
from pipelines.config import AugmentConfig
from pipelines.errors import InputError
from pipelines.tokenizer import BOS_ID, Tokenizer
from tests.nmt.conftest import ToyStages, toy_pairs

MODEL = RecurrentConfig(embedding_dim=12, hidden_dim=16)
TRAIN = TrainConfig(microbatch_tokens=90, validation_beam_size=2)


@pytest.fixture(scope="module")
def tokenizer(toy: ToyStages) -> Tokenizer:
    return Tokenizer.load(toy.tokenizer.folder)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Seq2Seq:
    made = build_model(MODEL, tokenizer.source_size, tokenizer.target_size, seed=3).double()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.4, generator=generator)
    return made


def job_of(toy: ToyStages, folder: Path) -> TrainJob:
    return TrainJob(
        model=MODEL, train=TRAIN, folder=str(folder), shards=str(toy.encoded.folder / "shards"),
        references=str(toy.cleaned.folder / "clean" / "dev"), tokenizer=str(toy.tokenizer.folder),
        bleu_tokenize="none", threads=1, augment=AugmentConfig(), weights={},
    )  # fmt: skip


def test_loss_and_translations_are_those_of_each_row_alone(
    toy: ToyStages, tokenizer: Tokenizer, model: Seq2Seq, tmp_path: Path
) -> None:
    dev, _ = read_dev(job_of(toy, tmp_path), tokenizer)
    found = score_rows(model, dev, tokenizer, TRAIN, World())
    nll, pieces, translations = 0.0, 0, []
    rows = np.arange(len(dev))
    for source, target in zip(dev.sources(rows), dev.targets(rows)):
        src, lengths = torch.from_numpy(source).long()[None], torch.tensor([len(source)])
        previous = torch.tensor([[BOS_ID, *target[:-1].tolist()]])
        with torch.no_grad():
            logits = model.logits(model.decode(previous, model.encode(src, lengths)).vectors)[0]
        nll += F.cross_entropy(logits, torch.from_numpy(target).long(), reduction="sum").item()
        pieces += len(target)
        translations.append(search(model, src, lengths, TranslateConfig(beam_size=2))[0].ids)
    assert found.loss == pytest.approx(nll / pieces, rel=1e-10)
    assert found.translations == tokenizer.decode_target(translations)
    assert len(set(found.translations)) > 3


def limited(limit: int) -> Callable[..., Any]:
    """Return search on a device that has memory for so many rows."""

    def short(model: Seq2Seq, src: torch.Tensor, *others: Any) -> Any:
        if len(src) > limit:
            raise torch.OutOfMemoryError("out of memory, as a device would say")
        return search(model, src, *others)

    return short


def test_what_does_not_fit_is_scored_in_halves(
    toy: ToyStages, tokenizer: Tokenizer, model: Seq2Seq, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dev, _ = read_dev(job_of(toy, tmp_path), tokenizer)
    config = TRAIN.model_copy(update={"microbatch_tokens": 300})
    whole = score_rows(model, dev, tokenizer, config, World())
    monkeypatch.setattr("nmt.training.validation.search", limited(2))
    found = score_rows(model, dev, tokenizer, config, World())
    assert found.loss == pytest.approx(whole.loss, rel=1e-12)
    assert found.translations == whole.translations
    monkeypatch.setattr("nmt.training.validation.search", limited(0))
    with pytest.raises(InputError, match="of dev does not fit into memory by itself") as raised:
        score_rows(model, dev, tokenizer, config, World())
    assert raised.value.where == "train.validation_beam_size"


def test_rows_of_dev_beyond_the_positions_that_a_model_learns_are_refused(
    toy: ToyStages, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    job = job_of(toy, tmp_path)
    check_dev(job, tokenizer)  # where positions are not learned there is no bound
    dev, _ = read_dev(job, tokenizer)
    longest = max(2 * int(dev.src_lengths().max()) + 10, int(dev.tgt_lengths().max()))
    for positions in (longest, longest - 1):
        table = TransformerConfig(positions="learned", max_positions=positions, embedding_dim=8, attention_heads=2)
        learned = job.model_copy(update={"model": table})
        if positions == longest:
            check_dev(learned, tokenizer)
            continue
        with pytest.raises(InputError, match=f"needs up to {longest} positions .* the model learns {longest - 1}"):
            check_dev(learned, tokenizer)


def test_scores_are_those_of_sacrebleu(toy: ToyStages, tokenizer: Tokenizer, model: Seq2Seq, tmp_path: Path) -> None:
    job = job_of(toy, tmp_path)
    dev, references = read_dev(job, tokenizer)
    assert references == [target for _, target in toy_pairs("dev")]
    found = score_model(model, dev, references, tokenizer, job, World())
    hypotheses = score_rows(model, dev, tokenizer, TRAIN, World()).translations
    bleu = sacrebleu.corpus_bleu(hypotheses, [references], tokenize="none", force=True).score
    chrf = sacrebleu.corpus_chrf(hypotheses, [references]).score
    assert chrf > 0.0
    assert (found.dev["bleu"], found.dev["chrf"]) == (bleu, chrf)
    assert found.dev["loss"] == score_rows(model, dev, tokenizer, TRAIN, World()).loss


def test_samples_are_rows_spread_over_dev(toy: ToyStages, tokenizer: Tokenizer, model: Seq2Seq, tmp_path: Path) -> None:
    job = job_of(toy, tmp_path)
    found = score_model(model, *read_dev(job, tokenizer), tokenizer, job, World())
    pairs = toy_pairs("dev")
    assert [(sample["source"], sample["reference"]) for sample in found.samples] == [pairs[0], pairs[8], pairs[16]]


def test_seconds_of_loss_and_of_search_are_parts_of_the_whole(
    toy: ToyStages, tokenizer: Tokenizer, model: Seq2Seq, tmp_path: Path
) -> None:
    job = job_of(toy, tmp_path)
    found = score_model(model, *read_dev(job, tokenizer), tokenizer, job, World())
    assert 0.0 < found.loss_seconds < found.search_seconds
    assert found.loss_seconds + found.search_seconds <= found.seconds + 0.002  # each is rounded


def test_perplexity_has_a_bound_and_none_of_nothing() -> None:
    assert perplexity(3.0, 2) == pytest.approx(np.exp(1.5))
    assert perplexity(1e6, 1) == pytest.approx(np.exp(700.0))
    assert perplexity(0.0, 0) is None
