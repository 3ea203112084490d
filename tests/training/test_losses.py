from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_flatten, tree_map
from tiny import tiny_llama

from draftloop.models import adapter as lora
from draftloop.models.adapter_format import AdapterConfig
from draftloop.training import losses
from draftloop.training.forward import make_forward
from draftloop.training.losses import LK_ETA, DraftLogits, Labels, Sums, TeacherProbs, draft_logits

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


LOG_P_ARRAY = mx.array(LOG_P.astype(np.float32))
TOLD = TeacherProbs.of(LOG_P_ARRAY)


def asked(match: mx.array | None = None, greedy: mx.array | None = None, weights: np.ndarray = WEIGHTS) -> Labels:
    numbers = [mx.array(a.astype(np.float32)) for a in (TEMPERATURE, weights)]
    return Labels(mx.array(LABELS.astype(np.int32)), *numbers, greedy, match)


def logits32() -> mx.array:
    return mx.array(LOGITS.astype(np.float32))


def log_q_of(found: DraftLogits) -> mx.array:
    return found.scaled - mx.logsumexp(found.scaled, axis=-1, keepdims=True)


def loss_sums(kind: str, found: DraftLogits, told: TeacherProbs, here: Labels) -> Sums:
    """Of all positions at once."""
    return losses.combine(kind, losses.terms(kind, found, told, here))


def value(kind: str, logits: mx.array, sums=loss_sums) -> mx.array:
    return sums(kind, draft_logits(logits, asked(), WIDTH), TOLD, asked()).loss


def definition(kind: str, logits: np.ndarray, share: float | None = None) -> tuple[float, float]:
    """The sum of the loss in float64 by its definition, and the acceptance sum; λ is held at `share`."""
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
    gradient = np.array(mx.grad(lambda logits: value(kind, logits, sums))(logits32()))
    expected = gradient_by_differences(kind)
    return bool(np.abs(gradient).max() > 1e-3 and np.allclose(gradient, expected, rtol=1e-3, atol=1e-5))


@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_is_what_the_design_says(kind):
    sums = loss_sums(kind, draft_logits(logits32(), asked(), WIDTH), TOLD, asked())
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

    def cut(kind: str, found: DraftLogits, *rest: mx.array) -> Sums:
        return loss_sums(
            kind, found._replace(scaled=mx.stop_gradient(found.scaled), label=mx.stop_gradient(found.label)), *rest
        )

    assert value(kind, logits32(), cut).item() == value(kind, logits32()).item()
    assert not trains(kind, cut)


def test_the_same_check_catches_one_that_scales_with_the_wrong_temperature():
    def tepid(kind: str, found: DraftLogits, *rest: mx.array) -> Sums:
        return loss_sums(kind, found._replace(scaled=found.scaled * 1.1), *rest)

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
    there = Labels(labels, mx.full((4, 1), 0.8), mx.ones(4))
    drawn = mx.random.normal((4, 16), key=mx.random.key(1)) * 2
    log_p = drawn - mx.logsumexp(drawn, axis=-1, keepdims=True)

    def said() -> DraftLogits:
        return draft_logits(forward(inputs, positions), there, 16)

    def log_q() -> mx.array:
        return log_q_of(said())

    p = mx.exp(log_p)
    share = math.exp(-LK_ETA * mx.exp(losses.log_acceptance(log_q(), log_p)).mean().item())

    def along_the_line() -> float:
        """The loss here; for lk with λ as it was at the start, which is how its gradient sees it."""
        if kind == "lk":
            refused = 1 - mx.exp(losses.log_acceptance(log_q(), log_p))
            return (share * (p * (log_p - log_q())).sum(-1) + (1 - share) * refused).sum().item()
        return loss_sums(kind, said(), TeacherProbs.of(log_p), there).loss.item()

    _, gradient = nn.value_and_grad(model, lambda: loss_sums(kind, said(), TeacherProbs.of(log_p), there).loss)()
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
    def loss(logits: mx.array) -> mx.array:
        return loss_sums(kind, draft_logits(logits, asked(), WIDTH), TOLD, asked(weights=np.zeros(M))).loss

    loss_value, gradient = mx.value_and_grad(loss)(logits32())
    assert loss_value.item() == 0
    assert mx.array_equal(gradient, mx.zeros_like(gradient))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_supervised_changes_nothing(kind):
    loss, gradient = mx.value_and_grad(lambda logits: value(kind, logits))(logits32())
    other = mx.where(mx.arange(M)[:, None] == M - 1, 77.0, logits32())
    assert value(kind, other).item() == loss.item()
    assert not mx.any(gradient[M - 1]).item()


