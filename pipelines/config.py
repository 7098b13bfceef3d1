"""The data stages' config: every default, unit and range check, once.

Each model is frozen and refuses unknown keys. A recipe holds only what differs from the defaults here.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Split = Literal["train", "dev", "test", "monolingual"]
SPLITS: tuple[Split, ...] = ("train", "dev", "test")  # of pairs
ALL_SPLITS: tuple[Split, ...] = (*SPLITS, "monolingual")
# Written without blanks between words; Tibetan and Dzongkha have a mark between syllables.
UNSPACED_LANGUAGES = frozenset({"bo", "dz", "ja", "km", "lo", "my", "th", "wuu", "yue", "zh"})

Share = Annotated[float, Field(ge=0.0, le=1.0)]
_LANGUAGE = r"^[a-z]{2,3}(-[A-Za-z]{2,4})?$"


class Table(BaseModel):
    """The base of every table of a recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def is_uri(path: str) -> bool:
    """Return whether fsspec is to open a path, rather than this machine's file system."""
    return "://" in path


class LanguagesConfig(Table):
    """ISO 639-1 codes, with an optional region or script behind a hyphen (`pt-BR`, `zh-Hant`)."""

    source: str = Field(pattern=_LANGUAGE)
    target: str = Field(pattern=_LANGUAGE)


class InputScoreConfig(Table):
    """A score that comes with a corpus, in a column of it (number or name); a row outside of the bounds goes."""

    column: int | str
    min: float | None = None
    max: float | None = None


