"""The log of simonw/llm in both of its layouts: every turn with the conversation before it, tools and all."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from draftloop.errors import PromptError
from draftloop.prompts.files import PromptFile, survey_files
from draftloop.prompts.prompt import Prompt, SkippedPrompt

OLDER = """
create table conversations (id text primary key, name text, model text);
create table responses (id text primary key, model text, prompt text, system text, prompt_json text,
  options_json text, response text, response_json text, conversation_id text, duration_ms integer, datetime_utc text);
create table prompt_attachments (response_id text, attachment_id text, "order" integer);
create table fragments (id integer primary key, hash text, content text);
create table prompt_fragments (response_id text, fragment_id integer, "order" integer);
create table system_fragments (response_id text, fragment_id integer, "order" integer);
create table tools (id integer primary key, hash text, name text, description text, input_schema text, plugin text);
create table tool_responses (tool_id integer, response_id text);
create table tool_calls (id integer primary key, response_id text, tool_id integer, name text, arguments text,
  tool_call_id text);
create table tool_results (id integer primary key, response_id text, tool_id integer, name text, output text,
  tool_call_id text);
"""
NEWER = """
create table messages (hash text primary key, parent_hash text, role text, provider_metadata text);
create table parts (id integer primary key, message_hash text, position integer, type text, tool_name text, text text,
  payload text);
