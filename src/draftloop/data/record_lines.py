"""A record as one sealed line of the log, checked from its checksum to the last length. Knows no file, lock or model.

JSON cannot hold lone surrogates, and Python text that was read from a broken file can. A prompt with some is written
with U+FFFD in their places, and `prompt_surrogates` lists [index, code point] of each, so that it comes back exactly.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, get_args

import orjson
from pydantic import TypeAdapter, ValidationError

from ..store.json_values import REPLACEMENT, SURROGATE
from ..store.sealed_lines import RecordError, check_schema, dump, end_of_sealed, field_names, members, seal, unseal
from .prompt_groups import opening
from .records import SCHEMA, Record, Split

_LINE_START = re.compile(rb'\{"adapter":')  # the first of the sorted keys; inside a JSON string its quotes are escaped
_SPLIT = re.compile(rb',"split":"([a-z]+)"')
_SURROGATES = range(0xD800, 0xE000)
_LATER = {"messages": None, "tools": None, "chat_template_args": None, "simulated": False}  # where they say nothing
_RECORD = TypeAdapter(Record)


def to_line(record: Record) -> bytes:
    """The line of `record`, newline included.

    Raises:
        RecordError: it would not read back as this very record (NaN, a wrong length, a foreign type).
    """
    try:
        body = dump(_to_json(record))
    except TypeError as error:  # orjson: an integer past 64 bits, a lone surrogate outside the prompt, a foreign type
        raise RecordError(f"it cannot be written as JSON: {error}") from error
    back = from_body(body)
    if back != record:
        names = ", ".join(name for name in field_names(Record) if getattr(back, name) != getattr(record, name))
        raise RecordError(f"{names}: holds what JSON cannot keep (NaN, infinity, a list for a tuple)")
    return seal(body)


def from_line(line: bytes) -> Record:
    """The record of a line, checked from its checksum to the last length.

    Raises:
        RecordError: the line is damaged or contradicts itself.
        StoreError: it was written by a newer draftloop.
    """
    return from_body(unseal(line))


def from_body(body: bytes) -> Record:
    """The record of an unsealed JSON object. Raises as `from_line` does."""
    values = _parse(body)
    surrogates = values.pop("prompt_surrogates", None)
    try:
        record = _RECORD.validate_python(values)
        if surrogates:
            record = replace(record, prompt=_with_surrogates(record.prompt, surrogates))
    except (ValidationError, TypeError, ValueError, IndexError) as error:
        raise RecordError(_first_problem(error)) from None
    _check_lengths(record)
    _check_rounds(record)
    _check_disagreements(record)
    return record


def split_of(body: bytes) -> str:
    """The split named in an unsealed JSON object, without reading anything else of it."""
    if b'"tools":' in body:  # they come behind the split, and may have such a key too
        split = _parse(body).get("split")
        return split if isinstance(split, str) else ""
    member = _SPLIT.match(body, body.rfind(b',"split":"'))  # the last one: a message may have such a key too
    return member[1].decode() if member else ""


def source_of(body: bytes) -> str | None:
    """The source named in an unsealed JSON object, without its record. Raises as `from_line` does."""
    source = _parse(body).get("source")
    return source if isinstance(source, str) else None


def opening_and_split_of(body: bytes) -> tuple[str, Split]:
    """`Record.opening` and the split of an unsealed JSON object, without its record. Raises as `from_line` does."""
    values = _parse(body)
    prompt: Any = values.get("prompt")
    split: Any = values.get("split")
    if not isinstance(prompt, str) or split not in get_args(Split):
        raise RecordError(f"prompt and split: found {str(prompt)[:80]!r} and {split!r}, expected a text and a split")
    messages: Any = values.get("messages")
    chat = isinstance(messages, list) and all(isinstance(message, dict) for message in messages)
    return opening(prompt, messages if chat else None), split


def whole_records(data: bytes) -> Iterator[tuple[int, int]]:
    """Where whole records lie in damaged bytes, as (start, end): a newline that was lost joins two good ones."""
    done = 0
    for start in (begin.start() for begin in _LINE_START.finditer(data)):
        end = end_of_sealed(data, start) if start >= done else None  # a message may hold such a start too
        if end is not None:
            done = end
            yield start, done


def _to_json(record: Record) -> dict[str, Any]:
    values = members(record)
    for name, nothing in _LATER.items():
        if values[name] is nothing:
            del values[name]  # as lines were before there was such a thing
    values["prompt"] = SURROGATE.sub(REPLACEMENT, record.prompt)
    values["prompt_surrogates"] = [(match.start(), ord(match[0])) for match in SURROGATE.finditer(record.prompt)]
    return values


def _with_surrogates(prompt: str, surrogates: list[tuple[int, int]]) -> str:
    characters = list(prompt)
    for index, code in surrogates:
        if code not in _SURROGATES:
            raise ValueError(f"found the code point {code}, expected a lone surrogate")
        characters[index] = chr(code)
    return "".join(characters)


def _parse(body: bytes) -> dict[str, Any]:
    try:
        values = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RecordError(f"it is no JSON: {error}") from None
    if not isinstance(values, dict):
        raise RecordError("it is no JSON object")
    check_schema(values.get("schema"), SCHEMA, "record")
    return values


def _first_problem(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return f"prompt_surrogates: {error}"
    first = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: found {str(first['input'])[:80]!r}; {first['msg']}"


def _check_lengths(record: Record) -> None:
    length = len(record.target_output)
    for name in ("draft_output", "log_p", "log_q"):
        count = len(getattr(record, name))
        if count != length:
            raise RecordError(f"{name} has {count} entries, expected the {length} of target_output")


def _check_rounds(record: Record) -> None:
    start, length = 0, len(record.target_output)
    for drafted, accepted in record.rounds:
        most = min(record.num_draft_tokens, length - start)
        if start >= length or not accepted <= drafted <= most:
            raise RecordError(
                f"rounds: the one at position {start} of {length} accepted {accepted} of {drafted} proposals, "
                f"expected accepted <= drafted <= {max(most, 0)}"
            )
        start += accepted + 1
    if start - length not in (0, 1):  # the last round may end in an accepted token, without one of the target's own
        raise RecordError(f"rounds: they cover {start} tokens, expected the {length} of target_output")


def _check_disagreements(record: Record) -> None:
    recorded = tuple((d.position, d.draft_token, d.target_token) for d in record.disagreements)
    positions, start = [], 0
    for drafted, accepted in record.rounds:
        if accepted < drafted:
            positions.append(start + accepted)
        start += accepted + 1
    expected = tuple((i, record.draft_output[i], record.target_output[i]) for i in positions)
    if recorded != expected:
        raise RecordError(
            f"disagreements: found (position, draft token, target token) {str(recorded)[:200]}, "
            f"expected {str(expected)[:200]} by rounds, draft_output and target_output"
        )
