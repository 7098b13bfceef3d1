"""BLEU of fairseq and JoeyNMT beside ours: the same rows, the same pieces, like models, the same wall time.

    seqloom run multi30k-en-de --define DATA=... --workdir WORKDIR
    python tests/benchmarks/peers_quality.py export WORKDIR/multi30k-en-de/stages FOLDER
    python tests/benchmarks/peers_quality.py train fairseq lstm FOLDER OUT --minutes 60 --python PYTHON
    python tests/benchmarks/peers_quality.py score FOLDER OUT [--average 5] [--results FILE]

`export` writes the rows that cleaning kept as lines of pieces of our joint tokeniser, the texts of dev and test as they
stood in the files, and one vocabulary in the form of each peer. `train` needs the path of the Python of a peer's
virtual environment (below), trains for so many minutes from the first update on, validations included, and picks the
checkpoint of the best BLEU on dev, decoded greedily at each validation and once more at the end. `score` translates
test with the peer at beam 5 and length penalty 1, joins its pieces as our tokeniser does, and scores the text by the
code that scores ours. Of several test sets the rows count as one. It prints, and appends to --results, one line of
JSON: BLEU (cased, 13a) with its interval and signature, chrF2, the parameters that Adam trained, the updates and the
epoch in which the time was up, the update of the checkpoint, and the target pieces a second, the median over the
lines of the peer's own log. With --average 5 it is the mean of the weights of the five best checkpoints, as the scripts
beside either peer make it; 1 is the best alone.

The models are those of the Multi30k recipes, as near as a peer has them, with their dropout: 0.4 of the LSTM, 0.3 of
the Transformer. Of the LSTM both peers have Luong's attention with input feeding, which fairseq cannot be without;
JoeyNMT ties its output layer to embeddings of the decoder's size alone, so there it has a matrix of its own.
Everywhere: label smoothing 0.1, norm of the gradient at most 1, 4,096 padded pieces an update, and
torch.set_float32_matmul_precision("medium"), a line that a user can add. LSTM: Adam 1e-3, halved when BLEU on dev has
not risen twice in a row, which needs no knowledge of how many updates the time will hold. Transformer: Adam (0.9,
0.98), 4e-3 after 300 updates (an hour holds some 1,300), then by the inverse square root, as in either peer's
examples. Without --set these are the settings; `--set lr=2e-3` is `--lr=2e-3` of fairseq-train, `--set
training.learning_rate=2e-3` a value in JoeyNMT's file.

The virtual environment of fairseq is that of peers_training.py; its checkpoints are unpickled, so an environment
variable says that they may be. JoeyNMT's, outside the project, torch 2.13.0 as here:

    python -m venv joeynmt && joeynmt/bin/pip install torch==2.13.0 numpy importlib_metadata matplotlib packaging \\
        plotly pyyaml sacrebleu sacremoses sentencepiece six subword-nmt tensorboard tqdm "setuptools<81"
    joeynmt/bin/pip install --no-deps joeynmt==2.3.0
    # torch has no such argument any more
    sed -i '/"verbose": False,/d' joeynmt/lib/python3*/site-packages/joeynmt/builders.py
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from nmt.config import EvaluateConfig
from nmt.evaluate import score
from pipelines.tokenizer import EOS_ID, Tokenizer, tokenizer_files, tokenizer_keys

SYSTEMS = ("fairseq", "joeynmt")
MODELS = ("lstm", "transformer")
SPLITS = ("train", "dev", "test")
DROPOUT = {"lstm": 0.4, "transformer": 0.3}
# The pieces before the others: fairseq puts its own there, JoeyNMT wants them in this order.
FIRST_PIECE = EOS_ID + 1
JOEYNMT_SPECIAL = ("<unk>", "<pad>", "<s>", "</s>")
BEAM = 5
TOKENS = 4096
KEPT = 5  # checkpoints
# What a line of the peer's log says of its speed: of target pieces that are no padding, validations left out.
SPEED = {
    "fairseq": re.compile(r'train_inner.*"wps": "([\d.]+)"'),
    "joeynmt": re.compile(r"Tokens per Sec: +(\d+)"),
}

# Run in the peer's Python.
PRECISION = 'import torch; torch.set_float32_matmul_precision("medium")\n'
# Its Transformer's own path for inference calls torch as torch is called no more; it has another.
FAIRSEQ = (
    PRECISION
    + """
