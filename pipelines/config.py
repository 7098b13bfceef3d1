"""The data stages' config: every default, unit and range check, once.

Each model is frozen and refuses unknown keys. A recipe holds only what differs from the defaults here.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Split = Literal["train", "dev", "test"]
SPLITS: tuple[Split, ...] = ("train", "dev", "test")

Share = Annotated[float, Field(ge=0.0, le=1.0)]


class Table(BaseModel):
    """The base of every table of a recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class LanguagesConfig(Table):
    """ISO 639-1 codes, with an optional region or script behind a hyphen (`pt-BR`, `zh-Hant`)."""

    source: str = Field(pattern=r"^[a-z]{2,3}(-[A-Za-z]{2,4})?$")
    target: str = Field(pattern=r"^[a-z]{2,3}(-[A-Za-z]{2,4})?$")


class CorpusConfig(Table):
    """One parallel corpus: two aligned files (`source`, `target`), or one TSV file with two of its columns.

    Plain or .gz. Columns are numbers from 0, or names where the file has a header line.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    source: str | None = None
    target: str | None = None
    tsv: str | None = None
    source_column: int | str = 0
    target_column: int | str = 1
    header: bool = False
    licence: str = "not stated"

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        pair = self.source is not None and self.target is not None
        if pair == (self.tsv is not None) or (self.source is None) != (self.target is None):
            raise ValueError("give either `source` and `target`, or `tsv`")
        named = isinstance(self.source_column, str) or isinstance(self.target_column, str)
        if named and not self.header:
            raise ValueError("columns are given by name, so the file needs `header: true`")
        return self


class CorporaConfig(Table):
    """The corpora of each split. Names are unique in a split; dev and test rows are never filtered by score."""

    train: tuple[CorpusConfig, ...] = Field(min_length=1)
    dev: tuple[CorpusConfig, ...] = Field(min_length=1)
    test: tuple[CorpusConfig, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _unique_names(self) -> Self:
        for split in SPLITS:
            names = [corpus.name for corpus in self.of(split)]
            if len(set(names)) < len(names):
                raise ValueError(f"two corpora of {split} have the same name: {sorted(names)}")
        return self

    def of(self, split: Split) -> tuple[CorpusConfig, ...]:
        """Return the corpora of one split."""
        corpora: tuple[CorpusConfig, ...] = getattr(self, split)
        return corpora


class TokenizerConfig(Table):
    """SentencePiece. `joint`: one vocabulary of `vocab_size` pieces for both languages (else one for each)."""

    kind: Literal["unigram", "bpe"] = "unigram"
    vocab_size: int = Field(default=8000, ge=16, le=1_000_000)
    joint: bool = True
    character_coverage: float = Field(default=0.9995, gt=0.9, le=1.0)
    sample_rows: int = Field(default=1_000_000, ge=1)  # pairs of train that it is fitted on, spread evenly
    byte_fallback: bool = False


class ShardConfig(Table):
    """How pieces of work and shards are cut."""

    rows_per_shard: int = Field(default=100_000, ge=1)


class BeamConfig(Table):
    """Where Beam runs: any runner by its name, and its options without the leading dashes. Changes no output byte."""

    runner: str = "FnApiRunner"
    options: dict[str, str | int | float | bool] = {}


class CleanConfig(Table):
    """Normalisation, the rules' thresholds, duplicates and leakage."""
