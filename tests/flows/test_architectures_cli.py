"""`seqloom architectures`: what there is, at whose sizes, and what cannot be built."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from flows import architectures_cli
from flows.cli import app
from nmt.architectures import ARCHITECTURES, architecture, build_model
from nmt.model.architecture import Architecture
from nmt.model.flops import Cost
from nmt.model.recurrent_config import RecurrentConfig

RECIPE = """
name: tiny
languages: {source: en, target: de}
corpora:
  train: [{name: a, tsv: a.tsv}]
  held_out: {dev: 0.1, test: 0.1}
tokenizer: {vocab_size: 50}
model: {cell: gru, attention: dot, embedding_dim: 12, hidden_dim: 16, source_vectors: nowhere.vec}
"""
KEPT = {"recurrent": ("bahdanau", "luong-dot")}


@pytest.fixture
def two_variants(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes a part of a second; that all of the menu can be counted is tested where the counting is."""

    def fewer(name: str) -> Architecture:
        found = architecture(name)
        return dataclasses.replace(found, variants=tuple(v for v in found.variants if v.name in KEPT.get(name, ())))

    monkeypatch.setattr(architectures_cli, "architecture", fewer)


@pytest.fixture
def recipe(tmp_path: Path) -> Iterator[str]:
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    yield str(path)


def seqloom(*arguments: str) -> Result:
    result = CliRunner().invoke(app, ["architectures", *arguments])
    assert result.exit_code in (0, 2), result.output
    return result


def listed(*arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(seqloom(*arguments, "--json").stdout)
    return found


def test_every_variant_of_every_architecture_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(architectures_cli, "count", lambda build: Cost(7, 11.0))
    found = listed()
    expected = [
        (name, variant.name, variant.paper, dict(variant.keys))
        for name in ARCHITECTURES
        for variant in architecture(name).variants
    ]
    models = found["models"]
    assert [(m["architecture"], m["variant"], m["paper"], m["keys"]) for m in models] == expected
    assert all(m["parameters"] == 7 for m in models)
    assert all(m["flops_per_target_piece"] == {"forward": 11, "training": 33} for m in models)
    assert (found["recipe"], found["vocabulary"], found["source_pieces"], found["target_pieces"]) == (
        None,
        8000,
        20,
        20,
    )


@pytest.mark.usefixtures("two_variants")
def test_a_recipes_keys_are_taken_where_the_variant_does_not_decide_them(recipe: str) -> None:
    found = listed(recipe, "--set", "model.dropout=0.1")
    own, *models = found["models"]
    sizes = {"embedding_dim": 12, "hidden_dim": 16}
    expected = build_model(RecurrentConfig(cell="gru", attention="dot", **sizes), 50, 50)
    assert (own["architecture"], own["variant"]) == ("recurrent", "(recipe)")
    assert own["keys"] == {"cell": "gru", "attention": "dot", **sizes, "dropout": 0.1}
    assert own["parameters"] == expected.num_parameters()
    flops = own["flops_per_target_piece"]
    assert flops["training"] == pytest.approx(3 * flops["forward"], abs=3)  # each rounded
    by_name = {model["variant"]: model for model in models}
    luong = RecurrentConfig(cell="lstm", attention="dot", input_feeding=False, **sizes)
    assert by_name["luong-dot"]["parameters"] == build_model(luong, 50, 50).num_parameters()
    assert set(by_name) == set(KEPT["recurrent"])
    assert found["vocabulary"] == 50


def test_a_variant_that_its_table_or_its_model_refuses_is_listed_with_the_reason(
    recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def changed(name: str) -> Architecture:
        found = architecture(name)
        if name != "recurrent":
            return dataclasses.replace(found, variants=())
        odd = dataclasses.replace(found.variants[0], name="odd", keys={"hidden_dim": 15, "bidirectional": True})
        broken = dataclasses.replace(found.variants[0], name="broken", keys={"cell": "lstm"})
        return dataclasses.replace(found, variants=(odd, broken))

    def counted(build: Any) -> Cost:
        config = build.args[0]
        if config.cell == "lstm":
            raise ValueError("no room for such a cell")
        return Cost(1, 1.0)

    monkeypatch.setattr(architectures_cli, "architecture", changed)
    monkeypatch.setattr(architectures_cli, "count", counted)
    models = {model["variant"]: model for model in listed(recipe)["models"]}
    assert "hidden_dim 15 must be even" in models["odd"]["why_not"]
    assert models["broken"]["why_not"] == "no room for such a cell"
    assert models["odd"]["parameters"] is None and models["odd"]["flops_per_target_piece"] is None
    text = seqloom(recipe).stdout
    assert "recurrent broken cannot be built at these sizes: no room for such a cell" in text


@pytest.mark.usefixtures("two_variants")
def test_the_table_says_what_its_figures_are(recipe: str) -> None:
    text = " ".join(seqloom(recipe).stdout.split())
    assert "of pairs of 20 source and 20 target pieces and vocabularies of 50." in text
    assert "training is three times the forward pass" in text
    assert "input_feeding: false" in text
    for name in ("(recipe)", *KEPT["recurrent"], "Bahdanau et al. 2015"):
        assert name in text


def test_shapes_are_of_the_recipes_own_model(recipe: str) -> None:
    found = listed(recipe, "--shapes")
    model = build_model(
        RecurrentConfig(cell="gru", attention="dot", embedding_dim=12, hidden_dim=16), found["vocabulary"], 50
    )
    assert {entry["name"]: tuple(entry["shape"]) for entry in found["parameters"]} == {
        name: tuple(parameter.shape) for name, parameter in model.named_parameters()
    }
    assert found["model"]["source_vectors"] is None  # a file that is not needed to know shapes
    lines = seqloom(recipe, "--shapes").stdout.splitlines()
    assert lines[0].startswith(f"recurrent: {model.num_parameters():,} parameters in ")
    assert ["source_embedding.table.weight", "50 x 12"] in [line.split(maxsplit=1) for line in lines]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--set", "model.hidden_dims=3"], "unknown key `model.hidden_dims`"),
        (["--set", "model.architecture=oracle"], "no architecture 'oracle'"),
        (["--set", "tokenizer.joint=false"], "Set tokenizer.joint: true, or model.share_embeddings: false"),
    ],
)
def test_a_wrong_model_of_the_recipe_ends_with_status_two(recipe: str, options: list[str], says: str) -> None:
    result = seqloom(recipe, *options)
    assert result.exit_code == 2
    assert says in result.stderr


def test_overrides_without_a_recipe_end_with_status_two() -> None:
    result = seqloom("--set", "model.hidden_dim=64")
    assert result.exit_code == 2
    assert "As in seqloom architectures demo-en-de --set" in result.stderr
