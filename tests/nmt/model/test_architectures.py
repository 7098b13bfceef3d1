"""What every model keeps, whatever its architecture: each variant of each architecture that a recipe can name.

An architecture is tested by being listed in nmt/architectures.py. Its sizes are made tiny here by the names of its
keys; what its own equations are is tested beside its modules.
"""

from __future__ import annotations

import copy
import itertools
import math
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
import torch
from annotated_types import Ge, Gt, Le, Lt
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from torch import Tensor
from torch.nn import functional as F

from nmt.architectures import ARCHITECTURES, architecture, build_model
from nmt.batches import MicroBatch
from nmt.checkpoint import CheckpointConfig, load_model, save_model
from nmt.config import ModelTable, TrainConfig, TranslateConfig
from nmt.model.architecture import Variant
from nmt.model.batch_norm import collectors
from nmt.model.seq2seq import Encoded, Seq2Seq
from nmt.search import max_target_pieces, search
from nmt.training.gradients import FlatGradients
from nmt.training.optim import make_optimizer
from nmt.training.step import World, train_step
from pipelines.tokenizer import BOS_ID, EOS_ID, PAD_ID

SIZE = 20
SRC_LENGTHS, TGT_LENGTHS = [6, 1, 4], [5, 2, 3]
EXACT = {"rtol": 1e-10, "atol": 1e-11}
VARIANTS = [(name, variant) for name in ARCHITECTURES for variant in architecture(name).variants]
every_variant = pytest.mark.parametrize(
    ("name", "variant"), VARIANTS, ids=[f"{name}-{variant.name}" for name, variant in VARIANTS]
)


# Configs and batches


def tiny(name: str, keys: Mapping[str, Any], *, dim: int = 8, **changes: Any) -> ModelTable:
    """Return the keys as a table of the architecture, with sizes of `dim` units where they name none."""
    table = architecture(name).table
    sizes: dict[str, int] = {}
    for key, field in table.model_fields.items():
        if key.endswith("_dim"):
            sizes[key] = dim
        elif key.endswith("heads") or (key.endswith("_layers") and field.default > 2):
            sizes[key] = 2
    return table.model_validate({**sizes, **keys, **changes, "architecture": name})


def noiseless(name: str, keys: Mapping[str, Any]) -> ModelTable:
    """Return the tiny table with all rates of dropout at 0: what a generator then changes is not noise."""
    return tiny(name, keys, **{key: 0.0 for key in architecture(name).table.model_fields if "dropout" in key})


def model_of(config: ModelTable, size: int = SIZE) -> Seq2Seq:
    return build_model(config, size, size, seed=3).double()


def whole_batch() -> MicroBatch:
    """Return three rows of unlike lengths, one source a single piece, one row full on each side."""
    draw = torch.Generator().manual_seed(1)
    src, target = torch.randint(4, SIZE, (3, 6), generator=draw), torch.randint(4, SIZE, (3, 5), generator=draw)
    for ids, lengths in ((src, SRC_LENGTHS), (target, TGT_LENGTHS)):
        for row, length in enumerate(lengths):
            ids[row, length - 1] = EOS_ID
            ids[row, length:] = PAD_ID
    return batch_of(src, target, torch.tensor(SRC_LENGTHS), torch.tensor(TGT_LENGTHS))


def batch_of(src: Tensor, target: Tensor, src_lengths: Tensor, target_lengths: Tensor) -> MicroBatch:
    previous = torch.cat([torch.full((len(target), 1), BOS_ID), target[:, :-1]], dim=1)
    return MicroBatch(src, src_lengths, previous, target, target_lengths)


def rows_of(batch: MicroBatch, rows: Sequence[int]) -> MicroBatch:
    """Return these rows, both sides no wider than they need."""
    chosen = torch.tensor(rows)
    src_lengths, target_lengths = batch.src_lengths[chosen], batch.target_lengths[chosen]
    src, target = batch.src[chosen, : int(src_lengths.max())], batch.target[chosen, : int(target_lengths.max())]
    return batch_of(src, target, src_lengths, target_lengths)