@pytest.mark.parametrize("kind", KINDS)
def test_ids_beyond_the_shared_width_have_no_part_in_it(kind):
    other = mx.where(mx.arange(V) >= WIDTH, 50.0, logits32())
    assert value(kind, other).item() == value(kind, logits32()).item()


def test_a_greedy_teacher_makes_kl_the_cross_entropy_and_a_the_probability_of_y():
    found, here = draft_logits(logits32(), asked(), WIDTH), asked()
    one_hot = mx.where(mx.arange(WIDTH) == here.tokens[:, None], 0.0, -mx.inf)
    of_kl, of_ce, of_nla = (loss_sums(kind, found, TeacherProbs.of(one_hot), here) for kind in ("kl", "ce", "nla"))
    assert of_kl.loss.item() == pytest.approx(of_ce.loss.item(), rel=1e-5)
    assert of_nla.loss.item() == pytest.approx(of_ce.loss.item(), rel=1e-5)
    assert of_kl.loss.item() > 0


def test_q_keeps_full_support_where_the_teacher_is_truncated():
    log_q = log_q_of(draft_logits(logits32(), asked(), WIDTH))
    assert mx.all(mx.isfinite(log_q)).item()
    assert not mx.all(mx.isfinite(LOG_P_ARRAY)).item()


def test_equal_distributions_are_accepted_whole_at_no_loss():
    found = draft_logits(logits32(), asked(), WIDTH)
    log_q = log_q_of(found)
    assert mx.allclose(losses.log_acceptance(log_q, log_q), mx.zeros(M), atol=1e-5)
    for kind in ("kl", "tv", "nla", "lk"):
        sums = loss_sums(kind, found, TeacherProbs.of(log_q), asked())
        assert sums.loss.item() == pytest.approx(0, abs=1e-5)
        assert sums.acceptance.item() == pytest.approx(4, rel=1e-5)


def test_where_both_meet_q_is_the_draft_s_distribution_and_the_rest_is_what_it_says():
    found, p = draft_logits(logits32(), asked(), WIDTH), mx.exp(LOG_P_ARRAY)
    (log_z, overlap, cross, met_q), q = losses.overlap_of(found.scaled, p), mx.exp(log_q_of(found))
    assert mx.allclose(met_q, q, atol=1e-5)
    assert mx.allclose(log_z, mx.logsumexp(found.scaled, axis=-1), atol=1e-5)
    assert mx.allclose(overlap, mx.minimum(p, q).sum(-1), atol=1e-5)
    assert mx.allclose(cross, (p * found.scaled).sum(-1), atol=1e-5)


def test_16_bit_logits_are_computed_in_32():
    assert draft_logits(logits32().astype(mx.bfloat16), asked(), WIDTH).scaled.dtype == mx.float32


@pytest.mark.parametrize("kind", KINDS)
def test_the_terms_of_pieces_add_up_to_those_of_the_whole(kind):
    found, here = draft_logits(logits32(), asked(), WIDTH), asked()

    def of(piece: slice) -> losses.Terms:
        return losses.terms(
            kind, DraftLogits(found.scaled[piece], found.label[piece], None), TOLD.piece(piece), here.piece(piece)
        )

    pieces = [of(slice(i, i + 2)) for i in range(0, M, 2)]
    added = losses.combine(kind, losses.Terms(*map(sum, zip(*pieces, strict=True))))
    whole = loss_sums(kind, found, TOLD, here)
    assert [one.item() for one in added] == pytest.approx([one.item() for one in whole], rel=1e-5)


# the rule in use