class CorpusConfig(Table):
    """One corpus, in one of these forms: aligned files (`source`, `target`), or one `tsv`, `jsonl`, `parquet`, `tmx`.

    A path may hold `*`, and be a URI that fsspec opens; text files may be compressed (.gz .zst .bz2 .xz). Columns are
    numbers from 0 or, where there are names, names; those of a TMX are its language codes, by default the recipe's.
    A monolingual corpus has one side only: `source` or `target` alone, or one of the columns.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    source: str | None = None
    target: str | None = None
    tsv: str | None = None
    jsonl: str | None = None
    parquet: str | None = None
    tmx: str | None = None
    source_column: int | str | None = None  # TSV: 0 unless given
    target_column: int | str | None = None  # TSV: 1 unless given
    header: bool = False  # of a TSV, or of the aligned files: their first line is no text
    scores: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], InputScoreConfig] = {}
    rules: dict[str, float | Literal["soft"] | None] = {}  # thresholds of this corpus, in place of clean.rules
    # How often an epoch sees a row of this corpus: 2 is twice, 0.5 is every other time.
    weight: float = Field(default=1.0, gt=0.0, le=1000.0)
    # The epochs of training that this corpus takes part in, counted from 1, both ends included; null: to the end.
    from_epoch: int = Field(default=1, ge=1)
    until_epoch: Annotated[int, Field(ge=1)] | None = None
    licence: str = "not stated"

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        tables = [form for form in ("tsv", "jsonl", "parquet", "tmx") if getattr(self, form) is not None]
        aligned = self.source is not None or self.target is not None
        if len(tables) + aligned != 1:
            raise ValueError("give either `source` and `target`, or one of `tsv`, `jsonl`, `parquet`, `tmx`")
        named = isinstance(self.source_column, str) or isinstance(self.target_column, str)
        if self.tsv is not None and named and not self.header:
            raise ValueError("columns are given by name, so the file needs `header: true`")
        if self.until_epoch is not None and self.until_epoch < self.from_epoch:
            raise ValueError(f"until_epoch {self.until_epoch} is before from_epoch {self.from_epoch}")
        return self


class CorporaConfig(Table):
    """The corpora of each split. Names are unique in a split; dev and test rows are never filtered by score.

    A dev or test set may be left out where `held_out` takes it from train.
    """

    train: tuple[CorpusConfig, ...] = Field(min_length=1)
    dev: tuple[CorpusConfig, ...] = ()
    test: tuple[CorpusConfig, ...] = ()
    monolingual: tuple[CorpusConfig, ...] = ()
    # Shares of train's rows that become dev and test, chosen by the hash of the source: what they hold is taken out
    # of train on both sides.
    held_out: dict[Literal["dev", "test"], Annotated[float, Field(gt=0.0, le=0.5)]] = {}

    @model_validator(mode="after")
    def _unique_names(self) -> Self:
        for split in ALL_SPLITS:
            names = [corpus.name for corpus in self.of(split)]
            if len(set(names)) < len(names):
                raise ValueError(f"two corpora of {split} have the same name: {sorted(names)}")
        for held_out in ("dev", "test"):
            if bool(self.of(held_out)) == (held_out in self.held_out):
                raise ValueError(f"give either corpora of `{held_out}`, or a share of train in `held_out.{held_out}`")
        return self

    @model_validator(mode="after")
    def _sides(self) -> Self:
        for split in ALL_SPLITS:
            for corpus in self.of(split):
                if split == "monolingual" and corpus.source is not None and corpus.target is not None:
                    raise ValueError(f"the monolingual corpus {corpus.name!r} has both a `source` and a `target`")
                if split != "monolingual" and (corpus.source is None) != (corpus.target is None):
                    raise ValueError(f"the corpus {corpus.name!r} of {split} needs both `source` and `target`")
        return self

    def of(self, split: Split) -> tuple[CorpusConfig, ...]:
        """Return the corpora of one split."""
        corpora: tuple[CorpusConfig, ...] = getattr(self, split)
        return corpora


class TokenizerConfig(Table):
    """SentencePiece. `joint`: one vocabulary of `vocab_size` pieces for both languages (else one for each).

    With `from_model` nothing is fitted: kind, sizes and symbols are then those of that model's tokeniser.
    """

    from_model: str | None = None  # the folder of a published model, whose tokeniser is taken as it is
    kind: Literal["unigram", "bpe"] = "unigram"
    vocab_size: int = Field(default=8000, ge=16, le=1_000_000)
    joint: bool = True
    character_coverage: float = Field(default=0.9995, gt=0.9, le=1.0)
    sample_rows: int = Field(default=1_000_000, ge=1)  # pairs of train that it is fitted on, spread evenly
    byte_fallback: bool = False
    # Words that are one piece each, whatever the corpus holds: the tags of `augment.tags`, and others to be used later.
    symbols: tuple[Annotated[str, Field(pattern=r"^[^\s\u2581]+$")], ...] = ()

    @model_validator(mode="after")
    def _is_fitted_or_taken(self) -> Self:
        fitting = ("character_coverage", "sample_rows", "byte_fallback")
        given = [key for key in fitting if getattr(self, key) != type(self).model_fields[key].default]
        if self.from_model is not None and given:
            raise ValueError(f"from_model takes a tokeniser as it is: leave out {', '.join(given)}")
        return self

    @model_validator(mode="after")
    def _symbols_differ(self) -> Self:
        if len(set(self.symbols)) < len(self.symbols) or set(self.symbols) & {"<pad>", "<unk>", "<s>", "</s>"}:
            raise ValueError(f"symbols must differ from each other and from <pad>, <unk>, <s>, </s>: {self.symbols}")
        return self


class TagConfig(Table):
    """A word before the source of a row that says what kind of row it is: one of `tokenizer.symbols`."""

    tag: str
    corpora: tuple[str, ...] = ()  # of train; none named: all of them
    rate: Share = 1.0  # of their rows


class SamplingConfig(Table):
    """Subword regularisation: these shares of rows are split into pieces at random, anew in each epoch.

    Source: Kudo 2018, arXiv:1804.10959 (unigram, all segmentations); Provilkov et al. 2020, arXiv:1910.13267 (BPE).
    """

    source: Share = 0.0
    target: Share = 0.0
    # Of a unigram tokeniser: the exponent of a segmentation's probability. On news, 6,000 pieces: 0.5 gives 6 % more
    # pieces, 0.2 gives 42 %, 0.1 twice as many.
    unigram_alpha: float = Field(default=0.2, gt=0.0, le=1.0)
    # Of a BPE tokeniser: the probability that a merge is left out. On the same news 0.1 gives 30 % more pieces.
    bpe_dropout: float = Field(default=0.1, gt=0.0, lt=1.0)


class AugmentConfig(Table):
    """What training rows become, anew in each epoch, by shares of the rows; dev and test stay as they are.

    The changes are those of OpusTrainer, Bogoychev et al. 2023, arXiv:2311.14838. A row that would become too long, or
    whose target would hold what the tokeniser does not know, stays as it was: with `tokenizer.byte_fallback` all noise
    can be used.
    """

    upper_case: Share = 0.0  # both sides
    title_case: Share = 0.0  # both sides
    no_end_punctuation: Share = 0.0  # where both sides end with the same kind of mark
    typos: Share = 0.0  # in the source
    typo_words: Share = 0.1  # of the words of a row with typos; at least one
    merge: Share = 0.0  # with the next row of the corpus, which stays a row of its own too
    noise_words: Share = 0.0  # an emoji, address or code, the same at the start or the end of both sides
    noise_rows: Share = 0.0  # rows more that are nothing but noise, the same on both sides
    tags: tuple[TagConfig, ...] = ()
    sampling: SamplingConfig = SamplingConfig()

    @model_validator(mode="after")
    def _one_case(self) -> Self:
        if self.upper_case + self.title_case > 1.0:
            raise ValueError("upper_case and title_case are of different rows: together at most 1")
        return self

    @property
    def changes_text(self) -> bool:
        """Whether training needs the rows' text beside their piece ids."""
        shares = (self.upper_case, self.title_case, self.no_end_punctuation, self.typos, self.merge, self.noise_words)
        return any(share > 0.0 for share in (*shares, self.sampling.source, self.sampling.target))

    @property
    def active(self) -> bool:
        """Whether any row can become another one."""
        return self.changes_text or self.noise_rows > 0.0 or any(tag.rate > 0.0 for tag in self.tags)


