from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_flatten
from tiny import sampler, tiny_llama, tiny_pair
from workshop import adapter_bytes, examples_of, snapshot

from draftloop.config import Training
from draftloop.errors import TrainingFailed
from draftloop.models import adapter as lora
from draftloop.models.adapter_format import AdapterConfig
from draftloop.training import step as step_module
from draftloop.training.batches import Batch, make_batch
from draftloop.training.dataset.batch_plan import Window
from draftloop.training.dataset.examples import Example
from draftloop.training.forward import LEAST_PIECE, PIECE_BYTES, Forward, make_forward
from draftloop.training.losses import LK_ETA, Labels, TeacherProbs
from draftloop.training.memory.fitting import Fit
from draftloop.training.step import Learner, SkippedBatch, learning_rate, problem
from draftloop.training.teacher import LiveTeacher, TeacherParts

PAIR = tiny_pair(64)
EXAMPLES = examples_of(PAIR, 12)


def nothing() -> None:
    """Nobody wants to stop."""


HEADED = ("self_attn.q_proj", "mlp.down_proj", "model.embed_tokens", "lm_head")


def learner(
    draft: nn.Module | None = None,
    forward=None,
    steps: int = 100,
    dropout: float = 0.0,
    piece_bytes: int = PIECE_BYTES,
    keys: tuple[str, ...] | None = None,
    texts=EXAMPLES,
    **settings,
) -> Learner:
    draft = draft or tiny_llama(seed=2)
    lora.attach_fresh(draft, AdapterConfig(rank=4, scale=2.0, dropout=dropout, keys=keys), seed=0)
    noise = {
        n: 0.1 * mx.random.normal(a.shape, key=mx.random.key(i))
        for i, (n, a) in enumerate(lora.adapter_parameters(draft).items())
    }
    lora.load_parameters(draft, noise)
    teacher = LiveTeacher(make_forward(PAIR.target, "target", print), 64, texts, 64, print)
    forward = forward or make_forward(draft, "draft", print)
    return Learner(draft, forward, teacher, 64, Training(warmup_steps=0, **settings), steps, piece_bytes)


def window(*batches: list[Example]) -> Window:
    return Window(0, tuple(tuple(batch) for batch in batches))


def state(learner: Learner) -> dict[str, bytes]:
    return {name: bytes(memoryview(value)) for name, value in learner.state().items()}


def difference(one: Learner, two: Learner) -> float:
    ours, theirs = lora.adapter_parameters(one.draft), lora.adapter_parameters(two.draft)
    return max(mx.abs(ours[name] - theirs[name]).max().item() for name in ours)


@pytest.mark.parametrize("kind", ["ce", "lk"])
@pytest.mark.parametrize("split", [(3, 9), (1, 1, 10), (4, 4, 4)])
def test_accumulating_is_the_full_batch(kind, split):
    """Micro-batches of unequal sizes: averaging their means instead would be off by far more."""
    whole, pieces = learner(loss=kind, max_grad_norm=1e9), learner(loss=kind, max_grad_norm=1e9)
    whole.accepted = pieces.accepted = 0.4  # of a step before
    borders = np.cumsum([0, *split])
    batches = [EXAMPLES[a:b] for a, b in pairwise(borders)]
    one = whole.train(window(EXAMPLES), 0, 0, nothing)
    two = pieces.train(window(*batches), 0, 0, nothing)
    assert two.tokens == one.tokens
    assert two.loss == pytest.approx(one.loss, rel=1e-5)
    assert two.gradient_norm == pytest.approx(one.gradient_norm, rel=1e-4)
    for ours, theirs in zip(state(whole), state(pieces), strict=True):
        assert ours == theirs
    for name, value in whole.state().items():
        if name.endswith(".m"):  # the mean gradient itself, before AdamW normalises it
            assert mx.allclose(value, pieces.state()[name], rtol=1e-3, atol=1e-7)


def test_lk_mixes_its_terms_by_what_the_step_before_accepted():
    found = learner(loss="lk")
    first = found.train(window(EXAMPLES), 0, 0, nothing)
    assert found.accepted == pytest.approx(first.acceptance / first.tokens)
    others = [Learner(found.draft, found.forward, found.teacher, 64, Training(loss=kind), 100) for kind in ("kl", "tv")]
    kl, tv = (one.evaluate(EXAMPLES).loss for one in others)
    share = math.exp(-LK_ETA * found.accepted)
    assert found.train(window(EXAMPLES), 1, 0, nothing).loss == pytest.approx(share * kl + (1 - share) * tv, rel=1e-5)