def rows(seed: int, m: int, width: int, spread: float) -> np.ndarray:
    """(m, width) log-distributions in float64."""
    logits = np.random.default_rng(seed).normal(0, spread, (m, width))
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_under_match_what_is_accepted_is_the_sum_of_p_times_q():
    found, here = draft_logits(logits32(), asked(), WIDTH), asked(match=mx.array([True] * M))
    expected = (np.exp(LOG_P) * np.exp(np.array(log_q_of(found)))).sum(-1)
    assert np.allclose(np.exp(np.array(losses.log_acceptance(log_q_of(found), LOG_P_ARRAY, here.match))), expected)
    sums = loss_sums("tv", found, TOLD, here)
    assert sums.loss.item() == pytest.approx((WEIGHTS * (1 - expected)).sum(), rel=1e-5)
    assert sums.acceptance.item() == pytest.approx((WEIGHTS * expected).sum(), rel=1e-5)


@pytest.mark.parametrize("kind", ["tv", "nla", "lk"])
def test_under_match_the_gradient_is_that_of_the_sum_of_p_times_q(kind):
    here = asked(match=mx.array([True] * M))

    def loss(logits: mx.array) -> mx.array:
        return loss_sums(kind, draft_logits(logits, here, WIDTH), TOLD, here).loss

    gradient = np.array(mx.grad(loss)(logits32()))
    q = np.exp(np.array(log_q_of(draft_logits(logits32(), here, WIDTH)), np.float64))
    p = np.exp(LOG_P)
    a = (p * q).sum(-1, keepdims=True)
    of_a = q * (p - a) / TEMPERATURE  # d a / d logits
    share = math.exp(-LK_ETA * (WEIGHTS * a[:, 0]).sum() / WEIGHTS.sum())
    expected = {
        "tv": -of_a,
        "nla": -of_a / a,
        "lk": share * (q - p) / TEMPERATURE - (1 - share) * of_a,
    }[kind]
    assert np.allclose(gradient[:, :WIDTH], WEIGHTS[:, None] * expected, rtol=1e-3, atol=1e-5)


def test_at_temperature_0_a_token_is_accepted_where_it_is_the_draft_s_likeliest():
    greedy = asked(greedy=mx.array([True] * M))
    found = draft_logits(logits32(), greedy, WIDTH)
    one_hot = TeacherProbs.of(mx.where(mx.arange(WIDTH) == asked().tokens[:, None], 0.0, -mx.inf))
    hits = [float(LOGITS[i, :WIDTH].argmax() == LABELS[i]) for i in range(M)]
    sums = loss_sums("lk", found, one_hot, greedy)
    assert 0 < sum(hits) < M
    assert sums.acceptance.item() == (WEIGHTS * hits).sum()
    assert sums.loss.item() == loss_sums("lk", found, one_hot, asked()).loss.item()  # the loss needs a slope


# a teacher that names only its k likeliest ids


def named(k: int, log_p: np.ndarray) -> tuple[mx.array, mx.array]:
    """log p (M, k + 1) of the k likeliest ids and of the rest, and the ids."""
    ids = np.argsort(-log_p, axis=-1)[:, :k]
    kept = np.take_along_axis(log_p, ids, axis=-1)
    rest = 1 - np.exp(kept).sum(-1, keepdims=True)
    with np.errstate(divide="ignore"):
        columns = np.concatenate([kept, np.log(np.where(rest > 1e-6, rest, 0.0))], axis=-1)
    return mx.array(columns.astype(np.float32)), mx.array(ids.astype(np.int32))


TRUTH = rows(1, 64, 512, 3.0)
MANY = Labels(mx.array(TRUTH.argmax(-1).astype(np.int32)), mx.full((64, 1), 0.8), mx.ones(64))
DRAFT = mx.array((TRUTH * 0.7 + rows(2, 64, 512, 1.0)).astype(np.float32))


def of_the_likeliest(kind: str, k: int | None) -> tuple[float, float, np.ndarray]:
    """Loss, acceptance and gradient of the whole distribution, or of its k likeliest ids and a bucket."""
    log_p, ids = (mx.array(TRUTH.astype(np.float32)), None) if k is None else named(k, TRUTH)

    def loss(logits: mx.array) -> mx.array:
        return loss_sums(kind, draft_logits(logits, MANY, 512, ids), TeacherProbs.of(log_p, ids), MANY).loss

    sums = loss_sums(kind, draft_logits(DRAFT, MANY, 512, ids), TeacherProbs.of(log_p, ids), MANY)
    return sums.loss.item(), sums.acceptance.item(), np.array(mx.grad(loss)(DRAFT))


