from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from tiny import tiny_pair
from workshop import examples_of

from draftloop.data.records import Sampler
from draftloop.data.teacher_top_k import TopK
from draftloop.decoding.sampling_filters import sampling_log_probs
from draftloop.training.batches import make_batch
from draftloop.training.dataset.examples import Example
from draftloop.training.forward import make_forward
from draftloop.training.losses import TeacherProbs
from draftloop.training.teacher import TOP_K, LiveTeacher, LoggedTeacher, TeacherParts

PAIR = tiny_pair(64)
EXAMPLES = examples_of(PAIR, 6)
TOKENS = sum(len(example.labels) for example in EXAMPLES)


class Counting:
    """The target's forward, counting how often it is asked."""

    def __init__(self, pair=PAIR) -> None:
        self.calls = 0
        self._forward = make_forward(pair.target, "target", print)

    def hidden(self, inputs: mx.array, positions: mx.array) -> mx.array:
        self.calls += 1
        return self._forward.hidden(inputs, positions)

    def head(self, rows: mx.array) -> mx.array:
        return self._forward.head(rows)


def teacher(
    memory_mb: float = 64, examples=EXAMPLES, width: int = 64, pair=PAIR
) -> tuple[LiveTeacher, Counting, list[str]]:
    forward, said = Counting(pair), []
    return LiveTeacher(forward, width, examples, memory_mb, said.append), forward, said


def everything(taught: TeacherParts) -> mx.array:
    """log p."""
    return mx.log(taught.piece(slice(None)).p)


def with_sampler(example: Example, **values: float) -> Example:
    settings = {"temperature": 0.8, "top_p": 1.0, "min_p": 0.0, "top_k": 0, "seed": 0, **values}
    return Example(example.record_id, "s", example.ids, example.prompt_length, Sampler(**settings))


@pytest.mark.parametrize("values", [{}, {"top_k": 5}, {"top_p": 0.7, "temperature": 1.3}, {"min_p": 0.1}])
def test_it_is_the_target_s_distribution_under_the_record_s_own_sampler(values):
    example = with_sampler(EXAMPLES[0], **values)
    found, _, _ = teacher(examples=[example], width=60)
    log_p = everything(found.teach(make_batch([example])))[: len(example.labels)]
    logits = PAIR.target(mx.array([example.ids]))[0]
    for i in range(len(example.labels)):
        expected = sampling_log_probs(logits[example.prompt_length - 1 + i], example.sampler, 60)
        assert mx.allclose(mx.exp(log_p[i]), mx.exp(expected), atol=1e-5)
    assert mx.allclose(mx.sum(mx.exp(log_p), axis=-1), mx.ones(len(log_p)), atol=1e-5)


def test_the_target_reads_each_record_once():
    found, forward, said = teacher()
    for _ in range(3):
        for start in (0, 2, 4):
            found.teach(make_batch(EXAMPLES[start : start + 2]))
    assert forward.calls == len(EXAMPLES)
    assert not said


def test_a_record_s_rows_do_not_depend_on_its_neighbours_or_on_the_order():
    one, _, _ = teacher()
    other, _, _ = teacher()
    alone = everything(one.teach(make_batch([EXAMPLES[3]])))
    together = everything(other.teach(make_batch([EXAMPLES[5], EXAMPLES[3]])))
    n, before = len(EXAMPLES[3].labels), len(EXAMPLES[5].labels)
    assert mx.array_equal(alone[:n], together[before : before + n])


def test_a_shortened_example_gets_the_first_rows_of_the_whole_one():
    first, _, _ = teacher()
    rows = everything(first.teach(make_batch([EXAMPLES[0].shortened(3)])))
    whole = everything(first.teach(make_batch([EXAMPLES[0]])))
    assert mx.array_equal(rows[:3], whole[:3])


def test_positions_that_are_only_filled_up_have_no_mass():
    found, _, _ = teacher()
    log_p = everything(found.teach(make_batch(EXAMPLES[:1])))
    assert log_p.shape == (64, 64)
    assert np.isneginf(np.array(log_p[len(EXAMPLES[0].labels) :])).all()


def test_a_greedy_record_is_taught_as_at_temperature_1_without_filters():
    def taught(**values: object) -> np.ndarray:
        one = with_sampler(EXAMPLES[0], **values)
        return np.array(everything(teacher(examples=[one])[0].teach(make_batch([one]))))

    greedy = taught(temperature=0.0, top_k=3, top_p=0.5)
    assert np.array_equal(greedy, taught(temperature=1.0))
    assert (np.isfinite(greedy[: len(EXAMPLES[0].labels)]).sum(-1) > 3).all()


