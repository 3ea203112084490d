"""Lines of text files: every encoding that says what it is, every end of a line, what is none by its number."""

from __future__ import annotations

import codecs
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from draftloop.prompts.text_lines import NoText, numbered_lines

ENCODINGS = {
    "utf-8": "utf-8",
    "utf-8 with a mark": "utf-8-sig",
    "utf-16 little": "utf-16-le",
    "utf-16 big": "utf-16-be",
    "utf-32 little": "utf-32-le",
    "utf-32 big": "utf-32-be",
}
MARKS = {
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
    "utf-32-be": codecs.BOM_UTF32_BE,
}


def lines(directory: Path, content: bytes) -> list[str]:
    """With `!` and the reason for what is no text."""
    path = directory / "file"
    path.write_bytes(content)
    found = list(numbered_lines(path))
    assert [number for number, _ in found] == list(range(1, len(found) + 1))
    return [f"!{line}" if isinstance(line, NoText) else line for _, line in found]


@pytest.mark.parametrize("name", ENCODINGS)
def test_every_encoding_that_says_what_it_is_is_read(name: str, tmp_path: Path) -> None:
    encoding = ENCODINGS[name]
    content = MARKS.get(encoding, b"") + "Grüße, 世界 🦙\r\nzwei\rdrei\n\nfünf".encode(encoding)
    assert lines(tmp_path, content) == ["Grüße, 世界 🦙", "zwei", "drei", "", "fünf"]


@given(
    wanted=st.lists(
        st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\r\n\0\ufeff"), min_size=1), max_size=20
    ),
    ends=st.lists(st.sampled_from(["\n", "\r", "\r\n"]), min_size=20, max_size=20),
    name=st.sampled_from(sorted(ENCODINGS)),
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_lines_come_back(wanted: list[str], ends: list[str], name: str, tmp_path: Path) -> None:
    encoding = ENCODINGS[name]
    text = "".join(line + end for line, end in zip(wanted, ends, strict=False))
    assert lines(tmp_path, MARKS.get(encoding, b"") + text.encode(encoding)) == wanted


@pytest.mark.parametrize("size", [1, 7, 8191, 8192, 70_000])
def test_a_bad_byte_is_named_in_its_own_line_however_far_behind(size: int, tmp_path: Path) -> None:
    """Text is decoded in pieces of some thousand bytes, and a line before the bad one must not be blamed."""
    good = ("a" * 9 + "\n") * size
    found = lines(tmp_path, good.encode() + b"caf\xe9\n" + b"last\n")
    assert (len(found), found[size - 1], found[-1]) == (size + 2, "a" * 9, "last")
    assert found[size].startswith("!it is not UTF-8: save the file as UTF-8")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"good\ncaf\xe9\n", ["good", "!it is not UTF-8"]),
        (b"a\xed\xa0\x80b", ["!it is not UTF-8"]),  # a surrogate, written as UTF-8 does not allow
        (b"cut \xe2\x82", ["!it is not UTF-8"]),
        (codecs.BOM_UTF16_LE + "a\n".encode("utf-16-le") + b"\x00\xd8b\x00", ["a", "!it is not UTF-16"]),
        (codecs.BOM_UTF16_LE + "a\nb".encode("utf-16-le")[:-1], ["a", "!it is not UTF-16"]),
        (codecs.BOM_UTF32_LE + b"\xff\xff\xff\xff", ["!it is not UTF-32"]),
        (b"a\0b\nc", ["!it has a NUL character", "c"]),
        ("ab\nc".encode("utf-16-le"), ["!it has a NUL character", "!it has a NUL character"]),
        (codecs.BOM_UTF16_LE + "a\0".encode("utf-16-le"), ["!it has a NUL character"]),
    ],
    ids=range(9),
)
def test_what_is_no_text_is_given_as_what_is_wrong_with_it(content: bytes, expected: list[str], tmp_path: Path) -> None:
    found = lines(tmp_path, content)
    assert [line.partition(":")[0] for line in found] == expected


def test_the_marks_of_files_that_were_joined_are_no_text(tmp_path: Path) -> None:
    one = codecs.BOM_UTF8 + b"one\n"
    assert lines(tmp_path, one + one) == ["one", "one"]


def test_other_ends_of_lines_than_those_of_text_files_are_part_of_a_line(tmp_path: Path) -> None:
    text = "a\x0bb\x0cc\x1cd\x85e\u2028f\u2029g"
    assert lines(tmp_path, text.encode()) == [text]