@pytest.mark.parametrize("kind", ["kl", "tv", "nla", "lk"])
def test_the_loss_on_the_likeliest_ids_is_too_small_and_comes_closer_with_each_of_them(kind):
    exact, accepted, gradient = of_the_likeliest(kind, None)
    off, turned, longer = [], [], []
    for k in (8, 32, 128):
        loss, also_accepted, found = of_the_likeliest(kind, k)
        assert loss <= exact * (1 + 1e-5)
        assert also_accepted >= accepted * (1 - 1e-5)
        off.append(exact - loss)
        longer.append(abs(np.linalg.norm(found) / np.linalg.norm(gradient) - 1))
        turned.append(1 - (found * gradient).sum() / np.sqrt((found**2).sum() * (gradient**2).sum()))
    assert off[0] > off[1] > off[2]
    assert turned[0] > turned[1] > turned[2]
    assert longer[0] > longer[1] > longer[2]
    assert off[2] < 0.02 * exact
    assert turned[2] < 0.01
    assert longer[2] < 0.02


@pytest.mark.parametrize("kind", KINDS)
def test_naming_every_id_is_the_exact_loss(kind):
    exact, accepted, gradient = of_the_likeliest(kind, None)
    loss, also_accepted, found = of_the_likeliest(kind, 512)
    assert (loss, also_accepted) == (pytest.approx(exact, rel=1e-4), pytest.approx(accepted, rel=1e-5))
    assert np.allclose(found, gradient, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1e3, 1e30])
def test_extreme_logits_overflow_nothing_with_a_bucket_either(kind, size):
    log_p, ids = named(8, TRUTH)
    loss, gradient = mx.value_and_grad(
        lambda x: loss_sums(kind, draft_logits(x, MANY, 512, ids), TeacherProbs.of(log_p, ids), MANY).loss
    )(DRAFT * size)
    assert math.isfinite(loss.item())
    assert mx.all(mx.isfinite(gradient)).item()


def test_hard_labels_are_one_named_id_and_give_the_cross_entropy():
    here = asked()
    log_p, ids = mx.array([[0.0, -mx.inf]] * M), here.tokens[:, None]
    hard = loss_sums("kl", draft_logits(logits32(), here, WIDTH, ids), TeacherProbs.of(log_p, ids), here).loss
    assert hard.item() == pytest.approx(value("ce", logits32()).item(), rel=1e-5)


def test_a_column_that_names_no_id_changes_nothing():
    log_p, ids = named(8, TRUTH)
    wider = mx.concatenate([log_p[:, :8], mx.full((64, 3), -mx.inf), log_p[:, 8:]], axis=1)
    more = mx.concatenate([ids, mx.full((64, 3), -1, mx.int32)], axis=1)
    plain = loss_sums("lk", draft_logits(DRAFT, MANY, 512, ids), TeacherProbs.of(log_p, ids), MANY)
    assert loss_sums(
        "lk", draft_logits(DRAFT, MANY, 512, more), TeacherProbs.of(wider, more), MANY
    ).loss.item() == pytest.approx(plain.loss.item())


@pytest.mark.parametrize("place", [0, 4, 8])
def test_a_column_that_names_no_id_takes_none_out_of_the_bucket_wherever_it_stands(place):
    """Moving the likeliest id beyond the shared width into the tail leaves the first column without one."""
    log_p, ids = named(8, TRUTH)
    nothing, none = mx.full((64, 1), -mx.inf), mx.full((64, 1), -1, mx.int32)
    wider = mx.concatenate([log_p[:, :place], nothing, log_p[:, place:]], axis=1)
    more = mx.concatenate([ids[:, :place], none, ids[:, place:]], axis=1)
    draft = mx.where(mx.arange(512) == 511, 3.0, DRAFT)  # the last id would be missed, which -1 is taken for
    for kind in KINDS:
        plain = loss_sums(kind, draft_logits(draft, MANY, 512, ids), TeacherProbs.of(log_p, ids), MANY)
        found = loss_sums(kind, draft_logits(draft, MANY, 512, more), TeacherProbs.of(wider, more), MANY)
        assert [one.item() for one in found] == pytest.approx([one.item() for one in plain], rel=1e-5)


