"""R-Drop against a plain reference: its loss, its gradients, and what it becomes where there is no noise."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from nmt.objectives import cross_entropy
from nmt.objectives.rdrop import paired_cross_entropy, rdrop
from nmt.objectives.supervised import supervised
from tests.nmt.objectives.conftest import MODELS, PIECES, RECURRENT, generator_of, gradients_of, model_of, toy_batch

ROWS, UNITS = 7, 5


def inputs(dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], Tensor]:
    torch.manual_seed(2)
    shapes = ((ROWS, UNITS), (ROWS, UNITS), (PIECES, UNITS), (PIECES,))
    tensors = [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]
    return tensors, torch.randint(0, PIECES, (ROWS,))


def reference(first: Tensor, second: Tensor, targets: Tensor, smoothing: float, alpha: float) -> Tensor:
    """Return half of eq. 4 of the paper for scores [N, V], by torch's own losses."""
    losses = [F.cross_entropy(x, targets, reduction="sum", label_smoothing=smoothing) for x in (first, second)]
    p, q = first.log_softmax(-1), second.log_softmax(-1)
    # kl_div(a, b) is KL(b || a).
    there, back = (F.kl_div(a, b, reduction="sum", log_target=True) for a, b in ((q, p), (p, q)))
    return (losses[0] + losses[1] + alpha * (there + back) / 2) / 2


@pytest.mark.parametrize(("smoothing", "alpha"), [(0.0, 0.0), (0.1, 5.0), (0.3, 0.7)])
@pytest.mark.parametrize("rows_at_once", [1, 3, 100])
def test_loss_and_gradients_are_half_of_the_papers(
    smoothing: float, alpha: float, rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cross_entropy, "_CHUNK_CPU", rows_at_once * PIECES)
    tensors, targets = inputs()
    first, second, weight, bias = tensors
    total, nll = paired_cross_entropy(first, second, weight, bias, targets, smoothing=smoothing, alpha=alpha)
    scores = [F.linear(vectors, weight, bias) for vectors in (first, second)]
    expected = reference(*scores, targets, smoothing, alpha)
    torch.testing.assert_close(total, expected, rtol=1e-12, atol=1e-12)
    plain = sum(F.cross_entropy(x, targets, reduction="sum").item() for x in scores) / 2
    assert float(nll) == pytest.approx(plain, rel=1e-12)
    assert not nll.requires_grad
    # A factor, since what comes from above is not always one.
    for found, exact in zip(torch.autograd.grad(3 * total, tensors), torch.autograd.grad(3 * expected, tensors)):
        torch.testing.assert_close(found, exact, rtol=1e-11, atol=1e-12)


def test_the_gradient_is_that_of_finite_differences() -> None:
    tensors, targets = inputs()

    def loss(*parts: Tensor) -> Tensor:
        return paired_cross_entropy(*parts, targets, smoothing=0.1, alpha=2.5)[0]  # type: ignore[misc]

    assert torch.autograd.gradcheck(loss, tensors)


def test_under_autocast_loss_and_gradients_are_within_the_rounding_of_bfloat16() -> None:
    tensors, targets = inputs(torch.float32)
    exact, _ = paired_cross_entropy(*tensors, targets, smoothing=0.1, alpha=1.0)  # type: ignore[misc]
    with torch.autocast("cpu", torch.bfloat16):
        total, _ = paired_cross_entropy(*tensors, targets, smoothing=0.1, alpha=1.0)  # type: ignore[misc]
    assert total.dtype == torch.float32
    assert total.item() == pytest.approx(exact.item(), rel=0.02)
    for found, plain in zip(torch.autograd.grad(total, tensors), torch.autograd.grad(exact, tensors)):
        assert found.dtype == torch.float32
        assert (found - plain).norm() / plain.norm() < 0.03


@pytest.mark.parametrize("name", MODELS)
def test_without_noise_it_is_teacher_forcing_whatever_the_weight(name: str) -> None:
    model, batch = model_of(MODELS[name]), toy_batch()
    plain = supervised(model, batch, None, label_smoothing=0.1)
    found = rdrop(model, batch, None, label_smoothing=0.1, alpha=5.0)
    assert found.weight == plain.weight == int(batch.target_lengths.sum())
    torch.testing.assert_close(found.total, plain.total, rtol=1e-12, atol=0)
    torch.testing.assert_close(found.nll, plain.nll, rtol=1e-12, atol=0)
    expected = gradients_of(model, plain.total)
    for key, gradient in gradients_of(model, found.total).items():
        torch.testing.assert_close(gradient, expected[key], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_gets_the_loss_of_two_passes_that_follow_each_other_in_the_generator(name: str) -> None:
    model, batch = model_of(MODELS[name]), toy_batch()
    found = rdrop(model, batch, generator_of(), label_smoothing=0.1, alpha=3.0)
    generator, real = generator_of(), batch.target_mask()
    passes = [model(batch.src, batch.src_lengths, batch.previous, generator).vectors[real] for _ in range(2)]
    assert not torch.equal(*passes)
    first, second = (model.logits(vectors) for vectors in passes)
    expected = reference(first, second, batch.target[real], 0.1, 3.0)
    torch.testing.assert_close(found.total, expected, rtol=1e-12, atol=0)
    exact = gradients_of(model, expected)
    for key, gradient in gradients_of(model, found.total).items():
        torch.testing.assert_close(gradient, exact[key], rtol=1e-8, atol=1e-11)


def test_the_generators_seed_decides_the_loss_and_no_other_noise_does() -> None:
    model, batch = model_of(RECURRENT), toy_batch()

    def loss(seed: int) -> float:
        torch.manual_seed(seed * 31)
        return rdrop(model, batch, generator_of(5), label_smoothing=0.1, alpha=3.0).total.item()

    assert loss(1) == loss(2)
    assert loss(1) != rdrop(model, batch, generator_of(6), label_smoothing=0.1, alpha=3.0).total.item()


def test_padding_and_the_rows_beside_change_no_rows_loss() -> None:
    model, batch = model_of(RECURRENT), toy_batch()
    whole = rdrop(model, batch, None, label_smoothing=0.1, alpha=3.0).total
    apart = torch.zeros((), dtype=torch.float64)
    for row in range(len(batch.src)):
        src, target = int(batch.src_lengths[row]), int(batch.target_lengths[row])
        alone = batch._replace(
            src=batch.src[row : row + 1, :src],
            src_lengths=batch.src_lengths[row : row + 1],
            previous=batch.previous[row : row + 1, :target],
            target=batch.target[row : row + 1, :target],
            target_lengths=batch.target_lengths[row : row + 1],
        )
        apart = apart + rdrop(model, alone, None, label_smoothing=0.1, alpha=3.0).total
    torch.testing.assert_close(whole, apart, rtol=1e-11, atol=0)