from fairseq.modules.transformer_layer import TransformerEncoderLayerBase
from fairseq_cli.{0} import cli_main

TransformerEncoderLayerBase.can_use_fastpath = property(lambda layer: False, lambda layer, value: None)
cli_main()
"""
)
JOEYNMT = PRECISION + "from joeynmt.__main__ import main; main()"
# From the first update it trains for so many seconds, and is stopped as a user stops it; then the last weights are
# validated, as fairseq does it by itself.
JOEYNMT_TRAIN = (
    PRECISION
    + """
import signal, sys
from joeynmt.__main__ import main
from joeynmt.training import TrainManager

seconds, endless = float(sys.argv.pop(1)), TrainManager.train_and_validate

def limited(self, train_data, valid_data):
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    endless(self, train_data, valid_data)
    self._validate(valid_data)

TrainManager.train_and_validate = limited
main()
"""
)
# What Adam has moments of is what is trained: fairseq's Transformer holds the weights of its encoder twice.
FACTS = """
import json, sys, torch
best, last = (torch.load(path, map_location="cpu", weights_only=False) for path in sys.argv[1:])
adam = last["last_optimizer_state" if "last_optimizer_state" in last else "optimizer_state"]["state"]
facts = {"parameters": sum(state["exp_avg"].numel() for state in adam.values())}
for name, state in (("best_update", best), ("updates", last)):
    fairseq = "optimizer_history" in state
    facts[name] = state["optimizer_history"][-1]["num_updates"] if fairseq else state["stats_state"]["steps"]
    facts["epoch"] = state["extra_state"]["train_iterator"]["epoch"] if fairseq else state["stats_state"]["epochs"]
print(json.dumps(facts))
"""
AVERAGE = """
import sys, torch
to, *paths = sys.argv[1:]
states = [torch.load(path, map_location="cpu", weights_only=False) for path in paths]
key = "model" if "model" in states[0] else "model_state"
for name, weight in states[0][key].items():
    if weight.is_floating_point():
        mean = sum(state[key][name].double() for state in states) / len(states)
        states[0][key][name] = mean.to(weight.dtype)