def test_weights_count_each_position_so_often():
    twice = loss_sums("kl", draft_logits(logits32(), asked(), WIDTH), TOLD, asked(weights=2 * WEIGHTS))
    once = loss_sums("kl", draft_logits(logits32(), asked(), WIDTH), TOLD, asked())
    assert [2 * one.item() for one in once] == pytest.approx([one.item() for one in twice], rel=1e-5)


def test_some_positions_of_a_batch_may_be_under_match():
    here = asked(match=mx.array([True, False, True, False, False]))
    found = draft_logits(logits32(), here, WIDTH)
    p, q = np.exp(LOG_P), np.exp(np.array(log_q_of(found)))
    expected = np.where([True, False, True, False, False], (p * q).sum(-1), np.minimum(p, q).sum(-1))
    assert np.allclose(
        np.exp(np.array(losses.log_acceptance(log_q_of(found), LOG_P_ARRAY, here.match))), expected, atol=1e-5
    )


@pytest.mark.parametrize("named_ids", [False, True])
def test_on_the_draft_s_own_greedy_text_a_hit_is_the_target_s_choice_and_not_the_draft_s_token(named_ids):
    best = mx.array(LOGITS[:, :WIDTH].argmax(-1).astype(np.int32))
    here = asked(greedy=mx.array([True] * M))._replace(tokens=best)  # the draft always says its likeliest id
    target = mx.array([int(best[0].item()), *((int(i) + 1) % WIDTH for i in best.tolist()[1:])], mx.int32)
    ids = target[:, None] if named_ids else None
    whole = mx.where(mx.arange(WIDTH) == target[:, None], 0.0, -mx.inf)
    log_p = mx.array([[0.0, -mx.inf]] * M) if named_ids else whole
    sums = loss_sums("lk", draft_logits(logits32(), here, WIDTH, ids), TeacherProbs.of(log_p, ids), here)
    assert sums.acceptance.item() == 1.0


@pytest.mark.parametrize("k", [None, 4])
def test_at_temperature_0_a_soft_teacher_s_likeliest_id_is_the_one_to_hit(k):
    best = DRAFT.argmax(-1)
    flat = np.log(np.random.default_rng(4).dirichlet(np.full(512, 5.0), 64))
    for row in range(0, 64, 3):  # of these the target's likeliest is the draft's
        flat[row, [flat[row].argmax(), best[row]]] = flat[row, [best[row], flat[row].argmax()]]
    log_p, ids = (mx.array(flat), None) if k is None else named(k, flat)
    here = MANY._replace(greedy=mx.ones(64, mx.bool_))
    sums = loss_sums("lk", draft_logits(DRAFT, here, 512, ids), TeacherProbs.of(log_p, ids), here)
    assert sums.acceptance.item() == len(range(0, 64, 3))


def test_under_match_two_draws_from_the_bucket_are_not_one_id():
    """Else the draft would be taught to put its mass where the target's is thin."""
    flat = np.log(np.random.default_rng(3).dirichlet(np.full(512, 5.0), 64))
    log_p, ids = named(8, flat)
    here = MANY._replace(match=mx.ones(64, mx.bool_))
    q = np.exp(np.array(log_q_of(draft_logits(DRAFT, here, 512)), np.float64))
    truth = (np.exp(flat) * q).sum(-1)
    sums = loss_sums("tv", draft_logits(DRAFT, here, 512, ids), TeacherProbs.of(log_p, ids), here)
    assert 0 < sums.acceptance.item() < truth.sum()

    for kind in ("tv", "nla"):

        def loss(logits: mx.array, kind: str = kind) -> mx.array:
            return loss_sums(kind, draft_logits(logits, here, 512, ids), TeacherProbs.of(log_p, ids), here).loss

        gradient = np.array(mx.grad(loss)(mx.zeros((64, 512))))
        assert (np.take_along_axis(gradient, np.array(ids), axis=-1) < 0).all()
        np.put_along_axis(gradient, np.array(ids), 1.0, axis=-1)
        assert (gradient > 0).all()
