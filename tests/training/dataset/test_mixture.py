from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from builders import make_record
from workshop import Workshop, records_of

from draftloop.config import Training
from draftloop.data.log import FailureLog
from draftloop.data.records import BlobRef, PairId, Record
from draftloop.data.usable import CANCELLED, OTHER_PAIR
from draftloop.errors import NothingToDo, RunError
from draftloop.training.dataset import mixture as material_module
from draftloop.training.dataset.batch_plan import labels_by_source, make_batch_plan
from draftloop.training.dataset.examples import select
from draftloop.training.dataset.mixture import gather, gather_again

OTHER = PairId("another target", "draft", "tokenizer")


@pytest.fixture
def shop(tmp_path):
    return Workshop(tmp_path, {})


def gathered(shop):
    return gather(shop.log, shop.replay, shop.pair, shop.config)


def test_failures_train_validation_validates_and_the_held_out_are_not_even_read(shop):
    records = records_of(shop.pair, 12)
    accepted = records_of(shop.pair, 1, draft_output=(1, 2), target_output=(1, 2), log_p=(0.0,) * 2, log_q=(0.0,) * 2)
    validation = records_of(shop.pair, 3, split="validation", seed=1)
    held_out = records_of(shop.pair, 5, split="heldout", seed=2)
    shop.write([*records, *accepted, *validation, *held_out])
    material = gathered(shop)
    assert material.failures.ids == [record.id for record in records]
    assert material.validation.ids == [record.id for record in validation]
    assert accepted[0].id in material.pool.ids
    used = {*material.failures.ids, *material.pool.ids, *material.validation.ids}
    assert not used & {record.id for record in held_out}
    assert not {record.id for record in shop.replay.records()} & {record.id for record in [*held_out, *validation]}
    assert not material.left_out


def test_what_was_cancelled_trains_and_validates_nothing(shop):
    records = records_of(shop.pair, 3, finish="cancelled")
    shop.write([*records, *records_of(shop.pair, 2, split="validation", seed=1, finish="cancelled")])
    material = gathered(shop)
    assert material.failures.ids == [record.id for record in records]
    assert material.validation.ids == []
    assert material.left_out == {CANCELLED: 2}


def test_removing_the_held_out_records_changes_nothing(shop, tmp_path):
    records, held_out = records_of(shop.pair, 12), records_of(shop.pair, 5, split="heldout", seed=2)
    shop.write([*held_out, *records])
    other = Workshop(tmp_path / "without", {})
    other.write(records)
    assert gathered(shop).to_json() == gathered(other).to_json()


def test_records_of_other_pairs_are_left_out_and_counted(shop):
    ours, theirs = records_of(shop.pair, 4), records_of(shop.pair, 3, pair=OTHER)
    shop.write([*ours, *theirs, *records_of(shop.pair, 2, pair=OTHER, split="validation")])
    material = gathered(shop)
    assert material.failures.ids == [record.id for record in ours]
    assert material.left_out == {OTHER_PAIR: 5}
    assert any("left out: 5 (another target or tokenizer)" in line for line in material.notes(Training()))
    assert {record.pair for record in shop.replay.records()} == {shop.pair.identity}


def test_no_validation_at_all_is_said_and_why(shop):
    shop.write(records_of(shop.pair, 4))
    assert any("no validation generation" in line for line in gathered(shop).notes(Training()))
    shop.write(records_of(shop.pair, 3, split="validation", seed=1))
    notes = gathered(shop).notes(Training(val_batches=0))
    assert any("training.val_batches is 0: no early stop" in line for line in notes)
    assert "validation on 2 micro-batches of 3 generations" in gathered(shop).notes(Training(val_batches=2))[0]