def with_noise_behind(batch: MicroBatch, width: int) -> MicroBatch:
    """Return the batch, wider on both sides, with any pieces where there was padding, BOS, EOS and padding included."""
    draw = torch.Generator().manual_seed(2)
    sides = []
    for ids, lengths in ((batch.src, batch.src_lengths), (batch.target, batch.target_lengths)):
        noisy = torch.randint(0, SIZE, (len(ids), ids.shape[1] + width), generator=draw)
        for row, length in enumerate(lengths.tolist()):
            noisy[row, :length] = ids[row, :length]
        sides.append(noisy)
    return batch_of(*sides, batch.src_lengths, batch.target_lengths)


# What a model says of a batch


def logits_of(model: Seq2Seq, batch: MicroBatch, generator: torch.Generator | None = None) -> Tensor:
    """Return the scores [N, V] of the real target positions, row after row."""
    vectors = model(batch.src, batch.src_lengths, batch.previous, generator).vectors
    return model.logits(vectors[batch.target_mask()])


def loss_of(model: Seq2Seq, batch: MicroBatch, generator: torch.Generator | None = None) -> Tensor:
    return F.cross_entropy(logits_of(model, batch, generator), batch.target[batch.target_mask()], reduction="sum")


def gradients_of(model: Seq2Seq, batch: MicroBatch, generator: torch.Generator | None = None) -> dict[str, Tensor]:
    """Return the gradients of the summed loss by the parameters' names, zeros where a parameter has no part in it."""
    names, parameters = zip(*model.named_parameters())
    found = torch.autograd.grad(loss_of(model, batch, generator), parameters, materialize_grads=True)
    return dict(zip(names, found))


def assert_gradients_close(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], **EXACT, msg=lambda text, name=name: f"{name}: {text}")


def generators() -> list[torch.Generator | None]:
    """Return the generators of evaluation and of training."""
    return [None, torch.Generator().manual_seed(4)]


def scored(model: Seq2Seq, previous: Tensor, encoded: Encoded) -> tuple[Tensor, Tensor | None, Encoded]:
    """Return logits [B, T, V], attention weights [B, T, S] or None, and what the next step starts from."""
    vectors, state, weights = model.decode(previous, encoded, need_weights=True)
    return model.logits(vectors), weights, Encoded(encoded.memory, state)


def in_pieces(model: Seq2Seq, previous: Tensor, encoded: Encoded, sizes: Sequence[int]) -> tuple[Tensor, Tensor | None]:
    """Return logits and weights of `previous`, decoded so many steps at a time."""
    logits, weights = [], []
    for part in previous.split(list(sizes), dim=1):
        scores, weight, encoded = scored(model, part, encoded)
        logits.append(scores)
        weights.append(weight)
    if weights[0] is None:
        return torch.cat(logits, dim=1), None
    return torch.cat(logits, dim=1), torch.cat([weight for weight in weights if weight is not None], dim=1)


def assert_step_by_step_is_teacher_forcing(model: Seq2Seq, batch: MicroBatch) -> None:
    encoded = model.encode(batch.src, batch.src_lengths)
    steps = batch.previous.shape[1]
    expected, weights, _ = scored(model, batch.previous, encoded)
    for sizes in ([1] * steps, [2, steps - 2], [steps - 1, 1]):
        found, found_weights = in_pieces(model, batch.previous, encoded, sizes)
        torch.testing.assert_close(found, expected, **EXACT)
        if weights is not None:
            torch.testing.assert_close(found_weights, weights, **EXACT)
    # Decoding has left what it started from as it was.
    torch.testing.assert_close(scored(model, batch.previous, encoded)[0], expected, rtol=0.0, atol=0.0)


# The contracts


@every_variant
def test_what_stands_behind_a_source_or_a_target_changes_nothing(name: str, variant: Variant) -> None:
    batch = whole_batch()
    wider = with_noise_behind(batch, 4)
    for seed in generators():
        model, again = model_of(noiseless(name, variant.keys)), model_of(noiseless(name, variant.keys))
        torch.testing.assert_close(logits_of(again, wider, seed), logits_of(model, batch, seed), **EXACT)
        assert_gradients_close(gradients_of(again, wider, seed), gradients_of(model, batch, seed))


