from __future__ import annotations

import errno
import gc
import os
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest
from builders import CountingFiles, failing_files, make_record
from numpy.random import default_rng

from draftloop.data.record_lines import to_line
from draftloop.data.records import BlobRef, PairId, Record
from draftloop.data.replay import (
    DrawnTokens,
    ReplayBuffer,
    draw_from_pool,
    drawable,
    generation_acceptance,
    replay_tokens,
    reservoir,
    well_accepted_sources,
    worth_keeping,
)
from draftloop.errors import StoreError
from draftloop.store.files import Files


def generation(acceptance: float, source: str = "prose", **overrides):
    """A record whose every position is accepted with about this probability."""
    import math

    values = {"log_p": (0.0,) * 6, "log_q": (math.log(acceptance),) * 6, "source": source}
    return make_record(**{**values, **overrides})


def generations(count: int, source: str, low: float = 0.1, high: float = 0.9):
    return [generation(low + (high - low) * i / count, source) for i in range(count)]


def test_acceptance_of_a_generation_is_the_mean_over_its_positions():
    record = make_record(log_p=(-1.0,) * 6, log_q=(-1.0, -1.0, -1.0, None, None, None))
    assert generation_acceptance(record) == pytest.approx(0.5)


def test_of_every_source_the_generations_at_or_above_its_own_median_are_worth_keeping():
    weak, strong = generations(10, "prose", 0.1, 0.4), generations(10, "code", 0.6, 0.9)
    kept = list(worth_keeping(lambda: [*weak, *strong]))
    assert kept == [*weak[5:], *strong[5:]]


def test_equal_generations_are_all_kept_and_a_single_one_too():
    same = [generation(0.5) for _ in range(4)]
    assert list(worth_keeping(lambda: same)) == same
    assert len(list(worth_keeping(lambda: [generation(0.1, "one")]))) == 1


def test_only_the_train_split_ever_enters(tmp_path):
    buffer = ReplayBuffer(tmp_path, capacity=10)
    records = [generation(0.5, split=split) for split in ("train", "validation", "heldout")]
    assert buffer.refresh(lambda: records, seed=0) == [records[0]]
    assert buffer.remember(records, seed=0) == [records[0]]
    assert buffer.records() == [records[0]]


def test_a_full_reservoir_holds_every_source_in_proportion():
    records = [*generations(300, "prose"), *generations(80, "code"), *generations(20, "mail")]
    kept = reservoir(records, capacity=100, seed=0)
    assert Counter(record.source for record in kept) == {"prose": 75, "code": 20, "mail": 5}


def test_a_chatty_source_crowds_no_other_one_out():
    records = [*generations(2_000, "chatty"), *generations(10, "mail"), *generations(30, "code")]
    assert Counter(record.source for record in reservoir(records, 100, seed=0))["mail"] <= 1
    kept = Counter(record.source for record in reservoir(records, 100, seed=0, share=0.8))
    assert kept == {"chatty": 80, "code": 15, "mail": 5}


def test_where_the_others_do_not_fill_the_buffer_the_chatty_source_does(tmp_path):
    records = [*generations(400, "chatty"), *generations(3, "mail")]
    buffer = ReplayBuffer(tmp_path, capacity=100)
    kept = Counter(record.source for record in buffer.remember(records, seed=0, share=0.5))
    assert kept == {"chatty": 97, "mail": 3}


def test_sources_of_another_pair_are_other_sources():
    other = PairId(target="x" * 64, draft="b" * 64, tokenizer="c" * 64)
    records = [*generations(30, "prose"), *(generation(0.5, pair=other) for _ in range(10))]
    kept = reservoir(records, capacity=20, seed=0)
    assert Counter(record.pair == other for record in kept) == {False: 15, True: 5}


def test_the_reservoir_is_the_same_for_any_order_and_another_for_another_seed():
    records = generations(60, "prose")
    shuffled = random.Random(1).sample(records, len(records))
    assert reservoir(records, 20, seed=4) == reservoir(shuffled, 20, seed=4)
    assert reservoir(records, 20, seed=4) != reservoir(records, 20, seed=5)