def test_what_was_collected_again_is_what_is_replayed_and_a_run_goes_on_with_it(shop):
    """Its words are the same; where the target's distributions lie may not be."""
    records = records_of(shop.pair, 6)
    shop.write(records)
    first = gathered(shop)
    assert first.pool.examples
    shop.write([replace(record, teacher=BlobRef(7 * i, 7, "ab" * 32)) for i, record in enumerate(records)])
    again = gathered(shop)
    places = {e.record_id: e.blob for e in again.failures.examples}
    assert all(e.blob is not None and e.blob == places[e.record_id] for e in again.pool.examples)
    assert all(record.teacher is not None for record in shop.replay.records())
    assert (
        gather_again(first.to_json(), shop.log, shop.replay, shop.pair, shop.config).failures.ids == first.failures.ids
    )


def test_used_failures_stay_material(shop):
    shop.write(records_of(shop.pair, 4))
    assert gathered(shop).failures.ids == gathered(shop).failures.ids


def test_what_a_person_should_know_is_said(shop):
    shop.write(records_of(shop.pair, 2))
    notes = "\n".join(gathered(shop).notes(Training()))
    assert "training on 2 failures" in notes
    assert "no validation generation" in notes
    assert "replay draws from 1 generations" in notes


def test_an_empty_replay_pool_is_said_and_no_ratio_means_no_replay(tmp_path):
    shop = Workshop(tmp_path, {"replay_ratio": 0.0})
    shop.write(records_of(shop.pair, 4))
    material = gathered(shop)
    assert not material.pool.examples
    assert not any("replay" in line for line in material.notes(Training(replay_ratio=0.0)))
    assert any("replay buffer has nothing" in line for line in material.notes(Training()))


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "holds no generation to train on; run collect-data first"),
        ([make_record(target_output=(1, 2))], r"1 \(another target or tokenizer\)|1 \(every draft token accepted\)"),
        ([make_record(pair=OTHER)], r"none of the 1 generations .* 1 \(another target or tokenizer\)"),
    ],
)
def test_nothing_to_train_on_is_said_with_its_reasons(shop, records, message):
    shop.write(records)
    with pytest.raises(NothingToDo, match=message):
        gathered(shop)


def test_a_generation_that_was_logged_twice_is_trained_on_once(shop):
    records, validation = records_of(shop.pair, 3), records_of(shop.pair, 1, split="validation", seed=1)
    shop.write([*records, *validation, *records, *validation])
    material = gathered(shop)
    assert material.failures.ids == [record.id for record in records]
    assert material.validation.ids == [validation[0].id]


def test_a_damaged_line_is_said_by_its_number(shop):
    shop.write(records_of(shop.pair, 4))
    lines = shop.log.path.read_bytes().splitlines(keepends=True)
    shop.log.path.write_bytes(b"".join([lines[0], b"damaged\n", *lines[1:]]))
    material = gathered(shop)
    assert len(material.failures.examples) == 4
    assert any("passed over: 2" in line for line in material.notes(Training()))


def test_a_damaged_line_of_the_replay_buffer_is_said_by_its_number_and_set_aside(shop):
    shop.replay.remember(records_of(shop.pair, 4, source="old"), seed=0)
    lines = shop.replay.path.read_bytes().splitlines(keepends=True)
    shop.replay.path.write_bytes(b"".join([lines[0], lines[1].replace(b"old", b"0ld"), *lines[2:]]))
    shop.write(records_of(shop.pair, 4, seed=1))
    notes = "\n".join(gathered(shop).notes(Training()))
    assert "damaged lines of the replay buffer, moved to replay.jsonl.broken: 2" in notes
    assert "replay buffer" not in "\n".join(gathered(shop).notes(Training()))  # it is whole again


def test_of_another_pair_s_generations_no_text_is_held(shop, monkeypatch):
    passed: list[Record] = []

    def watched(records, *rest):
        passed.extend(records := list(records))
        return select(records, *rest)

    monkeypatch.setattr(material_module, "select", watched)
    shop.write([*records_of(shop.pair, 4), *records_of(shop.pair, 300, pair=OTHER)])
    assert gathered(shop).left_out == {OTHER_PAIR: 300}
    assert Counter(bool(record.target_output and record.log_p) for record in passed if record.pair == OTHER) == {
        False: 300
    }