torch.save(states[0], to)
"""


class Training(NamedTuple):
    """What `train` was told, as `score` finds it in OUT. `seconds`: of the whole process, with its start and end."""

    system: str
    model: str
    minutes: float
    seed: int
    threads: int
    python: str
    settings: list[str]
    seconds: float


def main() -> None:
    options = arguments().parse_args()
    match options.command:
        case "export":
            export(options.stages, options.folder)
        case "train":
            train(options)
        case "score":
            line = json.dumps(figures(options.folder.resolve(), options.out.resolve(), options.average))
            print(line)
            if options.results is not None:
                with options.results.open("a", encoding="utf-8") as file:
                    file.write(line + "\n")


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("export", help="write our rows and vocabulary for the peers")
    one.add_argument("stages", type=Path, help="with the folders clean and fit_tokenizer of a recipe")
    one.add_argument("folder", type=Path, help="must not be there yet")
    one = commands.add_parser("train", help="train a peer for some minutes")
    one.add_argument("system", choices=SYSTEMS)
    one.add_argument("model", choices=MODELS)
    one.add_argument("folder", type=Path, help="that export wrote")
    one.add_argument("out", type=Path, help="must not be there yet")
    one.add_argument("--minutes", type=float, required=True)
    one.add_argument("--python", required=True, help="of the peer's virtual environment")
    one.add_argument("--seed", type=int, default=1)
    one.add_argument("--threads", type=int, default=2)
    one.add_argument("--set", action="append", default=[], dest="settings", metavar="NAME=VALUE")
    one = commands.add_parser("score", help="translate test and score it")
    one.add_argument("folder", type=Path, help="that export wrote")
    one.add_argument("out", type=Path, help="that train wrote")
    one.add_argument("--average", type=int, default=1, choices=range(1, KEPT + 1), help="of so many best checkpoints")
    one.add_argument("--results", type=Path, help="the line is appended to it")
    return parser


# The data


def export(stages: Path, folder: Path) -> None:
    """Write the rows of the stages, and the vocabulary, for both peers:

    train.en, train.de and so on     lines of pieces; the files end in our languages
    raw/dev.en, raw/test.de ...      texts as they stood in the corpus, which are the references
    dict.txt, vocabulary.txt         fairseq's and JoeyNMT's vocabulary, in one order
    tokenizer/                       our tokeniser
    """
    fitted = (stages / "fit_tokenizer").resolve()
    if not tokenizer_keys(fitted)["joint"]:
        sys.exit(f"{fitted}: two vocabularies, but the models share one. Set tokenizer.joint: true in the recipe")
    for new in (folder / "raw", folder / "tokenizer"):
        new.mkdir(parents=True)
    for name in tokenizer_files(fitted):
        shutil.copyfile(fitted / name, folder / "tokenizer" / name)
    tokenizer = Tokenizer.load(folder / "tokenizer")
    sides = {"src": (tokenizer.source_language, tokenizer.encode_source)}
    sides["tgt"] = (tokenizer.target_language, tokenizer.encode_target)
    for split in SPLITS:
        raw = ("src_raw", "tgt_raw") if split != "train" else ()
        table = read_rows(stages / "clean" / "clean" / split, ["row_id", "src", "tgt", *raw])
        for side, (language, encode) in sides.items():
            rows = [tokenizer.target_pieces(ids[:-1]) for ids in encode(table[side].to_pylist())]  # without EOS
            write_lines(folder / f"{split}.{language}", list(map(" ".join, rows)))
            if raw:
                write_lines(folder / "raw" / f"{split}.{language}", table[f"{side}_raw"].to_pylist())
            print(f"{split}.{language}: {len(rows):,} rows, {sum(map(len, rows)):,} pieces")
    pieces = pieces_of(tokenizer)
    assert all(piece.split() == [piece] for piece in pieces), "a blank in a piece would part it"
    write_lines(folder / "dict.txt", [f"{piece} 1" for piece in pieces])
    write_lines(folder / "vocabulary.txt", [*JOEYNMT_SPECIAL, *pieces])


def read_rows(folder: Path, columns: Sequence[str]) -> pa.Table:
    paths = sorted(folder.glob("part-*.parquet"))
    return pa.concat_tables([pq.read_table(path, columns=list(columns)) for path in paths]).sort_by("row_id")


def write_lines(path: Path, lines: Sequence[str]) -> None:
    assert not any("\n" in line for line in lines), path
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def read_lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")


# The peers


def train(options: argparse.Namespace) -> None:
    folder, out = options.folder.resolve(), options.out.resolve()
    out.mkdir(parents=True)
    tokenizer = Tokenizer.load(folder / "tokenizer")
    languages = (tokenizer.source_language, tokenizer.target_language)
    if options.system == "fairseq":
        code = FAIRSEQ.format("train")
        run(options.python, options.threads, out / "preprocess.log", FAIRSEQ.format("preprocess"), [
            f"--source-lang={languages[0]}", f"--target-lang={languages[1]}", f"--trainpref={folder / 'train'}",
            f"--validpref={folder / 'dev'}", f"--destdir={out / 'data'}", f"--srcdict={folder / 'dict.txt'}",
            "--joined-dictionary",
        ])  # fmt: skip
        command = fairseq_command(options.model, languages, out, options.minutes, options.seed)
        command += [f"--{setting}" for setting in options.settings]
    else:
        code = JOEYNMT_TRAIN
        config = joeynmt_config(options.model, languages, folder, out, options.seed)
        for setting in options.settings:
            change(config, *setting.split("=", 1))
        (out / "train.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        command = [str(60 * options.minutes), "train", str(out / "train.yaml"), "--skip-test"]
    started = time.monotonic()
    run(options.python, options.threads, out / "train.log", code, command)
    told = {name: getattr(options, name) for name in Training._fields if name != "seconds"}
    done = Training(**told, seconds=time.monotonic() - started)
    (out / "training.json").write_text(json.dumps(done._asdict(), indent=1) + "\n", encoding="utf-8")


def run(python: str, threads: int, log: Path, code: str, command: Sequence[str]) -> None:
    """Run code in a peer's Python, in the folder of the log. Exits with the end of the log where it fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}
    with log.open("wb") as file:
        # Not resolved: a link leads from a virtual environment to the Python that it was made of.
        ended = subprocess.run(
            [Path(python).absolute(), "-c", code, *command],
            env=environment, cwd=log.parent, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
            check=False,
        )  # fmt: skip
    if ended.returncode:
        sys.exit(f"{log}: exit status {ended.returncode}\n{log.read_text(encoding='utf-8')[-4000:]}")


