from __future__ import annotations

from dataclasses import replace

from builders import make_record
from tiny import sampler

from draftloop.config import Data
from draftloop.data.records import BlobRef, PairId
from draftloop.data.usable import FOREIGN_ID, NO_OUTPUT, NO_PROMPT, OTHER_PAIR
from draftloop.training.dataset.examples import LONG_PROMPT, examples_hash, select, to_example

RECORD = make_record(prompt_tokens=(11, 12, 13), target_output=(21, 22, 23, 24), draft_output=(21, 99, 23, 24))


def test_the_shift_by_hand():
    """The model reads 11 12 13 21 22 23; after 13 it must say 21, after 21 22, after 22 23, after 23 24."""
    example = to_example(RECORD, max_output_length=10)
    assert example.inputs == (11, 12, 13, 21, 22, 23)
    assert list(example.positions) == [2, 3, 4, 5]
    assert example.labels == (21, 22, 23, 24)
    assert {example.inputs[at]: label for at, label in zip(example.positions, example.labels, strict=True)} == {
        13: 21,
        21: 22,
        22: 23,
        23: 24,
    }


def test_outputs_are_cut_from_the_end_and_prompts_never():
    example = to_example(RECORD, max_output_length=2)
    assert example.inputs == (11, 12, 13, 21)
    assert list(example.positions) == [2, 3]
    assert example.labels == (21, 22)


def test_no_prompt_token_is_a_label_and_the_target_s_tokens_are_not_the_draft_s():
    example = to_example(RECORD, max_output_length=10)
    assert not set(example.labels) & set(RECORD.prompt_tokens)
    assert 99 not in example.ids


def test_a_shortened_example_is_the_beginning_of_the_whole_one():
    example = to_example(RECORD, max_output_length=10)
    assert example.shortened(1) == to_example(RECORD, max_output_length=1)
    assert example.shortened(99) == example


def test_every_reason_to_leave_a_record_out_is_counted():
    pair = RECORD.pair
    other_tokenizer = PairId(target=pair.target, draft=pair.draft, tokenizer="z")
    other_draft = PairId(target=pair.target, draft="another draft", tokenizer=pair.tokenizer)
    records = [
        RECORD,
        make_record(pair=other_draft, prompt_tokens=(1,)),
        make_record(pair=PairId(target="z", draft=pair.draft, tokenizer=pair.tokenizer)),
        make_record(pair=other_tokenizer),
        make_record(prompt_tokens=()),
        make_record(target_output=(), draft_output=()),
        make_record(prompt_tokens=tuple(range(9))),
        make_record(target_output=(1, 100), draft_output=(1, 100)),
        make_record(prompt_tokens=(1, 100)),
        make_record(target_output=(1, 2), draft_output=(1, 100)),
    ]
    data = Data(max_prompt_length=8, max_output_length=3)
    selection = select(records, pair, width=100, data=data)
    assert selection.ids == [records[0].id, records[1].id]
    assert selection.left_out == {OTHER_PAIR: 2, NO_PROMPT: 1, NO_OUTPUT: 1, LONG_PROMPT: 1, FOREIGN_ID: 3}
    assert selection.tokens == 3 + 3
    assert selection.cut_labels == 1 + 3


def test_the_fingerprint_tells_any_change_of_what_is_trained_on():
    example = to_example(RECORD, max_output_length=10)
    others = [
        example.shortened(3),
        replace(example, prompt_length=2),
        replace(example, record_id="x"),
        replace(example, sampler=sampler(0.7)),
    ]
    assert len({examples_hash([one]) for one in [example, *others]}) == 5
    assert examples_hash([example]) == examples_hash([to_example(RECORD, max_output_length=10)])
    assert examples_hash([example]) == examples_hash([replace(example, blob=BlobRef(3, 4, "ab" * 32))])
