"""Recipe and profile: what is made, and where it runs; and the checks that need two stages."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import yaml
from pydantic import Field, ValidationError, model_validator

from nmt.config import EvaluateConfig, ModelConfig, RayConfig, TrainConfig, TranslateConfig
from pipelines.config import (
    SPLITS,
    BeamConfig,
    CleanConfig,
    CorporaConfig,
    CorpusConfig,
    LanguagesConfig,
    ShardConfig,
    Table,
    TokenizerConfig,
)
from pipelines.errors import InputError

RECIPES = Path(__file__).parent / "recipes"
PROFILES = Path(__file__).parent.parent / "infra" / "profiles"
T = TypeVar("T", bound=Table)
_DEFINITION = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


class PublishConfig(Table):
    """The gate. BLEU is on 0 to 100."""

    min_bleu: float = Field(default=0.0, ge=0.0, le=100.0)  # on the first test set
    max_bleu_drop: float = Field(
        default=0.0, ge=0.0
    )  # against the live model; a drop beyond it and beyond chance blocks
    p_value: float = Field(default=0.05, gt=0.0, lt=1.0)  # of the paired bootstrap test against the live model


class Recipe(Table):
    """What: languages, corpora, cleaning, tokeniser, model, training, decoding, evaluation, publishing."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    languages: LanguagesConfig
    corpora: CorporaConfig
    clean: CleanConfig = CleanConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    shards: ShardConfig = ShardConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    translate: TranslateConfig = TranslateConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    publish: PublishConfig = PublishConfig()

    @model_validator(mode="after")
    def _stages_fit(self) -> Self:
        if self.model.share_embeddings and not self.tokenizer.joint:
            raise ValueError("model.share_embeddings needs tokenizer.joint: true; set one of the two")
        return self


class Profile(Table):
    """Where: no profile changes a byte of the data stages' output, and training's updates only by rounding."""

    name: str = "local"
    beam: BeamConfig = BeamConfig()
    ray: RayConfig = RayConfig()


def load_recipe(name_or_path: str, *, define: Mapping[str, str], overrides: Sequence[str] = ()) -> Recipe:
    """Return the recipe of a file, or of a name in `flows/recipes`, its corpora's paths made absolute.

    `define` fills `${NAME}` in strings; `overrides` are `dotted.key=value` with YAML values, as of `--set`.
    Raises InputError naming the file and the key that is wrong, with the remedy.
    """
    path = _find(name_or_path, RECIPES, "recipe")
    tree = _read_yaml(path)
    for override in overrides:
        _apply(tree, override)
    tree = _defined(tree, define, str(path))
    recipe = _validated(Recipe, tree, str(path))
    return recipe.model_copy(update={"corpora": _resolved(recipe.corpora, path.parent)})


def load_profile(name_or_path: str | None) -> Profile:
    """Return a profile of a file, or of a name in `infra/profiles`; the defaults for None. Raises InputError."""
    if name_or_path is None:
        return Profile()
    path = _find(name_or_path, PROFILES, "profile")
    return _validated(Profile, _read_yaml(path), str(path))


def schema() -> dict[str, Any]:
    """Return the JSON schema of recipes and profiles."""
    return {"recipe": Recipe.model_json_schema(), "profile": Profile.model_json_schema()}


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
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"not YAML: {error}", where=str(path), remedy="Mend the file at that place") from error
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
        tree[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise InputError(f"not a YAML value: {error}", where=f"--set {override}", remedy="Quote the value") from error


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


def _validated(model: type[T], tree: dict[str, Any], where: str) -> T:
    try:
        # Through JSON, so that lists of the file fit the tuples of the frozen models in strict terms.
        return model.model_validate_json(json.dumps(tree, ensure_ascii=False, default=str), strict=True)
    except ValidationError as error:
        faults = "; ".join(_fault(fault) for fault in error.errors())
        raise InputError(
            faults, where=where, remedy="`seqloom schema` lists every key, its type and default"
        ) from error


def _fault(fault: Any) -> str:
    key = ".".join(str(part) for part in fault["loc"]) or "the whole"
    if fault["type"] == "extra_forbidden":
        return f"unknown key `{key}`"
    if fault["type"] == "missing":
        return f"key `{key}` is missing"
    return f"key `{key}`: {fault['msg']} (found {fault['input']!r:.80})"


def _resolved(corpora: CorporaConfig, folder: Path) -> CorporaConfig:
    def absolute(path: str | None) -> str | None:
        return path if path is None else str((folder / path).resolve())

    def moved(corpus: CorpusConfig) -> CorpusConfig:
        paths = {"source": absolute(corpus.source), "target": absolute(corpus.target), "tsv": absolute(corpus.tsv)}
        return corpus.model_copy(update=paths)

    return CorporaConfig(**{split: tuple(moved(corpus) for corpus in corpora.of(split)) for split in SPLITS})