def test_of_records_with_one_id_the_last_counts_and_the_id_counts_once():
    first, other = generation(0.5), generation(0.6)
    again = replace(first, prompt="the same, once more")
    assert set(reservoir([first, other, again], 5, seed=0)) == {other, again}
    many = [replace(record, time=float(i)) for i in range(50) for record in (first, other)]
    assert {record.time for record in reservoir(many, 2, seed=0)} == {49.0}
    kept = reservoir([*many, *(generation(0.5, "code") for _ in range(2))], 2, seed=0)
    assert Counter(record.source for record in kept) == {"prose": 1, "code": 1}


def test_of_a_long_stream_only_what_may_stay_is_held():
    def living() -> int:
        return sum(isinstance(thing, Record) for thing in gc.get_objects())

    def stream() -> Iterator[Record]:
        for number in range(1_500):
            yield generation(0.5, ("prose", "code")[number % 2])
            if number % 100 == 99:
                held.append(living())

    before, held = living(), list[int]()
    assert len(reservoir(worth_keeping(stream), 20, seed=0)) == 20
    assert len(held) == 30
    assert max(held) - before <= 2 * 20 + 5


def test_adding_in_pieces_ends_with_the_same_reservoir(tmp_path):
    records = generations(60, "prose")
    buffer = ReplayBuffer(tmp_path, capacity=20)
    for start in range(0, 60, 7):
        buffer.remember(records[start : start + 7], seed=4)
    assert buffer.records() == reservoir(records, 20, seed=4)


def test_what_is_kept_survives_the_log_it_came_from(tmp_path):
    first = generations(10, "code")
    ReplayBuffer(tmp_path, capacity=50).refresh(lambda: first, seed=0)
    later = generations(4, "prose")
    kept = ReplayBuffer(tmp_path, capacity=50).refresh(lambda: later, seed=0)
    assert set(kept) == set(first[5:]) | set(later[2:])
    assert oct((tmp_path / "replay.jsonl").stat().st_mode & 0o777) == "0o600"


def test_a_damaged_line_is_reported_and_the_rest_is_kept(tmp_path):
    buffer = ReplayBuffer(tmp_path, capacity=50)
    records = buffer.remember(generations(5, "code"), seed=0)
    lines = buffer.path.read_bytes().splitlines(keepends=True)
    buffer.path.write_bytes(b"".join([*lines[:2], lines[2].replace(b"code", b"c0de"), *lines[3:]]))
    assert buffer.records() == records[:2] + records[3:]
    assert len(buffer.damage) == 1
    buffer.remember([], seed=0)
    assert buffer.records() == records[:2] + records[3:]
    assert not buffer.damage


def test_damaged_lines_are_set_aside_before_the_buffer_is_written_anew(tmp_path):
    """And a disk that is full at any operation loses none of them."""
    old = ReplayBuffer(tmp_path / "old", 50).remember(generations(5, "code"), seed=0)
    first, second, *others = map(to_line, old)
    damaged = [second.replace(b"code", b"c0de"), b"{}\n"]

    def buffer(at: int, files: Files) -> ReplayBuffer:
        found = ReplayBuffer(tmp_path / str(at), 50, files)
        found.path.parent.mkdir()
        found.path.write_bytes(b"".join([first, damaged[0], *others, damaged[1]]))
        return found

    probe = CountingFiles()
    whole = buffer(0, probe)
    whole.remember([], seed=0)
    assert whole.path.read_bytes() == b"".join([first, *others])
    assert whole.path.with_name("replay.jsonl.broken").read_bytes() == b"".join(damaged)
    for at in range(1, len(probe.names) + 1):
        found = buffer(at, failing_files(at, for_good=True))
        with pytest.raises(StoreError):
            found.remember([], seed=0)
        everything = b"".join(path.read_bytes() for path in found.path.parent.glob("replay.jsonl*"))
        assert all(line in everything for line in damaged)


def test_a_full_disk_at_any_operation_leaves_the_old_buffer_or_the_new_one(tmp_path):
    old, new = generations(3, "code"), generations(3, "prose")
    probe = CountingFiles()
    ReplayBuffer(tmp_path / "probe", 50).remember(old, seed=0)
    ReplayBuffer(tmp_path / "probe", 50, files=probe).remember(new, seed=0)
    for at in range(1, len(probe.names) + 1):
        directory = tmp_path / str(at)
        ReplayBuffer(directory, 50).remember(old, seed=0)
        with pytest.raises(StoreError, match=os.strerror(errno.ENOSPC)):
            ReplayBuffer(directory, 50, files=failing_files(at, for_good=True)).remember(new, seed=0)
        assert set(ReplayBuffer(directory, 50).records()) in ({*old}, {*old, *new})
        assert len(ReplayBuffer(directory, 50).remember(new, seed=0)) == 6


