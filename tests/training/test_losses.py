from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_flatten, tree_map
from tiny import tiny_llama

from draftloop import lora
from draftloop.adapter_format import AdapterConfig
from draftloop.training import losses
from draftloop.training.forward import make_forward
from draftloop.training.losses import LK_ETA, Sums, log_softmax, loss_sums

M, V, WIDTH = 5, 9, 7
KINDS = ("ce", "kl", "tv", "nla", "lk")
RANDOM = np.random.default_rng(0)
LOGITS = RANDOM.normal(0, 1.5, (M, V))
TEMPERATURE = np.array([[0.8], [1.0], [0.5], [1.3], [1.0]])
LABELS = np.array([0, 6, 3, 2, 5])
WEIGHTS = np.array([1.0, 1.0, 1.0, 1.0, 0.0])


def teacher() -> np.ndarray:
    """(M, W) log p: a truncated row, a one-hot row, and full ones."""
    logits = RANDOM.normal(0, 2, (M, WIDTH))
    logits[1, :4] = -np.inf
    logits[2] = np.where(np.arange(WIDTH) == LABELS[2], 0.0, -np.inf)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


LOG_P = teacher()


def arrays() -> tuple[mx.array, ...]:
    numbers = [mx.array(a.astype(np.float32)) for a in (LOGITS, TEMPERATURE, LOG_P, WEIGHTS)]
    return *numbers, mx.array(LABELS)


def value(kind: str, logits: mx.array, sums=loss_sums) -> mx.array:
    _, temperature, log_p, weights, labels = arrays()
    return sums(kind, log_softmax(logits, temperature, WIDTH), log_p, labels, weights).loss


def definition(kind: str, logits: np.ndarray, share: float | None = None) -> tuple[float, float]:
    """The sum of the loss in float64 as DESIGN writes it, and the acceptance sum; λ is held at `share`."""
    scaled = logits[:, :WIDTH] / TEMPERATURE
    q = np.exp(scaled - scaled.max(-1, keepdims=True))
    q /= q.sum(-1, keepdims=True)
    p = np.exp(LOG_P)
    a = np.minimum(p, q).sum(-1)
    kl = np.where(p > 0, p * (np.where(p > 0, LOG_P, 0.0) - np.log(q)), 0.0).sum(-1)
    share = math.exp(-LK_ETA * (WEIGHTS * a).sum() / WEIGHTS.sum()) if share is None else share
    each = {
        "ce": -np.log(q[np.arange(M), LABELS]),
        "kl": kl,
        "tv": 1 - a,
        "nla": -np.log(a),
        "lk": share * kl + (1 - share) * (1 - a),
    }[kind]
    return float((WEIGHTS * each).sum()), float((WEIGHTS * a).sum())


def gradient_by_differences(kind: str, step: float = 1e-6) -> np.ndarray:
    _, accepted = definition(kind, LOGITS)
    share = math.exp(-LK_ETA * accepted / WEIGHTS.sum())  # a gradient through λ is not wanted
    found = np.zeros_like(LOGITS)
    for at in np.ndindex(*LOGITS.shape):
        up, down = LOGITS.copy(), LOGITS.copy()
        up[at] += step
        down[at] -= step
        found[at] = (definition(kind, up, share)[0] - definition(kind, down, share)[0]) / (2 * step)
    return found


def trains(kind: str, sums=loss_sums) -> bool:
    """The check that a loss must pass: a gradient that is not zero and is the one of the definition."""
    gradient = np.array(mx.grad(lambda logits: value(kind, logits, sums))(arrays()[0]))
    expected = gradient_by_differences(kind)
    return bool(np.abs(gradient).max() > 1e-3 and np.allclose(gradient, expected, rtol=1e-3, atol=1e-5))


@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_is_what_the_design_says(kind):
    logits, temperature, log_p, weights, labels = arrays()
    sums = loss_sums(kind, log_softmax(logits, temperature, WIDTH), log_p, labels, weights)
    loss, accepted = definition(kind, LOGITS)
    assert sums.loss.item() == pytest.approx(loss, rel=1e-5)
    assert sums.acceptance.item() == pytest.approx(accepted, rel=1e-5)
    assert sums.tokens.item() == 4


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_not_zero_and_agrees_with_finite_differences(kind):
    assert trains(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_check_catches_a_loss_whose_gradient_is_cut_off(kind):
    """The bug of a known implementation: finite, falling in no log, training nothing."""

    def cut(kind: str, log_q: mx.array, *rest: mx.array) -> Sums:
        return loss_sums(kind, mx.stop_gradient(log_q), *rest)

    assert value(kind, arrays()[0], cut).item() == value(kind, arrays()[0]).item()
    assert not trains(kind, cut)


def test_the_same_check_catches_one_that_scales_with_the_wrong_temperature():
    def tepid(kind: str, log_q: mx.array, *rest: mx.array) -> Sums:
        return loss_sums(kind, log_q * 1.1 - mx.logsumexp(log_q * 1.1, axis=-1, keepdims=True), *rest)

    assert not trains("kl", tepid)


def test_lk_has_no_gradient_through_its_own_share(monkeypatch):
    monkeypatch.setattr(losses.mx, "stop_gradient", lambda value: value)
    assert not trains("lk")


@pytest.mark.parametrize("kind", KINDS)
def test_through_a_model_the_adapter_gets_the_gradient_of_finite_differences(kind):
    model = tiny_llama(vocabulary=16, width=32, layers=1, sharpness=1.0)
    lora.attach_fresh(model, AdapterConfig(rank=2, scale=2.0), seed=0)
    noise = {name: 0.3 * mx.random.normal(a.shape) for name, a in lora.adapter_parameters(model).items()}
    lora.load_parameters(model, noise)
    forward = make_forward(model, "draft", print)
    inputs, positions, labels = mx.array([[1, 2, 3, 4, 5, 6]]), mx.array([2, 3, 4, 5]), mx.array([1, 2, 3, 4])
    log_p = log_softmax(mx.random.normal((4, 16), key=mx.random.key(1)) * 2, mx.ones((4, 1)), 16)

    def log_q() -> mx.array:
        return log_softmax(forward(inputs, positions), mx.full((4, 1), 0.8), 16)

    p = mx.exp(log_p)
    share = math.exp(-LK_ETA * mx.exp(losses.log_acceptance(log_q(), log_p)).mean().item())

    def along_the_line() -> float:
        """The loss here; for lk with λ as it was at the start, which is how its gradient sees it."""
        if kind == "lk":
            refused = 1 - mx.exp(losses.log_acceptance(log_q(), log_p))
            return (share * losses.kl(log_q(), log_p, p) + (1 - share) * refused).sum().item()
        return loss_sums(kind, log_q(), log_p, labels, mx.ones(4)).loss.item()

    _, gradient = nn.value_and_grad(model, lambda: loss_sums(kind, log_q(), log_p, labels, mx.ones(4)).loss)()
    norm = math.sqrt(sum(mx.sum(g * g).item() for _, g in tree_flatten(gradient)))
    start, step = model.trainable_parameters(), 3e-3
    ends = []
    for sign in (1, -1):
        model.update(tree_map(lambda w, g, sign=sign: w + sign * step / norm * g, start, gradient))
        ends.append(along_the_line())
    assert norm > 1e-2
    assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(norm, rel=0.03)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1e3, 1e5, 1e30])
