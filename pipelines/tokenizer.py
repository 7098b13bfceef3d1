"""The tokeniser: text to piece ids and back. The only importer of sentencepiece.

    <folder>/tokenizer.json     format, kind, languages, sizes, sha256 of each model file
    <folder>/joint.model        one model for both sides; or source.model and target.model

SentencePiece changes no character here: normalisation is done before, by `pipelines/normalize.py`.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import sentencepiece
from pydantic import BaseModel, ConfigDict, ValidationError

from pipelines.config import LanguagesConfig, TokenizerConfig
from pipelines.errors import InputError
from pipelines.segmentation import SPACE, Vocabulary
from pipelines.stage import file_sha256, write_atomically

PAD_ID = 0
UNK_ID = 1
BOS_ID = 2
EOS_ID = 3
_NUM_SPECIAL = 4

TOKENIZER_JSON = "tokenizer.json"
TOKENIZER_FORMAT = 1
JOINT_MODEL, SOURCE_MODEL, TARGET_MODEL = "joint.model", "source.model", "target.model"

# A part of training's result: sums of floats depend on how sentences are dealt to threads, so it is no one's choice.
_TRAINING_THREADS = 8
# The most that SentencePiece takes, so that it drops no long line in silence. Bytes.
_MAX_SENTENCE_BYTES = 2**30
_TOO_LARGE = re.compile(r"Vocabulary size too high.*<= (\d+)")
_TOO_SMALL = re.compile(r"Vocabulary size is smaller than required_chars\. \d+ vs (\d+)")


class _Description(BaseModel):
    """What tokenizer.json holds. `models`: sha256 of each model file by its name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1]
    kind: Literal["unigram", "bpe"]
    joint: bool
    source: str
    target: str
    source_size: int
    target_size: int
    models: dict[str, str]
    symbols: tuple[str, ...] = ()  # not in the file where there are none


