"""Recipe and profile: what is made, and where it runs; and the checks that need two stages."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import Field, ValidationError, model_validator

from nmt.architectures import ARCHITECTURES, DEFAULT, architecture
from nmt.config import (
    VECTOR_KEYS,
    EvaluateConfig,
    ModelTable,
    PricesConfig,
    RayConfig,
    TrackingConfig,
    TrainConfig,
    TranslateConfig,
    check_beside,
    check_guidance,
    check_sharding,
    check_stopping,
)
from nmt.ray_session import check_gpus, gpus_of_training
from pipelines.config import (
    ALL_SPLITS,
    UNSPACED_LANGUAGES,
    AlignConfig,
    AugmentConfig,
    BeamConfig,
    CleanConfig,
    CorporaConfig,
    LanguagesConfig,
    ResourcesConfig,
    ShardConfig,
    Table,
    TokenizerConfig,
    is_uri,
)
from pipelines.errors import InputError

RECIPES = Path(__file__).parent / "recipes"
PROFILES = Path(__file__).parent / "profiles"
T = TypeVar("T", bound=Table)
_KEY = re.compile(r"\w+")
_TYPES = frozenset({"bool", "float", "int", "str"})
_DEFINITION = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_CORPUS_PATHS = ("source", "target", "tsv", "jsonl", "parquet", "tmx")


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, but a key given twice is an error, and 1e-3 is a number as in YAML 1.2."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping of a node. Raises ConstructorError naming a key that stands there twice."""
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key `{key.value}` given twice", key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


class PublishConfig(Table):
    """The gate of a model that translates; a language model's has no keys. BLEU is on 0 to 100."""

    min_bleu: float = Field(default=0.0, ge=0.0, le=100.0)  # on the first test set
    max_bleu_drop: float = Field(default=0.0, ge=0.0)  # a drop against the live model beyond it and chance blocks
    p_value: float = Field(default=0.05, gt=0.0, lt=1.0)  # of the paired bootstrap test against the live model


class ParameterConfig(Table):
    """What a key of the recipe may be in a search, in one of these forms; bounds belong to it."""

    choice: tuple[Any, ...] | None = None  # one of these values
    uniform: tuple[float, float] | None = None
    log_uniform: tuple[float, float] | None = None  # as likely below as above the geometric mean of the bounds
    integers: tuple[int, int] | None = None
    step: float | None = Field(default=None, gt=0)  # of uniform and integers: the lower bound and so many steps more

    def fault(self) -> str | None:
        """Return what is wrong with it, in words, or None."""
        forms = ("choice", "uniform", "log_uniform", "integers")
        given = [name for name in forms if getattr(self, name) is not None]
        if len(given) != 1:
            return f"give one of {', '.join(forms)}"
        if self.choice is not None:
            if len(self.choice) != len({json.dumps(value, sort_keys=True) for value in self.choice}):
                return f"choice has a value twice: {list(self.choice)}"
            return None if self.choice and self.step is None else "choice needs values, and takes no step"
        low, high = getattr(self, given[0])
        if low >= high:
            return f"{given[0]} needs a lower bound below the upper one (found {low}, {high})"
        if self.log_uniform is not None and (low <= 0 or self.step is not None):
            return "log_uniform needs bounds above 0, and takes no step"
        if self.integers is not None and self.step is not None and self.step != int(self.step):
            return f"the step of integers is a whole number (found {self.step:g})"
        return None


class TuneConfig(Table):
    """The search of `seqloom tune`: points of the space, drawn from the seed, and which of them are trained how far."""

    # Keys of model, train, tokenizer, augment and clean, dotted as of --set: {train.learning_rate: {...}}.
    space: dict[str, ParameterConfig] = Field(min_length=1)
    trials: int = Field(default=20, ge=1)
    metric: Literal["bleu", "chrf", "loss", "perplexity"] = "bleu"  # of dev: of the first two more is better
    folds: int = Field(default=0, ge=0)  # 0: the recipe's dev; of more, each is dev once, and the score is their mean
    concurrent_trials: int = Field(default=2, ge=1)
    seed: int = Field(default=1, ge=0, lt=2**31)
    # Asynchronous successive halving: after so many validations, and then after each time as many as
    # `reduction_factor`, a trial goes on only among the best 1 / reduction_factor of those that have come so far.
    grace_validations: int = Field(default=3, ge=1)
    reduction_factor: int = Field(default=3, ge=2)
    max_epochs: Annotated[int, Field(ge=1)] | None = None  # of a trial; null: the recipe's

    @model_validator(mode="after")
    def _keys_fit(self) -> Self:
        for key, parameter in self.space.items():
            if (fault := parameter.fault()) is not None:
                raise ValueError(f"{key}: {fault}")
        if self.folds == 1:
            raise ValueError("folds: one fold leaves nothing to train on; give 0, or 2 and more")
        if self.max_epochs is not None and "train.max_epochs" in self.space:
            raise ValueError("max_epochs is given for all trials, and train.max_epochs is in the space")
        return self


