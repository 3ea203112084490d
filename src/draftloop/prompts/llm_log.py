"""Read prompts from the `logs.db` of simonw/llm, each with the conversation before it.

It has two layouts. Up to llm 0.31 there is a row of `responses` for each answer, whose conversation is gathered here;
since then there are chains of `messages` in `parts`, and a row of `turns` says at which of them an answer was asked
for. A database that was carried over has both.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from ..errors import PromptError
from ..store.json_values import why_not_kept
from .chat_messages import NoPrompt, chat_prompt
from .formats import Converted
from .prompt import Place, SkippedPrompt

FORMAT = "llm's log"
_MAGIC = b"SQLite format 3\x00"
_WAL_AT, _WAL = 18, b"\x02"  # of the file: the version that is needed to write to it


def is_database(path: Path) -> bool:
    """Whether a file is one of SQLite. Raises OSError: it cannot be read."""
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def logged_prompts(path: Path) -> Iterator[Converted | SkippedPrompt]:
    """The prompts of the log: one for every turn of a conversation, in order.

    Raises:
        PromptError: it is no log of llm, or damaged.
    """
    try:
        with closing(_opened(path)) as database:
            tables = {row["name"] for row in database.execute("select name from sqlite_master")}
            if not tables & {"responses", "turns"}:
                names = ", ".join(sorted(tables)[:6]) or "none"
                raise PromptError(f"{path}: a database without the tables of llm's log; it has {names}")
            if "responses" in tables:
                yield from _Responses(path, database, tables).prompts()
            if "turns" in tables:
                yield from _Turns(path, database, tables).prompts()
    except sqlite3.Error as error:
        raise PromptError(f"{path}: SQLite cannot read it: {error}") from None
    except IndexError:  # a row of sqlite3 has no such column
        raise PromptError(f"{path}: a database whose tables lack columns of llm's log") from None


def _opened(path: Path) -> sqlite3.Connection:
    """For reading; nothing is written beside it, and a program that writes to it is not waited for long.

    Where it has a write-ahead log, even a reader would write beside it. It is read as a file that nobody changes then,
    unless that log is there: somebody has it open.
    """
    path = path.resolve()
    with path.open("rb") as file:
        at_rest = file.read(_WAL_AT + 1)[_WAL_AT:] == _WAL and not path.with_name(f"{path.name}-wal").exists()
    how = "immutable=1" if at_rest else "mode=ro"
    database = sqlite3.connect(f"{path.as_uri()}?{how}", uri=True, timeout=10)
    database.row_factory = sqlite3.Row
    return database


class _Layout:
    """What both layouts have."""

    def __init__(self, path: Path, database: sqlite3.Connection, tables: set[str]) -> None:
        self._path, self._database, self._tables = path, database, tables

    def _rows(self, tables: str, query: str, *values: Any) -> list[sqlite3.Row]:
        """Of a query; none where this database is older than its tables."""
        return list(self._database.execute(query, values)) if set(tables.split()) <= self._tables else []

    def _asked(
        self, row_id: str, messages: list[dict[str, Any]], tools: list[sqlite3.Row]
    ) -> Converted | SkippedPrompt:
        where = Place("answer", row_id, str(self._path))
        try:
            described = [_tool(row) for row in tools]
            why = why_not_kept([messages, described])
            if why:
                raise NoPrompt(why)
            prompt, _ = chat_prompt(messages, described)
        except NoPrompt as error:
            return SkippedPrompt(where, error.why)
        return Converted(prompt.at(where), FORMAT, answers=1)


class _Responses(_Layout):
    """The older layout."""

    def prompts(self) -> Iterator[Converted | SkippedPrompt]:
        """A conversation's rows stand together, and its messages grow with each."""
        columns = {row["name"] for row in self._database.execute("pragma table_info(responses)")}
        talk = "conversation_id" if "conversation_id" in columns else "null"
        since = "where id not in (select id from turns)" if "turns" in self._tables else ""
        places = f"select id, {talk} as talk from responses {since} order by talk, id"  # noqa: S608 - no input in it
        current, before = object(), list[dict[str, Any]]()
        for place in self._database.execute(places):
            if place["talk"] is None or place["talk"] != current:
                current, before = place["talk"], []
            row = self._database.execute("select * from responses where id is ?", [place["id"]]).fetchone()
            asked = [*before, *self._given(row, before)]
            query = "select t.* from tools t join tool_responses r on r.tool_id = t.id where r.response_id = ?"
            yield self._asked(row["id"], asked, self._rows("tools tool_responses", query, row["id"]))
            before = [*asked, self._answer(row)]

    def _given(self, row: sqlite3.Row, before: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """What this turn added to its conversation: a system prompt where it is a new one, results of tools, a text."""
        system, asked = self._joined("system", row), self._joined("prompt", row)
        if system and all(message["content"] != system for message in before if message["role"] == "system"):
            yield {"role": "system", "content": system}
        query = "select * from tool_results where response_id = ? order by id"
        results = self._rows("tool_results", query, row["id"])
        for result in results:
            called = {"tool_call_id": result["tool_call_id"], "name": result["name"]}
            yield {"role": "tool", **called, "content": result["output"]}
        files = self._rows("prompt_attachments", "select 1 from prompt_attachments where response_id = ?", row["id"])
        if files or asked or not results:
            yield {"role": "user", "content": [{"type": "attachment"}] if files else asked}

    def _joined(self, which: str, row: sqlite3.Row) -> str:
        """The fragments of a prompt or a system prompt, and its text below them."""
        query = (
            f"select f.content from fragments f join {which}_fragments p on p.fragment_id = f.id "  # noqa: S608
            'where p.response_id = ? order by p."order"'
        )
        fragments = [fragment["content"] for fragment in self._rows(f"fragments {which}_fragments", query, row["id"])]
        return "\n".join(text for text in [*fragments, row[which]] if isinstance(text, str) and text)

    def _answer(self, row: sqlite3.Row) -> dict[str, Any]:
        query = "select * from tool_calls where response_id = ? order by id"
        calls = [
            _call(call["tool_call_id"], call["name"], call["arguments"] or "{}")
            for call in self._rows("tool_calls", query, row["id"])
        ]
        return {"role": "assistant", "content": row["response"], "tool_calls": calls or None}


class _Turns(_Layout):
    """The newer layout."""

    def prompts(self) -> Iterator[Converted | SkippedPrompt]:
        """Of each turn the chain of messages that it was asked with."""
        query = "select t.* from tools t join turn_tools u on u.tool_id = t.id where u.turn_id = ? order by t.id"
        for turn in self._database.execute("select id, parent_message_hash from turns order by id"):
            try:
                messages = self._chain(turn["parent_message_hash"])
            except NoPrompt as error:
                yield SkippedPrompt(Place("answer", turn["id"], str(self._path)), error.why)
                continue
            yield self._asked(turn["id"], messages, self._rows("tools turn_tools", query, turn["id"]))

    def _chain(self, tip: str | None) -> list[dict[str, Any]]:
        """The messages from the first one to `tip`."""
        messages: list[dict[str, Any]] = []
        met: set[str] = set()
        while tip is not None:
            if tip in met:
                raise NoPrompt("its conversation goes round in a circle")
            met.add(tip)
            row = self._database.execute("select * from messages where hash = ?", [tip]).fetchone()
            if row is None:
                raise NoPrompt("a message of its conversation is missing")
            messages[:0] = self._messages(row)
            tip = row["parent_hash"]
        return messages

    def _messages(self, row: sqlite3.Row) -> list[dict[str, Any]]:
        """One message; of results of tools, one for each."""
        query = "select * from parts where message_hash = ? order by position"
        parts = [self._part(part) for part in self._database.execute(query, [row["hash"]])]
        results = [
            {
                "role": "tool",
                "tool_call_id": part.get("tool_call_id"),
                "name": part.get("name"),
                "content": part.get("output") or part.get("exception"),
            }
            for part in parts
            if part["type"] == "tool_result"
        ]
        calls = [
            _call(part.get("tool_call_id"), part.get("name"), part.get("arguments"))
            for part in parts
            if part["type"] == "tool_call"
        ]
        said = [part for part in parts if part["type"] not in ("tool_result", "tool_call", "reasoning")]
        if results and not said:
            return results
        thought = "".join(part.get("text") or "" for part in parts if part["type"] == "reasoning")
        whole = {
            "role": row["role"],
            "content": said,
            "tool_calls": calls or None,
            "reasoning_content": thought or None,
        }
        return [*results, whole]

    def _part(self, row: sqlite3.Row) -> dict[str, Any]:
        payload = _loaded(row["payload"]) or {}
        if not isinstance(payload, dict):
            raise NoPrompt(f"a part of it is no object: {str(payload)[:40]}")
        part = {**payload, "type": row["type"]}
        if row["text"] is not None:
            part["text"] = row["text"]
        elif isinstance(payload.get("text_ref"), list):
            part["text"] = "".join(map(self._piece, payload["text_ref"]))
        return part

    def _piece(self, piece: Any) -> str:
        """Of a text that borrows from fragments."""
        known = piece if isinstance(piece, dict) else {}
        if isinstance(known.get("literal"), str):
            return str(known["literal"])
        if isinstance(known.get("fragment"), int | str):
            for row in self._rows("fragments", "select content from fragments where id = ?", known["fragment"]):
                return str(row["content"])
        raise NoPrompt(f"a fragment of it is missing: {str(piece)[:40]}")


def _call(call_id: str | None, name: str | None, arguments: Any) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _tool(row: sqlite3.Row) -> dict[str, Any]:
    parameters = _loaded(row["input_schema"])
    function = {"name": row["name"], "description": row["description"], "parameters": parameters}
    return {"type": "function", "function": {key: value for key, value in function.items() if value is not None}}


def _loaded(text: str | None) -> Any:
    try:
        return json.loads(text) if text else None
    except (ValueError, RecursionError) as error:
        raise NoPrompt(f"{text[:40] if text else ''!r} is not JSON: {error}") from None