def test_lk_weighs_greedy_records_by_their_overlap_in_every_step():
    """What is reported of them is how often both models' likeliest tokens agree, which is another number."""
    greedy = examples_of(PAIR, 12, temperature=0.0)
    found = learner(loss="lk", texts=greedy)
    first = found.evaluate(greedy)  # as the first step, by its own overlap
    assert abs(first.overlap - first.acceptance) / first.tokens > 0.02
    found.accepted = first.overlap / first.tokens
    with_it = found.train(window(greedy), 0, 0, nothing)
    assert with_it.loss == pytest.approx(first.loss, rel=1e-5)
    assert found.accepted == pytest.approx(first.overlap / first.tokens, rel=1e-5)


def test_what_was_accepted_comes_back_with_the_state_and_goes_with_the_moments():
    found = learner(loss="lk")
    found.train(window(EXAMPLES), 0, 0, nothing)
    kept, accepted = found.state(), found.accepted
    found.train(window(EXAMPLES), 1, 0, nothing)
    assert found.accepted != accepted
    found.restore(kept)
    assert found.accepted == pytest.approx(accepted, rel=1e-6)
    found.begin_anew(0.5)
    assert found.accepted is None


def test_the_mean_of_means_would_not_be_the_full_batch():
    whole, first, second = (learner(loss="ce") for _ in range(3))
    all_of_it = whole.train(window(EXAMPLES), 0, 0, nothing)
    parts = [one.train(window(b), 0, 0, nothing) for one, b in ((first, EXAMPLES[:1]), (second, EXAMPLES[1:]))]
    mean_of_means = sum(part.loss / part.tokens for part in parts) / 2
    assert abs(mean_of_means - all_of_it.loss / all_of_it.tokens) > 1e-3


def test_a_window_that_is_smaller_than_the_accumulation_is_applied_all_the_same():
    found = learner(gradient_accumulation_steps=4)
    before = adapter_bytes(found.draft)
    found.train(window(EXAMPLES[:2]), 0, 0, nothing)
    assert adapter_bytes(found.draft) != before


@pytest.mark.parametrize("kind", ["ce", "kl", "tv", "nla", "lk"])
def test_every_loss_lowers_itself(kind):
    found = learner(loss=kind, learning_rate=5e-3)
    first = found.train(window(EXAMPLES), 0, 0, nothing)
    for step in range(1, 25):
        last = found.train(window(EXAMPLES), step, 0, nothing)
    assert last.loss / last.tokens < first.loss / first.tokens - 0.1
    assert last.acceptance > first.acceptance or kind == "ce"  # these tokens are random, not the target's


def quantized() -> nn.Module:
    model = tiny_llama(seed=2, width=64)
    nn.quantize(model, group_size=32, bits=4)
    mx.eval(model.parameters())
    return model.freeze()


@pytest.mark.parametrize("kind", ["ce", "kl", "tv", "nla", "lk"])
@pytest.mark.parametrize("keys", [None, HEADED], ids=["layers", "head too"])
def test_positions_in_pieces_give_the_gradient_of_all_at_once(kind, keys):
    whole, pieces = learner(loss=kind, keys=keys), learner(loss=kind, keys=keys, piece_bytes=1)
    batch = make_batch([*EXAMPLES, *EXAMPLES])
    assert batch.size > 2 * LEAST_PIECE
    found = [one._sums_and_gradients(batch, one.teacher.teach(batch)) for one in (whole, pieces)]
    sums, gradients = zip(*found, strict=True)
    expected = pytest.approx([value.item() for value in sums[0]], rel=1e-5)
    assert [value.item() for value in sums[1]] == expected
    examples = [*EXAMPLES, *EXAMPLES]
    assert [*pieces.evaluate(examples)] == expected == [*whole.evaluate(examples)]
    for (name, expected), (_, own) in zip(*map(tree_flatten, gradients), strict=True):
        assert mx.any(expected).item(), name
        assert mx.allclose(own, expected, rtol=1e-4, atol=1e-5 * mx.abs(expected).max().item()), name


@pytest.mark.usefixtures("on_the_cpu")
@pytest.mark.parametrize("kind", ["lk", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("ce", "kl", "nla"))])
def test_the_logits_of_a_large_vocabulary_are_never_there_all_at_once(kind):
    """The teacher's distributions are one matrix of them; beside it only pieces may be."""
    vocabulary, positions = 5_000, 2_048
    head = mx.random.normal((vocabulary, 8), key=mx.random.key(1))
    draft = nn.Linear(8, 8)
    forward = Forward(lambda inputs, _: draft(inputs), lambda rows: rows @ head.T)
    rows = mx.random.normal((positions, 8), key=mx.random.key(2))
    log_p = mx.random.normal((positions, vocabulary), key=mx.random.key(3))
    told = TeacherProbs.of(log_p - mx.logsumexp(log_p, axis=-1, keepdims=True))
    asked = Labels(mx.zeros(positions, mx.int32), mx.ones((positions, 1)), mx.ones(positions))
    batch = Batch((), rows, mx.arange(positions), asked, positions)
    taught = TeacherParts((told,), positions)
    mx.eval(head, rows, told.p, told.negative_entropy, draft.parameters())
    del log_p

    def peak(piece_bytes: int) -> int:
        found = Learner(draft, forward, None, vocabulary, Training(loss=kind, learning_rate=1e-3), 1, piece_bytes)
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        mx.eval(found._sums_and_gradients(batch, taught))
        return mx.get_peak_memory() - before

    matrix = 4 * positions * vocabulary
    assert peak(1 << 40) > 5 * matrix
    assert peak(1) < matrix