def test_sources_are_well_accepted_at_or_above_the_whole():
    weak, strong = generations(30, "prose", 0.2, 0.4), generations(10, "code", 0.6, 0.8)
    assert well_accepted_sources([*weak, *strong]) == {"code"}
    assert well_accepted_sources(weak) == {"prose"}
    assert well_accepted_sources([]) == set()


def test_a_first_training_replays_the_source_that_the_draft_does_well_in():
    """150 prose and 40 code generations, all new and all failures: replaying prose would protect nothing."""
    prose, code = generations(150, "prose", 0.2, 0.4), generations(40, "code", 0.5, 0.7)
    everything = [*prose, *code]
    pool = drawable(worth_keeping(lambda: everything), everything, everything)
    assert pool == code[20:]


def test_what_is_not_trained_on_anyway_is_replayed_whatever_its_source():
    old, new = generations(10, "prose", 0.2, 0.4), generations(10, "prose", 0.2, 0.4)
    code = generations(10, "code", 0.5, 0.7)
    pool = drawable([*old, *new, *code], new, [*old, *new, *code])
    assert pool == [*old, *code]


def test_a_single_source_is_replayed_from_its_better_half():
    records = generations(10, "default")
    assert drawable(worth_keeping(lambda: records), records, records) == records[5:]


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.2, 0.5, 0.9])
def test_the_share_of_replayed_tokens_is_exact(ratio):
    fresh = 9_000
    wanted = replay_tokens(fresh, ratio)
    drawn = draw_from_pool({f"r{i}": 5 + i % 7 for i in range(40)}, wanted, default_rng(0))
    assert sum(one.tokens for one in drawn) == wanted
    assert wanted / (fresh + wanted) == pytest.approx(ratio, abs=1e-4)


def test_only_the_last_draw_is_cut():
    lengths = {f"r{i}": 10 for i in range(5)}
    drawn = draw_from_pool(lengths, 37, default_rng(0))
    assert [one.tokens for one in drawn] == [10, 10, 10, 7]


def test_no_record_is_drawn_twice_more_often_than_another():
    counts = Counter(one.record_id for one in draw_from_pool({f"r{i}": 10 for i in range(7)}, 10 * 17, default_rng(0)))
    assert set(counts.values()) == {2, 3}


def test_a_draw_is_a_function_of_the_pool_in_any_order_and_of_chance():
    lengths = {f"r{i}": 10 for i in range(50)}
    draws = [draw_from_pool(lengths, 100, default_rng(seed)) for seed in (0, 1, 0)]
    assert draws[0] == draws[2] != draws[1]
    assert draws[0] == draw_from_pool(dict(reversed(lengths.items())), 100, default_rng(0))


def test_an_empty_pool_draws_nothing():
    assert draw_from_pool({}, 100, default_rng(0)) == []
    assert draw_from_pool({"empty": 0}, 100, default_rng(0)) == []
    assert draw_from_pool({"a": 3}, 0, default_rng(0)) == []
    assert draw_from_pool({"a": 3}, 2, default_rng(0)) == [DrawnTokens("a", 2)]


def test_blobs_that_moved_are_found_where_they_are_and_the_rest_stays(tmp_path):
    places = [BlobRef(offset, 5, "c") for offset in range(0, 40, 10)]
    buffer = ReplayBuffer(tmp_path, capacity=10)
    records = buffer.remember([generation(0.5, teacher=place) for place in (*places, None)], seed=0)
    new = {places[0]: BlobRef(7, 5, "c"), places[1]: None}
    buffer.move_blobs(new)
    assert buffer.records() == [replace(r, teacher=new.get(r.teacher, r.teacher)) for r in records]
    before = buffer.path.stat().st_ino
    buffer.move_blobs({places[0]: None})
    assert buffer.path.stat().st_ino == before  # nothing refers to it any more
