"""Scores of lines: those of a plain loop, in their order, and every line accounted for."""

from __future__ import annotations

import gzip
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from nmt.checkpoint import load_model
from nmt.config import ModelTable, ScoreConfig, TrainConfig, TranslateConfig
from nmt.model.language_model import RecurrentLanguageModelConfig
from nmt.model.recurrent_config import RecurrentConfig
from nmt.model.seq2seq import Seq2Seq
from nmt.published import Translation, describe
from nmt.score_texts import ModelFiles, Scorer, published_files, score_texts
from nmt.train import train
from pipelines.config import NormalizeConfig
from pipelines.errors import InputError
from pipelines.tokenizer import BOS_ID, EOS_ID, Tokenizer
from tests.nmt.conftest import LANGUAGES, ToyStages, toy_pairs

TRAIN = TrainConfig(max_epochs=2, microbatch_tokens=320, learning_rate=0.01, early_stopping_metric="loss")
MODELS: dict[str, ModelTable] = {
    "pairs": RecurrentConfig(embedding_dim=12, hidden_dim=16),
    "source": RecurrentLanguageModelConfig(embedding_dim=12, hidden_dim=16, layers=1, side="source"),
    "target": RecurrentLanguageModelConfig(embedding_dim=12, hidden_dim=16, layers=1, side="target"),
}
CONFIG = ScoreConfig(batch_tokens=40, lines_at_once=7)


@pytest.fixture(scope="module")
def models(toy: ToyStages, tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelFiles]:
    """Return a little trained models of pairs and of each side, published."""
    found = {}
    for name, table in MODELS.items():
        root = tmp_path_factory.mktemp(name)
        trained = train(table, TRAIN, toy.encoded, toy.cleaned, toy.tokenizer, toy.ray, root, use_ray=False)
        folder = root / "model"
        shutil.copytree(trained.folder / "best", folder / "checkpoint")
        shutil.copytree(toy.tokenizer.folder, folder / "tokenizer")
        translation = Translation(languages=LANGUAGES, normalize=NormalizeConfig(), translate=TranslateConfig())
        (folder / "translation.json").write_text(translation.model_dump_json(), encoding="utf-8")
        describe(name, {}, folder)
        found[name] = published_files(folder)
    return found


def written(path: Path, lines: list[str]) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def plain_loop(files: ModelFiles, source: list[int] | None, target: list[int]) -> float:
    """Return log P(target | source), one piece after the other."""
    model, _ = load_model(files.checkpoint)
    src = torch.tensor([source or []], dtype=torch.long)
    total, previous = 0.0, [BOS_ID]
    with torch.no_grad():
        for piece in target:
            vectors = model(src, torch.tensor([src.shape[1]]), torch.tensor([previous])).vectors
            total += float(torch.log_softmax(model.logits(vectors[0, -1]).double(), dim=-1)[piece])
            previous.append(piece)
    return total


def encoded(files: ModelFiles, name: str, source: str, target: str | None) -> tuple[list[int] | None, list[int]]:
    tokenizer = Tokenizer.load(files.tokenizer)
    if name == "pairs":
        assert target is not None
        return tokenizer.encode_source([source])[0], tokenizer.encode_target([target])[0]
    return None, (tokenizer.encode_source if name == "source" else tokenizer.encode_target)([source])[0]