def test_a_record_that_it_was_not_told_of_is_an_error_and_not_taught_by_its_tokens():
    found, _, _ = teacher(examples=EXAMPLES[1:])
    with pytest.raises(KeyError):
        found.teach(make_batch(EXAMPLES[:1]))


def large(count: int) -> list[Example]:
    """Examples of 64 labels each: 16 kB of float32 at 64 ids."""
    return [Example(str(i), "s", (1, *([2 + i] * 64)), 1, EXAMPLES[0].sampler) for i in range(count)]


def test_what_does_not_fit_in_32_bits_is_kept_in_16_and_said():
    examples = large(6)  # 96 kB, or 48
    found, forward, said = teacher(memory_mb=1 / 16, examples=examples)
    exact, _, _ = teacher(memory_mb=64, examples=examples)
    for _ in range(2):
        for example in examples:
            batch = make_batch([example])
            kept, whole = (mx.exp(everything(one.teach(batch))[:64]) for one in (found, exact))
            assert mx.allclose(kept, whole, rtol=1e-3, atol=1e-7)
    assert forward.calls == 6
    assert "16 bits" in said[0]


def test_what_does_not_fit_at_all_is_computed_anew_to_the_same_bits_and_said():
    examples = large(12)  # 96 kB in 16 bits
    found, forward, said = teacher(memory_mb=1 / 16, examples=examples)
    rounds = [[everything(found.teach(make_batch([example]))) for example in order] for order in (examples, examples)]
    assert forward.calls == 12 + 5  # seven fit, with 4 bytes a position for their Σ p log p
    assert "computed anew" in said[1]
    backwards, _, _ = teacher(memory_mb=1 / 16, examples=examples)
    last_first = [everything(backwards.teach(make_batch([example]))) for example in reversed(examples)]
    for one, two, three in zip(*rounds, reversed(last_first), strict=True):
        assert mx.array_equal(one, two)
        assert mx.array_equal(one, three)


# a large vocabulary

LARGE = tiny_pair(2048)


def test_where_whole_distributions_do_not_fit_the_likeliest_ids_are_kept_and_the_rest_in_a_bucket():
    examples = large(6)
    exact, _, _ = teacher(64, examples, 2048, LARGE)
    found, forward, said = teacher(0.5, examples, 2048, LARGE)  # 1.5 MB in 16 bits, 0.4 so
    assert "of each the top 128 tokens are kept" in said[0]
    assert len(said) == 1
    for _ in range(2):
        for example in examples:
            whole = np.array(everything(exact.teach(make_batch([example]))))[:64]
            rows = found.teach(make_batch([example])).piece(slice(0, 64))
            ids, log_p = np.array(rows.tokens), np.array(mx.log(rows.p))
            assert log_p.shape == (64, TOP_K + 1)
            np.testing.assert_allclose(log_p[:, :-1], np.take_along_axis(whole, ids, -1), atol=1e-5)
            np.testing.assert_allclose(np.exp(log_p).sum(-1), 1, atol=1e-4)
            assert (np.sort(whole, -1)[:, -TOP_K] <= log_p[:, TOP_K - 1] + 1e-6).all()
    assert forward.calls == 6


def test_what_has_less_than_so_many_ids_with_mass_has_no_id_in_their_place():
    example = with_sampler(large(1)[0], top_k=5)
    found, _, _ = teacher(0.1, [example, *large(6)[1:]], 2048, LARGE)
    rows = found.teach(make_batch([example])).piece(slice(0, 64))
    assert (np.array(rows.tokens)[:, 5:] == -1).all()
    assert (np.array(rows.p)[:, 5:] == 0).all()


def test_greedy_and_sampled_records_go_together_when_only_the_likeliest_are_kept():
    def taught(temperature: float) -> TeacherProbs:
        one = with_sampler(Example("one", "s", (1, *([9] * 5)), 1, EXAMPLES[0].sampler), temperature=temperature)
        found, _, _ = teacher(0.5, [*large(6), one], 2048, LARGE)
        batch = make_batch([large(6)[0], one.shortened(4), large(6)[1].shortened(7)])
        return found.teach(batch).piece(slice(64, 68))

    greedy, at_1 = taught(0.0), taught(1.0)
    assert np.array_equal(np.array(greedy.tokens), np.array(at_1.tokens))
    assert np.array_equal(np.array(greedy.p), np.array(at_1.p))


