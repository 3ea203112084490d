from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import numpy as np
import orjson
import pytest
from tiny import tiny_pair
from workshop import examples_of

from draftloop.decoding import batched_generation as side_by_side
from draftloop.decoding.batched_generation import NoRoom
from draftloop.decoding.sampling_filters import sampling_log_probs
from draftloop.errors import RunError
from draftloop.runtime.rng import get_state
from draftloop.training.dataset.examples import from_json
from draftloop.training.dataset.on_policy import sample_outputs

PAIR = tiny_pair(64, stop_tokens=frozenset({7}))
FAILURES = examples_of(PAIR, 9)
NARROW = replace(PAIR, width=60)


def rolled(times: int = 2, *, failures=FAILURES, own: bool = False, seed: int = 0, pair=NARROW, **how):
    defaults = {"enough": lambda: False, "on_sample": lambda done, of: None}
    return sample_outputs(pair, failures, times, own=own, seed=seed, **{**defaults, **how})


def test_each_prompt_is_continued_so_many_times_under_its_own_sampler():
    found = rolled()
    assert len(found) == 2 * len(FAILURES)
    for text, failure in zip(found, [*FAILURES, *FAILURES], strict=True):
        assert text.ids[: text.prompt_length] == failure.ids[: failure.prompt_length]
        assert text.sampler == failure.sampler
        assert text.record_id.startswith(failure.record_id)
        assert text.blob is None
    assert len({text.record_id for text in found}) == len(found)


def test_a_text_ends_at_a_stop_token_or_at_the_length_of_the_longest_failure():
    longest = max(len(failure.labels) for failure in FAILURES)
    for text in rolled(8):
        stop = text.labels.index(7) + 1 if 7 in text.labels else longest
        assert len(text.labels) == stop


def test_no_id_beyond_the_shared_width_is_ever_sampled():
    assert max(max(text.labels) for text in rolled(8)) < 60


def test_the_same_seed_gives_the_same_texts_and_another_one_others():
    assert rolled() == rolled()
    assert rolled() != rolled(seed=1)


def test_the_global_random_state_is_as_it_was():
    before = get_state().tolist()
    rolled(1)
    assert get_state().tolist() == before


def test_only_the_draft_s_own_texts_are_marked():
    assert not any(text.own for text in rolled(1))
    assert all(text.own for text in rolled(1, own=True))


def test_texts_are_drawn_from_the_model_s_distribution():
    one = [failure for failure in FAILURES if len(failure.labels) > 6][:1]
    drawn = [text.labels[0] for text in rolled(3000, failures=one)]
    logits = PAIR.target(mx.array([one[0].ids[: one[0].prompt_length]]))[0, -1]
    p = np.exp(np.array(sampling_log_probs(logits, one[0].sampler, 60), np.float64))
    found = np.bincount(drawn, minlength=60)
    likely = p > 0.002
    off = (found[likely] - 3000 * p[likely]) / np.sqrt(3000 * p[likely])
    assert (off**2).sum() < likely.sum() + 4 * np.sqrt(2 * likely.sum())


def test_who_stops_it_stops_it_before_the_next_token():
    asked = []

    def stop() -> bool:
        asked.append(1)
        if len(asked) > 2:
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        rolled(enough=stop)
    assert len(asked) == 3


def test_when_it_is_enough_the_finished_texts_are_there_and_are_what_they_would_have_been(monkeypatch):
    monkeypatch.setattr(side_by_side, "MOST_ROWS", 32)  # so that some are finished before others are begun
    asked = []
    whole = {text.record_id: text for text in rolled(8)}
    some = rolled(8, enough=lambda: asked.append(1) or len(asked) > 16)
    assert 0 < len(some) < len(whole)
    assert all(whole[text.record_id] == text for text in some)


def test_no_text_is_longer_than_the_models_context():
    pair = replace(NARROW, context=max(failure.prompt_length for failure in FAILURES))
    found = rolled(4, pair=pair)
    assert max(len(text.ids) for text in found) == pair.context
    room = {failure.record_id for failure in FAILURES if failure.prompt_length < pair.context}
    assert {text.record_id.split("/")[0] for text in found} == room


class Refusing:
    """The target in a memory for so many rows of a batch."""

    def __init__(self, rows: int, error: Exception) -> None:
        self.rows, self.error, self.tried = rows, error, []
        self.layers = PAIR.target.layers

    def __call__(self, inputs: mx.array, cache=None) -> mx.array:
        self.tried.append(inputs.shape[0])
        if inputs.shape[0] > self.rows:
            raise self.error
        return PAIR.target(inputs, cache=cache)


@pytest.mark.parametrize(
    "error", [RuntimeError("[metal::malloc] Unable to allocate 9 bytes."), MemoryError("bad_alloc")]
)
def test_where_memory_is_refused_fewer_are_written_side_by_side(error: Exception):
    model = Refusing(3, error)
    found = rolled(4, pair=replace(NARROW, target=model))
    assert len(found) == 4 * len(FAILURES)
    assert max(model.tried) > 3
    with pytest.raises(NoRoom, match="does not fit into memory"):
        rolled(4, pair=replace(NARROW, target=OnlyTheCache(error)))


class OnlyTheCache(Refusing):
    """Has room for one token, and no text."""

    def __init__(self, error: Exception) -> None:
        super().__init__(1, error)

    def __call__(self, inputs: mx.array, cache=None) -> mx.array:
        if self.tried:
            raise self.error
        return super().__call__(inputs, cache)


def test_the_room_for_caches_bounds_how_many_are_written_side_by_side():
    widest = []

    class Watched(Refusing):
        def __call__(self, inputs: mx.array, cache=None) -> mx.array:
            widest.append(inputs.shape[0])
            return PAIR.target(inputs, cache=cache)

    model = Watched(0, MemoryError())
    rolled(8, pair=replace(NARROW, target=model))
    assert max(widest) > 8
    widest.clear()
    rolled(8, pair=replace(NARROW, target=model), room=0.0)  # whether it batches exactly is known by now
    assert max(widest) == 1


def test_they_come_back_from_a_run_s_directory():
    found = rolled(1, own=True)
    assert from_json(orjson.loads(orjson.dumps(found))) == found
    with pytest.raises(RunError, match="damaged"):
        from_json([{"ids": [1]}])