@pytest.mark.parametrize("name", MODELS)
def test_scores_are_sums_of_log_probabilities_in_the_order_of_the_lines(
    models: dict[str, ModelFiles], toy: ToyStages, tmp_path: Path, name: str
) -> None:
    pairs = [*toy_pairs("dev")[:9], ("", ""), ("red", ""), *toy_pairs("test")[:9]]
    sides = [list(side) for side in zip(*pairs)]
    if name != "pairs":
        sides = [sides[0 if name == "source" else 1]]
    paths = [written(tmp_path / f"{number}.txt", lines) for number, lines in enumerate(sides)]
    output = tmp_path / "out.tsv"
    figures = score_texts(models[name], paths[0], paths[1] if len(paths) > 1 else None, output, CONFIG, toy.ray)
    rows = [line.split("\t") for line in output.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == len(pairs) == figures["rows"]
    total, pieces, characters = 0.0, 0, 0
    for row, texts in zip(rows, zip(*sides)):
        given, target = encoded(models[name], name, texts[0], texts[-1])
        expected = plain_loop(models[name], given, target)
        assert float(row[0]) == pytest.approx(expected, rel=1e-4, abs=2e-6)
        assert int(row[1]) == len(target)
        assert float(row[2]) == pytest.approx(math.exp(-expected / len(target)), rel=1e-4)
        total, pieces, characters = total + expected, pieces + len(target), characters + len(texts[-1])
    assert (figures["pieces"], figures["characters"], figures["errors"]) == (pieces, characters, 0)
    assert figures["log_probability"] == pytest.approx(total, rel=1e-5)
    assert figures["perplexity"] == pytest.approx(math.exp(-total / pieces), rel=1e-5)
    assert figures["perplexity_per_character"] == pytest.approx(math.exp(-total / characters), rel=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == [*(path.name for path in paths), "out.tsv"]


def test_an_empty_line_is_the_end_of_the_sentence_alone(models: dict[str, ModelFiles]) -> None:
    empty, blank = Scorer(models["target"], CONFIG).score(["", " \u200b "])
    assert (empty.pieces, empty.characters) == (1, 0)
    assert empty.log_probability == pytest.approx(plain_loop(models["target"], None, [EOS_ID]), rel=1e-5)
    assert blank == empty


def test_lines_are_normalised_as_in_training(models: dict[str, ModelFiles]) -> None:
    one, other = Scorer(models["pairs"], CONFIG).score(["red  dog", "red dog"], ["rot\u00a0Hund ", "rot Hund"])
    assert one.log_probability == pytest.approx(other.log_probability, abs=1e-6)
    assert (one.pieces, one.characters) == (other.pieces, 8)


def test_scores_do_not_depend_on_batching(models: dict[str, ModelFiles]) -> None:
    sources, targets = (list(side) for side in zip(*toy_pairs("dev")))
    together = Scorer(models["pairs"], ScoreConfig()).score(sources, targets)
    alone = Scorer(models["pairs"], CONFIG.model_copy(update={"batch_tokens": 1})).score(sources, targets)
    assert [line.log_probability for line in together] == pytest.approx([line.log_probability for line in alone])


def test_parquet_has_a_row_for_each_line_with_its_error(
    models: dict[str, ModelFiles], toy: ToyStages, tmp_path: Path
) -> None:
    with gzip.open(tmp_path / "in.gz", "wb") as file:
        file.write(b"\xef\xbb\xbfrot Hund\r\nb\xffd\n" + b"Haus " * 90 + b"\nBaum")
    config = CONFIG.model_copy(update={"max_pieces": 60})
    figures = score_texts(models["target"], tmp_path / "in.gz", None, tmp_path / "out.parquet", config, toy.ray)
    table = pq.read_table(tmp_path / "out.parquet").to_pydict()
    assert table["row"] == [0, 1, 2, 3]
    assert [value is None for value in table["log_probability"]] == [False, True, True, False]
    assert table["error"][1] == "invalid UTF-8 at byte 1"
    assert table["error"][2].endswith("pieces, more than score.max_pieces 60")
    assert table["characters"] == [8, 0, 0, 4]
    expected = [math.exp(-table["log_probability"][row] / table["pieces"][row]) for row in (0, 3)]
    assert [table["perplexity"][row] for row in (0, 3)] == pytest.approx(expected)
    assert figures["errors"] == 2
    assert figures["pieces"] == sum(table["pieces"])
    assert figures["log_probability"] == pytest.approx(table["log_probability"][0] + table["log_probability"][3])


def test_a_line_without_a_score_keeps_its_place_in_text_and_is_named_beside_it(
    models: dict[str, ModelFiles], toy: ToyStages, tmp_path: Path
) -> None:
    (tmp_path / "in").write_bytes(b"\xff\nBaum\n")
    score_texts(models["target"], tmp_path / "in", None, tmp_path / "out", CONFIG, toy.ray)
    assert (tmp_path / "out").read_text().splitlines()[0] == "nan\t0\tnan"
    faults = [json.loads(line) for line in (tmp_path / "out.errors.jsonl").read_text().splitlines()]
    assert faults == [{"line": 1, "error": "invalid UTF-8 at byte 0"}]
    written(tmp_path / "in", ["Baum"])
    score_texts(models["target"], tmp_path / "in", None, tmp_path / "out", CONFIG, toy.ray)
    assert not (tmp_path / "out.errors.jsonl").exists()


def test_a_line_that_the_model_itself_refuses_has_no_score_and_the_others_have(
    models: dict[str, ModelFiles], monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = Scorer(models["target"], ScoreConfig())
    texts = ["rot", "Baum", "Haus und Haus und Haus und Haus"]
    expected = scorer.score(texts)
    whole = Seq2Seq.decode

    def bounded(model: Seq2Seq, previous: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        if previous.shape[1] == expected[2].pieces:
            raise ValueError("more positions than the model has learned")
        return whole(model, previous, *arguments, **options)

    monkeypatch.setattr(Seq2Seq, "decode", bounded)
    found = scorer.score(texts)
    assert [line.log_probability for line in found[:2]] == pytest.approx([line[0] for line in expected[:2]])
    assert (found[2].log_probability, found[2].error) == (None, "more positions than the model has learned")


def test_standard_output_has_the_lines_where_no_file_is_named(
    models: dict[str, ModelFiles], toy: ToyStages, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path / "in", ["rot", "Baum"])
    figures = score_texts(models["target"], path, None, None, CONFIG, toy.ray)
    lines = capsys.readouterr().out.splitlines()
    assert sum(float(line.split("\t")[0]) for line in lines) == pytest.approx(figures["log_probability"], abs=1e-5)
    assert figures["output"] is None


@pytest.mark.parametrize(
    ("name", "sources", "targets", "says"),
    [
        ("pairs", ["rot"], None, "there is no file of targets"),
        ("target", ["rot"], ["red"], "a language model scores texts, not pairs"),
        ("pairs", ["one", "two"], ["eins"], "2 lines, but .* has 1"),
        ("target", [], None, "the file is empty"),
    ],
)
def test_files_that_do_not_fit_are_refused_and_leave_no_output(
    models: dict[str, ModelFiles],
    toy: ToyStages,
    tmp_path: Path,
    name: str,
    sources: list[str],
    targets: list[str] | None,
    says: str,
) -> None:
    source = written(tmp_path / "source", sources)
    target = None if targets is None else written(tmp_path / "target", targets)
    with pytest.raises(InputError, match=says):
        score_texts(models[name], source, target, tmp_path / "out", CONFIG, toy.ray)
    assert not (tmp_path / "out").exists()


def test_an_output_is_whole_or_not_there(
    models: dict[str, ModelFiles], toy: ToyStages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "in", ["rot"] * 20)
    whole, calls = Scorer.score, []

    def failing(scorer: Scorer, *arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(scorer, *arguments)

    monkeypatch.setattr(Scorer, "score", failing)
    with pytest.raises(KeyboardInterrupt):
        score_texts(models["target"], path, None, tmp_path / "out", CONFIG, toy.ray)
    assert [found.name for found in tmp_path.iterdir()] == ["in"]