@pytest.mark.parametrize("make", [lambda: tiny_llama(seed=2), quantized])
def test_exactly_the_adapter_changes_and_base_and_target_stay_byte_for_byte(make):
    draft = make()
    base, target = snapshot(draft), snapshot(PAIR.target)
    found = learner(draft)
    before = adapter_bytes(draft)
    found.train(window(EXAMPLES), 0, 0, nothing)
    after = adapter_bytes(draft)
    assert snapshot(draft) == base
    assert snapshot(PAIR.target) == target
    assert after.keys() == before.keys()
    assert all(after[name] != before[name] for name in before)


def test_the_loss_is_the_one_of_the_output_tokens_alone():
    """By the plain call of the model, position by position: the prompt is read, and not trained on."""
    found = learner(loss="ce")
    expected = 0.0
    for example in EXAMPLES[:3]:
        logits = found.draft(mx.array([example.ids]))[0] / example.sampler.temperature
        log_q = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        for at in range(example.prompt_length, len(example.ids)):
            expected -= log_q[at - 1, example.ids[at]].item()
    sums = found.evaluate(EXAMPLES[:3])
    assert sums.loss == pytest.approx(expected, rel=1e-5)
    assert sums.tokens == sum(len(example.ids) - example.prompt_length for example in EXAMPLES[:3])


def test_a_loss_above_the_limit_skips_the_batch():
    found = learner(max_loss=0.01)
    before = state(found)
    result = found.train(window(EXAMPLES[:4]), 0, 0, nothing)
    assert state(found) == before
    assert "above 0.0125 (training.max_loss / temperature)" in result.skipped[0].reason


def test_a_cold_sampler_s_losses_are_as_large_as_they_are_cold():
    """Logits are divided by the temperature, and so is what a loss comes to before anything is learned."""
    cold = [replace(one, record_id=f"cold{i}", sampler=sampler(0.002)) for i, one in enumerate(EXAMPLES[:4])]
    for kind in ("kl", "ce", "lk", "nla"):
        found = learner(loss=kind, texts=cold)
        result = found.train(window(cold), 0, 0, nothing)
        assert result.loss / max(1, result.tokens) > Training().max_loss
        assert result.skipped == ()


def test_several_in_a_row_stop_the_training_and_name_the_last():
    found = learner(max_loss=0.01, max_skipped_batches=3)
    found.train(window(EXAMPLES[:2], EXAMPLES[2:4]), 0, 0, nothing)
    with pytest.raises(TrainingFailed, match=rf"step 7: 3 micro-batches in a row.*{EXAMPLES[4].record_id}"):
        found.train(window(EXAMPLES[4:6]), 7, 2, nothing)


def test_a_batch_without_a_label_is_skipped_and_named():
    found = learner()
    before = state(found)
    result = found.train(window([EXAMPLES[0].shortened(0)]), 0, 0, nothing)
    assert state(found) == before
    assert result.skipped == (SkippedBatch((EXAMPLES[0].record_id,), "it has no supervised token"),)
    assert result.tokens == 0


def test_a_stop_in_the_middle_of_a_window_changes_nothing():
    found = learner(dropout=0.3)
    before, asked = state(found), []

    def stop_at_the_second() -> None:
        asked.append(1)
        if len(asked) == 2:
            raise KeyError

    with pytest.raises(KeyError):
        found.train(window(EXAMPLES[:4], EXAMPLES[4:]), 0, 0, stop_at_the_second)
    assert state(found) == before