class Recipe(Table):
    """What: languages, corpora, cleaning, tokeniser, model, training, decoding, evaluation, publishing."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    languages: LanguagesConfig
    corpora: CorporaConfig
    clean: CleanConfig = CleanConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    shards: ShardConfig = ShardConfig()
    augment: AugmentConfig = AugmentConfig()
    align: AlignConfig = AlignConfig()
    model: dict[str, Any] = Field(default={})  # the table of its architecture, see `model_table`
    train: TrainConfig = TrainConfig()
    translate: TranslateConfig = TranslateConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    publish: PublishConfig = PublishConfig()
    tune: TuneConfig | None = None  # of `seqloom tune` alone

    @model_validator(mode="after")
    def _stages_fit(self) -> Self:
        if self.name == "stages":
            raise ValueError("the name `stages` is taken by the stages' folders in the workdir; choose another")
        return self

    def model_table(self) -> ModelTable:
        """Return the model's table. It is read on demand, as it comes with its architecture, which imports torch.

        Raises InputError naming the key that is wrong.
        """
        name = self.model.get("architecture", DEFAULT)
        if name not in ARCHITECTURES:
            known = ", ".join(ARCHITECTURES)
            raise InputError(
                f"no architecture {name!r}", where="model.architecture", remedy=f"Choose one of these: {known}"
            )
        table = _validated(architecture(name).table, self.model, "model", prefix="model.")
        if table.share_embeddings and not self.tokenizer.joint:
            raise InputError(
                "shared embeddings need one tokeniser for both languages",
                where="model.share_embeddings",
                remedy="Set tokenizer.joint: true, or model.share_embeddings: false",
            )
        self._check_positions(table)
        if table.has_source:
            self._check_bleu_words()
        check_stopping(table, self.train)
        check_guidance(table, self.train)
        if not table.has_source and self.publish != PublishConfig():
            raise InputError(
                "the gate of a language model compares perplexity: the keys of publish are of BLEU",
                where="publish",
                remedy="Leave publish out",
            )
        return table

    def translates(self) -> bool:
        """Return whether the model translates: a language model does not. Read on demand, as `model_table`."""
        return architecture(self.model.get("architecture", DEFAULT)).table.has_source

    def _check_bleu_words(self) -> None:
        """Raise InputError where BLEU's words are what stands between blanks, and the target language has none."""
        language, tokenize = self.languages.target.partition("-")[0], self.evaluate.bleu_tokenize
        if language in UNSPACED_LANGUAGES and tokenize in ("13a", "intl"):
            better = {"zh": "zh", "yue": "zh", "wuu": "zh", "ja": "ja-mecab or char"}.get(language, "char")
            raise InputError(
                f"{tokenize} takes a whole clause in {language}, which has no blanks between words, for one word",
                where="evaluate.bleu_tokenize",
                remedy=f"Set it to {better}",
            )

    def _check_positions(self, table: ModelTable) -> None:
        """Raise InputError where training or translation would go beyond the positions that a model learns."""
        bound = table.most_pieces()
        if bound is None:
            return
        from nmt.search import max_target_pieces  # torch is there by now

        search = self.translate
        longest = max_target_pieces(search, search.max_source_pieces)
        for key, pieces in (("train.max_pieces", self.train.max_pieces), ("translate.max_source_pieces", longest)):
            if pieces > bound:
                raise InputError(
                    f"{key} lets {pieces} pieces through, and the model learns {bound} positions",
                    where="model.max_positions",
                    remedy=f"Raise it, or lower {key}",
                )

    @model_validator(mode="after")
    def _tags_are_known(self) -> Self:
        names = {corpus.name for corpus in self.corpora.train}
        for tag in self.augment.tags:
            if tag.tag not in self.tokenizer.symbols:
                raise ValueError(f"the tag {tag.tag!r} of augment.tags must be one of tokenizer.symbols too")
            if unknown := sorted(set(tag.corpora) - names):
                raise ValueError(f"the tag {tag.tag!r} is for {unknown}, which are no corpora of train")
        return self