def fairseq_command(model: str, languages: Sequence[str], out: Path, minutes: float, seed: int) -> list[str]:
    """Return the arguments of fairseq-train: the settings of its examples for small corpora where we have no own."""
    chosen = {
        "lstm": [
            "--arch=lstm", "--encoder-embed-dim=256", "--encoder-hidden-size=256", "--encoder-bidirectional",
            "--decoder-embed-dim=256", "--decoder-hidden-size=512", "--decoder-out-embed-dim=256",
            "--lr=1e-3", "--lr-scheduler=reduce_lr_on_plateau", "--lr-shrink=0.5", "--lr-patience=1",
        ],
        "transformer": [
            "--arch=transformer",
            *(
                f"--{side}-{name}"
                for side in ("encoder", "decoder")
                for name in ("embed-dim=128", "ffn-embed-dim=256", "attention-heads=4", "layers=4")
            ),
            "--adam-betas=(0.9, 0.98)", "--lr=4e-3", "--lr-scheduler=inverse_sqrt", "--warmup-updates=300",
        ],
    }  # fmt: skip
    return [
        str(out / "data"), "--task=translation", f"--source-lang={languages[0]}", f"--target-lang={languages[1]}",
        "--cpu", "--share-all-embeddings", f"--dropout={DROPOUT[model]}", "--optimizer=adam", "--clip-norm=1.0",
        *chosen[model],
        "--criterion=label_smoothed_cross_entropy", "--label-smoothing=0.1", f"--max-tokens={TOKENS}",
        "--num-workers=0", f"--seed={seed}", f"--stop-time-hours={minutes / 60}", "--eval-bleu",
        '--eval-bleu-args={"beam": 1, "max_len_a": 1.2, "max_len_b": 10}', "--eval-bleu-remove-bpe=sentencepiece",
        "--best-checkpoint-metric=bleu", "--maximize-best-checkpoint-metric", f"--keep-best-checkpoints={KEPT}",
        "--no-epoch-checkpoints", f"--save-dir={out / 'model'}", "--log-format=json", "--log-interval=20",
    ]  # fmt: skip