@every_variant
def test_the_other_rows_of_a_batch_change_nothing(name: str, variant: Variant) -> None:
    model, batch = model_of(tiny(name, variant.keys)), whole_batch()
    together = logits_of(model, batch).split(TGT_LENGTHS)
    rows = [rows_of(batch, [row]) for row in range(len(TGT_LENGTHS))]
    for row, expected in zip(rows, together):
        torch.testing.assert_close(logits_of(model, row), expected, **EXACT)
    order = [2, 0, 1]
    expected = torch.cat([together[row] for row in order])
    torch.testing.assert_close(logits_of(model, rows_of(batch, order)), expected, **EXACT)

    alone = [gradients_of(model, row) for row in rows]
    summed = {key: sum((gradients[key] for gradients in alone[1:]), alone[0][key]) for key in alone[0]}
    assert_gradients_close(summed, gradients_of(model, batch))


@every_variant
def test_step_by_step_gives_what_teacher_forcing_gives(name: str, variant: Variant) -> None:
    with torch.no_grad():
        assert_step_by_step_is_teacher_forcing(model_of(tiny(name, variant.keys)), whole_batch())


@every_variant
def test_rows_can_be_selected_reordered_and_repeated_midway(name: str, variant: Variant) -> None:
    model, batch = model_of(tiny(name, variant.keys)), whole_batch()
    with torch.no_grad():
        encoded = model.encode(batch.src, batch.src_lengths)
        expected = scored(model, batch.previous, encoded)[0]
        _, _, after = scored(model, batch.previous[:, :2], encoded)
        for chosen in ([2, 0, 0, 1], [1], [2, 1, 0]):
            rows = torch.tensor(chosen)
            rest = scored(model, batch.previous[rows, 2:], after.select(rows))[0]
            torch.testing.assert_close(rest, expected[rows, 2:], **EXACT)


@every_variant
def test_beams_of_one_sentence_share_its_memory(name: str, variant: Variant) -> None:
    model, batch = model_of(tiny(name, variant.keys)), whole_batch()
    twice = torch.arange(3).repeat_interleave(2)
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        encoded = model.encode(batch.src, batch.src_lengths).select(twice)
        first = torch.randint(4, SIZE, (6, 2), generator=draw)
        _, _, after = scored(model, first, encoded)
        # The first sentence goes on with its second beam only, the second with both swapped, the third as it was.
        moved = torch.tensor([1, 1, 3, 2, 4, 5])
        second = torch.randint(4, SIZE, (6, 2), generator=draw)
        found = scored(model, second, Encoded(after.memory, after.state.select(moved)))[0]
        expected = scored(model, torch.cat([first[moved], second], dim=1), encoded)[0][:, 2:]
    torch.testing.assert_close(found, expected, **EXACT)


@every_variant
def test_attention_is_a_distribution_over_the_real_source_pieces(name: str, variant: Variant) -> None:
    with torch.no_grad():
        assert_attention_is_a_distribution(model_of(tiny(name, variant.keys)), whole_batch())


def assert_attention_is_a_distribution(model: Seq2Seq, batch: MicroBatch) -> None:
    plain = model(batch.src, batch.src_lengths, batch.previous)
    asked = model(batch.src, batch.src_lengths, batch.previous, need_weights=True)
    assert plain.weights is None
    torch.testing.assert_close(asked.vectors, plain.vectors, **EXACT)
    assert (asked.weights is not None) == attends(model.config)
    if asked.weights is None:
        return
    real = torch.arange(batch.src.shape[1])[None, :] < batch.src_lengths[:, None]
    assert asked.weights.shape == (*batch.previous.shape, batch.src.shape[1])
    assert (asked.weights.masked_select(~real[:, None, :]) == 0.0).all()
    assert (asked.weights >= 0.0).all()
    torch.testing.assert_close(asked.weights.sum(-1), torch.ones_like(asked.weights[..., 0]), **EXACT)


def attends(config: ModelTable) -> bool:
    """Return whether a model of this config has attention over a source: where there is a choice, `none` is one."""
    return config.has_source and getattr(config, "attention", None) != "none"