class ShardConfig(Table):
    """How pieces of work and shards are cut."""

    rows_per_shard: int = Field(default=100_000, ge=1)


class AlignConfig(Table):
    """Word alignment of the training rows' pieces, where `train.guided_alignment_weight` asks for it."""

    sample_rows: int = Field(default=500_000, ge=1)  # of train, spread evenly: the aligner is estimated on them
    iterations: int = Field(default=5, ge=1, le=50)  # of EM


class BeamConfig(Table):
    """Where Beam runs: any runner by its name, and its options without the leading dashes. Changes no output byte."""

    runner: str = "FnApiRunner"
    # Processes of this machine that steps run in beside the in-process runner; null: one for each CPU. Other runners
    # have options of their own for it.
    processes: Annotated[int, Field(ge=1)] | None = None
    options: dict[str, str | int | float | bool] = {}


class NormalizeConfig(Table):
    """What is done to each line beyond white space and what cannot be seen. Translation does the same."""

    form: Literal["NFC", "NFKC"] = "NFC"  # of Unicode; NFKC also turns `ﬁ`, `²` and full-width signs into plain ones
    unescape_html: bool = True  # `&amp;` and its like, where the semicolon makes it certain
    unify_quotes: bool = False  # typographic quotes to " and '; off: a model may learn the target's own quotes
    unify_dashes: bool = False  # dashes and the minus sign to -
    unify_widths: bool = False  # full-width letters and digits, half-width kana; punctuation stays as it is
    repair_encoding: bool = True  # `Ã¼` and its like, where it is certain what was meant
    strip_markup: bool = False  # tags, reStructuredText and wiki marks, without what they enclose; placeholders stay
    chinese: Literal["simplified", "traditional"] | None = None  # one script for all Chinese
    # What differs for a language: {de: {unify_quotes: true}}. A tag with a region or script goes before one without.
    by_language: dict[Annotated[str, Field(pattern=_LANGUAGE)], dict[str, bool | str | None]] = {}

    @model_validator(mode="after")
    def _known_overrides(self) -> Self:
        for language, changes in self.by_language.items():
            if "by_language" in changes:
                raise ValueError(f"by_language.{language}: `by_language` cannot be nested")
            self._changed(changes)
        return self

    def of(self, language: str) -> NormalizeConfig:
        """Return what is done to a language: the same with its own changes, and `by_language` empty."""
        tags = {language.partition("-")[0]: None, language: None}
        changes = {key: value for tag in tags for key, value in self.by_language.get(tag, {}).items()}
        return self._changed(changes)

    def _changed(self, changes: dict[str, bool | str | None]) -> NormalizeConfig:
        return NormalizeConfig.model_validate({**self.model_dump(exclude={"by_language"}), **changes})


