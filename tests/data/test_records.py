"""The record: it comes back from its line exactly, and nothing else does."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import fields, replace
from typing import Any

import orjson
import pytest
from builders import make_record
from hypothesis import example, given, settings
from hypothesis import strategies as st

from draftloop.data.record_lines import from_body, from_line, opening_and_split_of, split_of, to_line, whole_records
from draftloop.data.records import BlobRef, Disagreement, Record, Sampler, resume_key
from draftloop.errors import StoreError
from draftloop.store.sealed_lines import RecordError, seal, unseal

ANY_TEXT = st.text(st.characters(exclude_categories=()))
FINITE = st.floats(allow_nan=False, allow_infinity=False)

ARGS = {"enable_thinking": False, "adapter": [1, {"split": "heldout"}]}
TOOLS = ({"type": "function", "function": {"name": "cut", "example": {"checksum": "x", "split": "heldout"}}},)
CHAT = (
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is Python?", "tool": {"adapter": 1, "split": "heldout", "x": None}},
)

FROZEN_SCHEMA_1 = (
    b'{"adapter":"v0003","disagreements":[{"draft_logp":-3.25,"draft_logq":-0.25,"draft_token":7,"position":2,'
    b'"target_logp":-0.125,"target_logq":null,"target_token":42}],"draft_output":[5,6,7],"finish":"stop",'
    b'"id":"0123456789abcdef0123456789abcdef","log_p":[-0.5,-1e-10,null],"log_q":[-0.6,0.0,null],'
    b'"num_draft_tokens":4,"pair":{"draft":"bb","target":"aa","tokenizer":"cc"},"prompt":"Say \xef\xbf\xbd 12",'
    b'"prompt_surrogates":[[4,56320]],"prompt_tokens":[1,2],"rounds":[[3,2]],"rule":"block","run_seed":3,'
    b'"sampler":{"min_p":0.05,"seed":18446744073709551615,"temperature":0.8,"top_k":40,"top_p":0.95},"schema":1,'
    b'"source":"docs","split":"heldout","target_output":[5,6,42],'
    b'"teacher":{"checksum":"dd","length":20,"offset":10},"time":1700000000.25,"checksum":"1a6d98b790e87945"}\n'
)


def test_a_line_frozen_at_schema_1_is_read_for_ever() -> None:
    record = from_line(FROZEN_SCHEMA_1)
    assert record.prompt == "Say \udc00 12"
    assert record.sampler == Sampler(0.8, 0.95, 0.05, 40, 2**64 - 1)
    assert record.disagreements == (Disagreement(2, 7, 42, -3.25, -0.25, -0.125, None),)
    assert record.teacher == BlobRef(10, 20, "dd")
    assert (record.rounds, record.log_p, record.split) == (((3, 2),), (-0.5, -1e-10, None), "heldout")
    assert to_line(record) == FROZEN_SCHEMA_1


@given(ANY_TEXT)
@example("\ud800")
@example("\ud83d\ude00 is a pair of lone ones in Python")
@example("\ufffd \ufffd\udfff\ufffd")
@example("a\0b\r\n\u2028\ufeff\u202e\u05d0\u05d1")
@settings(max_examples=150, deadline=None)
def test_every_prompt_comes_back_exactly(prompt: str) -> None:
    record = make_record(prompt=prompt)
    assert from_line(to_line(record)) == record


@given(st.lists(st.none() | FINITE, min_size=6, max_size=6), FINITE)
@example([5e-324, -1.7976931348623157e308, 0.1, -0.0, 1 / 3, 1e22], 1e-5)
@settings(max_examples=100, deadline=None)
def test_every_finite_float_comes_back_to_the_last_bit(log_p: list[float | None], time: float) -> None:
    record = from_line(to_line(make_record(log_p=tuple(log_p), time=time)))
    assert [x if x is None else x.hex() for x in record.log_p] == [x if x is None else x.hex() for x in log_p]
    assert record.time.hex() == time.hex()


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=20), st.integers(0, 5))
@settings(max_examples=100, deadline=None)
def test_every_course_of_rounds_comes_back(outputs: list[tuple[int, int]], k: int) -> None:
    draft, target = tuple(d for d, _ in outputs), tuple(t for _, t in outputs)
    record = make_record(draft_output=draft, target_output=target, num_draft_tokens=k)
    assert from_line(to_line(record)) == record


def test_a_line_is_sorted_json_that_ends_in_the_checksum_of_the_rest() -> None:
    line = to_line(make_record(prompt='a "quoted"\nline, "split":"heldout"'))
    values = json.loads(line)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert list(values) == [*sorted(values.keys() - {"checksum"}), "checksum"]
    checksum = values.pop("checksum")
    assert checksum == hashlib.sha256(orjson.dumps(values, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


def test_the_line_holds_every_field_of_the_record() -> None:
    values = json.loads(to_line(make_record(messages=CHAT, tools=TOOLS, chat_template_args=ARGS, simulated=True)))
    assert values.keys() == {field.name for field in fields(Record)} | {"prompt_surrogates", "checksum"}


def test_every_bit_flip_of_a_line_is_refused() -> None:
    line = to_line(make_record(log_p=(-1e-10, None, -0.5, -0.5, -0.5, -0.5)))
    for bit in range(len(line) * 8):
        flipped = bytearray(line)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(RecordError):
            from_line(bytes(flipped))


def test_every_cut_of_a_line_is_refused_but_that_of_its_newline() -> None:
    record = make_record()
    line = to_line(record)
    for length in range(len(line) - 1):
        with pytest.raises(RecordError):
            from_line(line[:length])
    assert from_line(line[:-1]) == record


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_is_not_finite_is_refused_on_writing_and_named(number: float) -> None:
    sampler = Sampler(temperature=number, top_p=1.0, min_p=0.0, top_k=0, seed=7)
    disagreement = replace(make_record().disagreements[0], draft_logp=number)
    for name, value in [
        ("log_q", (number,) * 6),
        ("time", number),
        ("sampler", sampler),
        ("disagreements", (disagreement,)),
    ]:
        with pytest.raises(RecordError, match=name):
            to_line(make_record(**{name: value}))


@pytest.mark.parametrize(
    "wrong",
    [
        {"source": "\ud800"},
        {"run_seed": 2**64},
        {"run_seed": -1},
        {"prompt_tokens": [1, 2, 3]},
        {"prompt_tokens": (True,)},
        {"prompt_tokens": (1.0,)},
        {"prompt_tokens": ("1",)},
        {"prompt": 3},
        {"id": "0" * 31},
        {"id": "0" * 32 + "\n"},
        {"rule": "luck"},
        {"split": "test"},
        {"finish": ""},
        {"pair": None},
        {"sampler": object()},
        {"adapter": 1},
    ],
)
def test_a_value_of_a_wrong_kind_is_never_written(wrong: dict[str, Any]) -> None:
    with pytest.raises(RecordError):
        to_line(make_record(**wrong))


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"log_p": (-0.5,) * 5}, "log_p has 5 entries, expected the 6"),
        ({"log_q": ()}, "log_q has 0"),
        ({"draft_output": (5,) * 7}, "draft_output has 7"),
        ({"rounds": ((4, 2),)}, "cover 3 tokens, expected the 6"),
        ({"rounds": ((4, 2), (3, 2), (1, 1))}, "expected accepted <= drafted <= 0"),
        ({"rounds": ((4, 2), (2, 3))}, "accepted 3 of 2"),
        ({"rounds": ((5, 2), (3, 3))}, "drafted <= 4"),
        ({"rounds": ((4, 2), (4, 3))}, "drafted <= 3"),
        ({"disagreements": ()}, r"expected \(\(2, 7, 42\),\)"),
        ({"disagreements": (Disagreement(3, 8, 8, None, None, None, None),)}, "disagreements: found"),
        ({"disagreements": (Disagreement(2, 8, 42, None, None, None, None),)}, "disagreements: found"),
    ],
)
def test_a_record_that_contradicts_itself_is_refused(wrong: dict[str, Any], named: str) -> None:
    good = make_record()
    body = {**orjson.loads(unseal(to_line(good))), **wrong}
    for attempt in (lambda: to_line(replace(good, **wrong)), lambda: from_body(orjson.dumps(body))):
        with pytest.raises(RecordError, match=named):
            attempt()


@pytest.mark.parametrize("body", [b"[1]", b"{}", b"nonsense", b'{"schema":true}', b'{"schema":0}', b'{"schema":1}'])
def test_sealed_bytes_that_are_no_record_are_refused_with_a_reason(body: bytes) -> None:
    with pytest.raises(RecordError, match=r"\w"):
        from_line(seal(body))


@pytest.mark.parametrize("wrong", [[[99, 0xD800]], [5], 5, [[0, 1 << 40]], [["a", 1]]])
def test_surrogates_that_fit_no_prompt_are_refused(wrong: object) -> None:
    body = {**orjson.loads(unseal(to_line(make_record()))), "prompt_surrogates": wrong}
    with pytest.raises(RecordError, match="prompt_surrogates"):
        from_body(orjson.dumps(body))


def test_an_unknown_field_is_refused() -> None:
    body = {**orjson.loads(unseal(to_line(make_record()))), "mood": "good"}
    with pytest.raises(RecordError, match="mood"):
        from_body(orjson.dumps(body))


def test_a_newer_schema_is_no_damage_but_asks_for_an_update() -> None:
    body = {**orjson.loads(unseal(to_line(make_record()))), "schema": 2, "novelty": 1}
    with pytest.raises(StoreError, match=r"schema 2.*up to 1\. Update draftloop") as caught:
        from_line(seal(orjson.dumps(body)))
    assert not isinstance(caught.value, RecordError)


def test_only_a_rejection_makes_a_failure() -> None:
    assert make_record().is_failure
    assert not make_record(target_output=(5, 6, 7)).is_failure


def test_the_resume_key_goes_by_the_seed_of_the_run_and_not_of_the_generation() -> None:
    record = make_record()
    sampler = record.sampler
    assert resume_key(record) == resume_key(make_record(sampler=replace(sampler, seed=8), prompt="other text"))
    others: list[dict[str, Any]] = [
        {"run_seed": 4},
        {"prompt_tokens": (1, 2, 4)},
        {"adapter": "v0001"},
        {"rule": "match"},
        {"num_draft_tokens": 3},
        {"pair": replace(record.pair, draft="d")},
        {"sampler": replace(sampler, temperature=0.7)},
        {"sampler": replace(sampler, top_p=0.9)},
        {"sampler": replace(sampler, min_p=0.1)},
        {"sampler": replace(sampler, top_k=5)},
    ]
    assert len({resume_key(make_record(**other)) for other in [{}, *others]}) == len(others) + 1


def test_a_run_finds_the_key_before_there_is_a_record() -> None:
    record = make_record(sampler=Sampler(temperature=1.0, top_p=1.0, min_p=0.0, top_k=0, seed=7))
    whole_number = replace(record.conditions, sampler=Sampler(temperature=1, top_p=1, min_p=0, top_k=0, seed=0))
    assert whole_number.resume_key([1, 2, 3]) == resume_key(from_line(to_line(record)))


def test_split_and_opening_are_read_without_the_record() -> None:
    body = unseal(to_line(make_record(prompt='{"adapter":,"split":"train","checksum":"', split="validation")))
    assert split_of(body) == "validation"
    assert opening_and_split_of(body) == (from_body(body).opening, "validation")
    with pytest.raises(RecordError, match="expected a text and a split"):
        opening_and_split_of(b'{"schema":1,"prompt":"x","split":"test"}')


def test_a_chat_keeps_its_messages_and_a_plain_prompts_line_is_what_it_was() -> None:
    chat = make_record(prompt="Be brief.\nWhat is Python?", messages=CHAT)
    assert from_line(to_line(chat)) == chat
    assert b"messages" not in to_line(make_record())
    assert from_line(to_line(make_record())).messages is None
    with pytest.raises(RecordError, match="messages"):
        from_body(orjson.dumps({**orjson.loads(unseal(to_line(chat))), "messages": ["hello"]}))


def test_tools_and_the_arguments_of_a_template_are_kept_and_other_lines_are_what_they_were() -> None:
    chat = make_record(messages=CHAT, tools=TOOLS, chat_template_args=ARGS)
    assert from_line(to_line(chat)) == chat
    plain = to_line(make_record())
    assert not any(name in plain for name in (b"messages", b"tools", b"chat_template_args"))
    assert from_line(plain).tools is from_line(plain).chat_template_args is None


def test_the_marks_are_kept_and_a_line_without_them_is_what_it_was() -> None:
    cancelled = make_record(finish="cancelled", simulated=True)
    assert from_line(to_line(cancelled)) == cancelled
    assert b',"simulated":true,' in to_line(cancelled)
    assert split_of(unseal(to_line(cancelled))) == "train"
    assert b"simulated" not in to_line(make_record())
    assert from_line(FROZEN_SCHEMA_1).simulated is False
    with pytest.raises(RecordError, match="simulated"):
        from_body(orjson.dumps({**orjson.loads(unseal(to_line(cancelled))), "simulated": 1}))


def test_a_generation_that_was_cancelled_before_its_first_token_is_a_record() -> None:
    nothing = make_record(target_output=(), finish="cancelled")
    assert from_line(to_line(nothing)) == nothing
    assert not nothing.is_failure


@pytest.mark.parametrize(("finish", "cut"), [("stop", False), ("length", True), ("cancelled", True)])
def test_an_output_is_cut_unless_it_ended_by_itself(finish: str, cut: bool) -> None:
    assert make_record(finish=finish).is_cut is cut


def test_another_argument_of_the_template_is_another_condition_and_none_is_what_it_was() -> None:
    def key(args: dict[str, Any] | None) -> str:
        return resume_key(make_record(chat_template_args=args))

    assert len({key(None), key({"enable_thinking": False}), key({"enable_thinking": True})}) == 3
    assert key(None) == key({})


def test_keys_within_messages_are_not_taken_for_the_records_own() -> None:
    line = to_line(make_record(messages=CHAT, tools=TOOLS, split="train"))
    assert b',"split":"heldout"' in line[line.index(b'"tools":') :]  # or nothing would be proved
    assert split_of(unseal(line)) == "train"
    line = to_line(make_record(messages=CHAT, split="train"))
    assert split_of(unseal(line)) == "train"
    assert opening_and_split_of(unseal(line)) == ("What is Python?", "train")
    data = line[:-1] + b"\x0b" + line[:-1]
    assert [data[start:end] for start, end in whole_records(data)] == [line[:-1]] * 2


def test_a_chat_is_grouped_by_the_turn_that_it_began_with() -> None:
    later = (*CHAT, {"role": "assistant", "content": "A language."}, {"role": "user", "content": "Since when?"})
    groups = {make_record(prompt="x", messages=messages).group for messages in (CHAT, CHAT[1:], later)}
    assert groups == {make_record(prompt="what is python").group}


def test_whole_records_are_found_among_damaged_bytes() -> None:
    first, second = (to_line(make_record(prompt=text))[:-1] for text in ('{"adapter":', 'say "checksum":"'))
    data = first[:40] + first + b"\x0b" + second + second[:99]
    assert [data[start:end] for start, end in whole_records(data)] == [first, second]


def test_a_whole_record_is_found_whatever_ends_or_begins_in_its_messages() -> None:
    seals = {"role": "user", "content": "x", "of": {"a": 1, "checksum": "0123456789abcdef"}}
    record = to_line(make_record(messages=(seals,), tools=({"a": 1, "checksum": "0123456789abcdef"},)))[:-1]
    data = record[:99] + record + b"\x0b" + record
    assert [data[start:end] for start, end in whole_records(data)] == [record, record]


def test_records_store_and_registry_import_without_mlx() -> None:
    code = "import sys; sys.modules['mlx'] = None; import draftloop.data.log, draftloop.registry.registry"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})