class Profile(Table):
    """Where: no profile changes a byte of the data stages' output, and training's updates only by rounding."""

    name: str = "local"
    beam: BeamConfig = BeamConfig()
    ray: RayConfig = RayConfig()
    tracking: TrackingConfig = TrackingConfig()
    prices: PricesConfig = PricesConfig()


def load_recipe(
    name_or_path: str, *, define: Mapping[str, str], overrides: Sequence[str] = (), with_model: bool = True
) -> Recipe:
    """Return the recipe of a file, or of a name in `flows/recipes`, the paths of its data made absolute.

    `define` fills `${NAME}` in strings; `overrides` are `dotted.key=value` with YAML values, as of `--set`. A path is
    relative to the recipe's folder; one that begins with `${NAME}` comes from outside, so it is relative to the current
    folder; a URI stays as it is. Without `with_model` the model's table is left as it stands, unchecked; with it, files
    of vectors are looked into.
    Raises InputError naming the file and the key that is wrong, with the remedy.
    """
    path = _find(name_or_path, RECIPES, "recipe")
    tree = _read_yaml(path)
    for override in overrides:
        _apply(tree, override)
    _anchor(tree, define)
    tree = _with_taken_tokenizer(_defined(tree, define, str(path)), path.parent)
    recipe = _resolved(_validated(Recipe, tree, str(path)), path.parent)
    return _with_model(recipe, str(path)) if with_model else recipe


def recipe_of(tree: Mapping[str, Any], where: str) -> Recipe:
    """Return the recipe of a table of keys whose paths are absolute. Raises InputError naming the key that is wrong."""
    return _with_model(_validated(Recipe, _with_taken_tokenizer(dict(tree), Path()), where), where)


def _with_model(recipe: Recipe, where: str) -> Recipe:
    """Return the recipe with the whole table of its model."""
    try:
        table = recipe.model_table()
        _check_vectors(table)
        _check_beginnings(table, recipe.train)
    except InputError as error:
        raise InputError(error.what, where=f"{where}: {error.where}", remedy=error.remedy) from error
    return recipe.model_copy(update={"model": table.model_dump(mode="json")})


def _check_vectors(table: ModelTable) -> None:
    """Look into the files of vectors: training reads them, which may be hours away."""
    if table.vectors():
        from nmt.pretrained import check_dimensions

        check_dimensions(table)


def _check_beginnings(table: ModelTable, train: TrainConfig) -> None:
    """Look at the model that training begins with, and at the names of what it leaves as it is."""
    if train.start_from is not None or train.freeze:
        from nmt.training.beginnings import check_beginnings

        check_beginnings(table, train)