Bound = Annotated[float, Field(ge=0.0)] | Literal["soft"] | None
SoftShare = Share | Literal["soft"] | None


class RulesConfig(Table):
    """The threshold of each rule; `soft`: scored and reported, drops nothing; null: not even scored.

    A row goes when its score is above the threshold (`empty`, `alphabetic_ratio`: below). What a score is stands in
    `pipelines/filters.py`. The thresholds keep 99.9 % of the 29,000 human captions of Multi30k en-de.
    """

    empty: float = Field(default=1.0, ge=1.0)  # characters of the shorter side
    characters: Bound = 2000.0  # of the longer side: far above a sentence, below what would fill a batch
    words: Bound = 250.0  # of the longer side: the bound that is usual for translation of sentences
    word_length: Bound = "soft"  # characters of a word on average: languages differ in it
    length_ratio: Bound = 2.5  # longer side / shorter side, short texts softened; of the captions none is above 2.1
    word_ratio: Bound = None  # the same in words: compounds and particles make it vary between languages
    byte_ratio: Bound = None  # the same in bytes: alphabets make it vary between languages
    long_word: Bound = 50.0  # characters without a space: German compounds stay well below 50
    markup: Bound = 0.0  # tags, entities and template marks that are left after normalisation
    # Markup that only one side has, among all: of three marks one may be lost, most of them may not.
    markup_mismatch: SoftShare = 0.5
    wiki: Bound = "soft"  # links and templates of a wiki; a text on programs may quote such
    escapes: Bound = "soft"  # `\n`, `%20`: in addresses they are right
    code: SoftShare = "soft"  # signs of programs, among what is no space: smileys have them too
    broken_encoding: Bound = 0.0  # places like `Ã¼` that could not be repaired; each one is a wrong word
    control: Bound = 0.0  # control characters in the line as it was read: a conversion went wrong
    private_use: Bound = 0.0  # characters that only one font shows: no pair of captions or news has one
    script: SoftShare = 0.4  # letters outside of the language's scripts; names and quotations stay below
    alphabetic_ratio: SoftShare = 0.3  # letters among what is no space: prices and times stay above, tables not
    punctuation: SoftShare = "soft"  # among what is no space; `alphabetic_ratio` drops the extremes
    brackets: Bound = "soft"  # brackets that are not closed, or that only one side has: languages differ in their use
    breadcrumbs: SoftShare = "soft"  # separators of menus and paths, among the words: dialogue has dashes too
    title_case: SoftShare = "soft"  # capitalised words, where both sides have many: titles are text as well
    identical: Bound = 2.0  # words of a text that stands on both sides: names may, copied sentences harm
    # 1 - edit distance / length: of people's verdicts on crawled pairs it is no sign, since lists of names are alike.
    similar: SoftShare = "soft"
    # Numbers that only one side has, among all: one of two may be spelled out or rounded, all of them may not.
    numbers: SoftShare = 0.7
    url: SoftShare = 0.6  # sites that only one side names, among all
    profanity: Bound = 0.0  # words of the list in `resources`, where there is one
    repetition: Bound = 3.0  # uses of a word on average, in texts of 12 words or more
    character_run: Bound = 20.0  # of one character: a cry has a dozen at most, a drawn line more
    phrase_repetition: SoftShare = 0.6  # words in phrases that repeat themselves at once: of good pairs none is above
    terminal_punctuation: SoftShare = "soft"  # subtitles, headings and captions differ in it rightly
    common_substring: SoftShare = None  # costs as much as all others together
    language: SoftShare = 0.7  # p(another language): clearly another one, since short texts are hard to tell
    # Of the stage `rate`, where the recipe has `clean.quality`; a row below goes.
    adequacy: SoftShare = "soft"
    quality: SoftShare = "soft"  # p(good)