@every_variant
def test_every_piece_of_a_source_is_read_and_nothing_where_there_is_none(name: str, variant: Variant) -> None:
    model, batch = model_of(tiny(name, variant.keys)), whole_batch()
    with torch.no_grad():
        before = logits_of(model, batch).split(TGT_LENGTHS)
        for row, length in enumerate(SRC_LENGTHS):
            for place in range(length):
                src = batch.src.clone()
                src[row, place] = 4 + (src[row, place] - 3) % (SIZE - 4)
                after = logits_of(model, batch._replace(src=src)).split(TGT_LENGTHS)
                changed = float((after[row] - before[row]).abs().max())
                assert changed > 1e-9 if model.config.has_source else changed == 0.0


@every_variant
def test_noise_is_a_function_of_the_generators_seed_alone(name: str, variant: Variant) -> None:
    model, batch = model_of(tiny(name, variant.keys, dropout=0.4)), whole_batch()

    def with_seed(seed: int | None) -> Tensor:
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return logits_of(copy.deepcopy(model), batch, generator)

    state = torch.get_rng_state()
    first = with_seed(1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert torch.equal(with_seed(1), first)
    assert not torch.allclose(with_seed(2), first)
    assert torch.equal(with_seed(None), with_seed(None))
    torch.set_rng_state(state)


@every_variant
def test_lower_precisions_are_near_the_higher_ones(name: str, variant: Variant) -> None:
    # Bounds are relative to the largest logit: 64 times float32's rounding (2^-24), 16 times bfloat16's (2^-9), as
    # dozens of roundings, of which some cancel, follow each other from the embeddings to the scores.
    config, batch = noiseless(name, variant.keys), whole_batch()
    exact = model_of(config)
    single = copy.deepcopy(exact).float()
    with torch.no_grad():
        assert relative_error(logits_of(single, batch), logits_of(exact, batch)) < 64 * 2**-24
    for generator in generators():
        with torch.autocast("cpu", torch.bfloat16):
            low = copy.deepcopy(single)
            found = logits_of(low, batch, generator).float()
        gradients = torch.autograd.grad(found.pow(2).sum(), list(low.parameters()), materialize_grads=True)
        assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients)
        with torch.no_grad():
            expected = logits_of(copy.deepcopy(exact), batch, generator)
        assert relative_error(found.detach(), expected) < 16 * 2**-9


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference, relative to the largest value."""
    return float((found - expected).abs().max() / expected.abs().max())


@every_variant
def test_a_new_model_knows_nothing_and_is_sure_of_nothing(name: str, variant: Variant) -> None:
    # Logits of variance v add about v / 2 to log V, as the mean of a log-normal distribution is exp(v / 2). With
    # embeddings drawn from N(0, 1/E) v is about 1 for vectors behind a layer norm, and far less for all others.
    size = 1000
    model = build_model(tiny(name, variant.keys, dim=32), size, size, seed=3)
    draw = torch.Generator().manual_seed(6)
    src, target = torch.randint(4, size, (8, 9), generator=draw), torch.randint(4, size, (8, 9), generator=draw)
    batch = batch_of(src, target, torch.full((8,), 9), torch.full((8,), 9))
    with torch.no_grad():
        loss = float(loss_of(model, batch)) / target.numel()
    assert math.log(size) - 0.05 < loss < math.log(size) + 0.75


@every_variant
def test_a_checkpoint_gives_the_same_model(name: str, variant: Variant, tmp_path: Path) -> None:
    config, batch = tiny(name, variant.keys), whole_batch()
    model = build_model(config, SIZE, SIZE, seed=3)
    one_update(model, batch)
    held = CheckpointConfig(model=config, source_size=SIZE, target_size=SIZE, tokenizer="t" * 64, update=1)
    save_model(tmp_path / "best", model, held)
    found, found_config = load_model(tmp_path / "best", tokenizer="t" * 64)
    assert found_config == held
    with torch.no_grad():
        assert torch.equal(logits_of(found, batch), logits_of(model, batch))


@every_variant
def test_searches_end_and_obey_their_limits(name: str, variant: Variant) -> None:
    model, batch = model_of(tiny(name, variant.keys)), whole_batch()
    for method, size in (("greedy", 1), ("beam", 3)):
        config = TranslateConfig(method=method, beam_size=size, max_length_factor=1.5, max_length_offset=2)
        limits = [max_target_pieces(config, length) for length in SRC_LENGTHS]
        found = search(model, batch.src, batch.src_lengths, config)
        for row, (hypothesis, limit) in enumerate(zip(found, limits, strict=True)):
            assert len(hypothesis.ids) <= limit
            assert not {PAD_ID, BOS_ID, EOS_ID} & set(hypothesis.ids)
            assert math.isfinite(hypothesis.score)
            one = rows_of(batch, [row])
            assert search(model, one.src, one.src_lengths, config)[0].ids == hypothesis.ids
        endless = copy.deepcopy(model)
        with torch.no_grad():
            endless.output_bias[EOS_ID] = -1e6
        found = search(endless, batch.src, batch.src_lengths, config)
        assert [len(hypothesis.ids) for hypothesis in found] == limits


@every_variant
def test_a_greedy_translations_probability_is_that_of_teacher_forcing(name: str, variant: Variant) -> None:
    model, batch = model_of(tiny(name, variant.keys)), whole_batch()
    with torch.no_grad():
        # Sharper than at the start, so that not all choices are equal by rounding.
        model.target_embedding.table.weight.mul_(4.0)
    config = TranslateConfig(method="greedy", max_length_factor=1.0, max_length_offset=1)
    for row, found in enumerate(search(model, batch.src, batch.src_lengths, config)):
        one = rows_of(batch, [row])
        ended = len(found.ids) < max_target_pieces(config, SRC_LENGTHS[row])
        target = torch.tensor([[*found.ids, EOS_ID] if ended else found.ids])
        with torch.no_grad():
            scores = logits_of(model, batch_of(one.src, target, one.src_lengths, torch.tensor([target.shape[1]])))
        expected = float(torch.log_softmax(scores, dim=-1).gather(1, target.T).sum())
        assert found.log_probability == pytest.approx(expected, rel=1e-9)


def one_update(model: Seq2Seq, batch: MicroBatch) -> FlatGradients:
    """Return the gradients of an update of training, done."""
    config = TrainConfig(clip_norm=1e9)
    parameters = list(model.parameters())
    flat = FlatGradients(parameters, collectors(model))
    train_step(
        model, make_optimizer(config, parameters), flat, None, [(0, batch)], config,
        update=0, target_tokens=sum(TGT_LENGTHS), rate=1e-3, world=World(),
    )  # fmt: skip
    return flat


@every_variant
def test_every_parameter_is_trained(name: str, variant: Variant) -> None:
    model = model_of(tiny(name, variant.keys))
    before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
    flat = one_update(model, whole_batch())
    assert torch.isfinite(flat.gradients).all()
    untrained = [key for key, parameter in model.named_parameters() if not parameter.grad.any()]  # type: ignore[union-attr]
    assert not untrained
    assert all(bool((parameter != before[key]).any()) for key, parameter in model.named_parameters())


# Configs drawn at random


def values(key: str, field: FieldInfo) -> st.SearchStrategy[Any]:
    """Return small values for a key of a table, most of them within its range."""
    return st.just(field.default) if field.is_required() else of_type(key, field.annotation, field.metadata)


def of_type(key: str, annotation: Any, metadata: Sequence[Any]) -> st.SearchStrategy[Any]:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return of_type(key, arguments[0], arguments[1:])
    if origin is Literal:
        return st.sampled_from(arguments)
    if annotation is bool:
        return st.booleans()
    if annotation is type(None):
        return st.none()
    if annotation is str:
        return st.nothing()  # a file
    if origin in (Union, types.UnionType):
        return st.one_of([of_type(key, argument, metadata) for argument in arguments])
    if origin is tuple and arguments[1:] == (...,):
        return st.lists(of_type(key, arguments[0], []), min_size=1, max_size=3)
    if annotation is int:
        return whole_numbers(key, metadata)
    if annotation is float:
        return st.sampled_from(rates(metadata))
    raise AssertionError(f"{key}: no values of {annotation} are drawn yet")


def bounds(metadata: Sequence[Any]) -> dict[str, Any]:
    kinds = {Ge: "ge", Gt: "gt", Le: "le", Lt: "lt"}
    return {kinds[type(bound)]: getattr(bound, kinds[type(bound)]) for bound in metadata if type(bound) in kinds}


def whole_numbers(key: str, metadata: Sequence[Any]) -> st.SearchStrategy[int]:
    if key.endswith("_dim"):
        return st.sampled_from([4, 8, 12])
    if key.endswith("heads"):
        return st.sampled_from([1, 2, 4])
    if key.startswith("max_"):
        return st.sampled_from([16, 20])  # more than any sequence here has
    found = bounds(metadata)
    least = found.get("ge", found.get("gt", 0) + ("gt" in found))
    most = found.get("le", found.get("lt", least + 4) - ("lt" in found))
    return st.integers(least, min(most, least + 3))


def rates(metadata: Sequence[Any]) -> list[float]:
    """Return the least value of a range, if it belongs to it, and one well inside."""
    found = bounds(metadata)
    least, most = found.get("ge", found.get("gt", 0.0)), found.get("le", found.get("lt", 1.0))
    return [*([least] if "gt" not in found else []), least + 0.3 * (most - least)]


@st.composite
def configs(draw: st.DrawFn, name: str) -> ModelTable:
    """Return a valid config: a variant's keys, and drawn values of all keys in a drawn order, as far as they fit.

    A value that the table refuses beside those before it is left out, having been refused with a reason.
    """
    table = architecture(name).table
    keys: dict[str, Any] = dict(draw(st.sampled_from(architecture(name).variants)).keys)
    config = tiny(name, keys)
    keys = config.model_dump()
    for key in draw(st.permutations([key for key in table.model_fields if key != "architecture"])):
        drawn = keys | {key: draw(values(key, table.model_fields[key]))}
        try:
            config, keys = table.model_validate(drawn), drawn
        except ValidationError as error:
            assert_says_why(error, table)
    return config


def assert_says_why(error: ValidationError, table: type[ModelTable]) -> None:
    for fault in error.errors():
        assert fault["loc"] or any(key in fault["msg"] for key in table.model_fields), fault
        assert len(fault["msg"]) > 10, fault


def built(config: ModelTable) -> Seq2Seq | None:
    """Return the model, or None where only its building finds that the output layer cannot share the embedding."""
    try:
        return model_of(config)
    except ValueError as error:
        assert "tie_target_embeddings" in str(error)
        return None


def assert_keeps_the_contracts(model: Seq2Seq) -> None:
    """Hold a model of float64, whose weights this changes, against what the tests above hold every variant against."""
    batch = whole_batch()
    one_update(model, batch)  # so that nothing stands at its first value
    for gradient in gradients_of(model, batch, torch.Generator().manual_seed(1)).values():
        assert torch.isfinite(gradient).all()
    noisy = with_noise_behind(batch, 3)
    assert_gradients_close(gradients_of(model, noisy), gradients_of(model, batch))
    with torch.no_grad():
        logits = logits_of(model, batch)
        torch.testing.assert_close(logits_of(model, noisy), logits, **EXACT)
        for row, expected in enumerate(logits.split(TGT_LENGTHS)):
            torch.testing.assert_close(logits_of(model, rows_of(batch, [row])), expected, **EXACT)
        assert_step_by_step_is_teacher_forcing(model, batch)
        assert_attention_is_a_distribution(model, batch)
    limit = TranslateConfig(method="greedy", max_length_factor=1.0, max_length_offset=2)
    found = search(model, batch.src, batch.src_lengths, limit)
    assert all(len(h.ids) <= max_target_pieces(limit, n) for h, n in zip(found, SRC_LENGTHS, strict=True))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_any_valid_config_is_a_model_that_keeps_the_contracts(name: str) -> None:
    @settings(max_examples=25, derandomize=True, database=None)
    @given(configs(name))
    def check(config: ModelTable) -> None:
        model = built(config)
        if model is not None:
            assert_keeps_the_contracts(model)

    check()


# Variants


def test_no_two_variants_have_one_name() -> None:
    names = [variant.name for _, variant in VARIANTS]
    assert len(set(names)) == len(names)


@every_variant
def test_a_variant_names_its_paper_and_is_no_other_variant(name: str, variant: Variant) -> None:
    assert variant.paper
    same = [other.name for other in architecture(name).variants if dict(other.keys) == dict(variant.keys)]
    assert same == [variant.name]


def test_variants_are_listed_under_the_architectures_own_name() -> None:
    for name, _ in itertools.groupby(VARIANTS, key=lambda pair: pair[0]):
        assert architecture(name).name == name
        assert architecture(name).table.model_fields["architecture"].default == name