def _with_taken_tokenizer(tree: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the keys with what the model of `tokenizer.from_model` says of its tokeniser; paths are of a folder.

    Raises InputError where the recipe says otherwise, as `load_published` does.
    """
    table = tree.get("tokenizer")
    if not isinstance(table, dict) or not isinstance(path := table.get("from_model"), str):
        return tree
    from nmt.published import load_published  # with pyarrow, which most commands do not need
    from pipelines.tokenizer import tokenizer_keys

    where = load_published(folder / path).tokenizer
    found = json.loads(json.dumps(tokenizer_keys(where)))
    differing = [key for key in found if key in table and table[key] != found[key]]
    if differing:
        said = ", ".join(f"{key} {found[key]}, here {table[key]}" for key in differing)
        raise InputError(
            f"the tokeniser of that model has {said}",
            where=f"tokenizer.from_model: {where}",
            remedy=f"Leave out {', '.join(differing)}",
        )
    return tree | {"tokenizer": {**table, **found}}


def check_profile(recipe: Recipe, profile: Profile, *, use_ray: bool = True) -> None:
    """Raise InputError where training, as the recipe has it, cannot be computed or tracked where the profile says."""
    from nmt.compilation import check_arithmetic  # which imports torch
    from nmt.training.tracking import check_tracking

    check_arithmetic(recipe.model_table(), recipe.train, use_gpu=profile.ray.use_gpu)
    check_gpus(profile.ray, gpus_of_training(profile.ray, use_ray=use_ray))
    if use_ray:
        check_beside(recipe.train, profile.ray)
        check_sharding(recipe.model_table(), recipe.train, profile.ray)
    check_tracking(profile.tracking)


def load_profile(name_or_path: str | None) -> Profile:
    """Return a profile of a file, or of a name in `flows/profiles`; the defaults for None. Raises InputError."""
    if name_or_path is None:
        return Profile()
    path = _find(name_or_path, PROFILES, "profile")
    return _validated(Profile, _read_yaml(path), str(path))


def load_table(model: type[T], name: str, overrides: Sequence[str]) -> T:
    """Return one table of a recipe from the defaults and overrides like `name.key=value`, as of `--set`.

    Raises InputError for an override of another table, an unknown key and an ill-typed value.
    """
    return _validated(model, table_overrides(name, overrides), "--set")


def table_overrides(name: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Return what overrides like `name.key=value` say of one table. Raises InputError for one of another table."""
    tree: dict[str, Any] = {}
    for override in overrides:
        _apply(tree, override)
        if set(tree) != {name}:
            raise InputError(
                f"only keys of `{name}` can be set here",
                where=f"--set {override}",
                remedy=f"As in --set {name}.KEY=VALUE",
            )
    found: dict[str, Any] = tree.get(name, {})
    return found


def schema() -> dict[str, Any]:
    """Return the JSON schema of recipes, of each architecture's `model` table, and of profiles."""
    return {
        "recipe": Recipe.model_json_schema(),
        "models": {name: architecture(name).table.model_json_schema() for name in ARCHITECTURES},
        "profile": Profile.model_json_schema(),
    }


def _find(name_or_path: str, folder: Path, kind: Literal["recipe", "profile"]) -> Path:
    for path in (Path(name_or_path), folder / f"{name_or_path}.yaml"):
        if path.is_file():
            return path.resolve()
    known = ", ".join(sorted(path.stem for path in folder.glob("*.yaml"))) or "none"
    raise InputError(
        f"no such {kind}", where=name_or_path, remedy=f"Give the path of a YAML file, or one of these names: {known}"
    )


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"not YAML: {error}", where=str(path), remedy="Mend the file at that place") from error
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=str(path), remedy="Look at its rights") from error
    if not isinstance(tree, dict):
        raise InputError("the file holds no table of keys", where=str(path), remedy="Start it with `name: ...`")
    return tree


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise InputError(
            "not of the form KEY=VALUE", where=f"--set {override}", remedy="As in --set train.max_epochs=3"
        )
    *tables, last = key.split(".")
    for table in tables:
        child = tree.setdefault(table, {})
        if not isinstance(child, dict):
            raise InputError(f"{table!r} is no table", where=f"--set {override}", remedy="See `seqloom schema`")
        tree = child
    try:
        tree[last] = yaml.load(value, _Loader)
    except yaml.YAMLError as error:
        raise InputError(f"not a YAML value: {error}", where=f"--set {override}", remedy="Quote the value") from error


def _anchor(tree: dict[str, Any], define: Mapping[str, str]) -> None:
    """Make absolute what a definition gives for the beginning of a path, unless that is a URI."""
    for table, key in _paths(tree):
        begins = _DEFINITION.match(path) if isinstance(path := table[key], str) else None
        if begins is not None and begins.group(1) in define:
            outside = define[begins.group(1)]
            table[key] = (outside if is_uri(outside) else str(Path(outside).absolute())) + path[begins.end() :]


def _paths(tree: dict[str, Any]) -> list[tuple[dict[str, Any], str]]:
    """Return the tables of a recipe that hold paths of data, each with the key of one; of wrong types none."""

    def table(value: Any, key: str) -> dict[str, Any]:
        found = value.get(key) if isinstance(value, dict) else None
        return found if isinstance(found, dict) else {}

    clean = table(tree, "clean")
    splits = [split for split in table(tree, "corpora").values() if isinstance(split, list)]
    labelled = table(clean, "quality").get("labelled")
    holders = [
        *((corpus, _CORPUS_PATHS) for split in splits for corpus in split),
        *((entry, ("tsv",)) for entry in (labelled if isinstance(labelled, list) else ())),
        (table(clean, "resources"), tuple(ResourcesConfig.model_fields)),
        (table(tree, "model"), VECTOR_KEYS),
        (table(tree, "train"), ("start_from",)),
        (table(tree, "tokenizer"), ("from_model",)),
    ]
    return [(holder, key) for holder, keys in holders if isinstance(holder, dict) for key in keys if key in holder]