def test_extreme_logits_overflow_nothing(kind, size):
    logits = mx.array((LOGITS * size).astype(np.float32))
    loss, gradient = mx.value_and_grad(lambda logits: value(kind, logits))(logits)
    assert math.isfinite(loss.item())
    assert mx.all(mx.isfinite(gradient)).item()


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_supervised_token_loss_and_gradient_are_zero_and_finite(kind):
    logits, temperature, log_p, _, labels = arrays()

    def loss(logits: mx.array) -> mx.array:
        return loss_sums(kind, log_softmax(logits, temperature, WIDTH), log_p, labels, mx.zeros(M)).loss

    loss_value, gradient = mx.value_and_grad(loss)(logits)
    assert loss_value.item() == 0
    assert mx.array_equal(gradient, mx.zeros_like(gradient))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_supervised_changes_nothing(kind):
    logits = arrays()[0]
    loss, gradient = mx.value_and_grad(lambda logits: value(kind, logits))(logits)
    other = mx.where(mx.arange(M)[:, None] == M - 1, 77.0, logits)
    assert value(kind, other).item() == loss.item()
    assert not mx.any(gradient[M - 1]).item()


@pytest.mark.parametrize("kind", KINDS)
def test_ids_beyond_the_shared_width_have_no_part_in_it(kind):
    logits = arrays()[0]
    other = mx.where(mx.arange(V) >= WIDTH, 50.0, logits)
    assert value(kind, other).item() == value(kind, logits).item()


def test_a_greedy_teacher_makes_kl_the_cross_entropy_and_a_the_probability_of_y():
    logits, temperature, _, weights, labels = arrays()
    log_q = log_softmax(logits, temperature, WIDTH)
    one_hot = mx.where(mx.arange(WIDTH) == labels[:, None], 0.0, -mx.inf)
    p = mx.exp(one_hot)
    assert mx.allclose(losses.kl(log_q, one_hot, p), losses.ce(log_q, labels))
    assert mx.allclose(mx.exp(losses.log_acceptance(log_q, one_hot)), mx.exp(-losses.ce(log_q, labels)))
    assert loss_sums("kl", log_q, one_hot, labels, weights).loss.item() > 0


def test_q_keeps_full_support_where_the_teacher_is_truncated():
    logits, temperature, log_p, _, _ = arrays()
    log_q = log_softmax(logits, temperature, WIDTH)
    assert mx.all(mx.isfinite(log_q)).item()
    assert not mx.all(mx.isfinite(log_p)).item()
    assert mx.allclose(mx.sum(mx.exp(log_q), axis=-1), mx.ones(M), atol=1e-6)


def test_equal_distributions_are_accepted_whole_at_no_loss():
    log_q = log_softmax(arrays()[0], arrays()[1], WIDTH)
    q = mx.exp(log_q)
    assert mx.allclose(losses.acceptance(q, q), mx.ones(M), atol=1e-6)
    assert mx.allclose(losses.log_acceptance(log_q, log_q), mx.zeros(M), atol=1e-6)
    assert mx.allclose(losses.kl(log_q, log_q, q), mx.zeros(M), atol=1e-6)


def test_16_bit_logits_are_computed_in_32():
    logits, temperature, *_ = arrays()
    assert log_softmax(logits.astype(mx.bfloat16), temperature, WIDTH).dtype == mx.float32


@pytest.mark.parametrize("kind", KINDS)
def test_the_terms_of_pieces_add_up_to_those_of_the_whole(kind):
    logits, temperature, log_p, weights, labels = arrays()
    log_q = log_softmax(logits, temperature, WIDTH)
    pieces = [losses.terms(kind, *(a[i : i + 2] for a in (log_q, log_p, labels, weights))) for i in range(0, M, 2)]
    added = losses.combine(kind, losses.Terms(*map(sum, zip(*pieces, strict=True))))
    whole = loss_sums(kind, log_q, log_p, labels, weights)
    assert [one.item() for one in added] == pytest.approx([one.item() for one in whole], rel=1e-6)