class Made(list[tuple[Example, ...]]):
    """What arrays were made of, in their order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        monkeypatch.setattr(step_module, "make_batch", self._made)

    def _made(self, examples) -> Batch:
        self.append(tuple(examples))
        return make_batch(examples)


def test_the_arrays_of_a_window_that_was_announced_are_made_while_the_step_before_it_runs(monkeypatch):
    made, found, plain = Made(monkeypatch), learner(dropout=0.3), learner(dropout=0.3)
    first, second = window(EXAMPLES[:4]), window(EXAMPLES[4:8])
    found.train(first, 0, 0, nothing, following=second)
    assert made == [*first.micro_batches, *second.micro_batches]
    found.train(second, 1, 0, nothing)
    assert len(made) == 2
    for step, one in enumerate((first, second)):
        plain.train(one, step, 0, nothing)
    assert state(found) == state(plain)


@pytest.mark.parametrize(
    ("announced", "fit"),
    [(EXAMPLES[8:], Fit()), (EXAMPLES[4:8], Fit(room=32.0, most=32.0))],
    ids=["another window", "worked on in parts"],
)
def test_a_step_is_made_of_its_own_window_whatever_was_announced(announced, fit):
    """As after a refusal, which cuts smaller what was prepared whole."""
    found, plain = learner(dropout=0.3), learner(dropout=0.3)
    for one, following in ((found, window(announced)), (plain, None)):
        one.train(window(EXAMPLES[:4]), 0, 0, nothing, following=following)
        one.fit = fit
        one.train(window(EXAMPLES[4:8]), 1, 0, nothing)
    assert state(found) == state(plain)


def test_gradients_are_clipped_to_the_limit_and_the_norm_before_is_reported():
    clipped, free = learner(max_grad_norm=1e-3), learner(max_grad_norm=1e9)
    one, two = (found.train(window(EXAMPLES), 0, 0, nothing) for found in (clipped, free))
    assert one.gradient_norm == two.gradient_norm > 1e-3
    moments = [value for name, value in clipped.state().items() if name.endswith(".m")]
    norm = math.sqrt(sum(mx.sum(mx.square(value / 0.1)).item() for value in moments))
    assert norm == pytest.approx(1e-3, rel=1e-3)


def test_dropout_acts_and_is_a_function_of_seed_step_and_micro_batch():
    def loss(step: int, seed: int = 0) -> float:
        mx.random.seed(99 + step)
        return learner(dropout=0.5, seed=seed).train(window(EXAMPLES), step, 0, nothing).loss

    plain = learner().train(window(EXAMPLES), 0, 0, nothing).loss
    assert loss(0) == loss(0)
    assert len({plain, loss(0), loss(1), loss(0, seed=1)}) == 4


def test_evaluating_has_no_dropout_and_changes_nothing():
    found = learner(dropout=0.5)
    before = state(found)
    assert found.evaluate(EXAMPLES[:4]) == found.evaluate(EXAMPLES[:4])
    assert state(found) == before


@pytest.mark.usefixtures("on_the_cpu")
def test_a_restored_learner_goes_on_to_the_same_bits():
    first, second = learner(dropout=0.3), learner(dropout=0.3)
    for step in range(3):
        first.train(window(EXAMPLES[:6]), step, 0, nothing)
    second.restore(first.state())
    for found in (first, second):
        found.train(window(EXAMPLES[6:]), 3, 0, nothing)
    assert state(first) == state(second)


def test_the_schedule_warms_up_and_falls_in_a_straight_line():
    rates = [learning_rate(step, 100, 1.0, 10) for step in range(100)]
    assert rates[:10] == sorted(rates[:10])
    assert 0 < rates[0] < 0.1
    assert rates[10] == max(rates) == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[55] == 0.5
    assert rates[99] == pytest.approx(1 / 90)


def test_fewer_steps_than_were_planned_bring_the_rate_down_from_the_next_step_on():
    found = learner(learning_rate=1e-3)
    found.train(window(EXAMPLES[:6]), 0, 0, nothing)
    found.steps = 4
    assert found.train(window(EXAMPLES[:6]), 3, 0, nothing).learning_rate == pytest.approx(1e-3 / 4)


def test_a_short_training_still_reaches_its_peak():
    for steps in (1, 2, 4, 7):
        assert max(learning_rate(step, steps, 1.0, 10) for step in range(steps)) == 1.0


def test_a_training_of_a_few_steps_warms_up_too_but_not_one_of_a_single_step():
    assert [learning_rate(step, 4, 1.0, 10) for step in range(4)] == pytest.approx([1 / 2, 1, 2 / 3, 1 / 3])
    assert learning_rate(0, 4, 1.0, warmup_steps=0) == 1.0
    assert learning_rate(0, 1, 1.0, 10) == 1.0


def test_problems_are_told_apart():
    from draftloop.training.losses import Sums

    assert problem(Sums(4.0, 2.0, 1.0, 1.0), 1.0, max_loss=2.0) is None
    assert "loss 2.5 is above" in problem(Sums(5.0, 2.0, 1.0, 1.0), 1.0, max_loss=2.0)
    assert problem(Sums(math.inf, 2.0, 1.0, 1.0), 1.0, max_loss=2.0) == "its loss is inf"
    assert problem(Sums(1.0, 2.0, 1.0, 1.0), math.inf, max_loss=2.0) == "the norm of its gradient is inf"