create table turns (id text primary key, thread_id text, parent_message_hash text, tip_message_hash text, model text);
create table turn_tools (turn_id text, tool_id integer);
"""
SCHEMA = '{"type": "object"}'
TOOL = {"type": "function", "function": {"name": "temperature", "parameters": {"type": "object"}}}


@pytest.fixture
def database(tmp_path: Path) -> Callable[..., Path]:
    def write(layout: str, **rows: list[dict[str, Any]]) -> Path:
        path = tmp_path / "logs.db"
        with closing(sqlite3.connect(path)) as connection:
            connection.executescript(layout)
            for table, found in rows.items():
                for row in found:
                    names = ", ".join(f'"{name}"' for name in row)
                    marks = ", ".join("?" for _ in row)
                    connection.execute(f"insert into {table} ({names}) values ({marks})", list(row.values()))
            connection.commit()
        return path

    return write


def asked(path: Path) -> list[Prompt]:
    found = list(PromptFile(path, is_log=True))
    assert survey_files([PromptFile(path, is_log=True)]).prompts == len(found)
    assert all(isinstance(one, Prompt) for one in found), found
    return [one for one in found if isinstance(one, Prompt)]


def said(prompt: Prompt) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in prompt.messages or ()]


def test_a_conversation_gives_a_prompt_for_every_turn(database: Callable[..., Path]) -> None:
    path = database(
        OLDER,
        responses=[
            {"id": "3", "prompt": "alone", "response": "x", "conversation_id": None},
            {"id": "4", "prompt": "and?", "system": "Be brief.", "response": "two", "conversation_id": "b"},
            {"id": "1", "prompt": "hi", "system": "Be brief.", "response": "one", "conversation_id": "b"},
            {"id": "2", "prompt": "other", "response": "x", "conversation_id": "a"},
            {"id": "5", "prompt": "last", "system": "Be long.", "response": "three", "conversation_id": "b"},
        ],
    )
    brief, first = ("system", "Be brief."), [("user", "hi"), ("assistant", "one")]
    second = [brief, *first, ("user", "and?")]
    assert [said(one) for one in asked(path)] == [
        [("user", "alone")],
        [("user", "other")],
        [brief, ("user", "hi")],
        second,
        [*second, ("assistant", "two"), ("system", "Be long."), ("user", "last")],
    ]
    assert [one.where and one.where.number for one in asked(path)] == ["3", "2", "1", "4", "5"]
    counted = survey_files([PromptFile(path, is_log=True)])
    assert counted.to_json() == {"converted": {"llm's log": 5}, "reference_answers": 5}


def test_fragments_are_put_in_front_and_tools_and_their_results_are_kept(database: Callable[..., Path]) -> None:
    path = database(
        OLDER,
        responses=[
            {"id": "1", "prompt": "How warm?", "response": "", "conversation_id": "a"},
            {"id": "2", "prompt": "", "response": "Warm.", "conversation_id": "a"},
        ],
        fragments=[{"id": 7, "content": "a file"}, {"id": 8, "content": "rules"}, {"id": 9, "content": "more"}],
        prompt_fragments=[
            {"response_id": "1", "fragment_id": 9, "order": 1},
            {"response_id": "1", "fragment_id": 7, "order": 0},
        ],
        system_fragments=[{"response_id": "1", "fragment_id": 8, "order": 0}],
        tools=[{"id": 1, "name": "temperature", "input_schema": SCHEMA}],
        tool_responses=[{"tool_id": 1, "response_id": "1"}, {"tool_id": 1, "response_id": "2"}],
        tool_calls=[{"response_id": "1", "name": "temperature", "arguments": '{"city": "Lima"}', "tool_call_id": "c"}],
        tool_results=[{"response_id": "2", "name": "temperature", "output": "19", "tool_call_id": "c"}],
    )
    first, second = asked(path)
    assert said(first) == [("system", "rules"), ("user", "a file\nmore\nHow warm?")]
    assert first.tools == second.tools == (TOOL,)
    assert second.messages is not None
    call = {"id": "c", "type": "function", "function": {"name": "temperature", "arguments": '{"city": "Lima"}'}}
    assert second.messages[2:] == (
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "name": "temperature", "content": "19"},
    )


def test_a_turn_with_an_attachment_is_skipped_and_so_is_what_came_after_it(database: Callable[..., Path]) -> None:
    path = database(
        OLDER,
        responses=[
            {"id": "1", "prompt": "what is this?", "response": "a cat", "conversation_id": "a"},
            {"id": "2", "prompt": "sure?", "response": "yes", "conversation_id": "a"},
            {"id": "3", "prompt": "hi", "response": "x", "conversation_id": "b"},
        ],
        prompt_attachments=[{"response_id": "1", "attachment_id": "z", "order": 0}],
    )
    found = list(PromptFile(path, is_log=True))
    assert [isinstance(one, SkippedPrompt) for one in found] == [True, True, False]
    assert [one.why.reason for one in found if isinstance(one, SkippedPrompt)] == ["not text", "not text"]


def test_a_log_of_llm_before_it_had_conversations_and_tools_is_read(database: Callable[..., Path]) -> None:
    path = database(
        "create table responses (id text primary key, model text, prompt text, system text, response text)",
        responses=[{"id": "1", "prompt": "hi", "system": "", "response": "x"}, {"id": "2", "prompt": "ho"}],
    )
    assert [said(one) for one in asked(path)] == [[("user", "hi")], [("user", "ho")]]


def part(message: str, kind: str, position: int = 0, text: str | None = None, **payload: Any) -> dict[str, Any]:
    packed = json.dumps(payload) if payload else None
    return {"message_hash": message, "position": position, "type": kind, "text": text, "payload": packed}


def test_the_newer_layout_is_read_along_its_chains(database: Callable[..., Path]) -> None:
    path = database(
        OLDER + NEWER,
        fragments=[{"id": 7, "content": "a file"}],
        messages=[
            {"hash": "s", "parent_hash": None, "role": "system"},
            {"hash": "u", "parent_hash": "s", "role": "user"},
            {"hash": "a", "parent_hash": "u", "role": "assistant"},
            {"hash": "t", "parent_hash": "a", "role": "tool"},
            {"hash": "b", "parent_hash": "t", "role": "assistant"},
            {"hash": "i", "parent_hash": "b", "role": "user"},
        ],
        parts=[
            part("s", "text", text="Be brief."),
            part("u", "text", text_ref=[{"fragment": 7}, {"literal": "\nHow warm?"}]),
            part("a", "reasoning", text="hm"),
            part("a", "text", 1, text="Let me look."),
            part("a", "tool_call", 2, name="temperature", arguments={"city": "Lima"}, tool_call_id="c"),
            part("t", "tool_result", name="temperature", output="19", tool_call_id="c"),
            part("t", "tool_result", 1, name="temperature", output="", exception="no such city", tool_call_id="d"),
            part("b", "text", text="Warm."),
            part("i", "text", text="and this?"),
            part("i", "attachment", 1, attachment={"id": "z"}),
        ],
        tools=[{"id": 1, "name": "temperature", "input_schema": SCHEMA}],
        turns=[
            {"id": "1", "parent_message_hash": "u", "tip_message_hash": "a"},
            {"id": "2", "parent_message_hash": "t", "tip_message_hash": "b"},
            {"id": "3", "parent_message_hash": "i", "tip_message_hash": "?"},
            {"id": "4", "parent_message_hash": "gone", "tip_message_hash": "?"},
        ],
        turn_tools=[{"turn_id": "1", "tool_id": 1}],
        responses=[
            {"id": "1", "prompt": "the same, in the older layout", "response": "x"},
            {"id": "0", "prompt": "older", "response": "x"},
        ],
    )
    older, first, second, image, gone = PromptFile(path, is_log=True)
    assert isinstance(older, Prompt)
    assert isinstance(first, Prompt)
    assert isinstance(second, Prompt)
    assert said(older) == [("user", "older")]
    assert said(first) == [("system", "Be brief."), ("user", "a file\nHow warm?")]
    assert (first.tools, second.tools) == ((TOOL,), None)
    assert second.messages is not None
    call = {"id": "c", "type": "function", "function": {"name": "temperature", "arguments": {"city": "Lima"}}}
    assert second.messages[2:] == (
        {"role": "assistant", "content": "Let me look.", "tool_calls": [call], "reasoning_content": "hm"},
        {"role": "tool", "tool_call_id": "c", "name": "temperature", "content": "19"},
        {"role": "tool", "tool_call_id": "d", "name": "temperature", "content": "no such city"},
    )
    assert isinstance(image, SkippedPrompt)
    assert isinstance(gone, SkippedPrompt)
    assert (image.why.reason, gone.why.detail) == ("not text", "a message of its conversation is missing")


def test_nothing_is_written_to_a_log_or_beside_it(database: Callable[..., Path], tmp_path: Path) -> None:
    path = database(OLDER, responses=[{"id": "1", "prompt": "hi", "response": "x"}])
    before = path.read_bytes()
    asked(path)
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["logs.db"]


def test_nothing_is_written_beside_a_log_with_a_write_ahead_log_either(
    database: Callable[..., Path], tmp_path: Path
) -> None:
    """Which SQLite's readers do; in a directory that is read only they could not read it at all."""
    path = database(f"pragma journal_mode = wal; {OLDER}", responses=[{"id": "1", "prompt": "hi", "response": "x"}])
    (tmp_path / "link.db").symlink_to(path)
    for name in ("logs.db", "link.db"):
        assert [one.text for one in asked(tmp_path / name)] == ["hi"]
    assert sorted(one.name for one in tmp_path.iterdir()) == ["link.db", "logs.db"]


