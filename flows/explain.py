"""Why a row is gone or kept, and what a recipe's rules say of any text.

explain_row(recipe, profile, workdir, "captions:1024")         from the finished stages, by corpus and line
explain_text(recipe, profile, workdir, "A dog.", "Ein Hund.")  scored on the spot; the stages need not be there
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from flows.config import Profile, Recipe
from flows.stages import plan, run_up_to
from pipelines.characters import CodePoints
from pipelines.config import ALL_SPLITS, CorpusConfig
from pipelines.corpus import READ_FAULTS
from pipelines.errors import InputError
from pipelines.filters import RULES, Pairs, rule_scores
from pipelines.leakage import LEAKAGE_REASONS, NO_LEAK, HeldOutIndex, held_out_index, merged
from pipelines.lookup import (
    Match,
    Origin,
    fate,
    last_row_id,
    match_of,
    origin_of,
    rated_row,
    raw_row,
    row_id_of,
    scored_row,
)
from pipelines.normalize import normalize
from pipelines.scoring import FAULT, HELD_OUT, Scoring
from pipelines.stage import StageRun, WouldRun, planning
from pipelines.verdict import INPUT, RATINGS, Criterion, corpus_criteria

Says = Literal["drops", "passes", "soft", "no score", "not scored"]


@dataclass(frozen=True)
class Said:
    """What one rule says of a row, by itself. `score` is None where the rule has none for it, or is not asked.

    "soft": scored, drops nothing; "no score": the rule does not apply to this text; "not scored": it is switched off,
    or its scores are made elsewhere.
    """

    rule: str
    score: float | None
    drops: str
    says: Says


@dataclass(frozen=True)
class Explanation:
    """Why a row is gone or kept. `raw` and `texts` are source and target, as read and normalised; None: no such side.

    `fate` and `reason` are the outcome in words and the name of what dropped the row, None where nothing did; `match`
    is the row that it repeats or leaks; `notes` say what was not looked at.
    """

    origin: Origin | None
    raw: tuple[str | None, str | None]
    texts: tuple[str | None, str | None]
    fate: str
    reason: str | None
    match: Match | None
    rules: tuple[Said, ...]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        match = None
        if self.match is not None:
            match = {"origin": str(self.match.origin), "source": self.match.src, "target": self.match.tgt}
        return {
            "origin": None if self.origin is None else str(self.origin),
            "raw": dict(zip(_SIDES, self.raw)),
            "texts": dict(zip(_SIDES, self.texts)),
            "fate": self.fate,
            "reason": self.reason,
            "match": match,
            "rules": [asdict(said) for said in self.rules],
            "notes": list(self.notes),
        }


_SIDES = ("source", "target")


# --- A row ---------------------------------------------------------------------------------------------------------


def explain_row(recipe: Recipe, profile: Profile, workdir: Path, row: str) -> Explanation:
    """Return why a row is gone or kept: `row` is CORPUS:LINE or SPLIT/CORPUS:LINE, lines counted from 1 as editors do.

    Raises InputError for a corpus or line that is not there, and where the stage `clean` has not finished for this
    recipe, saying what changed since it did.
    """
    origin = _origin(recipe, row)
    runs = _finished(recipe, profile, workdir)
    row_id = row_id_of(recipe.corpora, origin)
    scored = scored_row(runs["score"], origin.split, origin.corpus, row_id)
    if scored is None:
        last = origin_of(recipe.corpora, last_row_id(runs["score"], origin.split, origin.corpus)).line
        what = f"the corpus ends with line {last:,}" if origin.line > last else "this line is a header, not a row"
        raise InputError(what, where=f"--row {row}", remedy=f"Give a line of text up to {last:,}")
    cleaned = runs["clean"]
    found = fate(cleaned, origin.split, row_id)
    read = raw_row(recipe.corpora, recipe.languages, origin)
    if found is None or read is None:
        raise AssertionError(f"{origin} was scored, and is not in {cleaned.folder} or its corpus")
    values = scored.to_pylist()[0]
    reason = None if found.kept else found.row["rule"]
    match = None if found.kept or found.row["match"] is None else found.row["match"]
    criteria = cleaned.manifest.config["criteria"].get(f"{origin.split}/{origin.corpus}")
    rules: tuple[Said, ...] = ()
    notes: tuple[str, ...] = ()
    if criteria is None:
        notes = ("rows of dev and test are never judged by score: only those go that cannot be read or are empty",)
    elif values[FAULT] is None:
        scores = _stage_scores(recipe, runs, origin, row_id, scored)
        rules = _said(recipe, [Criterion(**criterion) for criterion in criteria], scores)
    return Explanation(
        origin,
        (read.src[0].as_py(), read.tgt[0].as_py()),
        (values["src"], values["tgt"]),
        _in_words(found.kept, found.path, reason, found.row.get("score")),
        reason,
        None if match is None else match_of(cleaned, recipe.corpora, match),
        rules,
        notes,
    )


def _origin(recipe: Recipe, row: str) -> Origin:
    """Return where a row stands by what was given. Raises InputError for a form, corpus or line that cannot be."""
    name, _, line = row.rpartition(":")
    known = [(split, corpus.name) for split in ALL_SPLITS for corpus in recipe.corpora.of(split)]
    fitting = [(split, corpus) for split, corpus in known if name in (corpus, f"{split}/{corpus}")]
    names = ", ".join(f"{split}/{corpus}" for split, corpus in fitting or known)
    if not name or not line.isdecimal() or int(line) == 0:
        remedy = f"As in --row {names.partition(',')[0]}:1; lines are counted from 1"
        raise InputError("not of the form CORPUS:LINE", where=f"--row {row}", remedy=remedy)
    if not fitting:
        raise InputError(f"the recipe has no corpus {name!r}", where=f"--row {row}", remedy=f"Give one of {names}")
    if len(fitting) > 1:
        raise InputError(f"several splits have a corpus {name!r}", where=f"--row {row}", remedy=f"Give one of {names}")
    return Origin(*fitting[0], int(line))


def _finished(recipe: Recipe, profile: Profile, workdir: Path) -> dict[str, StageRun]:
    """Return the finished stages up to `clean`. Raises InputError where one of them would have to run first."""
    try:
        with planning():
            return run_up_to("clean", recipe, profile, workdir)
    except WouldRun as would:
        reason = next(stage.reason for stage in plan(recipe, profile, workdir) if stage.name == would.name)
        raise InputError(
            f"the stage {would.name!r} has not finished for this recipe as it is now: {reason}",
            where=str(workdir),
            remedy="Run `seqloom prepare` with the same recipe, --define, --set and --workdir",
        ) from would


def _in_words(kept: bool, path: str, reason: str | None, score: float | None) -> str:
    if kept:
        return f"kept in {path}"
    with_score = "" if score is None else f" with the score {score:.6g}"
    if reason in READ_FAULTS:
        return f"cannot be read: {reason} (in {path})"
    return f"rejected by {reason}{with_score} (in {path})"


def _stage_scores(
    recipe: Recipe, runs: Mapping[str, StageRun], origin: Origin, row_id: int, scored: pa.Table
) -> dict[str, float | None]:
    """Return the scores of a row by columns: those of the stages, and costly ones that these did not need to know."""
    scores = {name: scored[name][0].as_py() for name in scored.column_names if name.startswith(("score_", INPUT))}
    if "rate" in runs and origin.split == "train":
        rated = rated_row(runs["score"], runs["rate"], origin.corpus, row_id)
        if rated is not None:
            scores |= {f"score_{name}": rated[f"score_{name}"][0].as_py() for name in RATINGS}
    scoring = Scoring.of(recipe.languages, recipe.corpora, recipe.clean)
    missing = [rule for rule in scoring.costly if scores.get(f"score_{rule.name}") is None]
    if missing:
        src, tgt = (None if scored[side].null_count else scored[side].combine_chunks() for side in ("src", "tgt"))
        pairs = Pairs.of(src, tgt, recipe.languages, resources=scoring.resources())
        found = rule_scores(pairs, missing)
        scores |= {f"score_{name}": column[0].as_py() for name, column in found.items()}
    return scores


def _said(recipe: Recipe, criteria: Sequence[Criterion], scores: Mapping[str, float | None]) -> tuple[Said, ...]:
    """Return what each rule says, in their order: also of those that no criterion asks."""
    by_name: dict[str, list[Criterion]] = {rule.name: [] for rule in RULES}
    by_name |= {name: [] for name in RATINGS if recipe.clean.quality is not None}
    for criterion in criteria:
        by_name.setdefault(criterion.name, []).append(criterion)
    said = []
    for name, found in by_name.items():
        said += [_says(criterion, scores.get(criterion.column)) for criterion in found]
        if not found:
            said.append(Said(name, None, "", "not scored"))
    return tuple(said)


def _says(criterion: Criterion, score: float | None) -> Said:
    if criterion.threshold is None:
        return Said(criterion.name, score, "", "no score" if score is None else "soft")
    drops = f"{criterion.worse} {criterion.threshold:g}"
    if score is None:
        return Said(criterion.name, None, drops, "no score")
    goes = bool(criterion.drops(pa.array([score], pa.float32()))[0])
    return Said(criterion.name, score, drops, "drops" if goes else "passes")


# --- A text --------------------------------------------------------------------------------------------------------


def explain_text(recipe: Recipe, profile: Profile, workdir: Path, src: str | None, tgt: str | None) -> Explanation:
    """Return what the recipe's rules say of a pair, or of a text of one side (the other is None).

    Thresholds are those of `clean.rules`. What is held out is known where the stage `clean` has finished; otherwise
    leakage is not looked for, and repetition never is. Raises InputError for a text that is no UTF-8.
    """
    _check_utf8(src, tgt)
    scoring = Scoring.of(recipe.languages, recipe.corpora, recipe.clean)
    languages, config = recipe.languages, recipe.clean.normalize
    raw_src, raw_tgt = (None if text is None else pa.array([text], pa.string()) for text in (src, tgt))
    texts = (
        None if raw_src is None else normalize(raw_src, languages.source, config),
        None if raw_tgt is None else normalize(raw_tgt, languages.target, config),
    )
    pairs = Pairs.of(*texts, languages, src_raw=raw_src, tgt_raw=raw_tgt, resources=scoring.resources())
    one_side = None in texts
    asked = [rule for rule in RULES if rule.name in scoring.rules and (rule.one_side or not one_side)]
    scores = {f"score_{name}": column[0].as_py() for name, column in rule_scores(pairs, asked).items()}
    rules = _said(recipe, criteria_of(recipe, one_side=one_side), scores)
    dropping = next((said for said in rules if said.says == "drops"), None)
    reason, match, notes = _leak(recipe, profile, workdir, pairs, texts)
    if dropping is not None:
        found = f"rejected by {dropping.rule} with the score {dropping.score:.6g}"
        notes += (f"it would leak as well: {reason}",) if reason is not None else ()
        reason = dropping.rule
    else:
        found = "kept, unless it repeats another row" if reason is None else f"rejected by {reason}"
    shown = tuple(None if text is None else text[0].as_py() for text in texts)
    return Explanation(None, (src, tgt), (shown[0], shown[1]), f"would be {found}", reason, match, rules, notes)


def criteria_of(recipe: Recipe, *, one_side: bool) -> tuple[Criterion, ...]:
    """Return what decides on rows of a corpus without thresholds of its own."""
    plain = CorpusConfig(name="text", source="text", target=None if one_side else "text")
    return corpus_criteria(recipe.clean.rules, plain, one_side=one_side)


def _check_utf8(*texts: str | None) -> None:
    for text in texts:
        if text is not None and any("\ud800" <= character <= "\udfff" for character in text):
            raise InputError("the text is no UTF-8", where="--text", remedy="A corpus's row with it is invalid_utf8")


def _leak(
    recipe: Recipe, profile: Profile, workdir: Path, pairs: Pairs, texts: tuple[pa.Array | None, pa.Array | None]
) -> tuple[str | None, Match | None, tuple[str, ...]]:
    """Return why and from which row a text leaks, None where it does not, and a note where that cannot be known."""
    try:
        cleaned = _finished(recipe, profile, workdir)["clean"]
    except InputError as error:
        return None, None, (f"leakage is not checked: {error.what}",)
    keys = [pa.nulls(1, pa.uint64()) if side is None else pa.array(side.keys.keys) for side in (pairs.src, pairs.tgt)]
    src, tgt = (CodePoints(pa.nulls(1, pa.string()) if text is None else text) for text in texts)
    found = _held_out(recipe, cleaned).leaks(keys[0], keys[1], (src, tgt))
    if found.reason[0] == NO_LEAK:
        return None, None, ()
    return LEAKAGE_REASONS[found.reason[0]], match_of(cleaned, recipe.corpora, int(found.match[0])), ()


def _held_out(recipe: Recipe, cleaned: StageRun) -> HeldOutIndex:
    """Return the index of dev and test, as the stage had it."""
    indexes = []
    for split in HELD_OUT:
        of_train = split in recipe.corpora.held_out
        # Rows of train that were held out count whatever the rules said of them.
        kinds = ("clean", "rejects") if of_train else ("clean",)
        config = recipe.clean.leakage.model_copy(update={"min_characters": 0}) if of_train else recipe.clean.leakage
        for output in cleaned.manifest.outputs:
            if output.path.startswith(tuple(f"{kind}/{split}/" for kind in kinds)):
                table = pq.read_table(cleaned.folder / output.path)
                if "rule" in table.column_names:
                    table = table.filter(pc.invert(pc.is_in(table["rule"], pa.array(READ_FAULTS))))
                src, tgt = (CodePoints(table[side].combine_chunks()) for side in ("src", "tgt"))
                row_id = table["row_id"].to_numpy()
                indexes.append(held_out_index(split, row_id, src, tgt, recipe.languages, config))
    return merged(indexes)
