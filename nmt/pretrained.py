"""Embeddings that begin with vectors of words: which piece takes which, how far that goes, and into a model with them.

    train-<key>/pretrained.safetensors      <table>.ids int64 [n], <table>.vectors float32 [n, E]: rows of a fresh start
    train-<key>/pretrained.json             {table: Coverage}; table is source, target, or shared for both

A piece of SentencePiece that begins a word, "▁House", takes the vector of the first of these words that the file has:
"▁House", "House", "house". A piece inside words takes that of its text as it stands. Special pieces, bytes and the
tokeniser's symbols take none. A shared table takes the source's vectors, then the target's for the pieces not found.

Source: Qi et al. 2018, "When and Why are Pre-trained Word Embeddings Useful for Neural Machine Translation?".
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, TypeAdapter
from safetensors.numpy import load_file, save_file
from torch import Tensor

from nmt.config import ModelTable
from nmt.model.seq2seq import Seq2Seq
from nmt.vectors import Vector, read_header, read_vectors
from pipelines.errors import InputError
from pipelines.segmentation import SPACE
from pipelines.shards import ShardColumns
from pipelines.stage import replacing, write_atomically
from pipelines.tokenizer import BOS_ID, EOS_ID, PAD_ID, Tokenizer

ROWS_FILE, COVERAGE_FILE = "pretrained.safetensors", "pretrained.json"

log = logging.getLogger(__name__)


class Coverage(BaseModel):
    """How far the vectors go for one table.

    `pieces` counts those of the vocabulary that can have a vector, `found` those that have one; `running_pieces` those
    of the rows of train without the ends of sentence, `covered` the share of them that has one. `repeated_words` were
    wanted and stand in the files more than once.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    pieces: int
    found: int
    running_pieces: int
    covered: float
    repeated_words: int


_COVERAGES = TypeAdapter(dict[str, Coverage])


class _Rows(NamedTuple):
    """The vectors that were found, by the ids of their pieces, and how many words came once more."""

    vectors: dict[int, Vector]
    repeated: int


def check_dimensions(model: ModelTable) -> None:
    """Raise InputError where a file of vectors cannot be opened, or has not embedding_dim components."""
    for key, path in model.vectors().items():
        components = read_header(path).components
        if components != model.embedding_dim:
            raise InputError(
                f"the vectors of {path} have {components} components, embedding_dim is {model.embedding_dim}",
                where=f"model.{key}",
                remedy=f"Set model.embedding_dim: {components}, or give vectors of {model.embedding_dim}",
            )


def words_of(piece: str) -> tuple[str, ...]:
    """Return the words whose vector a piece takes, the first that there is."""
    word = piece.removeprefix(SPACE)
    return (piece, word, word.lower()) if piece.startswith(SPACE) and word else (piece,)


def prepare(model: ModelTable, tokenizer: Tokenizer, shards: Iterable[ShardColumns], folder: Path) -> None:
    """Write into a folder what the embeddings of a fresh start begin with, and how far it goes; log the latter.

    `shards` are the rows of train, part by part. Raises InputError as `read_vectors` and `check_dimensions` do, and
    where a file has a vector for no piece at all.
    """
    check_dimensions(model)
    running = _running(shards, tokenizer)
    sides = {
        "source": (tokenizer.source_vocabulary().ids, running[0]),
        "target": (tokenizer.target_vocabulary().ids, running[1]),
    }
    paths = model.vectors()
    if model.share_embeddings:
        # A joint vocabulary: the pieces of both sides are the same.
        wanted = {"shared": (sides["source"][0], running[0] + running[1], list(paths.items()))}
    else:
        wanted = {side: (*sides[side], [(key, paths[key])]) for side in sides if (key := f"{side}_vectors") in paths}
    tensors, coverages = {}, {}
    for table, (pieces, counts, files) in wanted.items():
        rows = _rows(files, pieces)
        tensors[f"{table}.ids"] = np.array(list(rows.vectors), dtype=np.int64)
        tensors[f"{table}.vectors"] = np.stack(list(rows.vectors.values()))
        coverages[table] = _coverage(rows, pieces, counts)
        _log_coverage(table, coverages[table])
    with replacing(folder / ROWS_FILE) as temporary:
        save_file(tensors, temporary)
    write_atomically(folder / COVERAGE_FILE, _COVERAGES.dump_json(coverages, indent=1).decode() + "\n")