def joeynmt_config(model: str, languages: Sequence[str], folder: Path, out: Path, seed: int) -> dict[str, Any]:
    """Return the tables of JoeyNMT's file. BLEU on dev is of pieces, as the file of them is all that it is given."""
    vocabulary = {"level": "word", "voc_file": str(folder / "vocabulary.txt")}
    transformer = model == "transformer"
    return {
        "name": model,
        "model_dir": str(out / "model"),
        "use_cuda": False,
        "random_seed": seed,
        "data": {
            "train": str(folder / "train"),
            "dev": str(folder / "dev"),
            "src": {"lang": languages[0], **vocabulary},
            "trg": {"lang": languages[1], **vocabulary},
        },
        "training": {
            "optimizer": "adam",
            "normalization": "tokens",
            "label_smoothing": 0.1,
            "clip_grad_norm": 1.0,
            "learning_rate_min": 1e-8,  # at which it would stop
            **(
                {"adam_betas": [0.9, 0.98], "learning_rate": 4e-3, "scheduling": "warmupinversesquareroot",
                 "learning_rate_warmup": 300}
                if transformer
                else {"learning_rate": 1e-3, "scheduling": "plateau", "patience": 1, "decrease_factor": 0.5}
            ),
            "batch_type": "token",
            "batch_size": TOKENS,
            "epochs": 1_000_000,
            "early_stopping_metric": "bleu",
            "validation_freq": 200,  # about an epoch of Multi30k
            "logging_freq": 20,
            "keep_best_ckpts": KEPT,
            "print_valid_sents": [],  # each with a picture of its attention, which takes its time
        },
        "testing": {
            "beam_size": BEAM,
            "beam_alpha": 1.0,
            "batch_size": 64,
            "batch_type": "sentence",
            "eval_metrics": ["bleu"],
            "sacrebleu_cfg": {"tokenize": "none"},
        },
        "model": joeynmt_transformer() if transformer else joeynmt_lstm(),
    }  # fmt: skip


def joeynmt_lstm() -> dict[str, Any]:
    dropout = DROPOUT["lstm"]
    shared = {"rnn_type": "lstm", "embeddings": {"embedding_dim": 256, "dropout": dropout}, "num_layers": 1}
    return {
        "tied_embeddings": True,
        "encoder": {"type": "recurrent", **shared, "hidden_size": 256, "bidirectional": True},
        "decoder": {
            "type": "recurrent",
            **shared,
            "hidden_size": 512,
            "hidden_dropout": dropout,
            "attention": "luong",
            "input_feeding": True,
            "init_hidden": "bridge",
        },
    }


def joeynmt_transformer() -> dict[str, Any]:
    dropout = DROPOUT["transformer"]
    side = {
        "type": "transformer",
        "num_layers": 4,
        "num_heads": 4,
        "embeddings": {"embedding_dim": 128, "scale": True, "dropout": dropout},
        "hidden_size": 128,
        "ff_size": 256,
        "dropout": dropout,
        "layer_norm": "post",
    }
    return {"tied_embeddings": True, "tied_softmax": True, "encoder": side, "decoder": side}


def change(config: dict[str, Any], name: str, value: str) -> None:
    """Set what stands under a name with dots; numbers are written as in YAML, or as `1e-3`."""
    *tables, last = name.split(".")
    for table in tables:
        config = config[table]
    read = yaml.safe_load(value)
    try:
        config[last] = float(read) if isinstance(read, str) else read
    except ValueError:
        config[last] = read


# The score


def figures(folder: Path, out: Path, average: int) -> dict[str, Any]:
    """Return what one line of the results says."""
    told = Training(**json.loads((out / "training.json").read_text(encoding="utf-8")))
    tokenizer = Tokenizer.load(folder / "tokenizer")
    names = ("checkpoint_best.pt", "checkpoint_last.pt") if told.system == "fairseq" else ("best.ckpt", "latest.ckpt")
    run(told.python, told.threads, out / "facts.json", FACTS, [str(out / "model" / name) for name in names])
    checkpoint = out / "model" / names[0]
    if average > 1:
        checkpoints = kept(told.system, out / "model")[:average]
        average, checkpoint = len(checkpoints), out / f"average-{average}"
        run(told.python, told.threads, out / "average.log", AVERAGE, [str(checkpoint), *map(str, checkpoints)])
    translate = fairseq_hypotheses if told.system == "fairseq" else joeynmt_hypotheses
    hypotheses = text(tokenizer, translate(told, tokenizer, folder, out, checkpoint))
    write_lines(out / f"hypotheses-{average}.txt", hypotheses)
    references = read_lines(folder / "raw" / f"test.{tokenizer.target_language}")
    scores = score(hypotheses, references, EvaluateConfig(metrics=("bleu", "chrf")))
    return {
        **told._asdict(),
        "average": average,
        **{name: scores[name] for name in ("bleu", "chrf")},
        **json.loads((out / "facts.json").read_text(encoding="utf-8").splitlines()[-1]),
        "target_pieces_per_s": speed(told.system, (out / "train.log").read_text(encoding="utf-8")),
    }


