"""A line of JSON with a checksum, so that any changed byte is seen. Knows no record and no file.

A sealed line is a JSON object with sorted keys and no spaces whose last member is `checksum`: the first 16 hex digits
of the sha256 of the same object without it.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import fields
from functools import cache
from typing import Any

import orjson

from ..errors import StoreError

_SEAL_LENGTH = len(',"checksum":"0123456789abcdef"}')
_SEAL_END = re.compile(rb',"checksum":"[0-9a-f]{16}"\}')


class RecordError(StoreError):
    """A line that is no whole, valid record; the message is the reason."""


def dump(value: Any) -> bytes:
    """Canonical JSON: sorted keys, no spaces. Dataclasses become objects."""
    return orjson.dumps(value, default=members, option=orjson.OPT_SORT_KEYS | orjson.OPT_PASSTHROUGH_DATACLASS)


def seal(body: bytes) -> bytes:
    """A JSON object with its checksum put in as its last member, and a newline."""
    return body[:-1] + _checksum(hashlib.sha256(body)) + b"}\n"


def unseal(line: bytes) -> bytes:
    """The JSON object that was sealed in `line`; the newline may be missing.

    Raises:
        RecordError: not one byte may differ from what `seal` made.
    """
    line = line.removesuffix(b"\n")
    body = line[:-_SEAL_LENGTH] + b"}"
    if not _SEAL_END.fullmatch(line[-_SEAL_LENGTH:]):
        raise RecordError("it does not end in a checksum: cut short, or its end is damaged")
    if seal(body) != line + b"\n":
        raise RecordError("its checksum does not match: it was changed after it was written")
    return body


def check_schema(schema: object, known: int, what: str) -> None:
    """Refuse what a newer draftloop wrote.

    Raises:
        RecordError: `schema` is no schema number.
        StoreError: `schema` is newer than `known`.
    """
    if type(schema) is not int or schema < 1:
        raise RecordError(f"schema: found {schema!r}, expected a number from 1 to {known}")
    if schema > known:
        raise StoreError(
            f"A {what} has schema {schema}; this draftloop reads schemas up to {known}. "
            "Update draftloop to work with this data directory."
        )


def end_of_sealed(data: bytes, start: int) -> int | None:
    """Where the sealed object that begins at `start` ends; None where none does. A message may hold such an end too."""
    so_far, at = hashlib.sha256(), start
    for end in _SEAL_END.finditer(data, start):
        so_far.update(data[at : end.start()])
        at = end.start()
        of_it = so_far.copy()
        of_it.update(b"}")
        if end[0] == _checksum(of_it) + b"}":
            return end.end()
    return None


def members(value: Any) -> dict[str, Any]:
    """The fields of a dataclass by name, in one level. Raises TypeError: it is none."""
    try:
        return {name: getattr(value, name) for name in field_names(type(value))}  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{value!r} is of type {type(value).__name__}") from None


@cache
def field_names(of: type[Any]) -> tuple[str, ...]:
    """The names of a dataclass's fields; called several times per token. Raises TypeError: it is none."""
    return tuple(field.name for field in fields(of))


def _checksum(of: hashlib._Hash) -> bytes:
    """The last member of a line."""
    return b',"checksum":"' + of.hexdigest()[:16].encode() + b'"'