def _defined(value: Any, define: Mapping[str, str], where: str) -> Any:
    if isinstance(value, dict):
        return {key: _defined(child, define, where) for key, child in value.items()}
    if isinstance(value, list):
        return [_defined(child, define, where) for child in value]
    if not isinstance(value, str):
        return value

    def definition(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in define:
            raise InputError(f"${{{name}}} is not defined", where=where, remedy=f"Add --define {name}=VALUE")
        return define[name]

    return _DEFINITION.sub(definition, value)


def _validated(model: type[T], tree: dict[str, Any], where: str, *, prefix: str = "") -> T:
    remedy = "`seqloom schema` lists every key, its type and default"
    try:
        # Through JSON, so that lists of the file fit the tuples of the frozen models in strict terms.
        text = json.dumps(tree, ensure_ascii=False, default=str, allow_nan=False)
        return model.model_validate_json(text, strict=True)
    except ValidationError as error:
        # Of a key that may be of several types there is a fault for each of them.
        faults: dict[str, list[Any]] = {}
        for fault in error.errors():
            faults.setdefault(_key(fault), []).append(fault)
        said = "; ".join(_fault(prefix + key, of_key) for key, of_key in faults.items())
        raise InputError(said, where=where, remedy=remedy) from error
    except ValueError as error:
        raise InputError("a number is infinite or none (.inf, .nan)", where=where, remedy=remedy) from error


def _key(fault: Any) -> str:
    """Return the dotted key of a fault, without what pydantic adds to tell which of several types it tried."""
    parts = [str(part) for part in fault["loc"]]
    if parts and (parts[-1] in _TYPES or not _KEY.fullmatch(parts[-1])):
        del parts[-1]
    return ".".join(parts) or "the whole"


def _fault(key: str, faults: Sequence[Any]) -> str:
    fault = faults[0]
    if fault["type"] == "extra_forbidden":
        return f"unknown key `{key}`"
    if fault["type"] == "missing":
        return f"key `{key}` is missing"
    if isinstance(fault["input"], bool) and fault["type"] == "string_type":
        # YAML takes no, yes, on and off for truth values: the code of Norwegian among them.
        return f"key `{key}`: YAML reads this word as {str(fault['input']).lower()}; put it in quotes"
    said = " or ".join(dict.fromkeys(fault["msg"] for fault in faults))
    return f"key `{key}`: {said} (found {repr(fault['input'])[:80]})"


def _resolved(recipe: Recipe, folder: Path) -> Recipe:
    """Return the recipe with paths of data that do not depend on the current folder; URIs stay as they are."""

    def absolute(path: str) -> str:
        return path if is_uri(path) else str((folder / path).resolve())

    def moved(table: T, keys: Iterable[str]) -> T:
        paths = {key: path for key in keys if isinstance(path := getattr(table, key), str)}
        return table.model_copy(update={key: absolute(path) for key, path in paths.items()})

    corpora: dict[str, Any] = {
        split: tuple(moved(corpus, _CORPUS_PATHS) for corpus in recipe.corpora.of(split)) for split in ALL_SPLITS
    }
    resources = recipe.clean.resources
    clean: dict[str, Any] = {"resources": moved(resources, type(resources).model_fields)}
    if (quality := recipe.clean.quality) is not None:
        labelled = tuple(moved(entry, ("tsv",)) for entry in quality.labelled)
        clean["quality"] = quality.model_copy(update={"labelled": labelled})
    vectors = {key: recipe.model[key] for key in VECTOR_KEYS if key in recipe.model}
    update = {
        "corpora": recipe.corpora.model_copy(update=corpora),
        "clean": recipe.clean.model_copy(update=clean),
        "train": moved(recipe.train, ("start_from",)),
        "tokenizer": moved(recipe.tokenizer, ("from_model",)),
        "model": recipe.model | {key: absolute(path) for key, path in vectors.items() if isinstance(path, str)},
    }
    return recipe.model_copy(update=update)
