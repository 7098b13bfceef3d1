"""The files that rules work with: word lists of the user's, and a language model in place of the one built in."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from pipelines.config import ResourcesConfig
from pipelines.errors import InputError
from pipelines.language_id import is_language_model


@dataclass(frozen=True)
class WordList:
    """Words and phrases, case folded, in ascending order; and the sha256 of their file."""

    words: tuple[str, ...]
    digest: str


@dataclass(frozen=True)
class Resources:
    """What the rules have to work with; None where the config names no file."""

    source_profanity: WordList | None = None
    target_profanity: WordList | None = None
    language_model: Path | None = None
    language_model_digest: str | None = None

    def digests(self) -> dict[str, str]:
        """Return the sha256 of each file that there is: what a stage that uses them depends on."""
        lists = {"source_profanity": self.source_profanity, "target_profanity": self.target_profanity}
        digests = {name: words.digest for name, words in lists.items() if words is not None}
        if self.language_model_digest is not None:
            digests["language_model"] = self.language_model_digest
        return digests


def load_resources(config: ResourcesConfig) -> Resources:
    """Return what the config's files hold; a file that has not changed is read once in a process.

    Raises InputError for a file that is missing, empty or not of its kind.
    """
    model = None if config.language_model is None else Path(config.language_model)
    return Resources(
        _word_list(config.source_profanity, "clean.resources.source_profanity"),
        _word_list(config.target_profanity, "clean.resources.target_profanity"),
        model,
        None if model is None else _model_digest(*_state(model, "clean.resources.language_model")),
    )


def _word_list(path: str | None, key: str) -> WordList | None:
    return None if path is None else _read_words(*_state(Path(path), key), key)


def _state(path: Path, key: str) -> tuple[Path, int, int]:
    """Return a file's path, size and time of change: what is read of it holds as long as they do."""
    if not path.is_file():
        raise InputError(f"there is no file {path}", where=key, remedy="Give the path of a file that exists")
    state = path.stat()
    return path, state.st_size, state.st_mtime_ns


@lru_cache(maxsize=8)
def _read_words(path: Path, size: int, changed: int, key: str) -> WordList:
    content = path.read_bytes()
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no UTF-8: {error}", where=key, remedy="Convert the file to UTF-8") from error
    words = sorted({" ".join(line.casefold().split()) for line in lines} - {""})
    if not words:
        raise InputError(f"{path} holds no word", where=key, remedy="Give one word or phrase a line")
    return WordList(tuple(words), hashlib.sha256(content).hexdigest())


@lru_cache(maxsize=8)
def _model_digest(path: Path, size: int, changed: int) -> str:
    if not is_language_model(path):
        raise InputError(
            f"{path} is no fastText model, or a damaged one",
            where="clean.resources.language_model",
            remedy="Give a model for language identification as fastText saves it (.bin or .ftz)",
        )
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