def read_coverage(folder: Path) -> dict[str, Coverage]:
    """Return what `prepare` has counted, by table."""
    return _COVERAGES.validate_json((folder / COVERAGE_FILE).read_bytes())


def _rows(files: Sequence[tuple[str, str]], pieces: Mapping[str, int]) -> _Rows:
    """Return the rows of one table from files by their keys, each for the pieces that those before it do not have."""
    vectors: dict[int, Vector] = {}
    repeated = 0
    for _, path in files:
        words = {piece: words_of(piece) for piece, number in pieces.items() if number not in vectors}
        found = read_vectors(path, {word for choice in words.values() for word in choice})
        repeated += found.repeated
        taken = {piece: next((word for word in choice if word in found.words), None) for piece, choice in words.items()}
        vectors |= {pieces[piece]: found.words[word] for piece, word in taken.items() if word is not None}
    if not vectors:
        paths = " or ".join(path for _, path in files)
        raise InputError(
            f"none of the {len(pieces):,} pieces of the tokeniser is a word of {paths}",
            where=", ".join(f"model.{key}" for key, _ in files),
            remedy="Give vectors of this language, and of words written as the cleaned corpus writes them",
        )
    return _Rows(vectors, repeated)


def _running(shards: Iterable[ShardColumns], tokenizer: Tokenizer) -> list[npt.NDArray[np.int64]]:
    """Return how often each piece stands in the sources and in the targets: [pieces of the larger vocabulary] each."""
    size = max(tokenizer.source_size, tokenizer.target_size)
    counts = [np.zeros(size, dtype=np.int64) for _ in range(2)]
    for part in shards:
        for of_side, ids in zip(counts, (part.src, part.tgt)):
            of_side += np.bincount(ids, minlength=size)
    return counts


def _coverage(rows: _Rows, pieces: Mapping[str, int], running: npt.NDArray[np.int64]) -> Coverage:
    counts = running.copy()
    counts[[PAD_ID, BOS_ID, EOS_ID]] = 0
    total, covered = int(counts.sum()), int(counts[list(rows.vectors)].sum())
    return Coverage(
        pieces=len(pieces),
        found=len(rows.vectors),
        running_pieces=total,
        covered=round(covered / max(total, 1), 6),
        repeated_words=rows.repeated,
    )


def _log_coverage(table: str, coverage: Coverage) -> None:
    log.info(
        "%s embeddings: vectors for %s of %s pieces, %.1f %% of the running pieces of train",
        table, f"{coverage.found:,}", f"{coverage.pieces:,}", 100 * coverage.covered,
    )  # fmt: skip
    if coverage.repeated_words:
        log.info("%s embeddings: %d words came again; their first vectors are taken", table, coverage.repeated_words)


@torch.no_grad()
def begin_with_vectors(model: Seq2Seq, folder: Path) -> None:
    """Put what `prepare` wrote into the embeddings of a new model.

    The rows found become the vectors, exactly. The others keep their direction and are scaled so that the standard
    deviation of their components is that of the vectors: N(0, s) in place of the model's own, so that neither kind
    drowns the other. The padding's row stays zero.
    """
    tensors = load_file(folder / ROWS_FILE)
    for table in dict.fromkeys(name.partition(".")[0] for name in tensors):
        weight = (model.target_embedding if table == "target" else model.source_embedding).table.weight
        ids, vectors = (torch.from_numpy(tensors[f"{table}.{name}"]) for name in ("ids", "vectors"))
        _begin(weight, ids, vectors)


def _begin(weight: Tensor, ids: Tensor, vectors: Tensor) -> None:
    others = torch.ones(len(weight), dtype=torch.bool)
    others[ids], others[PAD_ID] = False, False
    spread = vectors.std(correction=0)
    if others.any() and spread > 0:
        weight[others] *= (spread / weight[others].std(correction=0)).to(weight)
    weight[ids] = vectors.to(weight)
