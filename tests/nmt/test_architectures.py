"""The menu: what the document says of it, and an architecture that is added as it says."""

from __future__ import annotations

import logging
import re
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from nmt.architectures import ARCHITECTURES, architecture, build_model, model_table
from nmt.checkpoint import load_model
from nmt.config import ModelTable, TrainConfig
from nmt.model.seq2seq import Encoded, Seq2Seq
from nmt.train import train
from nmt.training.metrics import read_metrics
from tests.nmt.conftest import ToyStages

DOCUMENT = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")


# The document


def section(title: str) -> str:
    """The text under a title of the document."""
    return DOCUMENT.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_document_names_every_key_and_every_choice(name: str) -> None:
    table = architecture(name).table
    text = section("Keys of every model") + section(f"`{name}`") + section("`recurrent`")
    keys = {
        key for row in re.findall(r"^\| (`.*?) \|", text, flags=re.MULTILINE) for key in re.findall(r"`(\w+)`", row)
    }
    assert set(table.model_fields) <= keys
    named = set(re.findall(r"`(\w+)`", DOCUMENT))
    for key, field in table.model_fields.items():
        assert set(choices(field.annotation)) <= named, key


def choices(annotation: Any) -> Iterator[str]:
    """The words that a key can be set to."""
    if typing.get_origin(annotation) is Literal:
        yield from (value for value in typing.get_args(annotation) if isinstance(value, str))
    else:
        for part in typing.get_args(annotation):
            yield from choices(part)


def test_variants_have_names_of_their_own_and_keys_that_their_table_takes() -> None:
    for name in ARCHITECTURES:
        found = architecture(name)
        assert found.name == name
        names = [variant.name for variant in found.variants]
        assert len(set(names)) == len(names)
        for variant in found.variants:
            assert isinstance(found.table.model_validate(dict(variant.keys)), ModelTable)


# One more architecture: the document's file, and its line


@pytest.fixture
def shallow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelTable:
    """A recipe's model table of the architecture that the document adds."""
    line, module = re.findall(r"```python\n(.*?)```", section("How to add an architecture"), flags=re.DOTALL)
    ((name, path),) = re.findall(r'^    "(\w+)": "nmt\.model\.(\w+)",\n$', line)
    (tmp_path / "added").mkdir()
    (tmp_path / "added" / f"{path}.py").write_text(module, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path / "added"))
    monkeypatch.setitem(ARCHITECTURES, name, path)
    monkeypatch.delitem(sys.modules, path, raising=False)
    return model_table({"architecture": name, "embedding_dim": 16, "hidden_dim": 24, "dropout": 0.1})


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    src = torch.randint(4, 23, (3, 6), generator=generator)
    return src, torch.tensor([6, 2, 4]), torch.randint(4, 23, (3, 5), generator=generator)


def test_the_documents_architecture_keeps_the_promises_of_the_interface(shallow: ModelTable) -> None:
    model: Seq2Seq = build_model(shallow, 23, 23).double()
    src, lengths, previous = batch()
    encoded = model.encode(src, lengths)
    whole = model.decode(previous, encoded, need_weights=True)
    assert whole.weights is not None
    torch.testing.assert_close(whole.weights.sum(-1), torch.ones(3, 5, dtype=torch.float64))
    for row, length in enumerate(lengths.tolist()):
        alone = model(src[row : row + 1, :length], lengths[row : row + 1], previous[row : row + 1])
        torch.testing.assert_close(alone.vectors[0], whole.vectors[row], rtol=1e-10, atol=1e-12)
    rows = torch.tensor([2, 0, 2])
    selected, steps = encoded.select(rows), []
    for t in range(previous.shape[1]):
        step = model.decode(previous[rows, t : t + 1], selected)
        steps.append(step.vectors)
        selected = Encoded(selected.memory, step.state)
    torch.testing.assert_close(torch.cat(steps, dim=1), whole.vectors[rows], rtol=1e-10, atol=1e-12)
    with torch.autocast("cpu", torch.bfloat16):
        narrow = build_model(shallow, 23, 23)(src, lengths, previous, torch.Generator().manual_seed(1))
    assert narrow.vectors.isfinite().all()


def test_the_documents_architecture_is_trained_validated_and_loaded(
    shallow: ModelTable, toy: ToyStages, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="nmt")
    config = TrainConfig(
        max_epochs=8, microbatch_tokens=160, microbatches_per_update=4, learning_rate=0.01, warmup_updates=4,
        schedule="constant", log_updates=2,
    )  # fmt: skip
    run = train(shallow, config, toy.encoded, toy.cleaned, toy.tokenizer, toy.ray, tmp_path / "runs", use_ray=False)
    losses = [r["loss"] for r in read_metrics(run.folder / "metrics.jsonl") if r["kind"] == "validation"]
    assert len(losses) == 8
    assert losses[-1] < 0.8 * losses[0]
    assert run.manifest.config["model"]["architecture"] == "shallow"
    model, stored = load_model(run.folder / "best")
    assert stored.model == shallow
    assert model.num_parameters() == run.manifest.counters["parameters"]
    (said,) = [message for message in caplog.messages if " parameters in " in message]
    assert said.startswith(f"shallow: {model.num_parameters():,} parameters in 10 tensors\n")
    assert re.search(r"\n  decoder.combine.weight +16 x 40\n", said)