class Tokenizer:
    """A source and a target SentencePiece model, the same one twice where the vocabulary is joint.

    `digest` (sha256 over tokenizer.json and the model files) binds shards, checkpoints and models to their tokeniser.
    """

    def __init__(
        self,
        source: sentencepiece.SentencePieceProcessor,
        target: sentencepiece.SentencePieceProcessor,
        digest: str,
        description: _Description,
    ) -> None:
        self.digest = digest
        self.kind: Literal["unigram", "bpe"] = description.kind
        self.source_language: str = description.source
        self.target_language: str = description.target
        self.source_size: int = source.get_piece_size()
        self.target_size: int = target.get_piece_size()
        self._symbols = description.symbols
        self._source = source
        self._target = target

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Return the tokeniser that `save_tokenizer` wrote into a folder.

        Raises InputError naming the file that is missing, or that is not what tokenizer.json says.
        """
        description = _read_description(folder / TOKENIZER_JSON)
        processors = {}
        for name, sha256 in description.models.items():
            processors[name] = _read_model(folder / name, sha256)
        source = processors[JOINT_MODEL if description.joint else SOURCE_MODEL]
        target = processors[JOINT_MODEL if description.joint else TARGET_MODEL]
        return cls(source, target, _digest(folder), description)

    def encode_source(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the piece ids of each source text, the last of them EOS_ID."""
        return _encode(self._source, texts)

    def encode_target(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the piece ids of each target text, the last of them EOS_ID."""
        return _encode(self._target, texts)

    def source_vocabulary(self) -> Vocabulary:
        """Return what sampling of source texts needs: see `pipelines/segmentation.py`."""
        return self._vocabulary(self._source)

    def target_vocabulary(self) -> Vocabulary:
        """Return what sampling of target texts needs: see `pipelines/segmentation.py`."""
        return self._vocabulary(self._target)

    def _vocabulary(self, processor: sentencepiece.SentencePieceProcessor) -> Vocabulary:
        symbols = {SPACE + symbol for symbol in self._symbols}
        special = (processor.is_control, processor.is_unknown, processor.is_byte, processor.is_unused)
        normal = {
            piece: number
            for number in range(processor.get_piece_size())
            if not any(is_of(number) for is_of in special) and (piece := processor.id_to_piece(number)) not in symbols
        }
        scores = {piece: processor.get_score(number) for piece, number in normal.items()}
        return Vocabulary(self.kind, normal, scores, self._symbols, lambda words: processor.encode(list(words)))

    def decode_source(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """Return the text of each list of source piece ids; PAD, UNK, BOS and EOS are skipped."""
        return _decode(self._source, ids)

    def decode_target(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """Return the text of each list of target piece ids; PAD, UNK, BOS and EOS are skipped."""
        return _decode(self._target, ids)

    def source_pieces(self, ids: Sequence[int]) -> list[str]:
        """Return the source piece of each id, special ones by their names (`</s>`)."""
        return [self._source.id_to_piece(int(i)) for i in ids]

    def target_pieces(self, ids: Sequence[int]) -> list[str]:
        """Return the target piece of each id, special ones by their names (`</s>`)."""
        return [self._target.id_to_piece(int(i)) for i in ids]


def train_model(sentences: Iterable[str], config: TokenizerConfig) -> bytes:
    """Return a SentencePiece model of `config.vocab_size` pieces; the same sentences in order give the same bytes.

    Raises InputError at `tokenizer.vocab_size` when the sentences cannot give that many pieces, or need more for
    their characters alone; the message names the bound.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            model_type=config.kind,
            vocab_size=config.vocab_size,
            character_coverage=config.character_coverage,
            byte_fallback=config.byte_fallback,
            normalization_rule_name="identity",
            split_digits=True,  # a number that was never seen is spelt with digits that were
            # With the space before them, so that a symbol is one piece and not a space and a piece.
            user_defined_symbols=[SPACE + symbol for symbol in config.symbols],
            max_sentence_length=_MAX_SENTENCE_BYTES,
            pad_id=PAD_ID,
            unk_id=UNK_ID,
            bos_id=BOS_ID,
            eos_id=EOS_ID,
            num_threads=_TRAINING_THREADS,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise _as_input_error(error, config) from error
    return model.getvalue()


def save_tokenizer(
    folder: Path, models: dict[str, bytes], languages: LanguagesConfig, config: TokenizerConfig
) -> list[str]:
    """Write the model files and tokenizer.json, and return their names: tokenizer.json first.

    `models` has JOINT_MODEL, or SOURCE_MODEL and TARGET_MODEL, with the bytes that `train_model` gave.
    """
    for name, content in models.items():
        (folder / name).write_bytes(content)
    sizes = {name: _processor(content).get_piece_size() for name, content in models.items()}
    description = _Description(
        format=TOKENIZER_FORMAT,
        kind=config.kind,
        joint=config.joint,
        source=languages.source,
        target=languages.target,
        source_size=sizes[JOINT_MODEL if config.joint else SOURCE_MODEL],
        target_size=sizes[JOINT_MODEL if config.joint else TARGET_MODEL],
        models={name: hashlib.sha256(content).hexdigest() for name, content in sorted(models.items())},
        symbols=config.symbols,
    )
    table = description.model_dump(mode="json", exclude_defaults=True)
    write_atomically(folder / TOKENIZER_JSON, json.dumps(table, indent=1, ensure_ascii=False) + "\n")
    return tokenizer_files(folder)


def tokenizer_files(folder: Path) -> list[str]:
    """Return the names of the files that make up the tokeniser in a folder, tokenizer.json first.

    Raises InputError when tokenizer.json is missing or cannot be read.
    """
    return [TOKENIZER_JSON, *sorted(_read_description(folder / TOKENIZER_JSON).models)]


def tokenizer_keys(folder: Path) -> dict[str, Any]:
    """Return what of `TokenizerConfig` a tokeniser in a folder says of itself. Raises InputError as `tokenizer_files`.

    Two models have the same number of pieces, as they are fitted.
    """
    description = _read_description(folder / TOKENIZER_JSON)
    found = description.model_dump(include={"kind", "joint", "symbols"})
    return found | {"vocab_size": description.source_size}


def _encode(processor: sentencepiece.SentencePieceProcessor, texts: Sequence[str]) -> list[list[int]]:
    encoded: list[list[int]] = processor.encode(list(texts), out_type=int, add_eos=True)
    return encoded


def _decode(processor: sentencepiece.SentencePieceProcessor, ids: Sequence[Sequence[int]]) -> list[str]:
    decoded: list[str] = processor.decode([[int(i) for i in row if i >= _NUM_SPECIAL] for row in ids])
    return decoded


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in tokenizer_files(folder):
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()


def _read_description(path: Path) -> _Description:
    remedy = "Run the stage fit_tokenizer again, or copy the folder again"
    try:
        description = _Description.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=str(path), remedy=remedy) from error
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))} {fault['msg']}".strip() for fault in error.errors())
        raise InputError(
            f"not a tokeniser of format {TOKENIZER_FORMAT}: {faults}", where=str(path), remedy=remedy
        ) from error
    expected = {JOINT_MODEL} if description.joint else {SOURCE_MODEL, TARGET_MODEL}
    if set(description.models) != expected:
        raise InputError(
            f"names the models {sorted(description.models)}, expected {sorted(expected)}",
            where=str(path),
            remedy=remedy,
        )
    return description


def _read_model(path: Path, sha256: str) -> sentencepiece.SentencePieceProcessor:
    remedy = "Run the stage fit_tokenizer again, or copy the folder again"
    if not path.is_file():
        raise InputError("the model file is missing", where=str(path), remedy=remedy)
    if file_sha256(path) != sha256:
        raise InputError(f"the content differs from what {TOKENIZER_JSON} says", where=str(path), remedy=remedy)
    return _processor(path.read_bytes())


def _processor(model: bytes) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=model)


def _as_input_error(error: RuntimeError, config: TokenizerConfig) -> Exception:
    where = "tokenizer.vocab_size"
    if match := _TOO_LARGE.search(str(error)):
        return InputError(
            f"{config.vocab_size} pieces are more than the cleaned corpus can give",
            where=where,
            remedy=f"Set it to {match.group(1)} or less, or add text",
        )
    if match := _TOO_SMALL.search(str(error)):
        return InputError(
            f"{config.vocab_size} pieces are fewer than the characters of the cleaned corpus need",
            where=where,
            remedy=f"Set it to {match.group(1)} or more, or lower tokenizer.character_coverage",
        )
    return error
