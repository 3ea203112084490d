from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from tiny import tiny_pair
from workshop import examples_of

from draftloop.errors import RunError
from draftloop.random_state import get_state
from draftloop.speculative.transforms import sampling_log_probs
from draftloop.training.rollouts import from_json, roll_out, to_json

PAIR = tiny_pair(64, stop_tokens=frozenset({7}))
FAILURES = examples_of(PAIR, 9)


def rolled(times: int = 2, *, failures=FAILURES, own: bool = False, seed: int = 0, told=lambda done, of: None):
    model = PAIR.draft if own else PAIR.target
    return roll_out(model, failures, times, own=own, seed=seed, width=60, stop_tokens=PAIR.stop_tokens, on_text=told)


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


def test_who_stops_it_stops_it():
    def stop(done: int, of: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rolled(told=stop)


def test_they_come_back_from_a_run_s_directory():
    found = rolled(1, own=True)
    assert from_json(to_json(found)) == found
    with pytest.raises(RunError, match="damaged"):
        from_json([{"ids": [1]}])