class ResourcesConfig(Table):
    """Files that rules work with."""

    source_profanity: str | None = None  # one word or phrase a line, UTF-8
    target_profanity: str | None = None
    language_model: str | None = None  # a fastText language identification model in place of the one built in


class DuplicatesConfig(Table):
    """What counts as a repetition, and which row of those stays. What is null is not looked for."""

    exact: Literal["pair", "source", "target"] | None = "pair"  # the same text
    folded: Literal["pair", "source", "target"] | None = "pair"  # the same letters and digits
    fold_digits: bool = False  # in `folded`, digits do not count either: "Page 3" repeats "Page 2"
    near: Literal["pair", "source", "target"] | None = None  # like text, by MinHash of character shingles
    similarity: float = Field(default=0.8, ge=0.3, le=1.0)  # of `near`: Jaccard index of the shingles
    shingle: int = Field(default=5, ge=2, le=32)  # characters
    # The score by which the best row stays (`quality`, or a corpus's own as `input_<name>`); `first`: the first row.
    keep: str = "first"
    max_uses: Annotated[int, Field(ge=1)] | None = None  # rows that one side may stand in, digits apart: boilerplate


class LeakageConfig(Table):
    """What of train counts as known from dev and test."""

    # Letters and digits from which one side alone tells a leak, about five words: a shorter one ("Stop.", "A man
    # smiles.") is met by chance, and counts only when the whole pair is the same. An ideograph counts for three.
    min_characters: int = Field(default=20, ge=0)
    # Share of the character n-grams of a side, or of a held-out text, that the other has; so much or more is a leak.
    # At 0.8 variants of one word and fragments go, 0.1 to 0.3 % of captions and short sentences; below, mere phrases.
    overlap: Share | None = 0.8
    max_rate: Share | None = None  # of train; more ends the run. Off: what leaks is removed in any case


class LabelledConfig(Table):
    """Pairs with a verdict: a TSV with a header line. Columns by name."""

    tsv: str
    source_column: str = "src"
    target_column: str = "tgt"
    label_column: str = "label"
    valid: tuple[str, ...] = ("V",)  # labels of good rows; all others are bad


class QualityConfig(Table):
    """Adequacy by a lexical translation table that is estimated on train, and a learned combination of all scores.

    A thousand labelled pairs come within 0.025 of the ROC area that four thousand reach. They should be such as the
    corpus is: of pairs of other crawls, judged by others, the combination tells less.
    """

    sample_rows: int = Field(default=500_000, ge=1)  # of train, that pass the rules: the table is estimated on them
    iterations: int = Field(default=5, ge=1, le=50)  # of EM
    labelled: tuple[LabelledConfig, ...] = ()  # without: no `quality`, adequacy alone


class CleanConfig(Table):
    """Normalisation, the rules' thresholds, repetitions, leakage, and when a corpus counts as unusable."""

    normalize: NormalizeConfig = NormalizeConfig()
    rules: RulesConfig = RulesConfig()
    resources: ResourcesConfig = ResourcesConfig()
    duplicates: DuplicatesConfig = DuplicatesConfig()
    leakage: LeakageConfig = LeakageConfig()
    quality: QualityConfig | None = None
    # Of train, all reasons together; more ends the run. Off by default: of a crawl most may rightly go, and a train
    # of which nothing is left ends the run in any case.
    max_reject_rate: Share = 1.0