def test_a_log_that_is_being_written_to_is_read(database: Callable[..., Path]) -> None:
    path = database(OLDER, responses=[{"id": "1", "prompt": "hi", "response": "x"}])
    with closing(sqlite3.connect(path)) as writer:
        writer.execute("pragma journal_mode = wal")
        writer.execute("insert into responses (id, prompt) values ('2', 'there')")
        writer.commit()
        writer.execute("insert into responses (id, prompt) values ('3', 'not yet')")
        assert [one.text for one in asked(path)] == ["hi", "there"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"SQLite format 3\x00" + b"\x01" * 2000, "SQLite cannot read it"),
        (b"SQLite format 3\x00", "SQLite cannot read it"),
    ],
    ids=["damaged", "cut"],
)
def test_a_damaged_database_is_refused(content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "logs.db").write_bytes(content)
    with pytest.raises(PromptError, match=reason):
        survey_files([PromptFile(tmp_path / "logs.db", is_log=True)])


def test_another_database_is_refused_with_what_it_has(database: Callable[..., Path]) -> None:
    path = database("create table moz_places (id integer)")
    with pytest.raises(PromptError, match="without the tables of llm's log; it has moz_places"):
        survey_files([PromptFile(path, is_log=True)])


@pytest.mark.parametrize("table", ["responses (id text, foo text)", "turns (id text)", "responses (foo text)"])
def test_a_database_with_tables_of_the_same_name_is_refused(table: str, database: Callable[..., Path]) -> None:
    path = database(f"create table {table}; insert into {table.partition(' ')[0]} default values")
    with pytest.raises(PromptError, match=r"lack columns of llm's log|no such column"):
        survey_files([PromptFile(path, is_log=True)])


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        ("[1]", "a part of it is no object"),
        ("{", "is not JSON"),
        ('{"text_ref": [5]}', "a fragment of it is missing: 5"),
        ('{"text_ref": [{"fragment": 9}]}', "a fragment of it is missing"),
    ],
)
def test_a_turn_with_a_damaged_part_is_skipped_alone(payload: str, reason: str, database: Callable[..., Path]) -> None:
    path = database(
        OLDER + NEWER,
        messages=[{"hash": "m", "role": "user"}, {"hash": "n", "role": "user"}],
        parts=[
            {"message_hash": "m", "position": 0, "type": "text", "payload": payload},
            {"message_hash": "n", "position": 0, "type": "text", "text": "hi"},
        ],
        turns=[{"id": "1", "parent_message_hash": "m"}, {"id": "2", "parent_message_hash": "n"}],
    )
    bad, good = PromptFile(path, is_log=True)
    assert isinstance(bad, SkippedPrompt)
    assert isinstance(good, Prompt)
    assert (reason in bad.why.detail, good.text) == (True, "hi")


def test_a_conversation_that_goes_round_in_a_circle_ends(database: Callable[..., Path]) -> None:
    path = database(
        NEWER,
        messages=[{"hash": "m", "parent_hash": "n", "role": "user"}, {"hash": "n", "parent_hash": "m", "role": "user"}],
        turns=[{"id": "1", "parent_message_hash": "m"}],
    )
    (found,) = PromptFile(path, is_log=True)
    assert isinstance(found, SkippedPrompt)
    assert "circle" in found.why.detail
