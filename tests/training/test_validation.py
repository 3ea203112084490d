from __future__ import annotations

import math
from dataclasses import asdict

import pytest
from tiny import sampler

from draftloop.training.dataset.examples import Example
from draftloop.training.loop import Progress
from draftloop.training.losses import Sums
from draftloop.training.validation import ValidationScores, validate, validation_batches


def example(number: int, source: str, labels: int = 3) -> Example:
    return Example(f"{source}{number}", source, (1,) * (1 + labels), 1, sampler())


EXAMPLES = [*(example(i, "prose", 1 + i) for i in range(5)), *(example(i, "code") for i in range(2))]


def test_every_example_is_in_one_batch_of_its_own_source():
    batches = validation_batches(EXAMPLES, size=2, most=-1)
    assert sorted(e.record_id for batch in batches for e in batch) == sorted(e.record_id for e in EXAMPLES)
    assert all(len({e.source for e in batch}) == 1 for batch in batches)
    assert [batch[0].source for batch in batches] == ["code", "prose", "prose", "prose"]


def test_a_limit_takes_every_source_s_turn():
    assert [batch[0].source for batch in validation_batches(EXAMPLES, size=1, most=3)] == ["code", "prose", "code"]
    assert validation_batches(EXAMPLES, size=1, most=0) == []


def test_what_a_limit_takes_lies_all_over_the_lengths():
    texts = [example(i, "prose", 1 + i) for i in range(32)]
    found = [len(batch[0].labels) for batch in validation_batches(texts, size=2, most=4)]
    assert found == [1, 17, 9, 25]
    assert set(validation_batches(texts, size=2, most=99)) == set(validation_batches(texts, size=2, most=-1))


def test_scores_are_ratios_of_sums_over_all_and_by_source():
    sums = {"code": Sums(8.0, 4.0, 3.0, 3.0), "prose": Sums(2.0, 1.0, 0.2, 0.2)}
    scores = validate([(EXAMPLES[0],), (EXAMPLES[5],)], lambda batch: sums[batch[0].source])
    assert scores == ValidationScores(2.0, pytest.approx(3.2 / 5), 5, {"code": 0.75, "prose": pytest.approx(0.2)})


def test_acceptance_decides_and_the_loss_breaks_ties():
    base = ValidationScores(2.0, 0.5, 10, {})
    assert base.better_than(None)
    assert ValidationScores(3.0, 0.6, 10, {}).better_than(base)
    assert not ValidationScores(1.0, 0.4, 10, {}).better_than(base)
    assert ValidationScores(1.9, 0.5, 10, {}).better_than(base)
    assert not base.better_than(base)


def test_scores_come_back_from_a_checkpoint():
    scores = ValidationScores(2.0, 0.5, 10, {"a": 0.5})
    saved = {"loss": 2.0, "acceptance": 0.5, "tokens": 10, "by_source": {"a": 0.5}}
    found = Progress.from_json({**asdict(Progress()), "before": saved})
    assert found.before == scores
    assert found.best is None


@pytest.mark.parametrize(("loss", "acceptance"), [(math.nan, 0.9), (1.0, math.nan), (math.inf, 0.9), (1.0, math.inf)])
def test_what_is_not_finite_is_never_better(loss, acceptance):
    usual = ValidationScores(1.0, 0.5, 10, {})
    for other in (None, usual):
        assert not ValidationScores(loss, acceptance, 10, {}).better_than(other)
    assert usual.better_than(None)
