"""The draft's acceptance without the target: what the full distributions say, as a sample."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from tiny import sampler, tiny_pair
from workshop import records_of

from draftloop.config import Data
from draftloop.data.records import Record
from draftloop.decoding.teacher_forced import TargetGeneration
from draftloop.evaluation.scoring import score_carried
from draftloop.models.pair import Pair
from draftloop.training.dataset.examples import select
from draftloop.training.dataset.mixture import TrainingMixture
from draftloop.training.forward import make_forward
from draftloop.training.token_acceptance import TokenReporter, draft_log_q
from draftloop.training.token_report import Counts

PAIR = tiny_pair(64, likeness=0.9)


def material(failures: list[Record], validation: list[Record], most: int = 100) -> TrainingMixture:
    chosen = [
        select(part, PAIR.identity, PAIR.width, Data(max_output_length=most)) for part in (failures, [], validation)
    ]
    return TrainingMixture(*chosen, failure_records=failures, validation_records=validation)


def reporter(mixture: TrainingMixture, pair: Pair = PAIR, **keywords: int) -> TokenReporter:
    return TokenReporter(pair, mixture, **keywords)


def under_target(records: list[Record], pair: Pair = PAIR) -> list[Record]:
    """The records with the target's true log p."""
    scores = score_carried(pair, [TargetGeneration.of(record) for record in records], "rejection")
    return [replace(r, log_p=tuple(s.log_p.tolist())) for r, s in zip(records, scores, strict=True)]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("length", [9, 150])
def test_log_q_is_that_of_the_scoring_pass(temperature: float, length: int) -> None:
    ids = tuple(np.random.default_rng(0).integers(0, 64, length).tolist())
    record = records_of(PAIR, 1, target_output=ids, draft_output=ids, log_p=(-1.0,) * length, log_q=(-1.0,) * length)
    record = replace(record[0], sampler=sampler(temperature, top_p=0.9))
    example = material([record], [], 1000).failures.examples[0]
    expected = score_carried(PAIR, [TargetGeneration.of(record)], "rejection")[0].log_q
    found = draft_log_q(make_forward(PAIR.draft, "draft", print), example, PAIR.width)
    assert found.shape == (length,)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_the_mean_over_what_the_target_emits_is_the_acceptance() -> None:
    """Over all tokens that the target could emit, each as often as it does: Σ p·min(1, q/p) = Σ min(p, q)."""
    prompt, sampling = (3, 1, 4), sampler(0.8)
    texts = [TargetGeneration(prompt, (token,), sampling) for token in range(64)]
    scores = score_carried(PAIR, texts, "rejection")
    overrides = {"prompt_tokens": prompt, "sampler": sampling, "draft_output": (0,), "log_q": (-1.0,)}
    expectation = 0.0
    for token, score in enumerate(scores):
        log_p = float(score.log_p[0])
        records = records_of(PAIR, 1, target_output=(token,), log_p=(log_p,), **overrides)
        expectation += np.exp(log_p) * sum(reporter(material([], records)).acceptance_by_kind().values())
    assert expectation == pytest.approx(scores[0].position[0], abs=1e-5)


def test_a_record_is_measured_under_its_own_rule() -> None:
    records = under_target(records_of(PAIR, 3))
    scores = score_carried(PAIR, [TargetGeneration.of(record) for record in records], "rejection")
    for rule, weight in (
        ("rejection", lambda s: np.minimum(1, np.exp(s.log_q - s.log_p))),
        ("match", lambda s: np.exp(s.log_q)),
    ):
        probe = reporter(material([], [replace(record, rule=rule) for record in records]))
        expected = sum(weight(score).sum() for score in scores)
        assert sum(probe.acceptance_by_kind().values()) == pytest.approx(expected, rel=1e-4)


def test_validation_is_measured_where_there_is_one_and_the_failures_elsewhere() -> None:
    failures, validation = records_of(PAIR, 3), records_of(PAIR, 2, seed=1)
    learned = Counts(0, 0, 0)
    held_out = reporter(material(failures, validation)).report(learned, None)
    on_failures = reporter(material(failures, [])).report(learned, None)
    assert (held_out.split, held_out.measured_on.generations) == ("validation", 2)
    assert (on_failures.split, on_failures.measured_on.generations) == ("train", 3)
    assert sum(row.positions for row in held_out.kinds) == held_out.measured_on.positions
    assert sum(row.rejected for row in on_failures.kinds) == sum(len(record.disagreements) for record in failures)


def test_only_so_many_generations_are_measured_and_they_are_spread_over_the_log() -> None:
    records = [replace(r, source=source) for source in "ab" for r in records_of(PAIR, 6)]
    records = [replace(record, id=f"{i:032x}") for i, record in enumerate(records)]
    probe = reporter(material([], records), most=4)
    assert [record.source for _, record in probe._generations] == ["a", "a", "b", "b"]
    assert probe.report(Counts(0, 0, 0), None).measured_on.generations == 4


def test_before_and_after_of_an_unchanged_draft_are_the_same_and_of_a_better_one_are_not() -> None:
    pair = tiny_pair(64, likeness=0.5)
    found = material([], under_target(records_of(pair, 4), pair))
    probe = reporter(found, pair)
    start = probe.acceptance_by_kind()
    for row in probe.report(Counts(0, 0, 0), start).kinds:
        assert row.acceptance_before == pytest.approx(row.acceptance_after)
    pair.draft.update(pair.target.parameters())
    mx.eval(pair.draft.parameters())
    for row in probe.report(Counts(0, 0, 0), start).kinds:
        assert row.acceptance_before is not None
        assert row.acceptance_before < row.acceptance_after == pytest.approx(1, abs=1e-4)


def test_a_start_of_other_kinds_is_no_before() -> None:
    probe = reporter(material([], records_of(PAIR, 2)))
    assert {row.acceptance_before for row in probe.report(Counts(0, 0, 0), {"word": 1.0}).kinds} == {None}


def test_outputs_are_measured_as_far_as_they_are_trained_on() -> None:
    records = records_of(PAIR, 3)
    assert reporter(material([], records, most=4)).report(Counts(0, 0, 0), None).measured_on.positions == 12