def test_the_target_s_logits_are_made_a_piece_at_a_time_to_the_same_rows(monkeypatch):
    examples = large(2)
    whole, _, _ = teacher(64, examples, 2048, LARGE)
    expected = [np.array(everything(whole.teach(make_batch([one])))) for one in examples]
    monkeypatch.setattr("draftloop.training.teacher.positions_at_a_time", lambda width: 24)
    pieces, _, _ = teacher(64, examples, 2048, LARGE)
    for one, rows in zip(examples, expected, strict=True):
        taught = pieces.teach(make_batch([one]))
        assert [part.p.shape[0] for part in taught.parts] == [24, 24, 16]
        np.testing.assert_allclose(np.exp(np.array(everything(taught))), np.exp(rows), atol=1e-4)
        assert pieces.teach(make_batch([one.shortened(30)])).piece(slice(0, 30)).p.shape == (30, 2048)


# what the collector kept


def top_k(example: Example, k: int) -> TopK:
    """The k likeliest ids of the target at the labels of `example`."""
    found, _, _ = teacher(examples=[example])
    log_p = np.array(everything(found.teach(make_batch([example]))))[: len(example.labels)]
    ids = np.argsort(-log_p, axis=-1)[:, :k]
    kept = np.take_along_axis(log_p, ids, axis=-1)
    return TopK(ids.astype(np.int32), kept, np.clip(1 - np.exp(kept).sum(-1), 0, 1).astype(np.float32))


def test_logged_rows_are_what_was_kept_with_the_rest_in_a_bucket():
    kept = {e.record_id: top_k(e, 8) for e in EXAMPLES}
    taught = LoggedTeacher(kept).teach(make_batch(EXAMPLES[:2]))
    rows, n = taught.piece(slice(None)), len(EXAMPLES[0].labels)
    assert rows.p.shape == (taught.size, 9)
    assert np.array_equal(np.array(rows.tokens)[:n], kept[EXAMPLES[0].record_id].tokens)
    assert np.allclose(np.array(mx.log(rows.p))[n : n + 2, :8], kept[EXAMPLES[1].record_id].log_probs[:2], atol=1e-5)
    assert np.allclose(np.array(rows.p)[: n + len(EXAMPLES[1].labels)].sum(-1), 1, atol=1e-5)


def test_a_generation_of_which_nothing_was_kept_is_learned_from_its_own_tokens():
    kept = {EXAMPLES[0].record_id: top_k(EXAMPLES[0], 8)}
    rows = LoggedTeacher(kept).teach(make_batch(EXAMPLES[:2])).piece(slice(None))
    n, labels = len(EXAMPLES[0].labels), EXAMPLES[1].labels
    assert np.array(rows.tokens)[n : n + len(labels), 0].tolist() == list(labels)
    assert np.array(rows.p)[n : n + len(labels)].sum(-1).tolist() == [1.0] * len(labels)
    assert np.array(rows.p)[n : n + len(labels), 0].tolist() == [1.0] * len(labels)


def test_generations_kept_with_different_k_go_together():
    kept = {EXAMPLES[0].record_id: top_k(EXAMPLES[0], 4), EXAMPLES[1].record_id: top_k(EXAMPLES[1], 16)}
    rows = LoggedTeacher(kept).teach(make_batch(EXAMPLES[:2])).piece(slice(None))
    n = len(EXAMPLES[0].labels)
    ids, log_p = np.array(rows.tokens)[:n], np.array(mx.log(rows.p))[:n]
    assert (ids[:, 4:] == -1).all()
    assert np.isneginf(log_p[:, 4:-1]).all()
    assert np.allclose(np.exp(log_p).sum(-1), 1, atol=1e-5)


def test_a_tail_that_is_only_rounding_is_none():
    rows = top_k(EXAMPLES[0], 64)
    whole = TopK(rows.tokens, rows.log_probs, np.full(len(rows.tail), 3e-7, np.float32))
    found = LoggedTeacher({EXAMPLES[0].record_id: whole}).teach(make_batch(EXAMPLES[:1])).piece(slice(None))
    assert (np.array(found.p)[:, -1] == 0).all()


def test_without_anything_kept_all_is_learned_from_the_tokens():
    rows = LoggedTeacher({}).teach(make_batch(EXAMPLES[:1])).piece(slice(None))
    assert rows.p.shape[1] == 2


@pytest.mark.parametrize("piece", [slice(0, 5), slice(3, 40), slice(20, 64), slice(60, 64), slice(None)])
def test_a_piece_is_cut_out_of_the_parts_as_out_of_the_whole(piece):
    found, _, _ = teacher()
    taught = found.teach(make_batch(EXAMPLES[:2]))
    assert len(taught.parts) == 2
    assert mx.array_equal(mx.log(taught.piece(piece).p), everything(taught)[piece])