def test_the_same_material_is_found_again_whatever_was_logged_since(shop):
    shop.write([*records_of(shop.pair, 6), *records_of(shop.pair, 2, split="validation", seed=1)])
    material = gathered(shop)
    saved = material.to_json()
    shop.write(records_of(shop.pair, 6, seed=3))
    shop.replay.refresh(lambda: shop.log.records(), seed=0)
    again = gather_again(saved, shop.log, shop.replay, shop.pair, shop.config)
    assert again.to_json() == saved
    assert again.failures.examples == material.failures.examples


def test_a_replayed_record_that_only_the_buffer_still_has_is_found(shop):
    old, new = records_of(shop.pair, 4, source="old"), records_of(shop.pair, 4, seed=1)
    shop.replay.remember(old, seed=0)
    shop.write(new)
    saved = gathered(shop).to_json()
    assert {record.id for record in old} <= set(saved["replay_pool"])
    assert gather_again(saved, shop.log, shop.replay, shop.pair, shop.config).to_json() == saved


def test_a_record_that_is_gone_or_changed_is_refused(shop):
    shop.write(records_of(shop.pair, 6))
    saved = gathered(shop).to_json()
    changed = {**saved, "sha256": {**saved["sha256"], "failures": "0"}}
    with pytest.raises(RunError, match="records of failures are not what they were"):
        gather_again(changed, shop.log, shop.replay, shop.pair, shop.config)
    with pytest.raises(RunError, match="list of records is damaged"):
        gather_again({}, shop.log, shop.replay, shop.pair, shop.config)
    shop.log.path.unlink()
    with pytest.raises(RunError, match="no longer in the log"):
        gather_again(saved, shop.log, shop.replay, shop.pair, shop.config)


def test_a_chatty_source_is_said_with_its_share(shop):
    shop.write([*records_of(shop.pair, 57, source="chatty"), *records_of(shop.pair, 3, source="mail", seed=1)])
    (line,) = [line for line in gathered(shop).notes(Training()) if line.startswith("chatty: 9")]
    assert "% of the failures' tokens, but 75% of each epoch's, drawn anew; " in line  # the fifth of replay is its own
    assert "training.max_source_share is 0.8" in line
    assert not any("chatty" in line for line in gathered(shop).notes(Training(max_source_share=1.0)))


def test_many_near_copies_of_one_prompt_have_no_more_than_the_share_of_their_client(shop):
    """They are one prompt group and one split, and count as the failures that they are."""
    asked = "Please, can you explain the garbage collector of Python{}"
    for number in range(10):  # the first ten prompts train
        shop.log.append(records_of(shop.pair, 1, seed=number, source="mail")[0])
    for number in range(200):
        (record,) = records_of(shop.pair, 1, seed=100 + number, source="chatty")
        shop.log.append(replace(record, prompt=asked.format("!" * number), split="train"))
    material = gathered(shop)
    groups = shop.log.groups()
    assert len({groups.group_of(record) for record in material.failure_records if record.source == "chatty"}) == 1
    plan = make_batch_plan(material.failures.examples, {}, Training(epochs=2, replay_ratio=0.0))
    tokens = labels_by_source(example for batch in plan.micro_batches for example in batch)
    assert tokens["chatty"] / tokens.total() == pytest.approx(0.8, abs=0.01)


def test_a_held_out_prompt_in_other_words_and_of_any_source_is_never_trained_on(shop):
    """So no client can bring the prompts of an open epoch into a training."""
    shop.write(records_of(shop.pair, 12))
    (held_out,) = records_of(shop.pair, 1, seed=9, split="heldout", prompt="Explain the garbage collector of Python")
    shop.write([held_out])
    log = FailureLog(shop.log.path)
    for number, words in enumerate(["Please, explain the garbage collector of python!", held_out.prompt.upper()]):
        (again,) = records_of(shop.pair, 1, seed=20 + number, source="chatty", prompt=words)
        assert log.append(again).split == "heldout"
    material = gathered(shop)
    assert {example.source for example in (*material.failures.examples, *material.pool.examples)} == {"default"}
