"""The benchmark of the peers' BLEU: what it gives them, and how it reads what they say."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.config import LanguagesConfig, TokenizerConfig
from pipelines.tokenizer import JOINT_MODEL, SOURCE_MODEL, TARGET_MODEL, Tokenizer, save_tokenizer, train_model

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SOURCE = ["A man sleeps on a green sofa.", "Two dogs run.", "A man and two dogs sleep."]
TARGET = ["Ein Mann schläft auf einem grünen Sofa.", "Zwei Hunde rennen.", "Ein Mann und zwei Hunde schlafen."]


@pytest.fixture(autouse=True)
def _benchmarks_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def stages(folder: Path, *, joint: bool) -> Path:
    """Return a folder of stages whose rows do not stand in their order."""
    config = TokenizerConfig.model_validate({"kind": "bpe", "vocab_size": 60, "joint": joint})
    names = (JOINT_MODEL,) if joint else (SOURCE_MODEL, TARGET_MODEL)
    fitted = folder / "fit_tokenizer"
    fitted.mkdir(parents=True)
    model = train_model([*SOURCE, *TARGET], config)
    save_tokenizer(fitted, dict.fromkeys(names, model), LanguagesConfig(source="en", target="de"), config)
    for split in ("train", "dev", "test"):
        table = {
            "row_id": [2, 0, 1],
            "src": [SOURCE[row] for row in (2, 0, 1)],
            "tgt": [TARGET[row] for row in (2, 0, 1)],
        }
        raw = {f"{side}_raw": [text + " " for text in table[side]] for side in ("src", "tgt") if split != "train"}
        path = folder / "clean" / "clean" / split / "part-00000.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(pa.table(table | raw), path)
    return folder


def test_the_peers_get_our_rows_in_our_pieces_and_one_order_of_them(tmp_path: Path) -> None:
    from peers_quality import JOEYNMT_SPECIAL, export, read_lines, text

    export(stages(tmp_path / "stages", joint=True), tmp_path / "data")
    tokenizer = Tokenizer.load(tmp_path / "data" / "tokenizer")
    for language, texts in (("en", SOURCE), ("de", TARGET)):
        for split in ("train", "dev", "test"):
            pieces = [line.split() for line in read_lines(tmp_path / "data" / f"{split}.{language}")]
            assert text(tokenizer, pieces) == texts
        assert read_lines(tmp_path / "data" / "raw" / f"test.{language}") == [line + " " for line in texts]
    words = read_lines(tmp_path / "data" / "vocabulary.txt")
    assert len(words) == len(set(words)) == tokenizer.target_size
    assert read_lines(tmp_path / "data" / "dict.txt") == [f"{word} 1" for word in words[len(JOEYNMT_SPECIAL) :]]


def test_two_vocabularies_are_refused(tmp_path: Path) -> None:
    from peers_quality import export

    with pytest.raises(SystemExit, match=r"tokenizer\.joint"):
        export(stages(tmp_path / "stages", joint=False), tmp_path / "data")


def test_a_sign_for_an_unknown_piece_is_left_out_of_the_text(tmp_path: Path) -> None:
    from peers_quality import text

    tokenizer = Tokenizer.load(stages(tmp_path, joint=True) / "fit_tokenizer")
    pieces = tokenizer.target_pieces(tokenizer.encode_target(TARGET[1:2])[0])
    assert text(tokenizer, [["<unk>", *pieces, "<pad>"], []]) == [TARGET[1], ""]


def test_sentences_of_fairseq_are_put_in_order() -> None:
    from peers_quality import fairseq_output

    lines = ["INFO | H-9", "S-1\t▁b", "H-1\t-0.5\t▁zwei ▁b", "D-1\t-0.5\tzwei", "H-0\t-0.25\t▁eins", "H-2\t-7\t"]
    assert fairseq_output(lines) == [["▁eins"], ["▁zwei", "▁b"], []]


def test_the_speed_is_the_median_of_the_lines_of_a_log() -> None:
    from peers_quality import speed

    fairseq = '... | train_inner | {"loss": "9", "wps": "%s"}\n... | train | {"train_wps": "1"}\n'
    assert speed("fairseq", "".join(fairseq % rate for rate in (900, "1000.5", 2000))) == 1000.5
    assert speed("joeynmt", "Batch Acc: 0.1, Tokens per Sec:      812, Lr: 0.001000\n") == 812
    assert speed("joeynmt", "EPOCH 1") is None


def test_checkpoints_stand_in_the_order_of_their_bleu_on_dev(tmp_path: Path) -> None:
    from peers_quality import kept

    for name in ("checkpoint.best_bleu_9.1234.pt", "checkpoint.best_bleu_31.0400.pt", "checkpoint_best.pt", "20.ckpt"):
        (tmp_path / name).touch()
    assert [path.name for path in kept("fairseq", tmp_path)] == [
        "checkpoint.best_bleu_31.0400.pt",
        "checkpoint.best_bleu_9.1234.pt",
    ]
    (tmp_path / "30.ckpt").touch()
    scores = ((10, 40.0), (20, 7.5), (30, 12.25))  # the file of the first is gone
    lines = (f"Steps: {step}\tloss: 2.5\tbleu: {bleu:.5f}\tLR: 0.001\t*\n" for step, bleu in scores)
    (tmp_path / "validations.txt").write_text("".join(lines))
    assert [path.name for path in kept("joeynmt", tmp_path)] == ["30.ckpt", "20.ckpt"]


def test_a_setting_of_joeynmt_is_a_number_where_it_can_be_one() -> None:
    from peers_quality import change

    config = {"training": {"learning_rate": 1.0}, "model": {"encoder": {}}}
    change(config, "training.learning_rate", "2e-3")
    change(config, "training.scheduling", "noam")
    change(config, "model.encoder.num_layers", "2")
    assert config == {
        "training": {"learning_rate": 0.002, "scheduling": "noam"},
        "model": {"encoder": {"num_layers": 2}},
    }
