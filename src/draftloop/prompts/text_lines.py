"""Read the numbered lines of a text file in UTF-8, or with a mark in UTF-16 or UTF-32; name lines that are no text."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from pathlib import Path

_ENCODINGS = (  # longest mark first: that of UTF-32 begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)
_MARK = "\ufeff"
_UNDECODED = "\udcff"  # a lone surrogate, which no decoder gives: it stands for bytes that are none of the encoding's
_HANDLER = "draftloop.undecoded"

codecs.register_error(_HANDLER, lambda error: (_UNDECODED, error.end))  # type: ignore[attr-defined]


class NoText(Exception):
    """A line that is no text, and why."""


def numbered_lines(path: Path) -> Iterator[tuple[int, str | NoText]]:
    """Every line with its number from 1, without its end, one at a time.

    Lines end as in any text file: in a line feed, a carriage return, or both. A line that is no text in the file's
    encoding, or has a NUL, is given as what is wrong with it.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        name = encoding(file.read(4))
        file.seek(0)
        stated = name.partition("-sig")[0].upper()
        with io.TextIOWrapper(file, encoding=name, errors=_HANDLER, newline=None) as lines:
            for number, line in enumerate(lines, 1):
                yield number, _checked(line.removesuffix("\n").removeprefix(_MARK), stated)


def encoding(start: bytes) -> str:
    """Python's name of the encoding that the first four bytes of a file tell."""
    return next((name for mark, name in _ENCODINGS if start.startswith(mark)), "utf-8")


def _checked(line: str, stated: str) -> str | NoText:
    if _UNDECODED in line:
        return NoText(f"it is not {stated}: save the file as UTF-8, or as UTF-16 with its mark")
    if "\0" in line:
        return NoText("it has a NUL character: if the file is UTF-16, it needs its mark, or save it as UTF-8")
    return line
