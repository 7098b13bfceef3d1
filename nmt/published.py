"""The format of a published model: its description, the digests of its files, and how it is read.

    model/
    ├── model.json               format, version, name, tests (rows, digest of the references), sha256 of each file
    ├── MODEL_CARD.md            for people
    ├── checkpoint/              config.json model.safetensors: training's best
    ├── tokenizer/               the tokeniser's files
    ├── translation.json         languages, normalisation, search: what translation needs beside the weights
    ├── scores.json              as of the stage evaluate
    ├── hypotheses/<test>.txt    what the next model is compared with
    └── manifests/<stage>.json   where all of it comes from

The folder is self-contained: nothing points out of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from nmt.config import TranslateConfig
from pipelines.config import LanguagesConfig, NormalizeConfig
from pipelines.errors import InputError
from pipelines.stage import digest_of, file_sha256, write_atomically

MODEL_FORMAT = 1
DESCRIPTION_NAME = "model.json"
TRANSLATION_NAME = "translation.json"
CARD_NAME = "MODEL_CARD.md"
VERSION_DIGITS = 12


class ReferencesDescription(BaseModel):
    """The references of a test set: rows, and the sha256 of their text, each ended by a line feed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: int
    sha256: str


class ModelDescription(BaseModel):
    """model.json. `files` maps each other file's path to its sha256; `version` is made of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = MODEL_FORMAT
    version: str
    name: str
    tests: dict[str, ReferencesDescription]
    files: dict[str, str]


class Translation(BaseModel):
    """translation.json: what translation needs beside weights and tokeniser."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    languages: LanguagesConfig
    normalize: NormalizeConfig
    translate: TranslateConfig


@dataclass(frozen=True)
class PublishedModel:
    """A published model whose files have been checked."""

    folder: Path
    description: ModelDescription
    translation: Translation

    @property
    def checkpoint(self) -> Path:
        """Return the folder of config.json and model.safetensors."""
        return self.folder / "checkpoint"

    @property
    def tokenizer(self) -> Path:
        """Return the tokeniser's folder."""
        return self.folder / "tokenizer"


def load_published(folder: Path) -> PublishedModel:
    """Return the published model of a folder or link, every file checked against its digest.

    Raises InputError when it is no published model, of an unknown format, or a file is missing or has changed.
    """
    # The link may move to another version while this one is being read.
    folder = folder.resolve()
    path = folder / DESCRIPTION_NAME
    if not path.is_file():
        raise InputError(
            f"no published model here ({DESCRIPTION_NAME} is missing)",
            where=str(folder),
            remedy="Give the `model` folder that `seqloom run` has published",
        )
    description = _description(path)
    for name, digest in description.files.items():
        _check_file(folder / name, digest)
    return PublishedModel(folder, description, _translation(folder / TRANSLATION_NAME))


def describe(name: str, references: Mapping[str, Sequence[str]], folder: Path) -> ModelDescription:
    """Return the description, now model.json too, of a folder that holds all the other files; `references` by test."""
    files = {str(path.relative_to(folder)): file_sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    tests = {test: describe_references(lines) for test, lines in references.items()}
    description = ModelDescription(version=_version(files), name=name, tests=tests, files=files)
    write_atomically(folder / DESCRIPTION_NAME, description.model_dump_json(indent=1) + "\n")
    return description


def describe_references(references: Sequence[str]) -> ReferencesDescription:
    """Return rows and digest: the sha256 of a text file of these lines."""
    text = "".join(f"{line}\n" for line in references)
    return ReferencesDescription(rows=len(references), sha256=sha256(text.encode()).hexdigest())


def _version(files: Mapping[str, str]) -> str:
    return digest_of(dict(files))[:VERSION_DIGITS]


def _description(path: Path) -> ModelDescription:
    remedy = "Use the version of seqloom that published it, or publish it again"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = content.get("format") if isinstance(content, dict) else None
        if found != MODEL_FORMAT:
            raise InputError(f"model format {found}, this version reads {MODEL_FORMAT}", where=str(path), remedy=remedy)
        description = ModelDescription.model_validate(content)
    except (json.JSONDecodeError, UnicodeDecodeError, ValidationError) as error:
        raise InputError(f"not a model description ({error})", where=str(path), remedy=remedy) from error
    if description.version != _version(description.files):
        raise InputError("the version is not that of its files", where=str(path), remedy="Publish the model again")
    return description


def _check_file(path: Path, digest: str) -> None:
    remedy = "Remove this version's folder and the link to it, and publish again"
    if not path.is_file():
        raise InputError("a file of the published model is missing", where=str(path), remedy=remedy)
    if file_sha256(path) != digest:
        raise InputError("a file of the published model has changed", where=str(path), remedy=remedy)


def _translation(path: Path) -> Translation:
    remedy = "Use the version of seqloom that published it, or publish it again"
    if not path.is_file():
        raise InputError("a file of the published model is missing", where=str(path), remedy=remedy)
    try:
        return Translation.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        raise InputError(
            f"not of this version's form ({error.error_count()} faults)", where=str(path), remedy=remedy
        ) from error
