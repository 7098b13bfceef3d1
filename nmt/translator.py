"""From text to text in one process: normalise, split what is too long, encode, search in batches, decode, join.

A translator holds one model on one device; `translate.py` puts many of them to work on a corpus.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from nmt.allocation import keep_freed_memory
from nmt.batches import packed, padded
from nmt.checkpoint import load_model
from nmt.config import TranslateConfig
from nmt.precision import autocast
from nmt.search import search
from pipelines.config import NormalizeConfig
from pipelines.normalize import normalize_lines
from pipelines.tokenizer import BOS_ID, EOS_ID, Tokenizer

# A sentence's end: its mark with closing quotes or brackets, and the space behind it; CJK marks need no space.
_SENTENCE_END = re.compile(r"(?<=[.!?…])[\"'”’»)\]]*\s+|(?<=[。！？])")


class TranslatorConfig(BaseModel):
    """All that makes a translator, JSON values only, so that it crosses any border."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    checkpoint: str
    tokenizer: str
    source_language: str
    normalize: NormalizeConfig
    translate: TranslateConfig
    device: str = "cpu"
    threads: int = 1


@dataclass(frozen=True)
class AttentionMap:
    """Attention of a translation: weights [target pieces, source pieces], each row a distribution."""

    source_pieces: list[str]
    target_pieces: list[str]
    weights: list[list[float]]


class Translator:
    """A model, its tokeniser and its search on one device."""

    def __init__(self, config: TranslatorConfig) -> None:
        """Load the model. Raises InputError when checkpoint and tokeniser do not belong together."""
        torch.set_num_threads(config.threads)
        torch.set_float32_matmul_precision(config.translate.matmul_precision)
        self.config = config
        self.device = torch.device(config.device)
        if self.device.type == "cpu":
            keep_freed_memory()
        self.tokenizer = Tokenizer.load(Path(config.tokenizer))
        model, _ = load_model(Path(config.checkpoint), tokenizer=self.tokenizer.digest)
        self.model = model.to(self.device)

    def translate(self, texts: Sequence[str]) -> list[str]:
        """Return as many translations, in the same order; that of a text without any visible character is empty."""
        normalized = self._normalized(texts)
        parts: list[list[int]] = []
        parts_of: list[range] = []
        for ids, text in zip(self.tokenizer.encode_source(normalized), normalized):
            new = self._split(ids, text) if text else []
            parts_of.append(range(len(parts), len(parts) + len(new)))
            parts.extend(new)
        translated = self.tokenizer.decode_target(self._search(parts))
        return [" ".join(filter(None, (translated[i] for i in own))) for own in parts_of]

    def attention(self, source: str, translation: str) -> AttentionMap | None:
        """Return where the model looks when led through this translation; None where it has no attention."""
        src = self.tokenizer.encode_source(self._normalized([source]))[0]
        tgt = self.tokenizer.encode_target([translation])[0]
        with torch.inference_mode():
            ids, lengths = padded([np.asarray(src, dtype=np.int32)])
            previous = torch.tensor([[BOS_ID, *tgt[:-1]]])
            batch = (ids.to(self.device), lengths.to(self.device), previous.to(self.device))
            weights = self.model(*batch, need_weights=True).weights
        if weights is None:
            return None
        rounded = [[round(weight, 4) for weight in row] for row in weights[0].tolist()]
        return AttentionMap(self.tokenizer.source_pieces(src), self.tokenizer.target_pieces(tgt), rounded)

    def _normalized(self, texts: Sequence[str]) -> list[str]:
        return normalize_lines(texts, self.config.source_language, self.config.normalize)

    def _split(self, ids: list[int], text: str) -> list[list[int]]:
        """Return the parts of a source, each within the limit: whole sentences where they fit, else words or pieces."""
        limit = self.config.translate.max_source_pieces
        if len(ids) <= limit:
            return [ids]
        parts: list[list[int]] = []
        for unit in self._units(text, limit):
            # The units are without EOS, for which one place is kept.
            if parts and len(parts[-1]) + len(unit) < limit:
                parts[-1] = parts[-1] + unit
            else:
                parts.append(unit)
        return [[*part, EOS_ID] for part in parts]

    def _units(self, text: str, limit: int) -> list[list[int]]:
        units: list[list[int]] = []
        sentences = [sentence for sentence in _SENTENCE_END.split(text) if sentence.strip()]
        for sentence, ids in zip(sentences, self.tokenizer.encode_source(sentences)):
            if len(ids) <= limit:
                units.append(ids[:-1])
                continue
            for word in self.tokenizer.encode_source(sentence.split()):
                body = word[:-1]
                units.extend(body[start : start + limit - 1] for start in range(0, len(body), limit - 1))
        return units

    def _search(self, sources: Sequence[list[int]]) -> list[list[int]]:
        """Return the best target ids of each source, searched in batches of like length."""
        found: list[list[int]] = [[] for _ in sources]
        lengths = np.asarray([len(ids) for ids in sources], dtype=np.int64)
        order = np.argsort(lengths, kind="stable")
        if not len(order):
            return found
        for rows in packed(order, lengths[order], self.config.translate.batch_tokens):
            ids, real = padded([np.asarray(sources[row], dtype=np.int32) for row in rows])
            with autocast(self.config.translate.precision, self.device):
                hypotheses = search(self.model, ids.to(self.device), real.to(self.device), self.config.translate)
            for row, hypothesis in zip(rows, hypotheses):
                found[row] = hypothesis.ids
        return found


def as_record(attention: AttentionMap) -> dict[str, Any]:
    """Return the map as JSON values, under the names of attention.json."""
    return {
        "source_pieces": attention.source_pieces,
        "target_pieces": attention.target_pieces,
        "attention": attention.weights,
    }
