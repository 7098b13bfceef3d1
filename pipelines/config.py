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


class NormalizeConfig(Table):
    """What is done to each line beyond NFC, white space and what cannot be seen. Translation does the same."""

    unescape_html: bool = True  # `&amp;` and its like, where the semicolon makes it certain
    unify_quotes: bool = False  # typographic quotes to " and '; off: a model may learn the target's own quotes
    unify_dashes: bool = False  # dashes and the minus sign to -


Bound = Annotated[float, Field(ge=0.0)]


class RulesConfig(Table):
    """The threshold of each rule; null switches a rule off. The score itself is kept in clean/ in either case.

    A row goes when its score is above the threshold (`empty`, `alphabetic_ratio`: below). What a score is stands in
    `pipelines/filters.py`. The thresholds keep 99.9 % of the 29,000 human captions of Multi30k en-de.
    """

    empty: float = Field(default=1.0, ge=1.0)  # characters of the shorter side
    characters: Bound | None = 2000.0  # of the longer side: far above a sentence, below what would fill a batch
    words: Bound | None = 250.0  # of the longer side: the bound that is usual for translation of sentences
    length_ratio: Bound | None = (
        2.5  # longer side / shorter side, short texts softened; of the captions none is above 2.1
    )
    long_word: Bound | None = 50.0  # characters without a space: German compounds stay well below 50
    markup: Bound | None = 0.0  # tags, entities and template marks that are left after normalisation
    broken_encoding: Bound | None = 0.0  # places like `Ã¼`; each one is a wrong word
    control: Bound | None = 0.0  # control characters in the line as it was read: a conversion went wrong
    script: Share | None = 0.4  # letters outside of the language's scripts; names and quotations stay below
    alphabetic_ratio: Share | None = 0.3  # letters among what is no space: prices and times stay above, tables not
    identical: Bound | None = 2.0  # words of a text that stands on both sides: names may, copied sentences harm
    # Numbers that only one side has, among all: one of two may be spelled out or rounded, all of them may not.
    numbers: Share | None = 0.7
    url: Share | None = 0.6  # sites that only one side names, among all
    repetition: Bound | None = 3.0  # uses of a word on average, in texts of 12 words or more
    terminal_punctuation: Share | None = None  # off: subtitles, headings and captions differ in it rightly
    language: Share | None = 0.7  # p(another language): clearly another one, since short texts are hard to tell


class CleanConfig(Table):
    """Normalisation, the rules' thresholds, leakage, and when a corpus counts as unusable."""

    normalize: NormalizeConfig = NormalizeConfig()
    rules: RulesConfig = RulesConfig()
    # What counts as a duplicate, of which the first row stays: "near" is the same letters and digits on both sides
    # and includes "exact", the same text; "keep" leaves all.
    duplicates: Literal["near", "exact", "keep"] = "near"
    # Letters and digits from which one side alone tells a leak, about five words: a shorter one ("Stop.", "A man
    # smiles.") is met by chance, and counts only when the whole pair is the same. An ideograph counts for three.
    min_leak_characters: int = Field(default=20, ge=0)
    max_leakage_rate: Share | None = None  # of train; more ends the run. Off: what leaks is removed in any case
    # Of train, all reasons together; more ends the run. Off by default: of a crawl most may rightly go, and a train
    # of which nothing is left ends the run in any case.
    max_reject_rate: Share = 1.0
