"""Small files that are replaced whole: a JSON object with a schema number and a checksum. Knows no meaning."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import orjson
from pydantic import TypeAdapter, ValidationError

from ..errors import StoreError
from .atomic import write_atomically
from .files import Files, reading, storing
from .sealed_lines import RecordError, check_schema, dump, seal, unseal

Value = TypeVar("Value")


class DamagedFile(StoreError):
    """A file that is not what was written; a newer draftloop's file is none of these."""


def read_sealed(path: Path, kind: TypeAdapter[Value], schema: int, remedy: str) -> Value | None:
    """What a file holds; None where there is none.

    Args:
        path: the file.
        kind: of the value, which has its schema number under `schema`.
        schema: the newest that is known.
        remedy: what to do about damage, in a sentence.

    Raises:
        DamagedFile: it is not what was written.
        AccessDenied: this user may not read it.
        StoreError: a newer draftloop wrote it.
    """
    try:
        with reading(path):
            values = orjson.loads(unseal(path.read_bytes()))
        check_schema(values.get("schema"), schema, path.name)
        return kind.validate_python(values)
    except FileNotFoundError:
        return None
    except (RecordError, ValidationError, ValueError) as error:
        raise DamagedFile(f"{path} is damaged: {' '.join(str(error).split())}. {remedy}") from None


def write_sealed(path: Path, value: Any, files: Files) -> None:
    """Put a value in the place of what the file holds, at once and durably; its directory is made.

    Raises:
        StoreError: the disk refused, and what was there is there still.
    """
    with storing(path):
        files.make_directory(path.parent)
        write_atomically(path, seal(dump(value)), files, full=True)