def kept(system: str, folder: Path) -> list[Path]:
    """Return the checkpoints of the best BLEU on dev, the best first."""
    if system == "fairseq":
        found = {path: re.search(r"bleu_([\d.]+)\.pt", path.name) for path in folder.glob("checkpoint.best_bleu_*")}
        scores = {path: float(match.group(1)) for path, match in found.items() if match}
    else:
        scores = {}
        for line in read_lines(folder / "validations.txt"):
            if match := re.match(r"Steps: (\d+)\t.*bleu: ([\d.]+)", line):
                scores[folder / f"{match.group(1)}.ckpt"] = float(match.group(2))
    return sorted((path for path in scores if path.exists()), key=lambda path: -scores[path])


def speed(system: str, log: str) -> float | None:
    """Return the median over the lines of a peer's log that say how fast it trains."""
    found = [float(match) for match in SPEED[system].findall(log)]
    return statistics.median(found) if found else None


def fairseq_hypotheses(
    told: Training, tokenizer: Tokenizer, folder: Path, out: Path, checkpoint: Path
) -> list[list[str]]:
    languages = (tokenizer.source_language, tokenizer.target_language)
    source = folder / f"test.{languages[0]}"
    run(told.python, told.threads, out / "translate.log", FAIRSEQ.format("interactive"), [
        str(out / "data"), f"--path={checkpoint}", f"--input={source}", "--cpu", f"--beam={BEAM}", "--lenpen=1",
        f"--source-lang={languages[0]}", f"--target-lang={languages[1]}", "--max-len-a=1.2", "--max-len-b=10",
        "--buffer-size=1024", "--batch-size=64",
    ])  # fmt: skip
    return fairseq_output(read_lines(out / "translate.log"))


def fairseq_output(lines: Sequence[str]) -> list[list[str]]:
    """Return the pieces of each sentence in what fairseq-interactive prints: `H-0`, its score, the pieces."""
    found = {}
    for line in lines:
        if match := re.match(r"H-(\d+)\t[^\t]*\t(.*)", line):
            found[int(match.group(1))] = match.group(2).split()
    assert sorted(found) == list(range(len(found)))
    return [found[number] for number in range(len(found))]


def joeynmt_hypotheses(
    told: Training, _tokenizer: Tokenizer, folder: Path, out: Path, checkpoint: Path
) -> list[list[str]]:
    config = yaml.safe_load((out / "train.yaml").read_text(encoding="utf-8"))
    del config["data"]["train"], config["data"]["dev"]
    config["data"]["test"] = str(folder / "test")
    config["testing"]["load_model"] = str(checkpoint)
    (out / "test.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    command = ["test", str(out / "test.yaml"), "--output-path", str(out / "pieces")]
    run(told.python, told.threads, out / "translate.log", JOEYNMT, command)
    return [line.split() for line in read_lines(out / "pieces.test")]


def text(tokenizer: Tokenizer, rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the text of pieces; what is no piece of ours, as the sign for an unknown one, is left out."""
    ids = {piece: FIRST_PIECE + number for number, piece in enumerate(pieces_of(tokenizer))}
    return tokenizer.decode_target([[ids[piece] for piece in row if piece in ids] for row in rows])


def pieces_of(tokenizer: Tokenizer) -> list[str]:
    """Return the pieces of the joint vocabulary, without the special ones."""
    return tokenizer.target_pieces(range(FIRST_PIECE, tokenizer.target_size))


if __name__ == "__main__":
    main()
